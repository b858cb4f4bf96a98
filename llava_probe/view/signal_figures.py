"""How well each signal tells words that are made up, drawn beside what knows nothing of the picture.

lp.figures.save(lp.figures.signal_scores(lp.signal_table(found, made_up)), "signals.pdf")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llava_probe.view.canvas import Title, Width, finished, hosted, styled

if TYPE_CHECKING:
    from llava_probe.signals.signal_table import SignalTable

#: Inches of a line, and of what stands above and below all of them.
_LINE, _AROUND = 0.17, 0.9
_BASELINE = "#777777"


@styled
def signal_scores(
    table: SignalTable, *, ax: Axes | None = None, width: Width = "column", title: Title = True
) -> Figure:
    """AUROC of each signal with its 95 % interval over pictures, the best on top; baselines are hollow and grey.

    Args:
        table: of any number of signals.
        ax: an axes of a grid, whose place is divided.
        width: ``"column"``, ``"page"`` or inches.
        title: whether there is one, or yours.
    """
    host = hosted(ax, width, _AROUND + _LINE * len(table.scores))
    axes = host.subplots()
    for place, score in enumerate(reversed(table.scores)):
        colour = _BASELINE if score.baseline else "C0"
        if score.auroc.low == score.auroc.low:  # there is an interval
            axes.plot([score.auroc.low, score.auroc.high], [place, place], color=colour, lw=1)
        axes.plot(score.auroc.value, place, "o", color=colour, mfc="white" if score.baseline else colour, ms=3.5)
    axes.axvline(0.5, color=_BASELINE, lw=0.7, ls=":")
    best = table[table.best_baseline].auroc.value
    axes.axvline(best, color=_BASELINE, lw=0.7, ls="--")
    axes.set_yticks(range(len(table.scores)), [score.name.replace("_", " ") for score in reversed(table.scores)])
    axes.set(xlabel="AUROC, made up or not", xlim=(-0.02, 1.02), ylim=(-0.6, len(table.scores) - 0.4))
    counts = f"{table.made_up} of {table.words} words made up, {table.pictures} pictures"
    return finished(host, title, f"{counts}\nhollow: knows nothing of the picture")
