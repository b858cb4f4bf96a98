"""Collects, forward step by forward step, what a plan asks for while the unmodified model runs.

    with recording(anatomy, plan, prompts) as recorder:
        out = model.generate(...)
    recorder.hidden_of(sample=0, source=[0, 0, 0])

It visits each pass (``inside/passes.py``): the blocks bring hidden states, attention calls bring rows; of both only the
wanted positions are kept, and go to the CPU at the end of each step.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from llava_probe.asking.tower import Tower
from llava_probe.errors import BadInput, BadModel, NotANumber
from llava_probe.inside.anatomy import Anatomy, Stack
from llava_probe.inside.passes import Prompt, Span, Visitor, visiting
from llava_probe.inside.rows import Call
from llava_probe.trace.capture import Plan, Selection


@dataclass
class _Kind:
    """What was recorded of one kind, hidden states or attention rows.

    ``steps`` holds a [batch, queries, layers, ...] tensor for each forward with predicting rows; ``prompt`` for each
    sample and layer its wanted prompt rows, in chunks. Under beams only a sample's first row is read for the prompt.
    """

    selection: Selection
    wanted: list[list[int]] = field(default_factory=list)
    steps: list[Tensor] = field(default_factory=list)
    prompt: list[dict[int, list[Tensor]]] = field(default_factory=list)
    current: dict[int, Tensor] = field(default_factory=dict)

    def want(self, prompts: Sequence[Prompt]) -> None:
        """Settle which positions of each prompt are kept."""
        self.wanted = [self.selection.in_prompt(each.length, each.image_positions) for each in prompts]


class Recorder(Visitor):
    """What one run leaves. Made by ``recording``.

    Attributes:
        logits: [batch, V] of each step in float32: our own copy, since a logits processor may write into the tensor
            that ``generate`` would keep.
    """

    def __init__(self, anatomy: Anatomy, plan: Plan, prompts: Sequence[Prompt], decoding: bool) -> None:
        self.anatomy, self.plan, self.prompts = anatomy, plan, list(prompts)
        self.tower = Tower(anatomy) if plan.vision else None
        self._kinds = [_Kind(plan.hidden), _Kind(plan.attention)]
        for name, kind in zip(("positions", "attention_positions"), self._kinds, strict=True):
            kind.want(self.prompts)
            if kind.selection.layers and not kind.selection.predicting and not all(kind.wanted):
                places = list(kind.selection.places)
                raise BadInput(f"Capture({name}={places}) names no position of a prompt without a picture")
            kind.prompt = [{layer: [] for layer in kind.selection.layers} for _ in self.prompts]
        self._hidden, self._attention = self._kinds
        self._all_heads = all(len(plan.heads) == anatomy.head_counts[layer] for layer in plan.attention.layers)
        self._span: Span | None = None
        self._predicting = range(0)
        self._widths: dict[int, tuple[int, ...]] = {}
        self._releasing = False
        self._keeps_logits = decoding and bool(plan.capture.logits)
        self.logits: list[Tensor] = []

    # --- what it hears of ---

    def hears(self, method: str) -> bool:
        """Of attention only where rows are kept, so that nothing stands in the kernels' place without need."""
        if method == "attended":
            return bool(self.plan.attention.layers) or self.tower is not None
        return super().hears(method)

    def stacks(self, anatomy: Anatomy) -> tuple[Stack | None, ...]:
        """The decoder, and the tower where it is recorded."""
        return (anatomy.decoder,) if self.tower is None else (anatomy.decoder, self.tower.stack)

    def unfused(self, anatomy: Anatomy) -> tuple[Stack, ...]:
        """The decoder, where its rows are kept."""
        return (anatomy.decoder,) if self.plan.attention.layers else ()

    # --- one forward pass ---

    def begin(self, span: Span) -> None:
        """A forward pass starts."""
        if self._span is None and span.prompts[0].length != self.prompts[0].length:
            self.prompts = list(span.prompts)
            for kind in self._kinds:
                kind.want(self.prompts)
        self._span = span
        self._predicting = range(max(span.fresh, span.prompt_end - 1), span.stop)

    def state(self, stack: Stack, layer: int, hidden: Tensor) -> None:
        """Hidden state ``layer`` of this pass: [batch, queries, width], or with streams before or after the batch."""
        if stack is not self.anatomy.decoder:
            if self.tower is not None:
                self.tower.saw(layer, hidden)
            return
        span = self._now
        if layer in self._hidden.selection.layers:
            fed = (span.rows, span.length)
            if hidden.ndim == 4 and hidden.shape[:2] != fed and hidden.shape[1:3] == fed:
                hidden = hidden.movedim(0, 2)  # [streams, batch, queries, width]
            self._widths[layer] = tuple(hidden.shape[2:])
            self._record(self._hidden, layer, hidden.shape[:2], lambda row, at: hidden[row, at])
        if layer == self.anatomy.layers:
            self._close()

    def attended(self, call: Call, output: Tensor | None) -> None:
        """An attention call of the decoder or the vision tower, as the kernel got it."""
        if call.unread:
            return
        if call.stack is not self.anatomy.decoder:
            if self.tower is not None:
                self.tower.looked(call.layer, call.rows())
            return
        if call.layer not in self._attention.selection.layers:
            return
        heads = None if self._all_heads else torch.tensor(self.plan.heads, device=call.device)

        def rows(row: slice, at: slice | Tensor) -> Tensor:
            part = call if row == slice(None) else call.of_row(row)
            index = None if call.queries == 1 else torch.arange(call.queries, device=call.device)[at]
            return self._aligned(part.rows(index, heads)).transpose(1, 2)

        self._record(self._attention, call.layer, (call.sizes[0], call.queries), rows)

    def end(self, span: Span, logits: Tensor) -> None:
        """The logits of the pass that has just ended."""
        if bool(torch.isnan(logits[:, -1]).any()):
            raise NotANumber(
                f"the model's logits are NaN at token {span.stop - span.prompt_end} of the answer; "
                "float16 overflows in many of these models: load with dtype='bfloat16' or 'float32'"
            )
        if self._keeps_logits and span.stop >= span.prompt_end:
            self.logits.append(logits[:, -1].detach().to(torch.float32, copy=True))

    def _close(self) -> None:
        """The decoder is done: move its rows to the CPU."""
        if self.tower is not None and self._now.stop >= self._now.prompt_end:
            self.tower.close()
        self._narrow()
        for kind in self._kinds:
            if not kind.selection.predicting or not self._predicting:
                continue
            missing = [layer for layer in kind.selection.layers if layer not in kind.current]
            if missing:
                raise BadModel(
                    f"layers {missing} of {type(self.anatomy.decoder.owner).__name__} gave no "
                    f"{'hidden states' if kind is self._hidden else 'attention rows'}; leave them out of the Capture"
                )
            rows = [kind.current.pop(layer) for layer in kind.selection.layers]
            kind.steps.append(torch.stack([row.to(rows[0].device) for row in rows], dim=2).cpu())

    # --- reading it back ---

    @property
    def started(self) -> bool:
        """Whether a forward pass has begun."""
        return self._span is not None

    @property
    def hidden_layers(self) -> tuple[int, ...]:
        """Whose hidden states are kept."""
        return self._hidden.selection.layers

    @property
    def wants_prompt(self) -> bool:
        """Whether rows of the prompt are wanted that predict nothing."""
        return any(places for kind in self._kinds for places in kind.wanted)

    def release(self) -> None:
        """What is read from now on is read once: let go of each step as it is read, so that nothing is held twice."""
        self._releasing = True

    def hidden_of(self, sample: int, source: Sequence[int]) -> tuple[Tensor, list[int]]:
        """Hidden states of one sequence: [positions, layers, width] and the positions.

        ``source[t]`` is the batch row that predicted its token ``t`` (the beam's, under beam search).
        """
        return self._collect(self._hidden, sample, source, keys=None)

    def attention_of(self, sample: int, source: Sequence[int]) -> tuple[Tensor, list[int]]:
        """Attention rows of one sequence: [positions, layers, heads, keys], zero where there is no key."""
        prompt = self.prompts[sample]
        last = prompt.length + (len(source) - 1 if self._attention.selection.predicting else 0)
        return self._collect(self._attention, sample, source, keys=last)

    def _collect(self, kind: _Kind, sample: int, source: Sequence[int], keys: int | None) -> tuple[Tensor, list[int]]:
        prompt = self.prompts[sample]
        wanted = kind.wanted[sample]
        length = len(source) if kind.selection.predicting else 0
        places = [(step, query) for step, rows in enumerate(kind.steps) for query in range(rows.shape[1])][:length]
        sizes = {layer: torch.cat(_padded(chunks)) for layer, chunks in kind.prompt[sample].items() if chunks}
        example = kind.steps[0][0, 0] if length else torch.stack(list(sizes.values()), dim=1)[0]
        shape = (*example.shape[:-1], example.shape[-1] if keys is None else keys)
        out = torch.zeros(len(wanted) + length, *shape, dtype=example.dtype)
        for column, layer in enumerate(kind.selection.layers):
            if wanted:
                _place(out[: len(wanted), column], sizes[layer], prompt.padding, keys)
        for t, (step, query) in enumerate(places):
            _place(out[len(wanted) + t], kind.steps[step][source[t], query], prompt.padding, keys)
            if self._releasing and query == kind.steps[step].shape[1] - 1:
                kind.steps[step] = torch.empty(0)
        return out, wanted + [prompt.length - 1 + t for t in range(length)]

    # --- details ---

    @property
    def _now(self) -> Span:
        """The pass that runs."""
        assert self._span is not None
        return self._span

    def _narrow(self) -> None:
        """Hidden states of several streams a layer are left out, unless they alone were asked for."""
        if len(set(self._widths.values())) < 2:
            return
        name, last = type(self.anatomy.decoder.owner).__name__, self._widths.get(self.anatomy.layers)
        told = " and ".join(str(list(width)) for width in sorted(set(self._widths.values())))
        if self.plan.capture.layers is not None or last is None:
            raise BadModel(f"hidden states of {name} have different shapes ({told}); ask for layers of one shape")
        warnings.warn(
            f"hidden states of {name} have different shapes ({told}), because its layers carry several streams: only "
            f"those like the last one are kept; Capture(layers=[...]) with others alone keeps them as they are",
            stacklevel=2,
        )
        kind = self._hidden
        kept = tuple(layer for layer in kind.selection.layers if self._widths[layer] == last)
        kind.selection = replace(kind.selection, layers=kept)
        kind.prompt = [{layer: sample[layer] for layer in kept} for sample in kind.prompt]
        self._widths = dict.fromkeys(kept, last)

    def _record(self, kind: _Kind, layer: int, shape: Sequence[int], read: Callable[..., Tensor]) -> None:
        """Keep what is wanted of one layer of this pass.

        Args:
            kind: hidden states or attention rows.
            layer: which.
            shape: batch rows and queries of the tensor at hand. A model that puts its picture before the prompt has
                more queries than tokens; one that skips work in its last layers has fewer, the last ones.
            read: ``read(rows, queries)`` of it: [rows, queries, ...].
        """
        span = self._now
        batch, queries = shape
        first = span.start_of(queries) - span.before
        if kind.selection.predicting and self._predicting:
            steps = slice(self._predicting.start - first, self._predicting.stop - first)
            kind.current[layer] = read(slice(None), steps).clone()
        if span.fresh >= span.prompt_end:
            return
        copies = batch // len(self.prompts)
        for sample, (prompt, wanted) in enumerate(zip(self.prompts, kind.wanted, strict=True)):
            places = [at + prompt.padding for at in wanted if span.fresh <= at + prompt.padding < span.stop]
            if places and places[0] < first:
                raise BadModel(
                    f"layer {layer} of {type(self.anatomy.decoder.owner).__name__} runs for the end of the prompt only"
                )
            if places:
                at = torch.tensor([place - first for place in places])
                row = slice(sample * copies, sample * copies + 1)
                kind.prompt[sample][layer].append(read(row, at)[0].cpu())

    def _aligned(self, rows: Tensor) -> Tensor:
        """Rows over exactly the tokens seen: a static cache hands over more keys, a sliding one fewer."""
        keys = self._now.before + self._now.stop
        missing = keys - rows.shape[-1]
        rows = rows[..., :keys] if missing <= 0 else nn.functional.pad(rows, (missing, 0))
        return rows[..., self._now.before :]


def _padded(chunks: list[Tensor]) -> list[Tensor]:
    """Chunks of rows over growing numbers of keys, all as wide as the last."""
    width = max(chunk.shape[-1] for chunk in chunks)
    return [nn.functional.pad(chunk, (0, width - chunk.shape[-1])) for chunk in chunks]


def _place(out: Tensor, rows: Tensor, padding: int, keys: int | None) -> None:
    if keys is None:
        out.copy_(rows)
    else:
        rows = rows[..., padding:]
        out[..., : rows.shape[-1]] = rows


@contextmanager
def recording(anatomy: Anatomy, plan: Plan, prompts: Sequence[Prompt], *, decoding: bool = True) -> Iterator[Recorder]:
    """Record what ``plan`` asks for while the context lasts. One run at a time per model."""
    recorder = Recorder(anatomy, plan, prompts, decoding)
    with visiting(anatomy, recorder, prompts=prompts, decoding=decoding):
        yield recorder
