"""Figures of probes: scores by layer with their controls, what is taken for what, and a column of features in a plane.

    lp.figures.save(lp.figures.probes(sweep), "colour.pdf")
    lp.figures.confusion(sweep, "layer_2", "last_prompt")
    lp.figures.features(store, "layer_2", "last_prompt", by="colour")

A score is never drawn without what it is to be compared with: majority, control task or the reason why there is none,
and shuffled labels. What a probe reads at each visual token is a map: ``lp.figures.maps(probe.map(trace, "red"))``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llava_probe.border import Positive
from llava_probe.maps.colours import colour_map
from llava_probe.view.canvas import (
    VALUES,
    Colours,
    Title,
    Width,
    drawable,
    finished,
    hosted,
    inches,
    on_axes,
    styled,
)
from llava_probe.view.colour_bars import Scale, colour_bar

if TYPE_CHECKING:
    from llava_probe.probes import Cell, Sweep

#: Beyond this many classes the counts of a confusion matrix are not written into it.
_WRITTEN = 16
#: More layers than this are not all named under the axis.
_NAMED_LAYERS = 12
#: R² far below zero says no more than zero does, and would flatten the rest.
_LOWEST_R2 = -0.25

#: The lines beside the score: attribute of a cell, name, colour, style, and the mark that stands for a lone layer.
_CONTROLS: tuple[tuple[str, str, str, Any, str], ...] = (
    ("control", "control task", "C1", "--", "D"),
    ("shuffled", "shuffled labels", "C4", (0, (1, 1.5)), "v"),
    ("random_model", "random model", "C2", "-.", "^"),
    ("random_features", "random features", "C4", (0, (5, 3, 1, 3)), "x"),
    ("majority", "majority", "#222222", "-", "_"),
)


@styled
def probes(sweep: Sweep, *, ax: Axes | None = None, width: Width | None = None, title: Title = True) -> Figure:
    """Score by layer with its interval and controls, and selectivity under it; a column a position.

    Args:
        sweep: of any number of layers and positions.
        ax: an axes of a grid, whose place is divided.
        width: ``"column"``, ``"page"`` or inches; a page for several positions when None.
        title: whether there is one, or yours.
    """
    positions = list(dict.fromkeys(cell.position for cell in sweep))
    selective = any(cell.selectivity is not None for cell in sweep)
    rows = 2 if selective else 1
    host = hosted(ax, width or ("column" if len(positions) == 1 else "page"), 2.3 + 0.9 * (rows - 1))
    ratios = [2.2, 1][:rows]
    grid = host.subplots(rows, len(positions), squeeze=False, sharex="col", sharey="row", height_ratios=ratios)
    regression = sweep.task == "regression"
    for column, position in enumerate(positions):
        cells = [cell for cell in sweep if cell.position == position]
        places, layers = _places(cells)
        _draw_scores(grid[0, column], places, cells)
        grid[0, column].set_title(drawable(position))
        if selective:
            _draw_selectivity(grid[1, column], places, cells)
        every = max(1, -(-len(places) // _NAMED_LAYERS))
        grid[-1, column].set_xticks(places[::every], layers[::every])
        grid[-1, column].set_xlabel("layer")
    highest = max(cell.high for cell in sweep)
    lowest = min(min(cell.low, cell.majority, cell.shuffled, cell.random_features) for cell in sweep)
    bottom = max(_LOWEST_R2, lowest - 0.05) if regression else 0.0
    grid[0, 0].set_ylim(bottom, max(1.0 if not regression else 0.2, highest) + 0.02)
    grid[0, 0].set_ylabel("R²" if regression else "accuracy")
    if selective:
        grid[1, 0].set_ylabel("selectivity")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    host.legend(handles, labels, loc="outside lower center", ncols=3)
    reason = sweep.study.types.reason
    by = sweep.study.target.grouped_by
    own = f"{sweep.label}: {sweep.study.readout.kind.replace('_', ' ')} probes, 95 % intervals over values of {by}"
    return finished(host, title, "\n".join([own, *([f"no control task: {reason}"] if reason else [])]))


@styled
def confusion(
    sweep: Sweep,
    layer: str,
    position: str,
    *,
    bar: bool = True,
    ax: Axes | None = None,
    highest: Positive = 1.0,
    cmap: Colours = "Blues",
    width: Width = "column",
    title: Title = True,
) -> Figure:
    """What each class was told to be, in shares of its row; the counts are written into small matrices.

    Args:
        sweep: of classes.
        layer, position: of which probe.
        bar, ax, highest, cmap, width, title: as for ``maps``.

    Raises:
        BadInput: the labels are numbers.
    """
    counts = sweep.confusion(layer, position)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = [drawable(str(name)) for name in sweep.classes]
    axes = on_axes(ax, width, min(0.95 * inches(width), 1.3 + 0.22 * len(names)))
    colours = colour_map(cmap) if isinstance(cmap, str) else cmap
    edges = np.arange(len(names) + 1) - 0.5
    drawn = axes.pcolormesh(edges, edges, shares, cmap=colours, norm=Scale([shares], 0, highest), edgecolors="face",
                            linewidth=0.1, label=VALUES)  # fmt: skip
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if len(names) <= _WRITTEN:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.55 * highest else "#222222"
            axes.text(column, row, str(count), ha="center", va="center", color=colour)
    axes.set(xlabel="predicted", ylabel="true")
    if bar:
        colour_bar(axes, drawn, "share of the true class", shrink=0.8)
    cell = sweep[layer, position]
    own = f"{sweep.label} from {layer}, {position}\naccuracy {cell.score:.2f} [{cell.low:.2f}, {cell.high:.2f}]"
    return finished(axes, title, own)


def _places(cells: Sequence[Cell]) -> tuple[list[int], list[str]]:
    """Where on the axis each layer stands and what stands under it: the model's number where the name tells it."""
    numbers = [re.search(r"(\d+)$", cell.layer) for cell in cells]
    prefixes = {cell.layer.rstrip("0123456789") for cell in cells}
    if len(prefixes) == 1 and all(numbers):
        found = [int(number[1]) for number in numbers if number]
        return found, [str(number) for number in found]
    return list(range(len(cells))), [drawable(cell.layer) for cell in cells]


def _draw_scores(axes: Axes, places: list[int], cells: Sequence[Cell]) -> None:
    _band(axes, places, [cell.low for cell in cells], [cell.high for cell in cells], "C0")
    axes.plot(places, [cell.score for cell in cells], "o-", color="C0", lw=1.6, label="probe")
    for name, told, colour, style, mark in _CONTROLS:
        values = [getattr(cell, name) for cell in cells]
        if any(value is not None for value in values):
            numbers = [np.nan if value is None else value for value in values]
            drawn = {"marker": mark, "ls": "none", "markersize": 4} if len(places) == 1 else {"ls": style, "lw": 1}
            axes.plot(places, numbers, color=colour, label=told, **drawn)


def _draw_selectivity(axes: Axes, places: list[int], cells: Sequence[Cell]) -> None:
    low, high, middle = (
        [np.nan if getattr(cell, name) is None else getattr(cell, name) for cell in cells]
        for name in ("selectivity_low", "selectivity_high", "selectivity")
    )
    _band(axes, places, low, high, "C1")
    axes.plot(places, middle, "o-", color="C1")
    axes.axhline(0, color="#bbbbbb", lw=0.8, zorder=0)


def _band(axes: Axes, places: list[int], low: list[float], high: list[float], colour: str) -> None:
    if len(places) == 1:
        axes.vlines(places, low, high, color=colour, lw=1.2)
    else:
        axes.fill_between(places, low, high, color=colour, alpha=0.18, lw=0)
