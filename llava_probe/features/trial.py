"""Whether samples may share a pass, found out on two of them before a run: what differs is read alone.

Hidden states alone cannot tell in 16 bits, whose rounding is larger than what a misplaced token does. So the positions
that the model gives its tokens are compared exactly, and a change of one question must leave the other as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from llava_probe.features.packs import AskingSettings, Batch, Unshared, batch_of
from llava_probe.features.passes import ActivationChoice, read
from llava_probe.features.samples import Sample
from llava_probe.inside.passes import Others, Visitor
from llava_probe.inside.tolerance import STATES
from llava_probe.model import VLM

#: How far one question's states may move with another one's words, in epsilons: not at all, up to a kernel's sums.
ISOLATION = 4.0


def differs_packed(vlm: VLM, two: Sequence[Sample], asking: AskingSettings | None = None) -> str | None:
    """Compare two questions about one picture behind one prefix with each alone; None where they agree.

    Raises:
        Unpackable: the pass itself showed that this family cannot be packed.
    """
    name = type(vlm.anatomy.model).__name__
    try:
        pack = batch_of(vlm, [list(two)], asking=asking)
    except Unshared as error:
        return str(error)
    alone = [batch_of(vlm, [[sample]], asking=asking) for sample in two]
    if any(plain.packs[0].ids != list(own.prompt) for plain, own in zip(alone, pack.packs[0].branches, strict=True)):
        return f"{name}'s processor reads a question otherwise behind the shared prefix"
    packed, places = _states(vlm, pack)
    if why := _differing(name, (packed, places), [_states(vlm, one) for one in alone]):
        return f"packed {why}"
    for number, own in enumerate(pack.packs[0].branches):
        ids = pack.inputs["input_ids"].clone()
        ids[:, own.start : own.stop] = ids[:, own.start : own.stop].flip(-1)
        moved, _ = _states(vlm, replace(pack, inputs={**pack.inputs, "input_ids": ids}))
        if (distance := _apart(moved[1 - number], packed[1 - number])) > ISOLATION * torch.finfo(packed.dtype).eps:
            return f"one question moves another's hidden states in {name} (by {distance:.1e} of their length)"
    return None


def differs_beside(vlm: VLM, two: Sequence[Sample], asking: AskingSettings | None = None) -> str | None:
    """Compare two samples with different pictures in one batch with each alone; None where they agree."""
    name = type(vlm.anatomy.model).__name__
    together = _states(vlm, batch_of(vlm, [[sample] for sample in two], asking=asking))
    why = _differing(name, together, [_states(vlm, batch_of(vlm, [[sample]], asking=asking)) for sample in two])
    return f"batched {why}" if why else None


_States = tuple[Tensor, list[Tensor | None]]


def _differing(name: str, together: _States, alone: Sequence[_States]) -> str | None:
    states, places = together
    plain = torch.cat([one for one, _ in alone])
    for place, (_, (own,)) in zip(places, alone, strict=True):
        if place is not None and own is not None and not torch.equal(place, own):
            return f"tokens of {name} get other positions than alone"
    if (distance := _apart(states, plain)) > STATES.get(states.dtype, max(STATES.values())):
        return f"hidden states of {name} differ from those alone (by {distance:.1e} of their length)"
    return None


def _states(vlm: VLM, batch: Batch) -> _States:
    """[samples, layers, D] at each last prompt token, and the positions [..., tokens] that each sample was given."""
    noted = _Positions()
    last = [[branch.place(len(branch.prompt) - 1) for branch in pack.branches] for pack in batch.packs]
    out = read(vlm.anatomy, vlm.model, batch, ActivationChoice(tuple(range(vlm.anatomy.layers + 1)), last), noted)
    widths = {tuple(states.shape[1:]) for states in out.states.values()}
    kept = [states for states in out.states.values() if tuple(states.shape[1:]) == max(widths)]
    positions = noted.given
    found: list[Tensor | None] = []
    for row, pack in enumerate(batch.packs):
        for branch in pack.branches:
            if positions is None:
                found.append(None)
                continue
            columns = [branch.place(place) for place in range(len(branch.prompt))]
            row_of = row if positions.shape[-2] > 1 else 0
            found.append(positions[..., row_of, columns].cpu())
    return torch.stack(kept, dim=1).cpu(), found


class _Positions(Visitor):
    """Notes the positions that the decoder is given."""

    given: Any = None

    def entry(self, embeddings: Tensor | None, others: Others) -> None:
        """They are among the rest."""
        self.given = others.get("position_ids")


def _apart(one: Tensor, other: Tensor) -> float:
    """The largest distance of two states relative to their length."""
    one, other = one.float(), other.float()
    return float(((one - other).norm(dim=-1) / other.norm(dim=-1).clamp(min=1e-12)).max())
