"""Collects, forward step by forward step, what a plan asks for while the unmodified model runs.

    with recording(anatomy, plan, prompts) as recorder:
        out = model.generate(...)
    recorder.hidden(sample=0, source=[0, 0, 0])

Forward hooks on the blocks bring hidden states, the attention twin (``rows.py``) brings rows; both keep only the
wanted positions and go to the CPU at the end of each step. Everything is undone when the context ends.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from llava_probe.anatomy import Anatomy, Stack
from llava_probe.capture import Plan, Selection
from llava_probe.errors import BadInput, BadModel, NotANumber
from llava_probe.rows import attention_rows, routed

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
        self.vision_hidden: dict[int, Tensor] = {}
        self.vision_attention: dict[int, Tensor] = {}
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
        self._all_heads = len(plan.heads) == anatomy.heads
        self._seen = 0
        self._running = False
        self._cache: Any = None
        self._started = False
        self._releasing = False

    # --- one forward pass ---

    def begin(self, queries: int, cache: Any) -> None:
        """A forward pass of ``queries`` tokens starts; passes beside the main loop (guidance) are ignored."""
        if not self._started:
            self._cache, self._started = cache, True
        elif cache is not self._cache or (cache is None and queries != self._seen + 1):
            return
        self._running = True
        self._start = 0 if cache is None else self._seen
        self._end = self._start + queries
        self._fresh = range(self._seen - self._start, queries)  # queries not seen by an earlier pass
        self._steps = range(max(self._fresh.start, self._prompt_end - 1 - self._start), queries)

    def end(self, logits: Tensor | None) -> None:
        """The forward pass is over: move its rows to the CPU."""
        if not self._running:
            return
        self._running = False
        self._seen = self._end
        if logits is not None and bool(torch.isnan(logits[:, -1]).any()):
            raise NotANumber(
                f"the model's logits are NaN at token {self._end - self._prompt_end} of the answer; "
                "float16 overflows in many of these models: load with dtype='bfloat16' or 'float32'"
            )
        for kind in self._kinds:
            if not kind.selection.predicting or not self._steps:
                continue
            missing = [layer for layer in kind.selection.layers if layer not in kind.current]
            if missing:
                raise BadModel(
                    f"layers {missing} of {type(self.anatomy.decoder.owner).__name__} gave no "
                    f"{'hidden states' if kind is self._hidden else 'attention rows'}; leave them out of the Capture"
                )
            rows = [kind.current.pop(layer) for layer in kind.selection.layers]
            kind.steps.append(torch.stack([row.to(rows[0].device) for row in rows], dim=2).cpu())

    # --- what the hooks call ---

    def state(self, layer: int, hidden: Tensor) -> None:
        """Hidden state ``layer`` of this pass: [batch, queries, width]."""
        kind = self._hidden
        if not self._running or layer not in kind.selection.layers:
            return
        if kind.selection.predicting and self._steps:
            kind.current[layer] = hidden[:, self._steps.start : self._steps.stop].clone()
        for sample, row, index in self._wanted(kind, hidden):
            kind.prompt[sample][layer].append(hidden[row, index].cpu())

    def attended(
        self, module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, kwargs: dict[str, Any]
    ) -> None:
        """An attention call of the decoder or the vision tower, as the kernel got it."""
        layer = self.anatomy.decoder.attentions.get(id(module))
        if layer is None:
            if self.plan.vision and self.anatomy.vision and id(module) in self.anatomy.vision.attentions:
                self.looked(module, attention_rows(module, query, key, mask, kwargs, index=None, start=0))
            return
        if not self._running or layer not in self._attention.selection.layers:
            return
        heads = None if self._all_heads else torch.tensor(self.plan.heads, device=query.device)

        def rows(index: Tensor | None, at: slice = slice(None)) -> Tensor:
            part = mask[at] if mask is not None and mask.shape[0] > 1 else mask
            found = attention_rows(
                module, query[at], key[at], part, kwargs, index=index, start=self._start, heads=heads
            )
            return self._aligned(found)

        if self._attention.selection.predicting and self._steps:
            whole = len(self._steps) == query.shape[2]
            steps = None if whole else torch.arange(self._steps.start, self._steps.stop, device=query.device)
            self._attention.current[layer] = rows(steps).transpose(1, 2)
        for sample, row, index in self._wanted(self._attention, query):
            found = rows(index, slice(row, row + 1))[0].transpose(0, 1)
            self._attention.prompt[sample][layer].append(found.cpu())

    def weighed(self, module: nn.Module, weights: Tensor) -> None:
        """Whole attention weights that an eager module gave of itself: [batch, heads, queries, keys]."""
        layer = self.anatomy.decoder.attentions.get(id(module))
        if layer is None:
            self.looked(module, weights)
            return
        kind = self._attention
        if not self._running or layer not in kind.selection.layers:
            return
        rows = self._aligned(weights[:, list(self.plan.heads)])
        if kind.selection.predicting and self._steps:
            kind.current[layer] = rows[:, :, self._steps.start : self._steps.stop].transpose(1, 2).clone()
        for sample, row, index in self._wanted(kind, weights):
            kind.prompt[sample][layer].append(rows[row][:, index].transpose(0, 1).cpu())

    def looked(self, module: nn.Module, weights: Tensor) -> None:
        """Attention weights of one vision block, on its first run."""
        if self.plan.vision and self.anatomy.vision:
            layer = self.anatomy.vision.attentions.get(id(module))
            if layer is not None and layer not in self.vision_attention:
                self.vision_attention[layer] = weights.cpu()

    def saw(self, layer: int, hidden: Tensor) -> None:
        """Hidden state ``layer`` of the vision tower, on its first run."""
        if self.plan.vision and layer not in self.vision_hidden:
            self.vision_hidden[layer] = hidden.cpu()

    # --- reading it back ---

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

    def _wanted(self, kind: _Kind, tensor: Tensor) -> Iterator[tuple[int, int, Tensor]]:
        """(sample, its first batch row, query indices) of the prompt rows wanted in this pass."""
        if self._fresh.start + self._start >= self._prompt_end:
            return
        copies = tensor.shape[0] // len(self.prompts)
        for sample, (prompt, wanted) in enumerate(zip(self.prompts, kind.wanted, strict=True)):
            index = [at + prompt.padding - self._start for at in wanted]
            index = [at for at in index if at in self._fresh]
            if index:
                yield sample, sample * copies, torch.tensor(index, device=tensor.device)

    def _aligned(self, rows: Tensor) -> Tensor:
        """Rows over exactly the tokens seen: a static cache hands over more keys, a sliding one fewer."""
        missing = self._end - rows.shape[-1]
        return rows[..., : self._end] if missing <= 0 else nn.functional.pad(rows, (missing, 0))


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
        if plan.attention.layers or plan.vision:
            stack.enter_context(routed(anatomy.model, _attended))
        for handle in _hooks(anatomy, plan):
            stack.callback(handle.remove)
        yield recorder


def _hooks(anatomy: Anatomy, plan: Plan) -> Iterator[torch.utils.hooks.RemovableHandle]:
    yield anatomy.model.register_forward_pre_hook(_begin, with_kwargs=True)
    yield anatomy.model.register_forward_hook(_end)
    if plan.hidden.layers:
        yield from _block_hooks(anatomy.decoder, _decoder_state)
        yield anatomy.decoder.owner.register_forward_hook(_last_state)
    if plan.attention.layers:
        for module in anatomy.decoder.attention_modules():
            yield module.register_forward_hook(_weighed)
    if plan.vision and anatomy.vision:
        yield from _block_hooks(anatomy.vision, _vision_state)
        for module in anatomy.vision.attention_modules():
            yield module.register_forward_hook(_weighed)


def _block_hooks(stack: Stack, sink: Any) -> Iterator[torch.utils.hooks.RemovableHandle]:
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
        recorder.begin(given.shape[1], kwargs.get("past_key_values"))


@torch.compiler.disable
def _end(_module: nn.Module, _args: Any, output: Any) -> None:
    recorder = _recorder.get()
    if recorder is not None:
        recorder.end(getattr(output, "logits", None))


@torch.compiler.disable
def _decoder_state(layer: int, hidden: Tensor) -> None:
    recorder = _recorder.get()
    if recorder is not None and layer < recorder.anatomy.layers:  # the last one comes after the final norm
        recorder.state(layer, hidden)


@torch.compiler.disable
def _last_state(_module: nn.Module, _args: Any, output: Any) -> None:
    recorder = _recorder.get()
    if recorder is not None:
        recorder.state(recorder.anatomy.layers, output[0])


@torch.compiler.disable
def _vision_state(layer: int, hidden: Tensor) -> None:
    recorder = _recorder.get()
    if recorder is not None:
        recorder.saw(layer, hidden)


@torch.compiler.disable
def _weighed(module: nn.Module, _args: Any, output: Any) -> None:
    recorder = _recorder.get()
    if recorder is not None and isinstance(output, tuple) and len(output) > 1 and output[1] is not None:
        recorder.weighed(module, output[1])


@torch.compiler.disable
def _attended(module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, kwargs: dict[str, Any]) -> None:
    recorder = _recorder.get()
    if recorder is not None:
        recorder.attended(module, query, key, mask, kwargs)
