"""Attention × gradient: what the predicting position looked at, weighted by how much the target rests on it.

Mean over layers and heads of A ⊙ (∂y/∂A)⁺ in the rows that predict the target: Zhang et al. 2025, "MLLMs Know Where
to Look" (arXiv 2502.17422), who take one middle layer (14 of 32 in LLaVA-1.5-7B); here ``layers=`` chooses.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llava_probe.analyzers.attention import Numbers, axis_list
from llava_probe.attribution.engine.forward import forward
from llava_probe.attribution.engine.found import Found
from llava_probe.attribution.engine.target import Task
from llava_probe.attribution.engine.watching import Slopes, Watch
from llava_probe.border import checked
from llava_probe.errors import BadModel, OutOfRange
from llava_probe.inside.rows import Call


@checked
def attention_gradient(task: Task, *, layers: Numbers = None) -> Found:
    """Attention times its gradient at every position, one forward pass and a backward pass a target.

    Args:
        task: what is explained.
        layers: the model's own numbers; all by default.

    Raises:
        OutOfRange: a layer that is not there.
    """
    wanted = _chosen(task, layers)
    rows = torch.zeros(len(task.targets), task.fed, dtype=torch.float64)
    looked: dict[int, Tensor] = {}
    start = torch.empty(0)

    def see(call: Call, slopes: Slopes) -> None:
        if call.layer in wanted:
            share = start.to(call.device, torch.float64)  # [B, P]
            total = share.new_zeros(len(share), call.keys)
            for block, weights, slope in slopes((share != 0).any(0).nonzero().flatten()):
                products = (weights.double() * slope.double()).clamp(min=0).mean(1)  # [B, block, K]
                total[:, : products.shape[2]] += (share[:, block, None] * products).sum(1)
            looked[call.layer] = total.cpu()

    for number in task.passes:
        with forward(task, number, Watch(task.vlm.anatomy.decoder, see)) as run:
            for row, target, last in run:
                looked.clear()
                start = run.starting(target)
                run.gradients(target, [run.entry], last=last)
                if not looked:
                    raise BadModel(f"no attention of {type(task.vlm.anatomy.model).__name__} could be watched")
                rows[row] = run.merged(torch.stack(list(looked.values())).mean(0))
    return Found(
        rows,
        unit="attention × gradient",
        forwards=task.forwards,
        backwards=task.backwards,
        about={"layers": sorted(wanted)},
    )


def _chosen(task: Task, layers: Numbers) -> set[int]:
    count = task.vlm.anatomy.layers
    listed = axis_list("layers", layers)
    if listed is None:
        return set(range(count))
    wrong = [layer for layer in listed if not -count <= layer < count]
    if wrong:
        raise OutOfRange(f"layer {wrong[0]} is not there: this model has 0 to {count - 1}")
    return {layer % count for layer in listed}
