"""Figures fit for a paper: maps on their photograph, sheets of many, confidence, heads.

    from llava_probe.view import figures
    figures.save_figure(figures.map_figure(m, 0), "stop.pdf")

Each is a plain matplotlib figure: axes, sizes and texts can be changed before it is saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize

from llava_probe.border import Count, checked
from llava_probe.errors import NotCaptured
from llava_probe.maps.overlay import backdrop, blend, scale_of
from llava_probe.trace.explained import Tokens, explained, placed, queries
from llava_probe.view.canvas import Canvas, drawable, save_figure

if TYPE_CHECKING:
    from llava_probe.analyzers.confidence import Confidence
    from llava_probe.analyzers.heads import HeadShares
    from llava_probe.maps.maps import ImageMap
    from llava_probe.trace.trace import Trace

__all__ = ["confidence_figure", "contact_sheet", "head_sheet", "heads_figure", "map_figure", "save_figure"]

#: More maps than this make no readable sheet.
SHEET_LIMIT = 96
#: Side of one map on a sheet, in pixels and in inches.
_THUMBNAIL, _INCHES = 224, 1.35
#: Heads beyond this are drawn without their numbers.
_NUMBERED_CELLS = 100
#: Longer side of a photograph in a figure, in pixels: finer than any print of it.
_LARGEST = 1600
_SMALL, _INK = 7.5, "#222222"
_BLUE, _ORANGE = "#2b6ca3", "#c96a1b"
_GAP = 8  # pixels between the maps of a sheet


@checked
def map_figure(m: ImageMap, row: int | None = None) -> Canvas:
    """One row of a map (or the mean of all) on its photograph, with a colour bar; marked tokens ringed."""
    width, height = m.image.size
    values = m.row(row).numpy()
    high = 4.2 * min(1.4, max(0.5, height / width))
    figure = Canvas(max(3.0, high * min(2.0, width / height) + 1.2), high + 0.55)
    axes = figure.add_subplot()
    painted = backdrop(m.image, m.layout, _LARGEST).paint(values)
    axes.imshow(painted, interpolation="nearest", extent=(0, width, height, 0))
    axes.set_axis_off()
    told = f"“{drawable(m.label(row))}”" if len(m) > 1 or row is not None else drawable(m.label())
    axes.set_title(_shortened(told if row is not None else f"mean over {told}", 52), fontsize=11, parse_math=False)
    _colour_bar(figure, axes, values, str(m.about.get("unit", m.method)))
    notes = []
    if m.marked is not None:
        marked = m.marked[slice(None) if row is None else [row]].any(0).numpy()
        _ring(axes, m.layout.boxes[marked])
        notes.append(f"ringed: {int(marked.sum())} sinks")
    if not m.layout.seen.all():
        notes.append("hatched: never seen by the model")
    if notes:
        figure.text(0.01, 0.01, "   ".join(notes), fontsize=_SMALL, color="#555555")
        figure.get_layout_engine().set(rect=(0, 0.05, 1, 0.95))  # type: ignore[union-attr, call-arg]
    return figure


@checked
def contact_sheet(m: ImageMap, confidence: Confidence | None = None) -> Canvas:
    """All rows of a map as small pictures in reading order, each on its own scale, its largest value beside its token.

    Args:
        m: the map.
        confidence: of the same trace, to tell each token's probability too.
    """
    count = min(len(m), SHEET_LIMIT)
    columns = min(count, 6 if count <= 36 else 8)
    photograph = backdrop(m.image, m.layout, _THUMBNAIL)
    tiles = [photograph.paint(m.row(number)) for number in range(count)]
    captions = [_caption(m, number, confidence) for number in range(count)]
    left_out = "" if count == len(m) else f", the first {count} of {len(m)} tokens"
    title = f"{m.method}: {m.about.get('unit', 'value')}{left_out}"
    return _sheet(tiles, captions, columns, title)


@checked
def head_sheet(trace: Trace, tokens: Tokens = None, image: int = 0) -> Canvas:
    """One small attention map for each layer and head, each on its own scale; its share on the picture in percent.

    Args:
        trace: with attention rows.
        tokens: as for ``attention_map``; several tokens are averaged.
        image: which picture.
    """
    layout, (wanted, words) = placed(trace, image), explained(trace, tokens)
    at = queries(trace, [position for word in words for position in word])
    rows = torch.stack([row[..., layout.positions].float() for row in trace.each_row(at)])
    maps = rows.mean(0).flatten(0, 1)  # [layers × heads, N]
    layers, heads = trace.attention_layers, trace.attention_heads
    few = len(maps) <= _NUMBERED_CELLS
    side, inches = (96, 0.7) if few else (48, 0.32)
    photograph = backdrop(trace.images[image], layout, side)
    tiles = [photograph.paint(values) for values in maps]
    captions = [f"{share:.0%}" if few else "" for share in maps.sum(1).tolist()]
    label = drawable("".join(token.text for token in wanted))
    figure = _sheet(tiles, captions, len(heads), f"“{_shortened(label, 40)}”: attention of each head", inches)
    axes = figure.axes[0]
    tile_height, tile_width = tiles[0].shape[:2]
    row_height = tile_height + _GAP + (_caption_height(captions, tile_width, inches))
    axes.set_axis_on()
    axes.set_xticks((np.arange(len(heads)) + 0.5) * (tile_width + _GAP) - _GAP / 2, _names(heads), fontsize=_SMALL)
    axes.set_yticks(np.arange(len(layers)) * row_height + tile_height / 2, _names(layers), fontsize=_SMALL)
    axes.set_xlabel("head", fontsize=9)
    axes.set_ylabel("layer", fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


@checked
def confidence_figure(c: Confidence, columns: Count = 16) -> Canvas:
    """Each token's probability as a bar over its text, its entropy as a bar under it; long answers on several lines."""
    count = len(c.tokens)
    lines = [range(start, min(start + columns, count)) for start in range(0, count, columns)]
    columns = max(4, min(columns, count))
    figure = Canvas(1.1 + 0.5 * columns, 2.5 * len(lines) + 0.3)
    grid = figure.add_gridspec(2 * len(lines), 1, height_ratios=[2, 1] * len(lines), hspace=0.02)
    highest = max(0.1, float(c.entropy.max())) * 1.05
    sampled = _sampled(c)
    for number, steps in enumerate(lines):
        above = figure.add_subplot(grid[2 * number])
        below = figure.add_subplot(grid[2 * number + 1])
        places = np.arange(len(steps))
        above.bar(places, c.probability[list(steps)].numpy(), 0.72, color=_BLUE)
        if sampled is not None:
            above.plot(places, sampled[list(steps)], "_", color=_INK, markersize=13, label="as sampled")
        below.bar(places, c.entropy[list(steps)].numpy(), 0.72, color=_ORANGE)
        above.set_ylim(0, 1.02)
        below.set_ylim(highest, 0)
        above.set_ylabel("probability", fontsize=8)
        below.set_ylabel("entropy\n(nats)", fontsize=8)
        texts = [_shortened(drawable(c.tokens[step].text), 12) for step in steps]
        turned = 35 if max(map(len, texts)) > 6 else 0
        above.set_xticks(places, texts, fontsize=9, rotation=turned, ha="right" if turned else "center",
                         rotation_mode="anchor", parse_math=False)  # fmt: skip
        below.set_xticks([])
        for axes in (above, below):
            axes.set_xlim(-0.6, columns - 0.4)
            axes.tick_params(axis="y", labelsize=7)
            axes.tick_params(axis="x", length=0)
            axes.spines[["top", "right"]].set_visible(False)
        below.spines["bottom"].set_visible(False)
    if sampled is not None:
        figure.axes[0].legend(fontsize=_SMALL, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0)
    return figure


@checked
def heads_figure(shares: HeadShares, of: str = "image", row: int | None = None) -> Canvas:
    """Layers by heads, shaded by their share of attention on one part of the sequence."""
    table = shares.share(of, row).numpy()
    layers, heads = table.shape
    figure = Canvas(*(1.5 + 0.26 * min(number, 16) + 0.1 * max(0, number - 16) for number in (heads, layers)))
    axes = figure.add_subplot()
    drawn = axes.imshow(table, cmap="viridis", vmin=0, vmax=max(float(table.max()), 1e-9), aspect="auto")
    every = [max(1, -(-number // 16)) for number in (heads, layers)]
    axes.set_xticks(range(0, heads, every[0]), _names(shares.heads[:: every[0]]), fontsize=_SMALL)
    axes.set_yticks(range(0, layers, every[1]), _names(shares.layers[:: every[1]]), fontsize=_SMALL)
    axes.set_xlabel("head", fontsize=9)
    axes.set_ylabel("layer", fontsize=9)
    bar = figure.colorbar(drawn, ax=axes, fraction=0.06, pad=0.03)
    bar.set_label(f"share of attention on {_PART_NAMES[of]}", fontsize=8)
    bar.ax.tick_params(labelsize=_SMALL)
    said = "".join(token.text for token in (shares.tokens if row is None else [shares.tokens[row]]))
    told = f"{'mean over ' if row is None else ''}“{_shortened(drawable(said), 30)}”"
    axes.set_title(told, fontsize=9, parse_math=False)
    return figure


_PART_NAMES = {
    "image": "the picture",
    "question": "the prompt's words",
    "first": "the first token",
    "generated": "the answer so far",
    "rest": "special tokens",
}


def _sheet(
    tiles: list[npt.NDArray[np.uint8]], captions: list[str], columns: int, title: str, inches: float = _INCHES
) -> Canvas:
    """Small pictures in rows on one pair of axes, each with its caption under it: quick, however many."""
    tile_height, tile_width = tiles[0].shape[:2]
    space = _caption_height(captions, tile_width, inches)
    rows = -(-len(tiles) // columns)
    step_x, step_y = tile_width + _GAP, tile_height + _GAP + space
    board = np.full((rows * step_y - _GAP, columns * step_x - _GAP, 3), 255, dtype=np.uint8)
    figure = Canvas(columns * inches * step_x / tile_width + 0.5, rows * inches * step_y / tile_width + 0.5)
    axes = figure.add_subplot()
    for number, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        x, y = number % columns * step_x, number // columns * step_y
        board[y : y + tile_height, x : x + tile_width] = tile
        axes.text(x + tile_width / 2, y + tile_height + 0.15 * _GAP, caption, ha="center", va="top", fontsize=_SMALL,
                  color=_INK, linespacing=1.15, parse_math=False)  # fmt: skip
    axes.imshow(board, interpolation="nearest", aspect="equal")
    axes.set_axis_off()
    axes.set_title(title, fontsize=9, parse_math=False)
    return figure


def _caption_height(captions: list[str], tile_width: int, inches: float) -> int:
    """Pixels of the board that the captions take."""
    lines = max((caption.count("\n") + 1 for caption in captions if caption), default=0)
    return round(lines * 1.3 * _SMALL / 72 / inches * tile_width)


def _caption(m: ImageMap, number: int, confidence: Confidence | None) -> str:
    token = m.tokens[number]
    text = drawable(token.text)
    if m.about.get("contrast"):
        text = drawable(m.label(number)).replace(" rather than ", "\nrather than ")
    text = "\n".join(_shortened(line, 24) for line in text.splitlines()) or text
    values = m.row(number).numpy()
    told = f"max {_short_number(scale_of(values) if values.any() else 0.0)}"
    if confidence is not None:
        step = token.position - confidence.trace.prompt_length
        if step >= 0:
            told = f"p {float(confidence.probability[step]):.2f}   {told}"
    return f"{text}\n{told}"


def _colour_bar(figure: Canvas, axes: Axes, values: npt.NDArray[np.floating[Any]], unit: str) -> None:
    """Colours as they look over mid-grey, so that the bar shows what the picture shows."""
    top = scale_of(values)
    signed = bool((values < 0).any())
    low = -top if signed else 0.0
    ramp = np.linspace(low, top, 256, dtype=np.float32)[None]
    shown = blend(np.full((1, 256, 3), 150, dtype=np.uint8), ramp, top, signed=signed)
    mappable = ScalarMappable(Normalize(low, top), ListedColormap((shown[0] / 255).tolist()))
    bar = figure.colorbar(mappable, ax=axes, fraction=0.05, pad=0.02, shrink=0.9)
    bar.set_label(unit, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)  # type: ignore[operator]


def _ring(axes: Axes, boxes: npt.NDArray[np.floating[Any]]) -> None:
    from matplotlib.patches import Ellipse

    for x0, y0, x1, y1 in boxes:
        centre, across, down = ((x0 + x1) / 2, (y0 + y1) / 2), 0.8 * (x1 - x0), 0.8 * (y1 - y0)
        for width, colour in ((2.6, _INK), (1.3, "white")):  # seen on light and on dark
            axes.add_patch(Ellipse(centre, across, down, fill=False, lw=width, ec=colour))


def _sampled(c: Confidence) -> npt.NDArray[np.floating[Any]] | None:
    """The sampled probabilities where they are there and tell something of their own."""
    try:
        sampled = c.sampled_probability
    except NotCaptured:
        return None
    if sampled is None or np.allclose(sampled, c.probability, atol=0.01):
        return None
    return sampled.numpy()


def _names(numbers: Sequence[int]) -> list[str]:
    return [str(number) for number in numbers]


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _short_number(value: float) -> str:
    return f"{value:.2g}" if abs(value) < 0.01 else f"{value:.3f}"
