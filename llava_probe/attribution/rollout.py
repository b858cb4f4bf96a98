"""Attention rollout without the stack of matrices: one layer's attention at a time, from the last to the first.

Abnar & Zuidema 2020 (arXiv 2005.00928), eq. 1: Â = (mean over heads of A + I), rows normalised; R = Â_L ⋯ Â_1. The pass
keeps each layer's queries and keys, a few numbers a token; a row is then pulled back through them, r ← r Â.
``lp.rollout`` reads the same from a trace that kept every row.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from llava_probe.attribution.found import Found
from llava_probe.attribution.target import Task
from llava_probe.attribution.watching import Call
from llava_probe.errors import BadModel, NotANumber
from llava_probe.inside.passes import alone_with
from llava_probe.rows import eager_where_unread, routed


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
    found: dict[int, Call] = {}

    def keep(module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, kwargs: dict[str, Any]) -> None:
        layer = anatomy.decoder.attentions.get(id(module))
        if layer is not None:
            found[layer] = Call(layer, module, query, key, key, mask, kwargs)

    def weighed(module: nn.Module, _args: Any, output: Any) -> None:
        layer = anatomy.decoder.attentions[id(module)]
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if layer not in found and isinstance(weights, Tensor):  # an eager module: its heads' mean is all we need
            nothing = weights.new_empty(0)
            mean = weights.mean(1, keepdim=True)
            found[layer] = Call(layer, module, nothing, nothing, nothing, None, {}, weights=mean)

    with ExitStack() as stack:
        stack.enter_context(alone_with(anatomy.model))
        stack.enter_context(torch.no_grad())
        stack.enter_context(eager_where_unread(anatomy.decoder.attention_modules()))
        stack.enter_context(routed(anatomy.model, keep))
        for module in anatomy.decoder.attention_modules():
            stack.callback(module.register_forward_hook(weighed).remove)
        task.vlm.model(**task.continuations[0].inputs)
    if len(found) != anatomy.layers:
        raise BadModel(f"the attention of {name} does not go through transformers' interface, so it cannot be read")
    if any(call.queries != task.fed for call in found.values()):
        raise BadModel(f"layers of {name} do not read the whole sequence, so rollout cannot be followed through them")
    return [call for _, call in sorted(found.items())]


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
