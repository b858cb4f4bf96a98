"""One answer as figures: its words shaded by a number, and how sure the model was of each.

lp.figures.tokens(lp.confidence(trace))       # the answer's tokens, the doubtful ones stand out
lp.figures.tokens(lp.attribute(vlm, trace))   # the words of prompt and answer by their weight for a word
lp.figures.confidence(lp.confidence(trace))   # probability and entropy as bars
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from llava_probe.border import Count, Positive
from llava_probe.errors import BadInput, NotCaptured
from llava_probe.maps.colours import HEAT, colour_map
from llava_probe.view.canvas import (
    VALUES,
    Canvas,
    Colours,
    Title,
    Width,
    drawable,
    finished,
    hosted,
    inches,
    room_of,
    styled,
    text_width,
    wrapped,
)
from llava_probe.view.colour_bars import colour_bar
from llava_probe.view.limits import BAR_LINES, WORD_LINES
from llava_probe.view.sheet import Look, look_of

if TYPE_CHECKING:
    from llava_probe.analyzers.confidence import Confidence
    from llava_probe.arrays import FloatArray
    from llava_probe.maps.maps import ImageMap

#: What ``tokens`` shades an answer by, and what the colour bar calls it.
_BY = {"probability": "probability", "entropy": "entropy, nats"}
#: A token's text in points, and inches of a line, around a token, and beside all of them.
_SIZE, _LINE, _PAD, _MARGIN = 8.0, 0.2, 0.025, 0.05
#: A colour is light from this luminance on, and is written on in dark.
_LIGHT = 0.55
_INK = "#222222"


@styled
def tokens(
    of: Confidence | ImageMap,
    row: int = 0,
    *,
    by: str = "probability",
    bar: bool = True,
    ax: Axes | None = None,
    highest: Positive | None = None,
    cmap: Colours | None = None,
    width: Width = "column",
    title: Title = True,
) -> Figure:
    """Text with each token on the colour of its number; of a very long one the beginning, as the title tells.

    Args:
        of: confidence, for the answer's tokens; or a map whose method weighs the words too, for those of prompt and
            answer. Where the word was predicted from has no colour: there the method starts.
        row: of the map.
        by: of confidence: ``"probability"``, where the unlikely stand out, or ``"entropy"``.
        bar, ax, highest, cmap, width, title: as for ``maps``.

    Raises:
        BadInput: a map without a value for words, or another ``by``.
        OutOfRange: there is no such row.
    """
    from llava_probe.maps.maps import ImageMap

    if isinstance(of, ImageMap):
        texts, values, look, own = _weights(of, row, cmap, highest)
    else:
        texts, values, look, own = _sureness(of, by, cmap, highest)
    room = inches(width) - 2 * _MARGIN if ax is None else room_of(ax)[0]
    places, lines = _flowing(texts, room)
    if left_out := _left_out(len(places), len(texts)):
        own += f", {left_out}"
    values = values[: len(places)]
    height = lines * _LINE
    if ax is None:
        ax = Canvas(inches(width), height + 0.12 + (0.2 if title else 0) + (0.45 if bar else 0)).add_subplot()
    ax.set(xlim=(0, room), ylim=(height, 0), aspect="equal", anchor="N")
    ax.set_axis_off()
    cells = PolyCollection(
        [[(x, y), (x + w, y), (x + w, y + 0.9 * _LINE), (x, y + 0.9 * _LINE)] for x, y, w in places],
        array=values, cmap=look.colours, norm=look.norm, label=VALUES, lw=0,
    )  # fmt: skip
    ax.add_collection(cells, autolim=False)
    for (x, y, w), text, value in zip(places, texts[: len(places)], values.tolist(), strict=True):
        red, green, blue, _ = look.colours(look.norm(value))
        light = 0.299 * red + 0.587 * green + 0.114 * blue > _LIGHT
        colour = "#888888" if value != value else _INK if light else "white"
        ax.text(x + w / 2, y + 0.45 * _LINE, text, ha="center", va="center", fontsize=_SIZE, color=colour)
    if bar:
        under = {"pad": min(0.04, 0.1 / height), "fraction": min(0.08, 0.4 / height)}  # of a height that text decides
        colour_bar(ax, cells, look.unit, orientation="horizontal", shrink=0.6, aspect=25, **under)
    return finished(ax, title, own)


@styled
def confidence(
    c: Confidence,
    columns: Count = 16,
    *,
    ax: Axes | None = None,
    highest: Positive | None = None,
    width: Width | None = None,
    title: Title = False,
) -> Figure:
    """Each token's probability as a bar over its text, its entropy as a bar under it; long answers on several lines.

    Of a very long one the beginning is drawn, which is told.

    Args:
        c: of one answer.
        columns: tokens a line.
        ax: an axes of a grid, whose place is divided.
        highest: nats at the end of the entropy's axis; give the same to several to compare them.
        width: ``"column"``, ``"page"`` or inches; a page from nine tokens a line on when None.
        title: none, unless True or yours.
    """
    count = min(len(c.tokens), BAR_LINES * columns)
    left_out = _left_out(count, len(c.tokens))
    lines = [range(start, min(start + columns, count)) for start in range(0, count, columns)]
    columns = max(4, min(columns, count))
    width = width or ("column" if columns <= 8 else "page")
    host = hosted(ax, width, 1.75 * len(lines) + 0.15)
    grid = host.add_gridspec(2 * len(lines), 1, height_ratios=[2, 1] * len(lines), hspace=0.02)
    deepest = highest or max(0.1, float(c.entropy[:count].max())) * 1.05
    sampled = _sampled(c)
    room = (inches(width) - 0.5) / columns
    shown = [_shortened(drawable(token.text), 12) for token in c.tokens[:count]]
    turned = 35 if max(text_width(text, "axes.titlesize") for text in shown) > 0.95 * room else 0
    for number, steps in enumerate(lines):
        above, below = host.add_subplot(grid[2 * number]), host.add_subplot(grid[2 * number + 1])
        places = np.arange(len(steps))
        above.bar(places, c.probability[list(steps)].numpy(), 0.72, color="C0")
        if sampled is not None:
            above.plot(places, sampled[list(steps)], "_", color=_INK, markersize=8, label="as sampled")
        below.bar(places, c.entropy[list(steps)].numpy(), 0.72, color="C1")
        above.set(ylim=(0, 1.02), ylabel="probability")
        below.set(ylim=(deepest, 0), ylabel="entropy\n(nats)")
        above.set_xticks(places, [shown[step] for step in steps], fontsize="large", rotation=turned,
                         ha="right" if turned else "center", rotation_mode="anchor")  # fmt: skip
        below.set_xticks([])
        for axes in (above, below):
            axes.set_xlim(-0.6, columns - 0.4)
            axes.tick_params(axis="x", length=0)
        below.spines["bottom"].set_visible(False)
    if sampled is not None:
        host.axes[0].legend(loc="lower right", bbox_to_anchor=(1, 1), borderpad=0)
    if left_out and not title:
        below.set_xlabel(left_out)
    return finished(host, title, f"How sure of each token{left_out and f', {left_out}'}")


def _sureness(c: Confidence, by: str, cmap: Any, highest: float | None) -> tuple[list[str], FloatArray, Look, str]:
    if by not in _BY:
        raise BadInput(f"by= takes {' or '.join(map(repr, _BY))}; got {by!r}")
    values = getattr(c, by).numpy()
    if by == "probability":
        highest, cmap = highest or 1.0, cmap or colour_map(f"{HEAT}_r")
    return [drawable(token.text) for token in c.tokens], values, look_of([values], _BY[by], cmap, highest), "The answer"


def _weights(m: ImageMap, row: int, cmap: Any, highest: float | None) -> tuple[list[str], FloatArray, Look, str]:
    label = m.label(row)
    if m.text is None:
        raise BadInput(f"{m.method} has no value for words; relevance and the gradients have")
    starts = m.starts(row)
    begins = np.array([token.position in starts for token in m.text_tokens])
    values = np.where(begins, np.float32(np.nan), m.text[row].numpy())
    look = look_of([values], str(m.about.get("unit", m.method)), cmap, highest)
    return (
        [drawable(token.text) for token in m.text_tokens],
        values,
        look,
        f"{m.method}: the words behind “{drawable(label)}”",
    )


def _flowing(texts: list[str], room: float) -> tuple[list[tuple[float, float, float]], int]:
    """(x, y, width) of each text in inches, in lines of at most ``room``, and how many; what fits no line is cut.

    Of the texts that go into ``WORD_LINES`` lines: the first ones.
    """
    places, x, line = [], 0.0, 0
    for number, text in enumerate(texts):
        texts[number] = text = wrapped(text, room - 2 * _PAD, _SIZE, lines=1)
        wide = text_width(text, _SIZE) + 2 * _PAD
        if x and x + wide > room:
            if line + 1 == WORD_LINES:
                break
            x, line = 0.0, line + 1
        places.append((x, line * _LINE, wide))
        x += wide + 0.4 * _PAD
    return places, line + 1


def _left_out(shown: int, count: int) -> str:
    """Nothing where all are shown."""
    return f"the first {shown:,} of {count:,} tokens" if shown < count else ""


def _sampled(c: Confidence) -> npt.NDArray[np.floating[Any]] | None:
    """The sampled probabilities where they are there and tell something of their own."""
    try:
        sampled = c.sampled_probability
    except NotCaptured:
        return None
    if sampled is None or np.allclose(sampled, c.probability, atol=0.01):
        return None
    return sampled.numpy()


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
