"""Asks a model which visual tokens move when some patches of its pictures are changed: the vision path alone is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llava_probe.arrays import BoolArray, FloatArray
from llava_probe.faults import of_the_machine, out_of_memory
from llava_probe.inside.anatomy import Anatomy
from llava_probe.inside.isolation import entering, isolated
from llava_probe.inside.passes import alone_with
from llava_probe.layout.patches import Patches, channels_first
from llava_probe.layout.ramps import DARK, LIGHT, Encode

#: How many changed inputs go through the vision path at once, two at least, and how many patches these may have: some
#: towers put all pictures of a batch into one sequence, and its mask has an entry for each pair.
BATCH, BATCH_PATCHES = 8, 2048
#: Runs of one input alone and beside others lie this close, as a share of it.
_SAME = 1e-3


@dataclass(frozen=True)
class Asking:
    """How to ask a model with other pictures.

    Attributes:
        encode: pictures to model inputs on the CPU, always in the same prompt.
        send: model inputs to the model's device and dtype.
        find: sequence positions of the visual tokens among a prompt's ids.
    """

    encode: Encode
    send: Callable[[Mapping[str, Any]], Mapping[str, Any]]
    find: Callable[[Tensor], Sequence[int]]


class Asker:
    """One measurement's runs of the vision path.

    Args:
        anatomy: of the unmodified model.
        asking: how its inputs are sent.
        inputs: the model inputs of plain pictures; what is asked replaces their numbers.
        positions: sequence positions of the visual tokens.
    """

    def __init__(self, anatomy: Anatomy, asking: Asking, inputs: Mapping[str, Any], positions: Sequence[int]) -> None:
        self._anatomy, self._asking, self._inputs = anatomy, asking, inputs
        self._at = torch.as_tensor(list(positions))
        self._stackable: bool | None = None  # found out when there is a first batch
        self._cut: Patches | None = None
        self._noise: list[list[Tensor]] = []
        self._still = torch.empty(0)

    def moves(self, cut: Patches, changes: Sequence[BoolArray]) -> FloatArray:
        """[changes, N] how far each visual token moves when these patches [M] are changed, each change alone."""
        asked = list(changes)
        if cut is not self._cut:
            generator = torch.Generator().manual_seed(0)
            self._cut = cut
            self._noise = [[_noisy(cut, n, generator) for n in range(len(cut.sources))] for _ in range(2)]
            asked = [np.zeros(len(cut), dtype=bool), *asked]
        with alone_with(self._anatomy.model), isolated(self._anatomy.model):
            found = self._together(asked)
        if len(asked) > len(changes):
            self._still, found = found[0], found[1:]
        return (found - self._still).norm(dim=-1).double().numpy()

    def _together(self, asked: Sequence[BoolArray]) -> Tensor:
        """[asked, N, D] the tokens for each, stacked where the model's inputs can be: some count through a batch."""
        assert self._cut is not None
        size = max(2, min(BATCH, BATCH_PATCHES // len(self._cut)))
        if self._stackable is None and len(asked) > 1:
            first = asked[:size]
            alone = self._run(first[-1:])
            try:
                stacked = self._run(first)
                self._stackable = bool((stacked[-1:] - alone).norm() < _SAME * alone.norm())
            except Exception as error:  # each model fails in a way of its own, in operations that we stand around
                if of_the_machine(error) and not out_of_memory(error):
                    raise
                self._stackable = False
            if self._stackable:
                rest = [self._run(asked[start : start + size]) for start in range(size, len(asked), size)]
                return torch.cat([stacked, *rest])
        size = size if self._stackable else 1
        return torch.cat([self._run(asked[start : start + size]) for start in range(0, len(asked), size)])

    def _run(self, batch: Sequence[BoolArray]) -> Tensor:
        many = [{**self._inputs, **self._changed(patches)} for patches in batch]
        stacked = {name: _stacked([each[name] for each in many]) for name in self._inputs}
        return entering(self._anatomy, self._asking.send(stacked))[:, self._at].float().cpu()

    def _changed(self, patches: BoolArray) -> dict[str, Tensor]:
        assert self._cut is not None
        flags = torch.cat([torch.from_numpy(patches), torch.zeros(1, dtype=torch.bool)])  # -1 is padding
        return {
            source.name: torch.where(flags[owner], other, one).to(self._inputs[source.name].dtype)
            for source, owner, one, other in zip(self._cut.sources, self._cut.owners, *self._noise, strict=True)
        }


def _stacked(values: Sequence[Any]) -> Any:
    return torch.cat(list(values)) if isinstance(values[0], Tensor) else [one for value in values for one in value]


def _noisy(cut: Patches, number: int, generator: torch.Generator) -> Tensor:
    """One model input with the same noise in each patch, so that each moves its tokens by as much as any other."""
    source, side = channels_first(cut.sources[number]), cut.sides[number]
    shape = source.dark.shape
    if side is None:
        noise = torch.rand(shape[-1], generator=generator)
    else:
        noise = torch.rand(side, side, generator=generator)
        noise = noise.repeat(shape[-2] // side + 1, shape[-1] // side + 1)[: shape[-2], : shape[-1]]
    noisy = source.dark + source.gain * (LIGHT - DARK) * noise
    return noisy if source is cut.sources[number] else noisy.movedim(-3, -1)
