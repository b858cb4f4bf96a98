"""What each head of one model writes otherwise than the other model's, each given the same states to read.

A head that moved moves all that comes behind it: in their own runs every head of every later layer differs, changed or
not. So the second model runs over the first one's prompt and answer with the first one's hidden state put before each
of its blocks. What a head then writes otherwise comes of its own weights (or of its block's norm) alone, and a head
whose weights are the same writes the same to the last bit.

    write of head h at a position = W_O[:, h] · (what the head gave there)

W_O is the part of an attention module that runs first behind the kernel, on what all heads gave: seen while it runs and
known by no name, adapters and quantised layers included.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llava_probe.inside.anatomy import Anatomy, Stack
from llava_probe.inside.passes import Others, Visitor, visiting
from llava_probe.inside.rows import Call
from llava_probe.model import VLM
from llava_probe.trace.capture import Capture
from llava_probe.trace.trace import Trace

#: A pass for what rides along, and for nothing else.
_NOTHING = Capture(hidden_states=False, attention=False, logits=1, scores=False)


@dataclass(frozen=True, eq=False)
class OwnHeads:
    """What heads write otherwise on the same states.

    Attributes:
        layers: blocks with attention; ``heads``: how many a block has.
        moved: [layers, heads] ‖b − a‖ of what a head writes, over the mean length of what the heads of its block write
            in the first model; a mean over the positions that predicted. 0: the head is the same.
    """

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    moved: Tensor


def own_heads(models: tuple[VLM, VLM], trace: Trace, first: HeadWrites | None = None) -> OwnHeads | str:
    """Compare what each head writes, or say why it cannot be done.

    Args:
        models: of one kind, the first being the trace's.
        trace: of a prompt and an answer, which both run over.
        first: what ``watching`` saw of the first model over these; it runs again when None.
    """
    one, other = (vlm.anatomy for vlm in models)
    if (one.layers, one.width, one.head_counts) != (other.layers, other.width, other.head_counts):
        return "models of other sizes have no heads that stand for one another"
    if trace.interventions:
        return "the trace was made under an intervention, which is not in the weights that are compared here"
    if len(set(one.head_counts.values())) != 1:
        return "the layers of this model have different numbers of heads"
    count = len(trace.generated)
    if first is None:
        with watching(models[0], count) as first:
            models[0].rerun(trace, answer=trace.generated_ids, capture=_NOTHING)
    handed = Handed(first.states)
    with watching(models[1], count, handed) as second:
        models[1].rerun(trace, answer=trace.generated_ids, capture=_NOTHING)
    if not handed.fits:
        return (
            "the second model reads this prompt as another number of tokens, so its blocks cannot have the same states"
        )
    layers = tuple(sorted(one.head_counts))
    for each, vlm in ((first, models[0]), (second, models[1])):
        if missing := [layer for layer in layers if layer not in each.given]:
            name = type(vlm.anatomy.model).__name__
            return f"what the heads of layer {missing[0]} of {name} write cannot be told apart"
    moved = torch.stack([_moved(first.written(layer), second.written(layer)) for layer in layers])
    return OwnHeads(layers, tuple(range(moved.shape[1])), moved)


@contextmanager
def watching(vlm: VLM, count: int, *before: Visitor) -> Iterator[HeadWrites]:
    """Keep what enters blocks and what heads give in the one pass over a sequence that runs in this context.

    Args:
        vlm: whose pass, under no intervention.
        count: at how many positions, the last ones.
        *before: what comes with it, and changes what is seen.
    """
    writes = HeadWrites(vlm.anatomy, count)
    with visiting(vlm.anatomy, *before, writes, alone=False, apart=True):
        yield writes


def _moved(one: Tensor, other: Tensor) -> Tensor:
    """[H] of two [H, n, D]."""
    length = one.norm(dim=2).mean(0).clamp_min(torch.finfo(one.dtype).tiny)  # [n]
    return ((other - one).norm(dim=2) / length).mean(1).double()


class HeadWrites(Visitor):
    """Keeps what enters each block, and what the heads give at the last positions.

    Attributes:
        states: what enters each block, by its number: every position, as the model computed it.
        given: [n, H·d] what the heads gave, by block; ``writes``: the part that writes it.

    Args:
        anatomy: of the model.
        count: how many positions, the last ones of the one sequence that it runs over.
    """

    def __init__(self, anatomy: Anatomy, count: int) -> None:
        self._anatomy, self._count = anatomy, count
        attending = anatomy.decoder.attentions.items()
        self._owner = {part: layer for attention, layer in attending for part in attention.children()}
        self._awaited: dict[int, int] = {}
        self.states: dict[int, Tensor] = {}
        self.given: dict[int, Tensor] = {}
        self.writes: dict[int, nn.Module] = {}

    def modules(self, anatomy: Anatomy) -> Iterator[nn.Module]:
        """The parts of each attention module."""
        yield from self._owner

    def state(self, stack: Stack, layer: int, hidden: Tensor) -> None:
        """What enters a block."""
        if layer < self._anatomy.layers:
            self.states[layer] = hidden.detach().clone()

    def attended(self, call: Call, output: Tensor | None) -> None:
        """The kernel has run: what comes next writes it."""
        if output is not None and call.layer not in self.writes:
            self._awaited[call.layer] = output.shape[-2] * output.shape[-1]

    def before(self, module: nn.Module, args: Any, kwargs: Others) -> None:
        """The first part behind the kernel, if it is given what all heads gave."""
        layer = self._owner.get(module, -1)
        if layer not in self._awaited:
            return
        width = self._awaited.pop(layer)
        if args and isinstance(args[0], Tensor) and args[0].shape[-1] == width:
            self.given[layer] = args[0].reshape(-1, width)[-self._count :].detach().clone()
            self.writes[layer] = module

    def written(self, layer: int) -> Tensor:
        """[H, n, D] what each head of a block wrote, on the CPU in float32 at least."""
        given, count = self.given[layer], self._anatomy.head_counts[layer]
        alone = given.new_zeros(count + 1, *given.shape)  # the last is nothing, for what is added to it
        width = given.shape[-1] // count
        for head in range(count):
            part = slice(head * width, (head + 1) * width)
            alone[head, :, part] = given[:, part]
        with torch.no_grad():
            found = self.writes[layer](alone)
        found = found.to("cpu", torch.promote_types(found.dtype, torch.float32))
        return found[:-1] - found[-1]


class Handed(Visitor):
    """Puts states before each block.

    Attributes:
        fits: whether each pass so far was as long as the states are; they stand before none of one that is not.
    """

    changes = True

    def __init__(self, states: dict[int, Tensor]) -> None:
        self._states = states
        self.fits = True

    def state(self, stack: Stack, layer: int, hidden: Tensor) -> Tensor | None:
        """The given ones, where a block is to read them."""
        given = self._states.get(layer)
        if given is None:
            return None
        self.fits &= given.shape == hidden.shape
        return given.to(hidden.device, hidden.dtype) if self.fits else None
