"""One forward pass over a batch of packs, and only the hidden states that were asked for.

Hooks on the blocks pick the wanted rows of each layer; when the deepest one is there, the pass ends: what lies behind
it, the projection to the vocabulary included, is not computed unless somebody wants the answer's confidence.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from llava_probe.anatomy import Anatomy
from llava_probe.errors import BadModel, NotANumber
from llava_probe.features.packing import apart
from llava_probe.features.packs import Batch
from llava_probe.recorder import alone_with, block_hooks
from llava_probe.rows import attention_rows, routed
from llava_probe.tower import Tower


class _Enough(Exception):
    """Ends a pass whose last wanted layer is there."""


@dataclass
class Readout:
    """What one pass gave, still on the model's device.

    Attributes:
        states: rows of each hidden state at the chosen tokens, [tokens, D].
        vision: for each pack the tower's layers asked for, [crops, layers, patches, D_v].
        looks: of each block, [B, queries, heads] share of attention on the picture.
        logits: [B, predicting, V] at ``predicting``.
        predicting: columns of the sequence that predict tokens of the answers.
    """

    states: dict[int, Tensor] = field(default_factory=dict)
    vision: list[Tensor] = field(default_factory=list)
    looks: dict[int, list[Tensor]] = field(default_factory=dict)
    logits: Tensor | None = None
    predicting: tuple[int, ...] = ()


@dataclass(frozen=True)
class Reading:
    """What to read in a pass.

    Attributes:
        states: hidden states of the language model, by number; empty for none.
        tokens: for each pack the columns of the sequence whose rows are kept.
        vision: hidden states of the tower, by number.
        looking: for each pack the columns whose attention on the picture is kept; None for none.
        predicting: columns whose logits are kept; empty for none.
    """

    states: tuple[int, ...]
    tokens: Sequence[Sequence[int]]
    vision: tuple[int, ...] = ()
    looking: Sequence[Sequence[int]] | None = None
    predicting: tuple[int, ...] = ()

    @property
    def deepest(self) -> int:
        """After which hidden state the pass may end; -1: before the language model starts."""
        return max(self.states, default=-1)


def read(
    anatomy: Anatomy, runner: Any, batch: Batch, reading: Reading, watch: Callable[[], Any] | None = None
) -> Readout:
    """Run the model over a batch and keep what ``reading`` says.

    Args:
        anatomy: of the model; ``runner``: the model as the user holds it.
        batch: from ``batch_of``.
        reading: which rows of which layers.
        watch: registers one more hook for this pass, behind ours, and returns its handle.

    Raises:
        Unpackable: questions were packed that this family cannot keep apart.
        BadModel: a layer gave no states, or its attention cannot be read.
        NotANumber: a hidden state is NaN.
    """
    out = Readout(predicting=reading.predicting)
    width = batch.inputs["input_ids"].shape[1]
    model: Any = anatomy.model
    accepted = inspect.signature(model.forward).parameters
    extra: dict[str, Any] = {"use_cache": False, **anatomy.everywhere}
    if reading.predicting and "logits_to_keep" in accepted:
        extra["logits_to_keep"] = torch.tensor(reading.predicting, device=batch.inputs["input_ids"].device)
    tower = Tower(anatomy) if reading.vision else None
    with ExitStack() as stack:
        stack.enter_context(alone_with(anatomy.model))
        stack.enter_context(apart(anatomy, batch.packs, width) if batch.packed else nullcontext())
        stack.enter_context(_hooked(anatomy, batch, reading, out, tower))
        if reading.looking is not None:
            stack.enter_context(routed(anatomy.model, _Looks(anatomy, batch, reading, out).see))
        if watch is not None:
            stack.callback(watch().remove)
        stack.enter_context(torch.inference_mode())
        try:
            result = runner(**{**batch.inputs, **extra})
        except _Enough:
            result = None
    if result is not None and reading.predicting:
        logits = result.logits
        out.logits = logits if "logits_to_keep" in extra else logits[:, list(reading.predicting)]
    if tower is not None:
        out.vision = [
            part["vision_hidden"]
            for part in tower.records([len(pack.branches[0].sample.images) for pack in batch.packs], 1)
        ]
    _check(anatomy, reading, out)
    return out


def _check(anatomy: Anatomy, reading: Reading, out: Readout) -> None:
    name = type(anatomy.decoder.owner).__name__
    missing = [layer for layer in reading.states if layer not in out.states]
    if missing:
        raise BadModel(f"layers {missing} of {name} gave no hidden states; leave them out")
    if reading.looking is not None and not out.looks:
        raise BadModel(f"the attention of {name} does not go through transformers' interface, so it cannot be read")
    deepest = out.states.get(reading.deepest)
    if deepest is not None and bool(torch.isnan(deepest).any()):
        raise NotANumber(
            f"hidden state {reading.deepest} holds NaN; float16 overflows in many of these models: "
            "load with dtype='bfloat16' or 'float32'"
        )


@contextmanager
def _hooked(anatomy: Anatomy, batch: Batch, reading: Reading, out: Readout, tower: Tower | None) -> Iterator[None]:
    """Hooks that pick rows and end the pass; gone when the context ends."""
    ids = batch.inputs["input_ids"]
    rows, length = ids.shape
    stops = not reading.predicting

    def state(layer: int, hidden: Tensor) -> None:
        if layer in reading.states:
            if hidden.ndim == 4 and hidden.shape[:2] != (rows, length) and hidden.shape[1:3] == (rows, length):
                hidden = hidden.movedim(0, 2)  # [streams, batch, tokens, width]
            before = hidden.shape[1] - length  # a model may put its picture before the prompt itself
            if before < 0:
                raise BadModel(
                    f"layer {layer} of {type(anatomy.decoder.owner).__name__} runs for the end of the prompt only"
                )
            places = [
                row * hidden.shape[1] + before + column for row, kept in enumerate(reading.tokens) for column in kept
            ]
            index = torch.tensor(places, dtype=torch.long, device=hidden.device)
            out.states[layer] = hidden.flatten(0, 1)[index]
        if stops and layer == reading.deepest:
            raise _Enough

    def block_state(layer: int, hidden: Tensor) -> None:
        if layer < anatomy.layers:  # the last one comes after the final norm
            state(layer, hidden)

    def begin(_module: nn.Module, _args: Any) -> None:
        if stops and reading.deepest < 0:
            raise _Enough

    def end(_module: nn.Module, _args: Any, output: Any) -> None:
        state(anatomy.layers, output[0])

    owner = anatomy.decoder.owner
    with ExitStack() as stack:
        handles = [owner.register_forward_pre_hook(begin), owner.register_forward_hook(end)]
        handles += block_hooks(anatomy.decoder, block_state)
        if tower is not None:
            handles += block_hooks(tower.stack, lambda layer, hidden: _seen(tower, reading, layer, hidden))
        for handle in handles:
            stack.callback(handle.remove)
        yield


def _seen(tower: Tower, reading: Reading, layer: int, hidden: Tensor) -> None:
    if layer in reading.vision:
        tower.saw(layer, hidden)


class _Looks:
    """The sink of attention calls: the share of some queries' attention that falls on the pack's picture."""

    def __init__(self, anatomy: Anatomy, batch: Batch, reading: Reading, out: Readout) -> None:
        self._anatomy, self._batch, self._reading, self._out = anatomy, batch, reading, out

    def see(self, module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, kwargs: dict[str, Any]) -> None:
        layer = self._anatomy.decoder.attentions.get(id(module))
        if layer is None or self._reading.looking is None:
            return
        for row, (pack, columns) in enumerate(zip(self._batch.packs, self._reading.looking, strict=True)):
            one = slice(row, row + 1)
            part = mask if mask is None or mask.shape[0] == 1 else mask[one]
            bias = kwargs.get("position_bias")
            given = kwargs if bias is None or bias.shape[0] == 1 else {**kwargs, "position_bias": bias[one]}
            index = torch.tensor(columns, device=query.device)
            rows = attention_rows(module, query[one], key[one], part, given, index=index, start=0)[0]
            share = rows[..., list(pack.visual)].sum(-1).transpose(0, 1)  # [queries, heads]
            self._out.looks.setdefault(layer, []).append(share)


def by_block(looks: Mapping[int, Sequence[Tensor]]) -> Tensor:
    """[queries of all packs, blocks, heads] of a readout's looks, blocks in order."""
    return torch.stack([torch.cat(list(parts)) for _, parts in sorted(looks.items())], dim=1)
