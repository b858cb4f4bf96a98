"""What layers say, as figures: the word at each patch, how sure each layer is, how near a tuned lens comes.

    found = lp.lens(vlm, trace, words=["red"])
    lp.figures.words_on(found, layer=20)        # the likeliest word of each patch, on the photograph
    lp.figures.lens(found)                      # entropy, and the rank of the words, by layer
    lp.figures.tuned_lens(tuned.report)         # held-out KL by layer, beside the logit lens's

Under each stands what a lens does not tell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from llava_probe.border import CountFromZero
from llava_probe.errors import BadInput
from llava_probe.lens.lens import LENS_LIMITS
from llava_probe.view.canvas import (
    Title,
    Width,
    drawable,
    finished,
    hosted,
    on_axes,
    styled,
)
from llava_probe.view.patch_words import noted, words_of_patches

if TYPE_CHECKING:
    from llava_probe.lens.lens import Lens
    from llava_probe.lens.tuned import LensReport

#: What a small divergence does not tell.
_AGREEMENT = "a small divergence says that layers agree, not that they are right"


@styled
def words_on(
    found: Lens,
    layer: int,
    image: int = 0,
    *,
    tile: CountFromZero | None = None,
    ax: Axes | None = None,
    width: Width = "page",
    title: Title = True,
) -> Figure:
    """The likeliest word at each visual token, on the photograph; the surer, the darker.

    Args:
        found: ``lp.lens`` at the visual tokens.
        layer: which hidden state, by the model's own number.
        image: which picture.
        tile: of a picture that is seen in several views, which one: 0 the whole, 1 and on its tiles; the whole where
            there is one when None.
        ax, width, title: as for ``maps``.

    Raises:
        OutOfRange: the layer was not read.
        BadInput: not at all visual tokens of this picture, or there is no such view.
    """
    columns, row = found.columns(image), found.row(layer)
    words, sure = [found.texts[row][column][0] for column in columns], found.probability[row, columns, 0].numpy()
    axes = words_of_patches(found, image, words, sure, tile, ax, width)
    figure = finished(axes, title, f"{found.kind}, layer {found.layers[row]}: the likeliest word at each patch")
    noted(axes, LENS_LIMITS)
    return figure


@styled
def lens(found: Lens, *, ax: Axes | None = None, width: Width = "column", title: Title = True) -> Figure:
    """How sure each layer is, and, where words were weighed, how far each of them has come.

    Above the entropy over the tokens, median and the middle half; below each word's best rank at any of them, 1 for the
    likeliest.

    Args:
        found: of any number of layers and tokens.
        ax: an axes of a grid, whose place is divided.
        width: ``"column"``, ``"page"`` or inches.
        title: whether there is one, or yours.
    """
    rows = 2 if found.words else 1
    host = hosted(ax, width, 1.5 + 1.1 * (rows - 1) + 0.4)
    grid = host.subplots(rows, 1, squeeze=False, sharex=True)
    low, middle, high = np.quantile(found.entropy.numpy(), [0.25, 0.5, 0.75], axis=1)
    above = grid[0, 0]
    above.plot(found.layers, middle, "o-", color="C0")
    above.fill_between(found.layers, low, high, color="C0", alpha=0.18, lw=0)
    above.set_ylim(bottom=0)
    above.set_ylabel("entropy (nats)")
    if found.words:
        below = grid[1, 0]
        for word, ranks in zip(found.words, found.word_rank.amin(2).numpy() + 1, strict=True):
            below.plot(found.layers, ranks, "o-", label=drawable(word))
        below.set_yscale("log")
        below.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        below.yaxis.set_major_formatter(FuncFormatter(lambda rank, _place: f"{rank:,.0f}"))
        below.yaxis.set_minor_locator(NullLocator())
        below.invert_yaxis()
        below.set_ylabel("best rank")
        below.legend()
    grid[-1, 0].set_xlabel("layer")
    grid[-1, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    host.align_labels()
    if any(token.role == "image" for token in found.tokens):
        noted(host, LENS_LIMITS)
    return finished(host, title, found.told)


@styled
def tuned_lens(report: LensReport, *, ax: Axes | None = None, width: Width = "column", title: Title = True) -> Figure:
    """Held-out KL by layer: the logit lens's and the tuned lens's, at words and at visual tokens.

    Args:
        report: ``tuned.report``.
        ax, width, title: as for ``confusion``.

    Raises:
        BadInput: no picture was held out.
    """
    if not report.rows:
        raise BadInput("no picture was held out, so there is nothing to draw: fit_lens(..., held_out=0.2)")
    axes = on_axes(ax, width, 2.3)
    named = {"text": "words", "visual": "visual tokens"}
    for colour, (kind, name) in zip(("C0", "C1"), named.items(), strict=True):
        for of, style in (("logit", "--"), ("tuned", "o-")):
            if curve := report.curve(kind, of):
                layers, values = zip(*curve, strict=True)
                axes.plot(layers, values, style, color=colour, label=f"{of} lens, {name}")
    axes.set(xlabel="layer", ylabel="KL (nats a position)")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    noted(axes, _AGREEMENT)
    return finished(axes, title, f"how far from the model's last word, {report.pictures} held-out pictures")
