"""Attention by layer and head: one trace as a grid, many as curves with intervals.

lp.figures.layers_heads(lp.heads(trace, mask=sign), of="mask")     # which heads look at the sign
lp.figures.layers([lp.heads(trace) for trace in traces])           # the picture's share by layer, over pictures
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from llava_probe.border import Positive, Seed
from llava_probe.errors import BadInput
from llava_probe.resampling import interval, resamples, weighed
from llava_probe.view.canvas import VALUES, Colours, Title, Width, drawable, finished, on_axes, styled
from llava_probe.view.colour_bars import colour_bar
from llava_probe.view.sheet import look_of

if TYPE_CHECKING:
    from llava_probe.analyzers.heads import HeadShares
    from llava_probe.arrays import FloatArray

_PART_NAMES = {
    "image": "the picture",
    "question": "the prompt's words",
    "first": "the first token",
    "generated": "the answer so far",
    "rest": "special tokens",
    "mask": "the marked part",
}
#: More names than this do not stand beside each other under an axis.
_NAMED = 16
#: Draws of the pictures behind an interval.
_TIMES = 2000


@styled
def layers_heads(
    shares: HeadShares,
    of: str = "image",
    row: int | None = None,
    *,
    bar: bool = True,
    ax: Axes | None = None,
    highest: Positive | None = None,
    cmap: Colours | None = None,
    width: Width = "column",
    title: Title = True,
) -> Figure:
    """Layers by heads, shaded by their share of attention on one part of the sequence, or on a mask.

    Args:
        shares: of one trace.
        of: the part, as ``shares.share`` takes it.
        row: of which token; the mean of all when None.
        bar, ax, highest, cmap, width, title: as for ``maps``.

    Raises:
        BadInput: there is no such part; OutOfRange: no such row.
    """
    table = shares.share(of, row).numpy()
    layers, heads = table.shape
    axes = on_axes(ax, width, min(4.0, max(1.5, 0.7 + 0.13 * layers)))
    look = look_of([table], f"share of attention on {_PART_NAMES[of]}", cmap, highest)
    cells = axes.pcolormesh(np.arange(heads + 1) - 0.5, np.arange(layers + 1) - 0.5, table, cmap=look.colours,
                            norm=look.norm, edgecolors="face", linewidth=0.1, label=VALUES)  # fmt: skip
    axes.invert_yaxis()
    every = [max(1, -(-number // _NAMED)) for number in (heads, layers)]
    axes.set_xticks(range(0, heads, every[0]), [str(head) for head in shares.heads[:: every[0]]])
    axes.set_yticks(range(0, layers, every[1]), [str(layer) for layer in shares.layers[:: every[1]]])
    axes.set(xlabel="head", ylabel="layer")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if bar:
        colour_bar(axes, cells, look.unit)
    said = "".join(token.text for token in (shares.tokens if row is None else [shares.tokens[row]]))
    averaged = "mean over " if row is None and len(shares.tokens) > 1 else ""
    return finished(axes, title, f"{averaged}“{drawable(said)}”")


@styled
def layers(
    shares: Sequence[HeadShares],
    of: str | Sequence[str] = "image",
    *,
    ax: Axes | None = None,
    highest: Positive | None = None,
    width: Width = "column",
    title: Title = False,
    seed: Seed = 0,
) -> Figure:
    """The share of attention on a part by layer, heads and tokens averaged: the mean over pictures, and its interval.

    Args:
        shares: one of each picture; they are taken as independent of each other.
        of: a part, or several: ``["image", "question"]``.
        ax: an axes to draw in.
        highest: of the share's axis.
        width: ``"column"``, ``"page"`` or inches.
        title: none, unless True or yours.
        seed: of the draws. The band is the 95 % percentile bootstrap over pictures.

    Raises:
        BadInput: no shares, of other layers than each other, no part, or no such part.
    """
    if not shares:
        raise BadInput("layers takes the shares of one or more traces: [lp.heads(trace) for trace in traces]; got none")
    numbers = shares[0].layers
    if any(each.layers != numbers for each in shares):
        raise BadInput("layers takes shares of the same layers; some of these traces kept others")
    parts = [of] if isinstance(of, str) else list(of)
    if not parts:
        raise BadInput('layers takes one part or more, of="image" or of=["image", "question"]; got none')
    axes = on_axes(ax, width, 2.0)
    for name in parts:
        values = np.stack([each.share(name).mean(1).numpy() for each in shares]).astype(np.float64)  # [pictures, L]
        low, high = _band(values, seed)
        (line,) = axes.plot(numbers, values.mean(0), "o-", label=_PART_NAMES[name])
        if len(shares) > 1:
            axes.fill_between(numbers, low, high, color=line.get_color(), alpha=0.2, lw=0)
    axes.set(xlabel="layer", ylabel="share of attention", ylim=(0, highest))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    told = f"{len(shares)} pictures, mean and 95 % interval over them" if len(shares) > 1 else "one picture"
    return finished(axes, title, told)


def _band(values: FloatArray, seed: int) -> tuple[FloatArray, FloatArray]:
    """[L] ends of the interval of the mean over pictures."""
    count = len(values)
    means = weighed(resamples(count, _TIMES, seed), values) / count  # [times, L]
    ends = np.array([interval(each) for each in means.T])
    return ends[:, 0], ends[:, 1]
