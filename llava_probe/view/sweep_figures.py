"""Figures of sweeps: what cutting, patching and pushing do, by layer and strength, with intervals over pictures.

    from llava_probe.view import sweep_figures
    save_figure(sweep_figures.information_flow_figure(flow), "flow.pdf")

A line is a mean over samples, its band the 95 % interval over them; controls stand beside it and are never left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from llava_probe.border import checked
from llava_probe.errors import BadInput
from llava_probe.view.canvas import Canvas, drawable

if TYPE_CHECKING:
    from llava_probe.sweeps.attribution_patching import AttributionPatching
    from llava_probe.sweeps.causal_trace import CausalTrace
    from llava_probe.sweeps.dose_response import DoseResponse
    from llava_probe.sweeps.information_flow import InformationFlow

__all__ = ["attribution_patching_figure", "causal_trace_figure", "dose_response_figure", "information_flow_figure"]

_COLOURS = ("#2b6ca3", "#c96a1b", "#1b8a6b", "#a33b6c", "#777777", "#6a51a3")
_SMALL = 7.5
_BAND = 0.18
#: Of ``InformationFlow``: how each control is drawn beside the cut.
_CONTROLS = (("uniform", "--"), ("random", (0, (1, 1.5))))


@checked
def information_flow_figure(flow: InformationFlow, of: str = "probability") -> Canvas:
    """Relative change by middle layer: a row for each window, a column for each edge, the controls beside each cut.

    Args:
        flow: of any number of samples.
        of: ``"probability"`` or ``"difference"``.
    """
    mean, low, high = flow.interval(of)
    rows, columns = len(flow.windows), len(flow.edges)
    figure = Canvas(1.0 + 2.5 * columns, 0.9 + 1.8 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for row, width in enumerate(flow.windows):
        for column, edge in enumerate(flow.edges):
            axes = grid[row, column]
            colour = _COLOURS[column % len(_COLOURS)]
            axes.axhline(0, color="#bbbbbb", linewidth=0.6)
            axes.fill_between(flow.layers, low[0, column, row], high[0, column, row], color=colour, alpha=_BAND, lw=0)
            axes.plot(flow.layers, mean[0, column, row], color=colour, marker=".", label="cut")
            for control, (name, style) in enumerate(_CONTROLS, start=1):
                axes.plot(flow.layers, mean[control, column, row], color="#555555", linestyle=style, label=name, lw=1)
            if row == 0:
                axes.set_title(drawable(edge.replace("->", " → ")), fontsize=9, parse_math=False)
            if column == 0:
                axes.set_ylabel(f"window {width}\nchange, %", fontsize=8)
            axes.tick_params(labelsize=_SMALL)
    for axes in grid[-1]:
        axes.set_xlabel("middle layer", fontsize=8)
    grid[0, -1].legend(fontsize=_SMALL, frameon=False)
    figure.suptitle(f"{of} of the answer's first word, {len(flow)} samples, 95 % over samples", fontsize=9)
    return figure


@checked
def causal_trace_figure(trace: CausalTrace) -> Canvas:
    """Share of the logit difference by layer: a row for each mode, a column for each part, a line for each group."""
    mean, low, high = trace.interval()
    modes = [mode for mode in range(2) if not np.isnan(mean[mode]).all()]
    if not modes:
        raise BadInput("no sample of this trace has anything to bring back, so there is nothing to draw")
    figure = Canvas(1.2 + 2.9 * len(trace.parts), 0.9 + 2.2 * len(modes))
    grid = figure.subplots(len(modes), len(trace.parts), squeeze=False, sharex=True, sharey=True)
    for row, mode in enumerate(modes):
        for column, part in enumerate(trace.parts):
            axes = grid[row, column]
            for level in (0, 1):
                axes.axhline(level, color="#bbbbbb", linewidth=0.6)
            for number, group in enumerate(trace.groups):
                colour = _COLOURS[number % len(_COLOURS)]
                own = (each[mode, number, column] for each in (mean, low, high))
                middle, bottom, top = own
                axes.fill_between(trace.layers, bottom, top, color=colour, alpha=_BAND, lw=0)
                axes.plot(trace.layers, middle, color=colour, marker=".", label=drawable(group))
            if row == 0:
                axes.set_title(part, fontsize=9)
            if column == 0:
                axes.set_ylabel(("denoising", "noising")[mode] + "\nshare of LD", fontsize=8)
            axes.tick_params(labelsize=_SMALL)
    for axes in grid[-1]:
        axes.set_xlabel("layer", fontsize=8)
    grid[0, -1].legend(fontsize=_SMALL, frameon=False)
    told = f"corrupted by {trace.corruption}, windows of {trace.window}, {len(trace)} samples, 95 % over samples"
    figure.suptitle(told, fontsize=9)
    return figure


@checked
def dose_response_figure(dose: DoseResponse) -> Canvas:
    """Each measure against the strength of the push, random directions beside it."""
    names = list(dose.values)
    figure = Canvas(0.8 + 2.6 * len(names), 2.6)
    grid = figure.subplots(1, len(names), squeeze=False)
    for axes, name in zip(grid[0], names, strict=True):
        mean, low, high = dose.interval(name)
        styles: tuple[tuple[int, str, str, Any], ...] = (
            (0, "direction", _COLOURS[0], "-"),
            (1, "random", "#777777", "--"),
        )
        for row, label, colour, style in styles:
            axes.fill_between(dose.scales, low[row], high[row], color=colour, alpha=_BAND, lw=0)
            axes.plot(dose.scales, mean[row], color=colour, linestyle=style, marker=".", label=label)
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("strength, typical norms", fontsize=8)
        axes.tick_params(labelsize=_SMALL)
        if name == "perplexity":
            axes.set_yscale("log")
    grid[0, -1].legend(fontsize=_SMALL, frameon=False)
    return figure


@checked
def attribution_patching_figure(found: AttributionPatching) -> Canvas:
    """First order against the exact sweep, a panel for each part, with Spearman's rank correlation.

    Raises:
        BadInput: no sample was swept exactly.
    """
    if np.isnan(found.exact).all():
        raise BadInput("no sample was swept exactly; attribution_patching(..., exact=3) does")
    figure = Canvas(0.8 + 2.2 * len(found.parts), 2.5)
    grid = figure.subplots(1, len(found.parts), squeeze=False)
    for column, (axes, part) in enumerate(zip(grid[0], found.parts, strict=True)):
        exact = found.exact[:, :, column].ravel()
        for values, colour, label in (
            (found.first_order, "#bbbbbb", "first order"),
            (found.effects, _COLOURS[0], "corrected"),
        ):
            axes.plot(exact, values[:, :, column].ravel(), ".", color=colour, label=label, markersize=4)
        axes.axline((0, 0), slope=1, color="#555555", linewidth=0.6)
        axes.set_title(f"{part}, ρ = {found.correlation(part):.2f}", fontsize=9)
        axes.set_xlabel("exact", fontsize=8)
        axes.tick_params(labelsize=_SMALL)
    grid[0, 0].set_ylabel("approximated", fontsize=8)
    grid[0, 0].legend(fontsize=_SMALL, frameon=False)
    return figure
