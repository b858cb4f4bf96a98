"""Figures of probes: scores by layer with their controls, what is taken for what, and a probe over a photograph.

    from llava_probe.view import probe_figures
    save_figure(probe_figures.sweep_figure(sweep), "colour.pdf")

A score is never drawn without what it is to be compared with: majority, control task or the reason why there is none,
and shuffled labels.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes

from llava_probe.border import checked
from llava_probe.errors import BadInput
from llava_probe.view.canvas import Canvas, drawable
from llava_probe.view.figures import map_figure

if TYPE_CHECKING:
    from llava_probe.probes import Cell, Probe, Sweep
    from llava_probe.trace.trace import Trace

__all__ = ["confusion_figure", "probe_figure", "sweep_figure"]

_BLUE, _ORANGE, _GREY, _GREEN = "#2b6ca3", "#c96a1b", "#777777", "#1b8a6b"
_SMALL = 7.5
#: Beyond this many classes the counts of a confusion matrix are not written into it.
_WRITTEN = 16
#: More layers than this are not all named under the axis.
_NAMED_LAYERS = 12
#: R² far below zero says no more than zero does, and would flatten the rest.
_LOWEST_R2 = -0.25
#: Letters of a title that fit into an inch.
_LETTERS = 15

#: The lines beside the score: attribute of a cell, name, colour, style, and the mark that stands for a lone layer.
_CONTROLS: tuple[tuple[str, str, str, Any, str], ...] = (
    ("control", "control task", _ORANGE, "--", "D"),
    ("shuffled", "shuffled labels", _GREY, (0, (1, 1.5)), "v"),
    ("random_model", "random model", _GREEN, "-.", "^"),
    ("random_features", "random features", _GREY, (0, (5, 3, 1, 3)), "x"),
    ("majority", "majority", "#222222", "-", "_"),
)


@checked
def sweep_figure(sweep: Sweep) -> Canvas:
    """Score by layer with its interval and controls, and selectivity under it; a column a position.

    Args:
        sweep: of any number of layers and positions.
    """
    positions = list(dict.fromkeys(cell.position for cell in sweep))
    selective = any(cell.selectivity is not None for cell in sweep)
    rows = 2 if selective else 1
    figure = Canvas(max(4.6, 0.9 + 2.9 * len(positions)), 3.2 + 1.5 * (rows - 1) + 0.4)
    ratios = [2.2, 1][:rows]
    grid = figure.subplots(rows, len(positions), squeeze=False, sharex="col", sharey="row", height_ratios=ratios)
    regression = sweep.task == "regression"
    for column, position in enumerate(positions):
        cells = [cell for cell in sweep if cell.position == position]
        places, layers = _places(cells)
        _draw_scores(grid[0, column], places, cells)
        grid[0, column].set_title(drawable(position), fontsize=9, parse_math=False)
        if selective:
            _draw_selectivity(grid[1, column], places, cells)
        every = max(1, -(-len(places) // _NAMED_LAYERS))
        grid[-1, column].set_xticks(places[::every], layers[::every], fontsize=_SMALL)
        grid[-1, column].set_xlabel("layer", fontsize=8)
    highest = max(cell.high for cell in sweep)
    lowest = min(min(cell.low, cell.majority, cell.shuffled, cell.random_features) for cell in sweep)
    bottom = max(_LOWEST_R2, lowest - 0.05) if regression else 0.0
    grid[0, 0].set_ylim(bottom, max(1.0 if not regression else 0.2, highest) + 0.02)
    grid[0, 0].set_ylabel("R²" if regression else "accuracy", fontsize=8)
    if selective:
        grid[1, 0].set_ylabel("selectivity", fontsize=8)
    handles, names = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=_SMALL, frameon=False)
    reason = sweep.study.types.reason
    by = sweep.study.target.grouped_by
    title = f"{sweep.label}: {sweep.study.readout.kind.replace('_', ' ')} probes, 95 % intervals over values of {by}"
    lines = [title, *([f"no control task: {reason}"] if reason else [])]
    wrapped = [part for line in lines for part in textwrap.wrap(line, int(_LETTERS * figure.get_figwidth()))]
    figure.suptitle("\n".join(wrapped), fontsize=9, parse_math=False)
    return figure


@checked
def confusion_figure(sweep: Sweep, layer: str, position: str) -> Canvas:
    """What each class was told to be, in shares of its row; the counts are written into small matrices.

    Raises:
        BadInput: the labels are numbers.
    """
    counts = sweep.confusion(layer, position)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    names = [drawable(str(name)) for name in sweep.classes]
    size = 1.9 + 0.42 * min(len(names), 2 * _WRITTEN)
    figure = Canvas(size + 0.7, size)
    axes = figure.add_subplot()
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, fontsize=_SMALL, rotation=40, ha="right", rotation_mode="anchor",
                    parse_math=False)  # fmt: skip
    axes.set_yticks(range(len(names)), names, fontsize=_SMALL, parse_math=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if len(names) <= _WRITTEN:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.55 else "#222222"
            axes.text(column, row, str(count), ha="center", va="center", fontsize=_SMALL, color=colour)
    axes.set_xlabel("predicted", fontsize=8)
    axes.set_ylabel("true", fontsize=8)
    bar = figure.colorbar(drawn, ax=axes, fraction=0.046, pad=0.03)
    bar.set_label("share of the true class", fontsize=8)
    bar.ax.tick_params(labelsize=_SMALL)
    bar.outline.set_visible(False)  # type: ignore[operator]
    cell = sweep[layer, position]
    title = f"{sweep.label} from {layer}, {position}\naccuracy {cell.score:.2f} [{cell.low:.2f}, {cell.high:.2f}]"
    axes.set_title(title, fontsize=9, parse_math=False)
    return figure


@checked
def probe_figure(probe: Probe, trace: Trace, label: str | bool | int | float | None = None, image: int = 0) -> Canvas:
    """What a probe reads at each visual token, over the photograph.

    Args:
        probe: of the trace's model; ``label``: the class or output, which only a probe of one number may leave out.
        trace: with the hidden states of the probe's layer at ``"image"``; ``image``: which picture.

    Raises:
        BadInput: no label, where there are several.
    """
    if label is None and len(probe.classes) > 1:
        raise BadInput(f"name the label to draw: {', '.join(map(repr, probe.classes))}")
    return map_figure(probe.map(trace, probe.classes[0] if label is None else label, image), 0)


def _places(cells: Sequence[Cell]) -> tuple[list[int], list[str]]:
    """Where on the axis each layer stands and what stands under it: the model's number where the name tells it."""
    numbers = [re.search(r"(\d+)$", cell.layer) for cell in cells]
    prefixes = {cell.layer.rstrip("0123456789") for cell in cells}
    if len(prefixes) == 1 and all(numbers):
        found = [int(number[1]) for number in numbers if number]
        return found, [str(number) for number in found]
    return list(range(len(cells))), [drawable(cell.layer) for cell in cells]


def _draw_scores(axes: Axes, places: list[int], cells: Sequence[Cell]) -> None:
    _band(axes, places, [cell.low for cell in cells], [cell.high for cell in cells], _BLUE)
    axes.plot(places, [cell.score for cell in cells], "o-", color=_BLUE, markersize=3.5, lw=1.6, label="probe")
    for name, told, colour, style, mark in _CONTROLS:
        values = [getattr(cell, name) for cell in cells]
        if any(value is not None for value in values):
            numbers = [np.nan if value is None else value for value in values]
            drawn = {"marker": mark, "ls": "none", "markersize": 5} if len(places) == 1 else {"ls": style, "lw": 1.2}
            axes.plot(places, numbers, color=colour, label=told, **drawn)
    _plain(axes)


def _draw_selectivity(axes: Axes, places: list[int], cells: Sequence[Cell]) -> None:
    low, high, middle = (
        [np.nan if getattr(cell, name) is None else getattr(cell, name) for cell in cells]
        for name in ("selectivity_low", "selectivity_high", "selectivity")
    )
    _band(axes, places, low, high, _ORANGE)
    axes.plot(places, middle, "o-", color=_ORANGE, markersize=3, lw=1.4)
    axes.axhline(0, color="#bbbbbb", lw=0.8, zorder=0)
    _plain(axes)


def _band(axes: Axes, places: list[int], low: list[float], high: list[float], colour: str) -> None:
    if len(places) == 1:
        axes.vlines(places, low, high, color=colour, lw=1.2)
    else:
        axes.fill_between(places, low, high, color=colour, alpha=0.18, lw=0)


def _plain(axes: Axes) -> None:
    axes.tick_params(axis="y", labelsize=_SMALL)
    axes.spines[["top", "right"]].set_visible(False)
