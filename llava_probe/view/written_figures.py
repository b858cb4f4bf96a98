"""Who wrote a word: its parts by layer, and what the heads read to write it.

written = lp.written_by(vlm, trace, "red")
lp.figures.written(written)                # layers by heads and MLPs
lp.figures.written(written, of="image")    # the same heads, by what they read off the picture alone
lp.figures.written_from(written)           # all heads together, by what they read
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from llava_probe.border import Positive
from llava_probe.view.canvas import VALUES, Colours, Title, Width, drawable, finished, hosted, on_axes, styled
from llava_probe.view.colour_bars import colour_bar
from llava_probe.view.sheet import look_of

if TYPE_CHECKING:
    from llava_probe.arrays import FloatArray
    from llava_probe.lens.written import Written

_SOURCE_NAMES = {
    "image": "the picture",
    "question": "the question",
    "template": "the template",
    "first": "the first token",
    "answer": "the answer so far",
    "sinks": "sinks on the picture",
}
#: More names than this do not stand beside each other under an axis.
_NAMED = 16
#: Columns that are left free between heads and other parts.
_GAP = 1
_FOR, _AGAINST = "#b2182b", "#2166ac"  # the ends of the colours of signed values


@styled
def written(
    written: Written,
    of: str | None = None,
    *,
    bar: bool = True,
    ax: Axes | None = None,
    highest: Positive | None = None,
    cmap: Colours | None = None,
    width: Width = "column",
    title: Title = True,
) -> Figure:
    """Layers by heads and other parts, coloured by what each gave to the logit: for the word, or against it.

    Args:
        written: what ``lp.written_by`` found. What entered the first block and what biases gave is told under the axis.
        of: the heads alone, and what they gave from one source (``"image"``, ``"sinks"`` ...), as ``written.part``
            takes it.
        bar, ax, highest, cmap, width, title: as for ``maps``.

    Raises:
        BadInput: there is no such source.
    """
    table, names = _grid(written, of)
    layers, columns = table.shape
    axes = on_axes(ax, width, min(4.0, max(1.5, 0.7 + 0.13 * layers)))
    unit = "logit" if of is None else f"logit, read from {_SOURCE_NAMES[of]}"
    look = look_of([table], unit, cmap, highest, signed=True)
    cells = axes.pcolormesh(np.arange(columns + 1) - 0.5, np.arange(layers + 1) - 0.5, table, cmap=look.colours,
                            norm=look.norm, edgecolors="face", linewidth=0.1, label=VALUES)  # fmt: skip
    axes.invert_yaxis()
    heads = written.heads.shape[1]
    every = [max(1, -(-number // _NAMED)) for number in (heads, layers)]
    ticks = [*range(0, heads, every[0]), *(heads + _GAP + number for number in range(len(names)))]
    axes.set_xticks(ticks, [*map(str, range(0, heads, every[0])), *names])
    axes.set_yticks(range(0, layers, every[1]))
    rest = _rest(written) if of is None else ""
    axes.set(xlabel=f"head\n{rest}" if rest else "head", ylabel="layer")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if bar:
        colour_bar(axes, cells, look.unit)
    return finished(axes, title, f"“{drawable(written.label)}”, {written.logit:.2f} logits")


@styled
def written_from(
    written: Written,
    *,
    ax: Axes | None = None,
    highest: Positive | None = None,
    width: Width = "column",
    title: Title = True,
) -> Figure:
    """What the heads read to write a word, all of them together, beside what was written without reading.

    Args:
        written: what ``lp.written_by`` found. What was read off sinks counts in the picture's bar too.
        ax: an axes of a grid, whose place is taken.
        highest: of the axis of logits, to both sides.
        width: ``"column"``, ``"page"`` or inches.
        title: whether there is one, or yours.
    """
    read = {_SOURCE_NAMES[name]: value for name, value in written.read().items() if name != "sinks" or written.sinks}
    alone = {
        "MLPs": float(written.mlp.sum()),
        "other parts": float(written.other.sum()),
        "the token read there": written.embedding,
        "biases": float(written.biases.sum()),
    }
    bars = read | {name: value for name, value in alone.items() if value}
    host = hosted(ax, width, 0.7 + 0.17 * len(bars))  # names of many letters stand beside the axes
    axes = host.subplots()
    values = np.array([*bars.values()])
    axes.barh(range(len(bars)), values, color=[_FOR if value > 0 else _AGAINST for value in values], height=0.7)
    axes.axvline(0, color="#555555", linewidth=0.6)
    axes.axhline(len(read) - 0.5, color="#bbbbbb", linewidth=0.6)
    axes.set_yticks(range(len(bars)), [*bars])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set(xlabel="logit", xlim=None if highest is None else (-highest, highest))
    axes.spines["left"].set_visible(False)
    return finished(host, title, f"“{drawable(written.label)}”, {written.logit:.2f} logits")


def _grid(written: Written, of: str | None) -> tuple[FloatArray, list[str]]:
    """[L, columns] heads, a gap, and what else a block has, NaN where it has none; and the names behind the gap."""
    values = (written.heads if of is None else written.part(of)).numpy()
    heads = np.full((len(written.mlp), values.shape[1]), np.nan)
    heads[list(written.layers)] = values
    if of is not None:
        return heads, []
    beside = {"MLP": written.mlp, "other": written.other}
    shown = {name: each.numpy()[:, None] for name, each in beside.items() if bool(each.any())}
    gap = np.full((len(heads), _GAP), np.nan)
    columns = [heads, *([gap] if shown else []), *(np.where(each, each, np.nan) for each in shown.values())]
    return np.concatenate(columns, 1), [*shown]


def _rest(written: Written) -> str:
    """What is no part of a block, in words."""
    told = {"the token read there": written.embedding, "biases": float(written.biases.sum())}
    return ", ".join(f"{name} {value:+.2f}" for name, value in told.items() if abs(value) >= 0.005)
