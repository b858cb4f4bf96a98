"""Figures of confidences: how often what was said with each confidence is right, and how many answers that rests on.

    lp.figures.save(lp.figures.reliability(lp.calibration(confidence, correct)), "reliability.pdf")

A bin of few answers is far from the diagonal by chance alone, so the grey band shows where a perfectly calibrated
model's bins would lie at these counts, and the counts stand under it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from llava_probe.view.canvas import Title, Width, finished, hosted, inches, styled

if TYPE_CHECKING:
    from llava_probe.signals.bins import Bins
    from llava_probe.signals.calibration import Calibration

_BAND = "#dddddd"
#: Both axes, with room for a mark at their ends.
_SIDES = (-0.02, 1.02)
#: Height of the counts' panel, as a share of the other.
_COUNTS = 0.28


@styled
def reliability(
    found: Calibration,
    of: Literal["width", "mass"] = "width",
    *,
    ax: Axes | None = None,
    width: Width = "column",
    title: Title = True,
) -> Figure:
    """Accuracy against confidence by bin, with intervals and the floor's band; under it how many answers each bin has.

    Args:
        found: of any number of answers.
        of: bins of equal ``"width"`` or of equal ``"mass"``.
        ax: an axes of a grid, whose place is divided.
        width: ``"column"``, ``"page"`` or inches.
        title: whether there is one, or yours.
    """
    bins, error = (found.bins, found.ece) if of == "width" else (found.mass_bins, found.ece_mass)
    host = hosted(ax, width, min(1.25 * inches(width), 4.2))
    upper, lower = host.subplots(2, 1, sharex=True, height_ratios=[1, _COUNTS])
    _draw_bins(upper, bins)
    lower.bar(
        bins.low, bins.count, bins.high - bins.low, align="edge", color="C0", alpha=0.6, lw=0.4, edgecolor="white"
    )
    lower.set(xlabel="confidence", ylabel="answers", xlim=_SIDES)
    lower.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    host.legend(*upper.get_legend_handles_labels(), loc="outside lower center")
    own = f"ECE {error}\n{found.count:,} answers in {found.groups:,} groups, bins of equal {of}"
    return finished(host, title, own)


def _draw_bins(axes: Axes, bins: Bins) -> None:
    axes.plot([0, 1], [0, 1], color="#777777", lw=0.8, ls="--", zorder=1)
    heights, widths = bins.floor_high - bins.floor_low, bins.high - bins.low
    told = "perfectly calibrated, 95 % of draws"
    axes.bar(bins.low, heights, widths, bins.floor_low, align="edge", color=_BAND, lw=0, zorder=0, label=told)
    if not np.isnan(bins.accuracy_low).all():
        axes.vlines(bins.confidence, bins.accuracy_low, bins.accuracy_high, color="C0", lw=1)
    axes.plot(bins.confidence, bins.accuracy, "o-", color="C0", lw=0.8, label="share that is right, 95 % over groups")
    axes.set(ylabel="accuracy", xlim=_SIDES, ylim=_SIDES)
