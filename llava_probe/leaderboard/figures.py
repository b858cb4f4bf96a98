"""The leaderboard as figures: where each method points, what it costs, who agrees with whom, and one picture's maps.

A dot is a mean, its line the 95 % interval over pictures. Baselines that know nothing of the model stand below; a
method whose interval reaches theirs has shown nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from llava_probe.errors import BadInput
from llava_probe.leaderboard.entries import BASELINES
from llava_probe.view.canvas import Canvas

if TYPE_CHECKING:
    from llava_probe.leaderboard.board import Leaderboard
    from llava_probe.maps.maps import ImageMap

__all__ = ["agreement_figure", "leaderboard_figure", "methods_figure"]

_COLOURS = ("#2b6ca3", "#c96a1b", "#1b8a6b", "#8a3f8f", "#777777", "#a3332b")
_SMALL = 7.5
#: Share of a line's height that its dots take, so that lines stand apart.
_ROOM = 0.7
#: How kinds of question are called where people read.
SPOKEN = {"where": "place", "text": "sign"}
_TITLES = {
    "touches": "top token touches it",
    "inside": "peak inside it",
    "precision": "average precision",
}


def leaderboard_figure(board: Leaderboard) -> Canvas:
    """Three scores by kind of question with their intervals, and the time of one word; a line for each entry."""
    names = list(board.names)
    figure = Canvas(11.5, 1.4 + 0.27 * len(names))
    axes = figure.subplots(1, len(_TITLES) + 1, sharey=True, width_ratios=[1, 1, 1, 0.8])
    places = np.arange(len(names))[::-1]
    for axis, (measure, title) in zip(axes, _TITLES.items(), strict=False):
        for number, kind in enumerate(board.kinds):
            for place, name in zip(places, names, strict=True):
                score = board.score(name, measure, kind)
                if score is None:
                    continue
                y = place + _ROOM * (0.5 - (number + 0.5) / len(board.kinds))
                colour = _COLOURS[number % len(_COLOURS)]
                if score.low == score.low:  # there is an interval
                    axis.plot([score.low, score.high], [y, y], color=colour, linewidth=1.2)
                label = SPOKEN.get(kind, kind) if place == places[0] else None
                axis.plot([score.mean], [y], "o", color=colour, markersize=3.2, label=label)
        axis.set_xlim(-0.03, 1.03)
        axis.set_title(title, fontsize=9)
        axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    seconds = [board.cost(name) for name in names]
    axes[-1].barh(places, [cost[0] if cost else np.nan for cost in seconds], color="#bbbbbb", height=0.6)
    axes[-1].set_xscale("log")
    axes[-1].xaxis.set_major_formatter("{x:g}")
    axes[-1].xaxis.set_minor_formatter("")
    axes[-1].set_title("seconds a word", fontsize=9)
    for axis in axes:
        axis.axhspan(-0.6, sum(name in BASELINES for name in names) - 0.5, color="#f2f2f2", zorder=0)
        axis.tick_params(labelsize=_SMALL, length=2)
        axis.set_ylim(-0.6, len(names) - 0.4)
    axes[0].set_yticks(places, names)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    return figure


def agreement_figure(board: Leaderboard) -> Canvas:
    """Mean rank correlation of each two entries' maps.

    Raises:
        BadInput: no question was looked at so closely.
    """
    found = board.agreement()
    if found is None:
        raise BadInput("no question was scored for agreement; score some with closer=")
    names, values = found
    figure = Canvas(2.6 + 0.3 * len(names), 2.0 + 0.3 * len(names))
    axis = figure.subplots()
    shown = axis.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1)
    axis.set_xticks(range(len(names)), names, rotation=90)
    axis.set_yticks(range(len(names)), names)
    axis.tick_params(labelsize=_SMALL, length=0)
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            if value == value:
                light = abs(value) > 0.6
                axis.text(
                    column,
                    row,
                    f"{value:.1f}".replace("-0.0", "0.0").replace("-", "−"),
                    ha="center",
                    va="center",
                    fontsize=5.5,
                    color="white" if light else "black",
                )
    bar = figure.colorbar(shown, ax=axis, shrink=0.5)
    bar.set_label("rank correlation (Spearman)", fontsize=8)
    bar.ax.tick_params(labelsize=_SMALL)
    return figure


def methods_figure(maps: Mapping[str, ImageMap], mask: Any = None, *, row: int = 0, columns: int = 6) -> Canvas:
    """One word of one picture explained by several methods, each map by its own largest value.

    A map of pixels has its full colour for as many of them as the coarsest map has in one part: a single pixel would
    not be seen.

    Args:
        maps: by name, all of the same picture.
        mask: [height, width] bool of the right place, drawn as an outline.
        row: which of the maps' rows.
        columns: pictures side by side.

    Raises:
        BadInput: no maps.
    """
    if not maps:
        raise BadInput("methods_figure takes a map for each method; got none")
    rows = -(-len(maps) // columns)
    figure = Canvas(1.25 * columns, 1.42 * rows)
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis in axes:
        axis.set_axis_off()
    parts = min(len(m.layout) for m in maps.values())
    for axis, (name, m) in zip(axes, maps.items(), strict=False):
        highest = float(m.row(row).abs().double().quantile(1 - 1 / parts)) if len(m.layout) > parts else None
        axis.imshow(m.overlay(row, highest or None))
        if mask is not None:
            axis.contour(np.asarray(mask, dtype=float), levels=[0.5], colors="white", linewidths=0.8)
        axis.plot(*m.peak(row), marker="+", color="#00e5ff", markersize=6, markeredgewidth=1.2)
        axis.set_title(name, fontsize=5.5)
    return figure
