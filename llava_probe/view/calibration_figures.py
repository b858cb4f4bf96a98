"""Figures of confidences: how often what was said with each is right, and what is wrong among the surest.

    lp.figures.save(lp.figures.reliability(lp.calibration(confidence, correct)), "reliability.pdf")
    lp.figures.risk_coverage({"probability": one, "margin": another})

A bin of few answers is far from the diagonal by chance alone, so the grey band shows where a perfectly calibrated
model's bins would lie at these counts, and the counts stand under it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from llava_probe.errors import BadInput
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


@styled
def risk_coverage(
    found: Calibration | Mapping[str, Calibration],
    *,
    ax: Axes | None = None,
    width: Width = "column",
    title: Title = True,
) -> Figure:
    """The share of wrong answers among the surest, against the share of answers that is kept; 95 % over groups.

    Args:
        found: of one confidence, or several by name, a curve each.
        ax: an axes of a grid, whose place is divided.
        width: ``"column"``, ``"page"`` or inches.
        title: whether there is one, or yours.
    """
    curves = found if isinstance(found, Mapping) else {"": found}
    if not curves:
        raise BadInput("risk_coverage draws calibrations by name; got none")
    host = hosted(ax, width, min(0.8 * inches(width), 3.4))
    axes = host.subplots()
    for number, (name, each) in enumerate(curves.items()):
        colour = f"C{number}"
        if not np.isnan(each.risk_low).all():
            axes.fill_between(each.coverage, each.risk_low, each.risk_high, color=colour, alpha=0.2, lw=0)
        told = f"{name}: {each.risk_area}" if name else f"area {each.risk_area}"
        axes.plot(each.coverage, each.risk, color=colour, label=told)
        axes.axhline(each.risk[-1], color=colour, lw=0.7, ls=":")
    axes.set(xlabel="share of answers kept, the surest first", ylabel="share of them that is wrong", xlim=(0, 1))
    axes.set_ylim(bottom=0)
    host.legend(*axes.get_legend_handles_labels(), loc="outside lower center")
    return finished(host, title, "Risk and coverage; dotted: any order")


def _draw_bins(axes: Axes, bins: Bins) -> None:
    axes.plot([0, 1], [0, 1], color="#777777", lw=0.8, ls="--", zorder=1)
    heights, widths = bins.floor_high - bins.floor_low, bins.high - bins.low
    told = "perfectly calibrated, 95 % of draws"
    axes.bar(bins.low, heights, widths, bins.floor_low, align="edge", color=_BAND, lw=0, zorder=0, label=told)
    if not np.isnan(bins.accuracy_low).all():
        axes.vlines(bins.confidence, bins.accuracy_low, bins.accuracy_high, color="C0", lw=1)
    axes.plot(bins.confidence, bins.accuracy, "o-", color="C0", lw=0.8, label="share that is right, 95 % over groups")
    axes.set(ylabel="accuracy", xlim=_SIDES, ylim=_SIDES)
