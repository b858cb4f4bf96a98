"""LLaVA-CAM: features of the visual tokens at one layer, weighted by the target's gradient.

At a layer with states X [N, D] and gradients G of the target: channel weights w = mean over the visual tokens of G⁺,
map = (mean over channels of w ⊙ X)⁺. Described by Zhang et al. 2024, "From Redundancy to Relevance" (arXiv 2406.06579),
as compared in Chen et al. 2025, EAGLE (arXiv 2509.22496). The layer is free; a middle one by default.
"""

from __future__ import annotations

from typing import Annotated

import torch

from llava_probe.attribution.engine.forward import forward
from llava_probe.attribution.engine.found import Found
from llava_probe.attribution.engine.target import Task
from llava_probe.border import Limits, checked
from llava_probe.errors import BadModel, OutOfRange


@checked
def llava_cam(task: Task, *, layer: Annotated[int, Limits(1)] | None = None) -> Found:
    """Class activation of each visual token, one forward pass and a backward pass a target.

    Args:
        task: what is explained.
        layer: hidden state 1 to L - 1 whose features are weighted; half of L when None.

    Raises:
        OutOfRange: there is no such layer, or nothing behind it reads its visual tokens.
    """
    count = task.vlm.anatomy.layers
    layer = count // 2 if layer is None else layer
    if layer >= count:
        raise OutOfRange(f"layer {layer} is not there: LLaVA-CAM takes hidden state 1 to {count - 1}")
    values = torch.zeros(len(task.targets), len(task.layout), dtype=torch.float64)
    for number in task.passes:
        with forward(task, number, states=[layer]) as run:
            states = run.states[layer]
            if states.shape[:2] != run.entry.shape[:2]:
                raise BadModel(
                    f"hidden state {layer} of {type(task.vlm.anatomy.model).__name__} has streams of its own"
                )
            for row, target, last in run:
                (slope,) = run.gradients(target, [states], last=last)
                features, slopes = (
                    each[task.places].flatten(1).double() for each in (states[0].detach(), run.merged(slope))
                )
                weights = slopes.clamp(min=0).mean(0)
                values[row] = (features * weights).mean(1).clamp(min=0).cpu()
    return Found(
        values=values, unit="class activation", forwards=task.forwards, backwards=task.backwards, about={"layer": layer}
    )
