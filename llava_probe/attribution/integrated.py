"""Integrated gradients: the gradient averaged along the straight way from a picture without content to this one.

Sundararajan, Taly & Yan 2017 (arXiv 1703.01365), eq. 1, computed by captum: values add up to the target's difference
between the picture and the baseline, and ``about["delta"]`` tells how far the sum of so many steps is off.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from llava_probe.attribution.engine.forward import frozen
from llava_probe.attribution.engine.found import Found
from llava_probe.attribution.engine.pixels import PixelCells, pixel_cells
from llava_probe.attribution.engine.replay import baseline_rows, replaying, values_of
from llava_probe.attribution.engine.target import Task
from llava_probe.border import Count, Limits, checked
from llava_probe.errors import BadInput
from llava_probe.inside.passes import alone_with

PATH_STEPS = 32
#: Both ends and whatever lies between: more tell no more.
PathSteps = Annotated[int, Limits(2, 100_000)]


@checked
def integrated_gradients(
    task: Task,
    *,
    on: str = "tokens",
    baseline: str = "mean",
    steps: PathSteps = PATH_STEPS,
    batch: Count = 4,
) -> Found:
    """Integrated gradients of each part, summed over its features; adds up to the target's gain over the baseline.

    Args:
        task: what is explained.
        on: ``"tokens"``: visual tokens as the language model gets them; ``"pixels"``: as the tower reads them.
        baseline: where the way begins: ``"mean"`` of the picture (of its tokens, of each channel), or ``"zero"``.
        steps: points on the way (midpoints of equal parts).
        batch: points a pass.

    Raises:
        BadInput: captum is not installed, or an unknown option.
    """
    try:
        from captum.attr import IntegratedGradients
    except ImportError as error:
        raise BadInput("integrated_gradients needs captum: pip install 'llava_probe[attribution]'") from error
    if on not in ("tokens", "pixels") or baseline not in ("mean", "zero"):
        raise BadInput(f'on= takes "tokens" or "pixels", baseline= "mean" or "zero"; got {on!r} and {baseline!r}')
    cells = pixel_cells(task) if on == "pixels" else None
    values = torch.zeros(len(task.targets), len(cells.layout if cells else task.layout), dtype=torch.float64)
    deltas = torch.zeros(len(task.targets), dtype=torch.float64)
    forwards = backwards = 0
    for number in range(len(task.answers)):
        with replaying(task, number, graph=True) if cells is None else _reading(task, number, cells.name) as run:
            start = run.entry()
            forwards += 1  # what enters, or where its pixels go
            if cells is None:
                ground = start.clone()
                ground[:, task.places] = baseline_rows(task, start, baseline)
            else:
                ground = _ground(cells, start, baseline)
            for row, target in enumerate(task.targets):
                if not target.of(number):
                    continue
                found, delta = IntegratedGradients(
                    lambda given, row=row, run=run: run.entered(given)[:, row]
                ).attribute(
                    start,
                    baselines=ground,
                    n_steps=steps,
                    method="riemann_middle",
                    internal_batch_size=batch if cells is None else 1,
                    return_convergence_delta=True,
                )
                found = found.double()
                values[row] += found[0, task.places].sum(-1).cpu() if cells is None else cells.summed(found[0])
                deltas[row] += float(delta.sum())
                forwards += steps + 2  # both ends, for the delta
                backwards += steps
    return Found(
        values=values,
        layout=cells.layout if cells else None,
        unit="integrated gradient",
        forwards=forwards,
        backwards=backwards,
        about={"on": on, "baseline": baseline, "steps": steps, "delta": deltas.tolist()},
    )


def _ground(cells: PixelCells, start: Tensor, baseline: str) -> Tensor:
    """[1, ...] where the way of the pixels begins; those of other pictures stay as they are."""
    ground = start.clone()
    parts = ground[0].movedim(cells.channels, -1)  # a view
    own = (cells.cell >= 0).to(parts.device)
    parts[own] = 0 if baseline == "zero" else parts[own].mean(0)
    return ground


@dataclass
class _Reader:
    """Runs one continuation with other pixels, one picture a pass."""

    task: Task
    number: int
    name: str

    def entry(self) -> Tensor:
        """[1, ...] the pixels as they are, behind an axis of points."""
        return self.task.continuations[self.number].inputs[self.name].detach()[None]  # type: ignore[no-any-return]

    def entered(self, pixels: Tensor) -> Tensor:
        """[n, R] values with pixels [n, ...]."""
        parts = (self.task.logits(self.number, **{self.name: one}) for one in pixels)
        return torch.cat([values_of(self.task, self.number, logits) for logits in parts])


@contextmanager
def _reading(task: Task, number: int, name: str) -> Iterator[_Reader]:
    model = task.vlm.anatomy.model
    with alone_with(model), torch.inference_mode(False), frozen(model):
        torch.set_grad_enabled(True)  # until ``frozen`` ends
        yield _Reader(task, number, name)
