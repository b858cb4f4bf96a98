"""The figure of a training run: how its loss fell, and whether what was held out followed.

    lp.figures.save(lp.figures.losses(lp.finetune(...)), "losses.pdf")

Training loss alone says nothing of what was learnt: what was held out stands beside it, from before the first step on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from llava_probe.arrays import FloatArray
from llava_probe.errors import BadInput
from llava_probe.view.canvas import Title, Width, finished, hosted, styled

if TYPE_CHECKING:
    from llava_probe.finetune.result import Finetuned

#: The smoothed line is a mean over neighbours, weighted by a bell of this share of the run to each side.
_BELL = 0.015
#: Fewer steps than this have no neighbours to speak of.
_SMOOTHED = 40


@styled
def losses(result: Finetuned, *, ax: Axes | None = None, width: Width = "column", title: Title = True) -> Figure:
    """Loss by step, in training and held out, and under it the share of held-out answers that are exact.

    Args:
        result: a finished run.
        ax: an axes of a grid, whose place is divided.
        width: ``"column"``, ``"page"`` or inches.
        title: whether there is one, or yours.

    Raises:
        BadInput: nothing was measured in it.
    """
    if not result.losses:
        raise BadInput("no loss was measured in this run, so there is nothing to draw")
    steps, told = (np.array([float(entry[name]) for entry in result.losses]) for name in ("step", "loss"))
    rows = 2 if result.held_out else 1
    host = hosted(ax, width, 1.6 + 0.75 * (rows - 1))
    grid = host.subplots(rows, 1, squeeze=False, sharex=True, height_ratios=[2.4, 1][:rows])
    above, below = grid[0, 0], grid[-1, 0]
    if len(steps) < _SMOOTHED:
        above.plot(steps, told, ".-", color="C0", label="training")
    else:
        above.plot(steps, told, color="C0", alpha=0.35, lw=0.6, label="training")
        above.plot(steps, _smoothed(steps, told), color="C0", label="smoothed")
    if result.held_out:
        measured = [float(entry["step"]) for entry in result.held_out]
        above.plot(measured, [entry["loss"] for entry in result.held_out], "o", color="C1", label="held out", zorder=3)
        below.plot(measured, [entry["exact"] for entry in result.held_out], "o-", color="C1", lw=0.8)
        below.set_ylim(-0.03, 1.03)
        below.set_yticks([0, 0.5, 1])
        below.yaxis.set_major_formatter(PercentFormatter(1))
        below.set_ylabel("exact")
    above.set_ylim(bottom=0)
    above.set_ylabel("loss")
    above.legend(loc="upper right")
    below.set_xlabel("step")
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    host.align_labels()
    return finished(host, title, f"{', '.join(result.parts)} trained on {result.rows:,} rows")


def _smoothed(steps: FloatArray, values: FloatArray) -> FloatArray:
    """The mean of each value's neighbours, the nearest most."""
    bell = _BELL * np.ptp(steps)
    weights = np.exp(-0.5 * ((steps[:, None] - steps[None]) / bell) ** 2)
    return (weights * values).sum(1) / weights.sum(1)
