"""How far the hidden states of two traces lie apart, layer by layer, at tokens that stand for one another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llava_probe.compare.alignment import Alignment
from llava_probe.trace.trace import Trace

#: Which tokens: visual ones, the prompt's others, and those that predicted what both said after the same beginning.
STATE_GROUPS = ("image", "prompt", "predicting")


@dataclass(frozen=True, eq=False)
class Drift:
    """How far states lie apart.

    Attributes:
        layers: hidden states, by transformers' index.
        groups: of ``STATE_GROUPS``, those of which both traces kept states; ``counts``: pairs of tokens in each.
        distance: [groups, layers] ‖b − a‖ / ‖a‖, a mean over the group's tokens.
        angle: [groups, layers] 1 − cos(a, b), likewise.
    """

    layers: tuple[int, ...]
    groups: tuple[str, ...]
    counts: tuple[int, ...]
    distance: Tensor
    angle: Tensor

    @property
    def begins(self) -> int | None:
        """The first layer at which any state differs at all; None where none does."""
        moved = (self.distance > 0).any(0).tolist()
        return next((layer for layer, there in zip(self.layers, moved, strict=True) if there), None)


def drift_of(a: Trace, b: Trace, aligned: Alignment) -> Drift | str:
    """The drift of the states that both traces kept, or why it cannot be told."""
    for trace in (a, b):
        if not trace.kept("hidden"):
            return "hidden states were not kept; pass Capture(hidden_states=True)"
    if (a.sizes.layers, a.sizes.width) != (b.sizes.layers, b.sizes.width):
        told = " and ".join(f"{each.sizes.layers} layers of width {each.sizes.width}" for each in (a, b))
        return f"states of other sizes have no distance: {told}"
    layers = tuple(layer for layer in a.hidden_layers if layer in b.hidden_layers)
    pairs = {name: _kept(a, b, places) for name, places in _groups(a, aligned).items()}
    groups = tuple(name for name in STATE_GROUPS if pairs[name])
    if not layers or not groups:
        return "the traces kept no hidden state of the same layer and token"
    found = torch.stack([torch.stack([_apart(a, b, layer, pairs[name]) for layer in layers], 1) for name in groups], 1)
    return Drift(layers, groups, tuple(len(pairs[name]) for name in groups), found[0], found[1])


def _groups(a: Trace, aligned: Alignment) -> dict[str, list[tuple[int, int]]]:
    predicting = [(one - 1, other - 1) for one, other in aligned.shared]
    prompt = [pair for pair in aligned.prompt if pair not in predicting]
    image = [pair for pair in prompt if a.tokens[pair[0]].role == "image"]
    return {"image": image, "prompt": [pair for pair in prompt if pair not in set(image)], "predicting": predicting}


def _kept(a: Trace, b: Trace, pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    mine, theirs = set(a.hidden_positions), set(b.hidden_positions)
    return [(one, other) for one, other in pairs if one in mine and other in theirs]


def _apart(a: Trace, b: Trace, layer: int, pairs: list[tuple[int, int]]) -> Tensor:
    """[2] mean distance and angle at one layer."""
    places = zip((a, b), zip(*pairs, strict=True), strict=True)
    one, other = (trace.hidden(layer=layer, at=list(at)).flatten(1).double() for trace, at in places)
    length, others = (
        each.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny) for each in (one, other)
    )
    distance = (other - one).norm(dim=1) / length[:, 0]
    angle = (other / others - one / length).square().sum(1) / 2  # 1 − cos, and exactly 0 for equal ones
    return torch.stack([distance.mean(), angle.mean()])
