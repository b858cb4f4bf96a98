"""Attention rollout without the stack of matrices: one layer's attention at a time, from the last to the first.

Abnar & Zuidema 2020 (arXiv 2005.00928), eq. 1: Â = (mean over heads of A + I), rows normalised; R = Â_L ⋯ Â_1. The pass
keeps each layer's queries and keys, a few numbers a token; a row is then pulled back through them, r ← r Â.
``lp.rollout`` reads the same from a trace that kept every row.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from llava_probe.attribution.engine.found import Found
from llava_probe.attribution.engine.target import Task
from llava_probe.border import checked
from llava_probe.errors import BadModel, NotANumber
from llava_probe.inside.anatomy import Anatomy, Stack
from llava_probe.inside.passes import Visitor
from llava_probe.inside.rows import Call


@checked
def rollout(task: Task) -> Found:
    """Share of attention flow from every position, in one forward pass.

    Raises:
        BadModel: layers without attention, or whose attention cannot be read.
        NotANumber: attention was NaN; the message names the layer.
    """
    calls = _calls(task)
    length = task.fed
    rows = torch.zeros(len(task.targets), length, dtype=torch.float64)
    for row, target in enumerate(task.targets):
        places = [task.position(step) for step in target.steps(0)]
        rows[row, places] = 1 / len(places)
    for call in reversed(calls):
        rows = _step(call, rows)
        if not bool(torch.isfinite(rows).all()):
            raise NotANumber(f"attention of layer {call.layer} of the language model is NaN")
    return Found(rows, unit="share of attention flow", forwards=1)


def _calls(task: Task) -> list[Call]:
    anatomy = task.vlm.anatomy
    name = type(anatomy.model).__name__
    if anatomy.other_layers:
        raise BadModel(
            f"rollout cannot be followed through the layers of {name} without attention: {anatomy.other_layers}"
        )
    calls = _Calls()
    with torch.no_grad():
        task.logits(0, calls)
    found = calls.found
    if len(found) != anatomy.layers:
        raise BadModel(f"the attention of {name} does not go through transformers' interface, so it cannot be read")
    if any(call.queries != task.fed for call in found.values()):
        raise BadModel(f"layers of {name} do not read the whole sequence, so rollout cannot be followed through them")
    return [call for _, call in sorted(found.items())]


class _Calls(Visitor):
    """Keeps the queries and keys of each layer's call, or the mean of its heads' weights where it gives them."""

    def __init__(self) -> None:
        self.found: dict[int, Call] = {}

    def unfused(self, anatomy: Anatomy) -> tuple[Stack, ...]:
        """The decoder."""
        return (anatomy.decoder,)

    def attended(self, call: Call, output: Tensor | None) -> None:
        """Keep it without its values."""
        if call.weights is not None:
            nothing = call.weights.new_empty(0)
            mean = call.rows().mean(1, keepdim=True)
            call = replace(call, query=nothing, key=nothing, value=nothing, mask=None, weights=mean, emptied=None)
        if not call.unread:
            self.found[call.layer] = replace(call, value=call.key)


def _step(call: Call, rows: Tensor) -> Tensor:
    """R ← r Â of one layer, [R, P] float64 on the CPU."""
    device = call.device
    pulled = torch.zeros_like(rows, device=device)
    moving = rows.to(device)
    wanted = (moving != 0).any(0).nonzero().flatten()
    for block, weights in call.blocks(wanted):
        mixed = weights[0].mean(0, dtype=torch.float64)  # [block, keys]
        sums = mixed.sum(1) + 1  # the identity adds one to each row
        scaled = moving[:, block] / sums
        pulled[:, : mixed.shape[1]] += scaled @ mixed
        pulled[:, block] += scaled
    return pulled.cpu()
