"""Collects, forward step by forward step, what a plan asks for while the unmodified model runs.

    with recording(anatomy, plan, prompts) as recorder:
        out = model.generate(...)
    recorder.hidden(sample=0, source=[0, 0, 0])

Forward hooks on the blocks bring hidden states, the attention twin (``rows.py``) brings rows; both keep only the
wanted positions and go to the CPU at the end of each step. Everything is undone when the context ends.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from llava_probe.anatomy import Anatomy, Stack
from llava_probe.capture import Plan, Selection
from llava_probe.errors import BadInput, BadModel, NotANumber
from llava_probe.rows import attention_rows, eager_where_unread, routed
from llava_probe.tower import Tower

_recorder: ContextVar[Recorder | None] = ContextVar("llava_probe_recorder", default=None)
_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()


@dataclass(frozen=True)
class Prompt:
    """One sample of a batch: ``length`` tokens after ``padding`` pad tokens, and where its visual tokens are."""

    length: int
    padding: int
    image_positions: tuple[int, ...]


@dataclass
class _Kind:
    """What was recorded of one kind, hidden states or attention rows.

    ``steps`` holds a [batch, queries, layers, ...] tensor for each forward with predicting rows; ``prompt`` for each
    sample and layer its wanted prompt rows, in chunks. Under beams only a sample's first row is read for the prompt.
    """

    selection: Selection
    wanted: list[list[int]]
    steps: list[Tensor] = field(default_factory=list)
    prompt: list[dict[int, list[Tensor]]] = field(default_factory=list)
    current: dict[int, Tensor] = field(default_factory=dict)


class Recorder:
    """The sink of one run. Made by ``recording``."""

    def __init__(self, anatomy: Anatomy, plan: Plan, prompts: Sequence[Prompt]) -> None:
        self.anatomy, self.plan, self.prompts = anatomy, plan, list(prompts)
        self.tower = Tower(anatomy) if plan.vision else None
        self._kinds = [
            _Kind(selection, [selection.in_prompt(p.length, p.image_positions) for p in self.prompts])
            for selection in (plan.hidden, plan.attention)
        ]
        for name, kind in zip(("positions", "attention_positions"), self._kinds, strict=True):
            if kind.selection.layers and not kind.selection.predicting and not all(kind.wanted):
                places = list(kind.selection.places)
                raise BadInput(f"Capture({name}={places}) names no position of a prompt without a picture")
            kind.prompt = [{layer: [] for layer in kind.selection.layers} for _ in self.prompts]
        self._hidden, self._attention = self._kinds
        self._prompt_end = self.prompts[0].length + self.prompts[0].padding
        self._all_heads = all(len(plan.heads) == anatomy.head_counts[layer] for layer in plan.attention.layers)
        self._batch = self._seen = self._start = self._end = 0
        self._widths: dict[int, tuple[int, ...]] = {}
        self._before = 0  # places ahead of the prompt, where a model puts its picture there itself
        self._running = self._judging = False
        self._cache: Any = None
        self._started = False
        self._releasing = False

    # --- one forward pass ---

    def begin(self, batch: int, queries: int, cache: Any) -> None:
        """A forward pass of [batch, queries] tokens starts; passes beside the main loop (guidance) are ignored."""
        if not self._started:
            self._cache, self._started = cache, True
            if self.anatomy.generator is not self.anatomy.model and queries < self._prompt_end:
                self._shorten(self._prompt_end - queries)
        elif not self._continues(queries, cache):
            return
        self._running = True
        self._batch = batch
        self._start = 0 if cache is None else self._seen
        self._end = self._start + queries
        self._predicting = range(max(self._seen, self._prompt_end - 1), self._end)

    def end(self) -> None:
        """The forward pass is over: move its rows to the CPU."""
        if not self._running:
            return
        self._running, self._judging = False, True
        self._seen = self._end
        if self.tower is not None and self._seen >= self._prompt_end:
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

    def judge(self, logits: Tensor) -> None:
        """The logits of the pass that has just ended."""
        if self._judging and bool(torch.isnan(logits[:, -1]).any()):
            raise NotANumber(
                f"the model's logits are NaN at token {self._end - self._prompt_end} of the answer; "
                "float16 overflows in many of these models: load with dtype='bfloat16' or 'float32'"
            )
        self._judging = False

    # --- what the hooks call ---

    def state(self, layer: int, hidden: Tensor) -> None:
        """Hidden state ``layer`` of this pass: [batch, queries, width], or with streams before or after the batch."""
        if self._running and layer in self._hidden.selection.layers:
            fed = (self._batch, self._end - self._start)
            if hidden.ndim == 4 and hidden.shape[:2] != fed and hidden.shape[1:3] == fed:
                hidden = hidden.movedim(0, 2)  # [streams, batch, queries, width]
            self._widths[layer] = tuple(hidden.shape[2:])
            self._record(self._hidden, layer, hidden.shape[:2], lambda row, at: hidden[row, at])

    def attended(
        self, module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, kwargs: dict[str, Any]
    ) -> None:
        """An attention call of the decoder or the vision tower, as the kernel got it."""
        layer = self.anatomy.decoder.attentions.get(id(module))
        if layer is None:
            if self.tower is not None and id(module) in self.tower.stack.attentions:
                self.tower.looked(module, attention_rows(module, query, key, mask, kwargs, index=None, start=0))
            return
        if not self._running or layer not in self._attention.selection.layers:
            return
        heads = None if self._all_heads else torch.tensor(self.plan.heads, device=query.device)

        def rows(row: slice, at: slice | Tensor) -> Tensor:
            part = {
                name: value[row] if value is not None and value.shape[0] > 1 else value
                for name, value in (("mask", mask), ("position_bias", kwargs.get("position_bias")))
            }
            index = torch.arange(query.shape[2], device=query.device)[at]
            found = attention_rows(
                module,
                query[row],
                key[row],
                part["mask"],
                kwargs | {"position_bias": part["position_bias"]},
                index=None if len(index) == query.shape[2] else index,
                start=self._end + self._before - query.shape[2],
                heads=heads,
            )
            return self._aligned(found).transpose(1, 2)

        self._record(self._attention, layer, (query.shape[0], query.shape[2]), rows)

    def weighed(self, module: nn.Module, weights: Tensor) -> None:
        """Whole attention weights that an eager module gave of itself: [batch, heads, queries, keys]."""
        layer = self.anatomy.decoder.attentions.get(id(module))
        if layer is None:
            if self.tower is not None:
                self.tower.looked(module, weights)
        elif self._running and layer in self._attention.selection.layers:
            rows = self._aligned(weights[:, list(self.plan.heads)]).transpose(1, 2)
            self._record(self._attention, layer, rows.shape[:2], lambda row, at: rows[row, at])

    # --- reading it back ---

    @property
    def started(self) -> bool:
        """Whether the decoder has begun to read the prompt."""
        return self._started

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

    def hidden(self, sample: int, source: Sequence[int]) -> tuple[Tensor, list[int]]:
        """Hidden states of one sequence: [positions, layers, width] and the positions.

        ``source[t]`` is the batch row that predicted its token ``t`` (the beam's, under beam search).
        """
        return self._collect(self._hidden, sample, source, keys=None)

    def attention(self, sample: int, source: Sequence[int]) -> tuple[Tensor, list[int]]:
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

    def _continues(self, queries: int, cache: Any) -> bool:
        """Whether a pass goes on where the last one ended; some models wrap their cache anew after the first pass."""
        if cache is None:
            return self._cache is None and queries == self._seen + 1
        return cache is self._cache or (self._cache is not None and cache.get_seq_length() == self._seen)

    def _shorten(self, cut: int) -> None:
        """A wrapper's own ``generate`` may leave out the end of the prompt (the separator of a captioner)."""
        self._prompt_end -= cut
        self.prompts = [replace(prompt, length=prompt.length - cut) for prompt in self.prompts]
        for kind in self._kinds:
            kind.wanted = [kind.selection.in_prompt(p.length, p.image_positions) for p in self.prompts]

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
        batch, queries = shape
        self._before = max(self._before, queries - (self._end - self._start))
        first = self._end - queries
        if kind.selection.predicting and self._predicting:
            steps = slice(self._predicting.start - first, self._predicting.stop - first)
            kind.current[layer] = read(slice(None), steps).clone()
        if self._seen >= self._prompt_end:
            return
        copies = batch // len(self.prompts)
        for sample, (prompt, wanted) in enumerate(zip(self.prompts, kind.wanted, strict=True)):
            places = [at + prompt.padding for at in wanted if self._seen <= at + prompt.padding < self._end]
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
        keys = self._before + self._end
        missing = keys - rows.shape[-1]
        rows = rows[..., :keys] if missing <= 0 else nn.functional.pad(rows, (missing, 0))
        return rows[..., self._before :]


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


def alone_with(model: nn.Module) -> threading.RLock:
    """The lock that keeps runs of one model apart: while one records, the model's attention is ours."""
    return _locks.setdefault(model, threading.RLock())


@contextmanager
def recording(anatomy: Anatomy, plan: Plan, prompts: Sequence[Prompt]) -> Iterator[Recorder]:
    """Record what ``plan`` asks for while the context lasts. One run at a time per model."""
    recorder = Recorder(anatomy, plan, prompts)
    with ExitStack() as stack:
        stack.enter_context(alone_with(anatomy.model))
        token = _recorder.set(recorder)
        stack.callback(_recorder.reset, token)
        if plan.attention.layers:
            stack.enter_context(eager_where_unread(anatomy.decoder.attention_modules()))
        if plan.attention.layers or plan.vision:
            stack.enter_context(routed(anatomy.model, _attended))
        for handle in _hooks(anatomy, plan):
            stack.callback(handle.remove)
        yield recorder


def _hooks(anatomy: Anatomy, plan: Plan) -> Iterator[torch.utils.hooks.RemovableHandle]:
    yield anatomy.decoder.owner.register_forward_pre_hook(_begin, with_kwargs=True)
    if plan.hidden.layers:
        yield from block_hooks(anatomy.decoder, _decoder_state)
    yield anatomy.decoder.owner.register_forward_hook(_end)
    for model in {anatomy.model, anatomy.generator}:
        yield model.register_forward_hook(_judge)
    if plan.attention.layers:
        for module in anatomy.decoder.attention_modules():
            yield module.register_forward_hook(_weighed)
    if plan.vision and anatomy.vision is not None:
        yield from block_hooks(anatomy.vision, _vision_state)
        for module in anatomy.vision.attention_modules():
            yield module.register_forward_hook(_weighed)


def block_hooks(stack: Stack, sink: Any) -> Iterator[torch.utils.hooks.RemovableHandle]:
    """Hidden state 0 is the first block's input, ``i + 1`` the output of block ``i``."""

    def first(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sink(0, args[0] if args else kwargs["hidden_states"])

    yield stack.blocks[0].register_forward_pre_hook(first, with_kwargs=True)
    for index, block in enumerate(stack.blocks):

        def after(_module: nn.Module, _args: Any, output: Any, layer: int = index + 1) -> None:
            sink(layer, output[0] if isinstance(output, tuple) else output)

        yield block.register_forward_hook(after)


# Hooks hold no recorder: a compiled graph keeps the hooks it was traced with, so they look up the current one.


@torch.compiler.disable
def _begin(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    recorder = _recorder.get()
    if recorder is not None:
        named = (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args[:1])
        given = next(tensor for tensor in named if tensor is not None)
        recorder.begin(given.shape[0], given.shape[1], kwargs.get("past_key_values"))


@torch.compiler.disable
def _end(_module: nn.Module, _args: Any, output: Any) -> None:
    recorder = _recorder.get()
    if recorder is not None:
        recorder.state(recorder.anatomy.layers, output[0])
        recorder.end()


@torch.compiler.disable
def _judge(_module: nn.Module, _args: Any, output: Any) -> None:
    recorder = _recorder.get()
    if recorder is not None and getattr(output, "logits", None) is not None:
        recorder.judge(output.logits)


@torch.compiler.disable
def _decoder_state(layer: int, hidden: Tensor) -> None:
    recorder = _recorder.get()
    if recorder is not None and layer < recorder.anatomy.layers:  # the last one comes after the final norm
        recorder.state(layer, hidden)


@torch.compiler.disable
def _vision_state(layer: int, hidden: Tensor) -> None:
    recorder = _recorder.get()
    if recorder is not None and recorder.tower is not None:
        recorder.tower.saw(layer, hidden)


@torch.compiler.disable
def _weighed(module: nn.Module, _args: Any, output: Any) -> None:
    recorder = _recorder.get()
    if recorder is not None and isinstance(output, tuple) and len(output) > 1 and isinstance(output[1], Tensor):
        recorder.weighed(module, output[1])


@torch.compiler.disable
def _attended(module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, kwargs: dict[str, Any]) -> None:
    recorder = _recorder.get()
    if recorder is not None:
        recorder.attended(module, query, key, mask, kwargs)
