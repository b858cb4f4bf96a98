"""Gradients where the picture enters: of the visual tokens, or of the pixels that the tower reads.

``gradient`` is the norm ‖∂y/∂x‖ of each part (Simonyan et al. 2014, arXiv 1312.6034), ``input_x_gradient`` the signed
sum over its features of x ⊙ ∂y/∂x (Shrikumar et al. 2017, arXiv 1605.01713). On pixels each map has the finer layout
of what the tower read, on the same photograph.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from llava_probe.attribution.engine.forward import forward
from llava_probe.attribution.engine.found import Found
from llava_probe.attribution.engine.pixels import pixel_cells
from llava_probe.attribution.engine.target import Task
from llava_probe.border import checked
from llava_probe.errors import BadInput


@checked
def gradient(task: Task, *, on: str = "tokens") -> Found:
    """Norm of the gradient of each part.

    Args:
        task: what is explained.
        on: ``"tokens"``, or ``"pixels"``.
    """
    return _summed(task, on, lambda value, slope: slope.double().square(), torch.sqrt, "gradient norm")


@checked
def input_x_gradient(task: Task, *, on: str = "tokens") -> Found:
    """Input times gradient of each part, summed over its features; against the target where negative.

    Args:
        task: what is explained.
        on: ``"tokens"``, or ``"pixels"`` as the tower read them: resized and normalised.
    """
    return _summed(task, on, lambda value, slope: value.double() * slope.double(), torch.clone, "input × gradient")


def _summed(
    task: Task,
    on: str,
    product: Callable[[Tensor, Tensor], Tensor],
    shape: Callable[[Tensor], Tensor],
    unit: str,
) -> Found:
    """``shape`` of the sums of a product of values and slopes over each part."""
    if on not in ("tokens", "pixels"):
        raise BadInput(f'on= takes "tokens" or "pixels"; got {on!r}')
    cells = pixel_cells(task) if on == "pixels" else None
    rows = torch.zeros(len(task.targets), task.fed if cells is None else len(cells.layout), dtype=torch.float64)
    for number in task.passes:
        with forward(task, number, pixels=cells is not None) as run:
            source = run.entry if cells is None else run.pixels[cells.name]
            for row, target, last in run:
                (slope,) = run.gradients(target, [source], last=last)
                if cells is None:
                    sums = product(source[0, : task.fed].detach(), run.merged(slope)).sum(-1)
                else:
                    sums = cells.summed(product(source.detach(), slope))
                rows[row] = shape(sums)
    return Found(
        positions=rows if cells is None else None,
        values=None if cells is None else rows,
        layout=None if cells is None else cells.layout,
        unit=unit,
        forwards=task.forwards + (cells is not None),  # finding out where each pixel goes
        backwards=task.backwards,
        about={"on": on},
    )
