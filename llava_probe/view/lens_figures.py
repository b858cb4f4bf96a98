"""What layers say, as figures: the word at each patch, how sure each layer is, how near a tuned lens comes.

    found = lp.lens(vlm, trace, words=["red"])
    lp.figures.words_on(found, layer=20)        # the likeliest word of each patch, on the photograph
    lp.figures.lens(found)                      # entropy, and the rank of the words, by layer
    lp.figures.tuned_lens(tuned.report)         # held-out KL by layer, beside the logit lens's

Under each stands what a lens does not tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from llava_probe.border import CountFromZero
from llava_probe.errors import BadInput
from llava_probe.lens.lens import LENS_LIMITS
from llava_probe.trace.explained import placed
from llava_probe.view.canvas import (
    LINE,
    Canvas,
    Host,
    Title,
    Width,
    drawable,
    finished,
    hosted,
    inches,
    on_axes,
    room_of,
    styled,
    text_width,
    wrapped,
)

if TYPE_CHECKING:
    from PIL import Image

    from llava_probe.arrays import BoolArray, FloatArray
    from llava_probe.layout import ImageLayout
    from llava_probe.lens.lens import Lens
    from llava_probe.lens.tuned import LensReport

#: Points of a word on a patch: no larger than the rest of a figure, no smaller than a magnifying glass reads.
_LARGEST, _SMALLEST = 6.5, 2.2
#: Of a patch's width a word takes so much, and so many of the words are whole; so much white lies over the photograph.
_FILLED, _WHOLE, _WHITE = 0.94, 0.9, 0.55
#: The grey of a word that is not sure at all.
_PALEST = 0.45
#: What a small divergence does not tell.
_AGREEMENT = "a small divergence says that layers agree, not that they are right"
#: Points and colour of what stands under a figure.
_NOTE, _NOTE_COLOUR = 6.0, "#555555"


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
    layout, photograph = placed(found.trace, image), found.trace.images[image]
    chosen = _view(layout, tile)
    across, down = layout.size
    axes = on_axes(ax, width, inches(width) * down / across + 0.25)
    _faded(axes, photograph)
    inch = room_of(axes)[0] / across  # of a pixel
    places = [token for token in np.flatnonzero(chosen).tolist() if _area(layout, token) > 0]
    boxes = layout.boxes[places].clip(0, [across, down, across, down]) * inch
    texts = [drawable(found.texts[row][columns[token]][0]) for token in places]
    points = _points(texts, boxes)
    for token, text, (x0, y0, x1, y1) in zip(places, texts, boxes, strict=True):
        sure = float(found.probability[row, columns[token], 0])
        drawn = axes.text((x0 + x1) / 2 / inch, (y0 + y1) / 2 / inch, _cut(text, points, x1 - x0), fontsize=points,
                          ha="center", va="center", color=str(_PALEST * (1 - sure)), clip_on=True)  # fmt: skip
        drawn.set_path_effects([withStroke(linewidth=0.16 * points, foreground="white", alpha=0.7)])
    own = f"{found.kind}, layer {found.layers[row]}: the likeliest word at each patch"
    _noted(axes, LENS_LIMITS)
    return finished(axes, title, own)


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
    _noted(host, LENS_LIMITS)
    return finished(host, title, f"{found.kind} at {len(found.positions)} tokens")


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
    _noted(axes, _AGREEMENT)
    return finished(axes, title, f"how far from the model's last word, {report.pictures} held-out pictures")


def _view(layout: ImageLayout, tile: int | None) -> BoolArray:
    """[N] bool: the tokens of one view of the photograph."""
    there = sorted(set(layout.tiles.tolist()))
    if tile is not None and tile not in there:
        raise BadInput(f"tile={tile} is not there: this picture is seen in {', '.join(map(str, there))}")
    if tile is None and there[0]:
        return np.ones(len(layout), dtype=bool)
    return np.asarray(layout.tiles == (tile or 0), dtype=bool)


def _faded(axes: Axes, photograph: Image.Image) -> None:
    across, down = photograph.size
    pixels = np.asarray(photograph.convert("RGB"), dtype=np.float64) / 255
    axes.imshow(pixels * (1 - _WHITE) + _WHITE, extent=(0, across, down, 0))
    axes.set_axis_off()


def _area(layout: ImageLayout, token: int) -> float:
    """Pixels of a token's box on the photograph."""
    x0, y0, x1, y1 = layout.boxes[token].clip(0, [*layout.size, *layout.size])
    return float(max(0, x1 - x0) * max(0, y1 - y0))


def _points(texts: Sequence[str], boxes: FloatArray) -> float:
    """One size for all, at which most of the words fit into their boxes, given in inches."""
    widths = np.array([max(text_width(text, _LARGEST), 1e-6) for text in texts])
    room = np.minimum(_FILLED * (boxes[:, 2] - boxes[:, 0]) / widths, 0.8 * 72 * (boxes[:, 3] - boxes[:, 1]) / _LARGEST)
    return float(np.clip(_LARGEST * np.quantile(room, 1 - _WHOLE), _SMALLEST, _LARGEST))


def _cut(text: str, points: float, room: float) -> str:
    """A word without the end that would not fit."""
    while len(text) > 2 and text_width(text, points) > room:
        text = f"{text[:-2]}…"
    return text


def _noted(drawn: Host | Axes, note: str) -> None:
    """What a lens does not tell, under a figure of our own, or under the axes that was given."""
    host = drawn.get_figure(root=False) if isinstance(drawn, Axes) else drawn
    figure = host.get_figure(root=True)  # type: ignore[union-attr]
    if isinstance(drawn, Axes) and not isinstance(figure, Canvas):
        label = "\n".join(filter(None, [drawn.get_xlabel(), wrapped(note, room_of(drawn)[0], _NOTE)]))
        if drawn.axison:
            drawn.set_xlabel(label)
        else:
            drawn.text(0.5, -0.02, label, transform=drawn.transAxes, ha="center", va="top", fontsize=_NOTE)
        return
    lines = wrapped(note, figure.get_figwidth() - 0.1, _NOTE)  # type: ignore[union-attr]
    if isinstance(figure, Canvas):
        figure.set_figheight(figure.get_figheight() + LINE * (lines.count("\n") + 1))
    host.supxlabel(lines, fontsize=_NOTE, color=_NOTE_COLOUR)  # type: ignore[union-attr]
