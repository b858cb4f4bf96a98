"""Words written onto the patches that they were found at: on the photograph, small enough to fit, the surer the darker.

found = bank.words(trace, layer=12)
lp.figures.contextual_words(found)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from llava_probe.analyzers.table import rounded
from llava_probe.border import CountFromZero
from llava_probe.errors import BadInput
from llava_probe.lens.bank import BANK_LIMITS
from llava_probe.trace.explained import placed
from llava_probe.view.canvas import (
    LINE,
    Canvas,
    Host,
    Title,
    Width,
    drawable,
    finished,
    inches,
    on_axes,
    room_of,
    styled,
    text_width,
    wrapped,
)

if TYPE_CHECKING:
    from PIL import Image

    from llava_probe.arrays import FloatArray
    from llava_probe.layout import ImageLayout
    from llava_probe.lens.at_tokens import AtTokens
    from llava_probe.lens.bank import ContextualWords

#: Points of a word: no larger than the rest of a figure, no smaller than a magnifying glass reads.
_LARGEST, _SMALLEST = 6.5, 2.2
#: What of a patch a word may fill, across and down.
_ACROSS, _DOWN = 0.94, 0.8
#: Of white over the photograph, so that words are read.
_WHITE = 0.55
#: Grey of the least sure word; the surest is black.
_FAINT = 0.5
#: Inches above a photograph, for a title.
_ABOVE = 0.45
#: Points and colour of what stands under a figure.
_NOTE, _NOTE_COLOUR = 6.0, "#555555"


@styled
def contextual_words(
    found: ContextualWords,
    image: int = 0,
    *,
    tile: CountFromZero | None = None,
    ax: Axes | None = None,
    width: Width = "page",
    title: Title = True,
) -> Figure:
    """The nearest word of a bank at each visual token, on the photograph; the nearer, the darker.

    Args:
        found: ``bank.words(...)`` at the visual tokens.
        image: which picture.
        tile: of a picture that is seen in several views, which one: 0 the whole, from 1 on its tiles; the whole, where
            there is one, when None.
        ax, width, title: as for ``maps``.

    Raises:
        BadInput: not at all visual tokens of this picture, or there is no such view.
    """
    columns = found.columns(image)
    near = found.similarity[columns, 0].numpy()
    seen = near[_view_of(placed(found.trace, image), tile)]
    low, high = seen.min(), seen.max()
    own = f"nearest contextual words, layer {found.layer} (cosine {rounded(low, 2)} to {rounded(high, 2)})"
    words = [found.texts[column][0] for column in columns]
    axes = words_of_patches(found, image, words, (near - low) / max(high - low, 1e-6), tile, ax, width)
    figure = finished(axes, title, own)
    noted(axes, BANK_LIMITS)
    return figure


def words_of_patches(
    found: AtTokens,
    image: int,
    words: Sequence[str],
    sure: FloatArray,
    tile: int | None,
    ax: Axes | None,
    width: str | float,
) -> Axes:
    """A photograph with a word at each visual token of one view.

    Args:
        found: whose trace has the picture; ``image``: which.
        words: of each of its visual tokens, in the layout's order; ``sure``: [N] from 0, grey, to 1, black.
        tile, ax, width: as for the figures.

    Raises:
        BadInput: there is no such view.
    """
    layout = placed(found.trace, image)
    across, down = layout.size
    axes = on_axes(ax, width, inches(width) * down / across + _ABOVE)
    write_words(axes, found.trace.images[image], layout, words, sure, _view_of(layout, tile))
    return axes


def noted(drawn: Host | Axes, note: str) -> None:
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


def write_words(
    axes: Axes,
    photograph: Image.Image,
    layout: ImageLayout,
    words: Sequence[str],
    sure: FloatArray,
    shown: np.ndarray | None = None,
) -> None:
    """A word onto each patch of a photograph, which is drawn pale behind them.

    Args:
        axes: to draw in.
        photograph: of the layout's size.
        layout: where the N visual tokens lie.
        words: of each token, in the layout's order.
        sure: [N] from 0, grey, to 1, black.
        shown: [N] bool, which of them to write; all when None.
    """
    across, down = layout.size
    pixels = np.asarray(photograph.convert("RGB"), dtype=np.float64) / 255
    axes.imshow(pixels * (1 - _WHITE) + _WHITE, extent=(0, across, down, 0))
    axes.set_axis_off()
    inch = room_of(axes)[0] / across  # of a pixel
    for token in range(len(layout)) if shown is None else np.flatnonzero(shown).tolist():
        x0, y0, x1, y1 = layout.boxes[token].clip(0, [across, down, across, down])
        if x1 <= x0 or y1 <= y0:
            continue
        text, points = _fitted(drawable(words[token]), _ACROSS * (x1 - x0) * inch)
        points = min(points, _DOWN * 72 * (y1 - y0) * inch)
        grey = str(_FAINT * (1 - float(sure[token])))
        drawn = axes.text((x0 + x1) / 2, (y0 + y1) / 2, text, fontsize=points, ha="center", va="center", color=grey)
        drawn.set(clip_on=True, path_effects=[withStroke(linewidth=0.16 * points, foreground="white", alpha=0.7)])


def _view_of(layout: ImageLayout, tile: int | None) -> np.ndarray:
    """[N] bool: the tokens of one view of the photograph."""
    there = sorted(set(layout.tiles.tolist()))
    if tile is not None and tile not in there:
        raise BadInput(f"tile={tile} is not there: this picture is seen in {', '.join(map(str, there))}")
    if tile is None and there[0]:
        return np.ones(len(layout), dtype=bool)
    return np.asarray(layout.tiles == (tile or 0))


def _fitted(text: str, room: float) -> tuple[str, float]:
    """A word and the points at which it fits; its end is left out where it would be too small."""
    points = _points(text, room)
    while points < _SMALLEST and len(text) > 2:
        text = f"{text[:-2]}…"
        points = _points(text, room)
    return text, max(points, _SMALLEST / 2)


def _points(text: str, room: float) -> float:
    return _LARGEST * min(1.0, room / max(text_width(text, _LARGEST), 1e-6))
