"""Figures of sweeps: what cutting, patching and pushing do, by layer and strength, with intervals over pictures.

    lp.figures.save(lp.figures.information_flow(lp.information_flow(vlm, samples)), "flow.pdf")

A line is a mean over samples, its band the 95 % interval over them; controls stand beside it and are never left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from llava_probe.errors import BadInput
from llava_probe.view.canvas import Host, Title, Width, drawable, finished, hosted, styled

if TYPE_CHECKING:
    from llava_probe.sweeps.attribution_patching import AttributionPatching
    from llava_probe.sweeps.causal_trace import CausalTrace
    from llava_probe.sweeps.dose_response import DoseResponse
    from llava_probe.sweeps.information_flow import InformationFlow

_BAND = 0.18
#: Of ``InformationFlow``: how each control is drawn beside the cut.
_CONTROLS = (("uniform", "--"), ("random", (0, (1, 1.5))))
#: Inches of a panel without a title, and of what stands around all of them.
_PANEL, _AROUND = 1.35, 0.45


@styled
def information_flow(
    flow: InformationFlow,
    of: str = "probability",
    *,
    ax: Axes | None = None,
    width: Width = "page",
    title: Title = True,
) -> Figure:
    """Relative change by middle layer: a row for each window, a column for each edge, the controls beside each cut.

    Args:
        flow: of any number of samples.
        of: ``"probability"`` or ``"difference"``.
        ax: an axes of a grid, whose place is divided.
        width: ``"column"``, ``"page"`` or inches.
        title: whether there is one, or yours.
    """
    mean, low, high = flow.interval(of)
    rows, columns = len(flow.windows), len(flow.edges)
    host = hosted(ax, width, _AROUND + _PANEL * rows)
    grid = host.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for row, window in enumerate(flow.windows):
        for column, edge in enumerate(flow.edges):
            axes = grid[row, column]
            colour = f"C{column}"
            axes.axhline(0, color="#bbbbbb", linewidth=0.6)
            axes.fill_between(flow.layers, low[0, column, row], high[0, column, row], color=colour, alpha=_BAND, lw=0)
            axes.plot(flow.layers, mean[0, column, row], color=colour, marker=".", label="cut")
            for control, (name, style) in enumerate(_CONTROLS, start=1):
                axes.plot(flow.layers, mean[control, column, row], color="#555555", linestyle=style, label=name, lw=1)
            if row == 0:
                axes.set_title(drawable(edge.replace("->", " → ")))
            if column == 0:
                axes.set_ylabel(f"window {window}\nchange, %")
    for axes in grid[-1]:
        axes.set_xlabel("middle layer")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(host, grid[-1, -1])
    return finished(host, title, f"{of} of the answer's first word, {len(flow)} samples, 95 % over samples")


@styled
def causal_trace(
    trace: CausalTrace,
    *,
    ax: Axes | None = None,
    width: Width = "page",
    title: Title = True,
) -> Figure:
    """Share of the logit difference by layer: a row for each mode, a column for each part, a line for each group.

    Args:
        trace: of any number of samples.
        ax: an axes of a grid, whose place is divided.
        width: ``"column"``, ``"page"`` or inches.
        title: whether there is one, or yours.

    Raises:
        BadInput: nothing was brought back in any sample.
    """
    mean, low, high = trace.interval()
    modes = [mode for mode in range(2) if not np.isnan(mean[mode]).all()]
    if not modes:
        raise BadInput("no sample of this trace has anything to bring back, so there is nothing to draw")
    host = hosted(ax, width, _AROUND + _PANEL * len(modes))
    grid = host.subplots(len(modes), len(trace.parts), squeeze=False, sharex=True, sharey=True)
    for row, mode in enumerate(modes):
        for column, part in enumerate(trace.parts):
            axes = grid[row, column]
            for level in (0, 1):
                axes.axhline(level, color="#bbbbbb", linewidth=0.6)
            for number, group in enumerate(trace.groups):
                colour = f"C{number}"
                own = (each[mode, number, column] for each in (mean, low, high))
                middle, bottom, top = own
                axes.fill_between(trace.layers, bottom, top, color=colour, alpha=_BAND, lw=0)
                axes.plot(trace.layers, middle, color=colour, marker=".", label=drawable(group))
            if row == 0:
                axes.set_title(part)
            if column == 0:
                axes.set_ylabel(("denoising", "noising")[mode] + "\nshare of LD")
    for axes in grid[-1]:
        axes.set_xlabel("layer")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(host, grid[-1, -1])
    told = f"corrupted by {trace.corruption}, windows of {trace.window}, {len(trace)} samples, 95 % over samples"
    return finished(host, title, told)


@styled
def dose_response(
    dose: DoseResponse,
    *,
    ax: Axes | None = None,
    width: Width = "page",
    title: Title = True,
) -> Figure:
    """Each measure against the strength of the push, random directions beside it.

    Args:
        dose: of any number of samples.
        ax: an axes of a grid, whose place is divided.
        width: ``"column"``, ``"page"`` or inches.
        title: whether there is one, or yours.
    """
    names = list(dose.values)
    host = hosted(ax, width, _AROUND + _PANEL)
    grid = host.subplots(1, len(names), squeeze=False)
    for axes, name in zip(grid[0], names, strict=True):
        mean, low, high = dose.interval(name)
        styles: tuple[tuple[int, str, str, Any], ...] = (
            (0, "direction", "C0", "-"),
            (1, "random", "C4", "--"),
        )
        for row, label, colour, style in styles:
            axes.fill_between(dose.scales, low[row], high[row], color=colour, alpha=_BAND, lw=0)
            axes.plot(dose.scales, mean[row], color=colour, linestyle=style, marker=".", label=label)
        axes.set_title(name)
        axes.set_xlabel("strength")
        if name == "perplexity":
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
    _legend(host, grid[-1, -1])
    return finished(host, title, f"{len(dose)} samples, 95 % over samples; strength in typical norms of a state")


@styled
def attribution_patching(
    found: AttributionPatching,
    *,
    ax: Axes | None = None,
    width: Width = "page",
    title: Title = True,
) -> Figure:
    """First order against the exact sweep, a panel for each part, with Spearman's rank correlation.

    Args:
        found: with an exact sweep of some samples.
        ax: an axes of a grid, whose place is divided.
        width: ``"column"``, ``"page"`` or inches.
        title: whether there is one, or yours.

    Raises:
        BadInput: no sample was swept exactly.
    """
    if np.isnan(found.exact).all():
        raise BadInput("no sample was swept exactly; attribution_patching(..., exact=3) does")
    host = hosted(ax, width, _AROUND + _PANEL)
    grid = host.subplots(1, len(found.parts), squeeze=False)
    for column, (axes, part) in enumerate(zip(grid[0], found.parts, strict=True)):
        exact = found.exact[:, :, column].ravel()
        for values, colour, label in (
            (found.first_order, "#bbbbbb", "first order"),
            (found.effects, "C0", "corrected"),
        ):
            axes.plot(exact, values[:, :, column].ravel(), ".", color=colour, label=label, markersize=2)
        axes.axline((0, 0), slope=1, color="#555555", linewidth=0.6)
        axes.set_title(f"{part}, ρ = {found.correlation(part):.2f}")
        axes.set_xlabel("exact")
        axes.xaxis.set_major_locator(MaxNLocator(2))
    grid[0, 0].set_ylabel("approximated")
    _legend(host, grid[0, 0])
    return finished(host, title, f"{len(found.effects)} samples, beside the exact sweep of each place")


def _legend(host: Host, axes: Axes) -> None:
    """One for all panels, beside none of the data."""
    handles, labels = axes.get_legend_handles_labels()
    host.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6))
