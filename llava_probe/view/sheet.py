"""Pictures in rows: maps under their photographs on one scale, each with its caption, and a colour bar for all.

A sheet is one axes measured in inches, y down. All cells of all maps are one collection, so that a sheet of a hundred
is quick, its colours are one mappable's, and a PDF holds the cells as vectors. The photographs lie over them as ink
(``maps/colours.py``): a value is read back from a pixel's hue.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import EllipseCollection, PolyCollection
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from llava_probe.arrays import BoolArray, FloatArray
from llava_probe.errors import BadInput
from llava_probe.layout import ImageLayout
from llava_probe.maps.colours import check_over_a_photograph, colour_map
from llava_probe.maps.overlay import backdrop, scale_of
from llava_probe.view.canvas import VALUES, Canvas, inches, room_of, text_width, wrapped
from llava_probe.view.colour_bars import Scale, bar_name, colour_bar, name_bar

#: Where the photograph is: over each map in grey, before them in colour, both, or nowhere.
PHOTOGRAPH = ("under", "beside", "both", "none")
#: One scale for all panels, or each panel's largest value as its own.
ONE_OR_EACH = ("one", "each")
#: A square picture is drawn about so large on a sheet of many, in inches; a panorama as large an area.
_SIDE = 1.05
#: More cells in one map than this are drawn as an image: pixels, and no longer patches.
_CELLS = 4096
#: Dots per inch of a photograph on a sheet.
_FINE = 300
_GAP, _MARGIN = 0.06, 0.07
#: Of a line of text, in inches for each point of its size; of a colour bar with its numbers, their minus, a line of its
#: name.
_LINE, _BAR, _MINUS, _NAME = 1.25 / 72, 0.48, 0.11, 0.14
#: A colour bar is at least and at most so high; lower where its name is, and no more is there.
_BARS = (1.1, 2.2)
#: Lines of a colour bar's name: two of its unit, and one of the factor of its numbers.
_NAMES = 3
_CAPTION = 6.5


@dataclass(frozen=True, eq=False)
class Panel:
    """One picture of a sheet.

    Attributes:
        image: the photograph; ``layout``: of its visual tokens.
        values: [N] of the map; None: the photograph alone.
        caption: under it, a line each.
        marked: [N] bool, tokens to ring.
        look: which of the sheet's looks its colours are of.
    """

    image: Image.Image
    layout: ImageLayout
    values: FloatArray | None
    caption: str = ""
    marked: BoolArray | None = None
    look: int = 0


@dataclass(frozen=True, eq=False)
class Look:
    """Colours and what they stand for: ``unit`` is the colour bar's name."""

    colours: Colormap
    norm: Scale
    unit: str


@dataclass(frozen=True, eq=False)
class Frame:
    """How a sheet is laid out and told of.

    Attributes:
        width: inches, or a name of ``canvas.WIDTHS``.
        columns: panels side by side; as many as suit their shape when None.
        photograph: one of ``PHOTOGRAPH``.
        bar: whether colour bars are drawn.
        notes: under all of it.
        rows, heads: names at the left of each row, and over each column.
        highest: inches that a panel may be high.
    """

    width: str | float
    columns: int | None = None
    photograph: str = "under"
    bar: bool = True
    notes: Sequence[str] = ()
    rows: Sequence[str] = ()
    heads: Sequence[str] = ()
    highest: float = 3.2


def look_of(
    values: Sequence[FloatArray], unit: str, cmap: str | Colormap | None, highest: float | None, *, signed: bool = False
) -> Look:
    """One look for several maps: from 0, or where one is negative or may be from minus the largest, to the largest."""
    top = highest or max((scale_of(each) for each in values), default=1.0)
    signed = signed or any(bool((each < 0).any()) for each in values)  # NaN is not
    colours = cmap if isinstance(cmap, Colormap) else colour_map(cmap, signed)
    return Look(colours, Scale(values, -top if signed else 0.0, top), unit)


def by_scale(
    values: Sequence[FloatArray], scale: str, unit: str, highest: float | None
) -> tuple[list[FloatArray], str]:
    """Maps by one scale, or each as shares of its own largest value, and what a value then is.

    Raises:
        BadInput: another scale, or a highest value of each one's own.
    """
    if scale not in ONE_OR_EACH:
        raise BadInput(f"scale= takes {' or '.join(map(repr, ONE_OR_EACH))}; got {scale!r}")
    if scale == "one":
        return list(values), unit
    if highest is not None:
        raise BadInput('highest= is of one scale; with scale="each" every map has its own')
    return [each / scale_of(each) for each in values], f"{unit}, of each map's largest"


def draw_sheet(panels: Sequence[Panel], looks: Sequence[Look], frame: Frame, title: str, ax: Axes | None) -> Figure:
    """Draw panels in reading order on a figure of their own, or in ``ax``.

    Raises:
        BadInput: an unknown way with the photograph, or colours that cannot be read under it.
    """
    if frame.photograph not in PHOTOGRAPH:
        told = ", ".join(map(repr, PHOTOGRAPH))
        raise BadInput(f"photograph= takes one of {told}; got {frame.photograph!r}")
    if frame.photograph in ("under", "both"):
        for look in looks:
            check_over_a_photograph(look.colours)
    plan = _planned(panels, frame, room_of(ax)[0] if ax is not None else None, looks)
    if ax is None:
        axes, figure = _own_axes(plan, frame, title)
    else:
        axes, figure = ax, ax.get_figure(root=True)  # type: ignore[assignment]
        axes.set_title(wrapped(title, room_of(ax)[0], "axes.titlesize") if title else "")
    axes.set(xlim=(0, plan.width), ylim=(plan.height, 0), aspect="equal", anchor="N" if ax is not None else "C")
    axes.set_axis_off()
    shown = _draw(axes, panels, looks, plan, frame)
    if ax is not None and frame.bar:
        for look, each in zip(looks, shown, strict=True):
            colour_bar(axes, each, look.unit, shrink=0.8)
    return figure


# --- the plan ---


@dataclass(frozen=True, eq=False)
class _Plan:
    """In inches: panels at most as large as ``panel`` over their ``caption``; colour bars ``least`` high at least."""

    panel: tuple[float, float]
    columns: int
    count: int
    bar: float
    least: float
    captions: list[str]
    caption: float
    left: float
    top: float
    room: float

    @property
    def width(self) -> float:
        return self.left + self.columns * (self.panel[0] + _GAP) - _GAP

    @property
    def height(self) -> float:
        rows = -(-self.count // self.columns)
        return self.top + max(self.least, rows * (self.panel[1] + self.caption + _GAP) - _GAP)

    @property
    def bar_height(self) -> float:
        return min(self.height - self.top, max(self.panel[1], _BARS[0]), _BARS[1])

    def corner(self, number: int) -> tuple[float, float]:
        row, column = divmod(number, self.columns)
        return self.left + column * (self.panel[0] + _GAP), self.top + row * (self.panel[1] + self.caption + _GAP)


def _planned(panels: Sequence[Panel], frame: Frame, given: float | None, looks: Sequence[Look]) -> _Plan:
    """With room for as many lines as the names of the colour bars take."""
    if given is not None or not frame.bar:
        return _plan_with(panels, frame, given, 0.0, ())
    numbers = _MINUS if any((look.norm.vmin or 0) < 0 for look in looks) else 0.0
    for lines in range(1, _NAMES + 1):
        plan = _plan_with(panels, frame, None, _BAR + numbers + lines * _NAME, looks)
        names = [bar_name(look.unit, look.norm, plan.bar_height) for look in looks]
        if all(name.count("\n") < lines for name in names):
            break
    return plan


def _plan_with(panels: Sequence[Panel], frame: Frame, given: float | None, bar: float, looks: Sequence[Look]) -> _Plan:
    room = inches(frame.width) - len(looks) * bar - 2 * _MARGIN if given is None else given
    left, top = (0.28 if frame.rows else 0.0), (0.24 if frame.heads else 0.0)
    aspects = [panel.image.height / panel.image.width for panel in panels]
    aspect = math.sqrt(max(aspects) * min(aspects))  # of other shapes, the widest and the highest lose as much
    room = max(0.5, room - left)
    columns = frame.columns or max(1, round(room / (_SIDE / math.sqrt(aspect))))
    columns = min(columns, len(panels))
    side = min((room + _GAP) / columns - _GAP, frame.highest / aspect)
    captions = [
        "\n".join(wrapped(line, side + 0.5 * _GAP, _CAPTION, 2) for line in panel.caption.split("\n"))
        for panel in panels
    ]
    lines = max((caption.count("\n") + 1 for caption in captions if caption), default=0)
    caption = lines * _LINE * _CAPTION + (0.04 if lines else 0.0)
    least = min(_BARS[0], max((text_width(look.unit, "axes.labelsize") for look in looks), default=0.0))
    return _Plan((side, side * aspect), columns, len(panels), bar, least, captions, caption, left, top, room)


def _own_axes(plan: _Plan, frame: Frame, title: str) -> tuple[Axes, Figure]:
    """An axes of the sheet's size on a canvas cut to it, under its title and over its notes."""
    width = inches(frame.width)
    title = wrapped(title, width - 2 * _MARGIN, "figure.titlesize") if title else ""
    notes = wrapped("   ".join(frame.notes), width - 2 * _MARGIN, _CAPTION) if frame.notes else ""
    above = (title.count("\n") + 1) * _LINE * 8 + 0.05 if title else 0.0
    below = (notes.count("\n") + 1) * _LINE * _CAPTION + 0.05 if notes else 0.0
    height = above + plan.height + below + 2 * _MARGIN
    figure = Canvas(width, height, layout="none")
    start = _MARGIN + max(0.0, (plan.left + plan.room - plan.width) / 2)
    place = (start / width, (_MARGIN + below) / height, plan.width / width, plan.height / height)
    axes = figure.add_axes(place)
    middle = (start + plan.width / 2) / width if plan.width > 0.7 * width else 0.5
    if title:
        figure.text(
            0.5 if "\n" in title else middle, 1 - _MARGIN / height, title, ha="center", va="top", fontsize="large"
        )
    if notes:
        figure.text(
            _MARGIN / width, _MARGIN / height, notes, ha="left", va="bottom", fontsize=_CAPTION, color="#555555"
        )
    return axes, figure


# --- drawing ---


def _draw(
    axes: Axes, panels: Sequence[Panel], looks: Sequence[Look], plan: _Plan, frame: Frame
) -> list[ScalarMappable]:
    """Cells under photographs under rings; what each look's colours are."""
    shown: list[ScalarMappable] = []
    placed = [_Placed.at(panel, *plan.corner(number), *plan.panel) for number, panel in enumerate(panels)]
    for number, look in enumerate(looks):
        own = [each for each in placed if each.panel.values is not None and each.panel.look == number]
        shown.append(_cells(axes, own, look))
    for each, caption in zip(placed, plan.captions, strict=True):
        _unseen(axes, each)
        _photograph(axes, each, frame.photograph)
        _rings(axes, each)
        x, y = each.x + each.width / 2, each.y + each.height + 0.03
        if caption:
            axes.text(x, y, caption, ha="center", va="top", fontsize=_CAPTION, linespacing=1.15)
    for number, name in enumerate(frame.heads):
        x, _ = plan.corner(number)
        axes.text(x + plan.panel[0] / 2, plan.top - 0.04, name, ha="center", va="bottom", fontsize=_CAPTION)
    for number, name in enumerate(frame.rows):
        _, y = plan.corner(number * plan.columns)
        axes.text(plan.left - 0.05, y + plan.panel[1] / 2, name, ha="right", va="center", fontsize=_CAPTION)
    if plan.bar:
        _bars(axes, shown, looks, plan)
    return shown


@dataclass(frozen=True, eq=False)
class _Placed:
    """A panel and where its photograph lies on the sheet."""

    panel: Panel
    x: float
    y: float
    width: float
    height: float

    @classmethod
    def at(cls, panel: Panel, x: float, y: float, width: float, height: float) -> _Placed:
        """In the middle of its place, as large as it can be."""
        aspect = panel.image.height / panel.image.width
        own = min(width, height / aspect)
        return cls(panel, x + (width - own) / 2, y + height - own * aspect, own, own * aspect)

    @property
    def extent(self) -> tuple[float, float, float, float]:
        return self.x, self.x + self.width, self.y + self.height, self.y

    def boxes(self) -> FloatArray:
        """[N, 4] the visual tokens' boxes on the sheet, without what lies beyond the photograph."""
        across, down = self.panel.layout.size
        clipped = self.panel.layout.boxes.clip(0, [across, down, across, down])
        return np.asarray(
            clipped * (self.width / across) * [1, 0, 1, 0]
            + clipped * (self.height / down) * [0, 1, 0, 1]
            + [self.x, self.y, self.x, self.y]
        )


def _cells(axes: Axes, placed: Sequence[_Placed], look: Look) -> ScalarMappable:
    """All cells of a look: one collection, the finest tokens last; images where they are pixels."""
    fine = [each for each in placed if len(each.panel.layout) > _CELLS]
    images = [
        axes.imshow(_pixels(each), cmap=look.colours, norm=look.norm, extent=each.extent, interpolation="nearest",
                    label=VALUES, zorder=1)
        for each in fine
    ]  # fmt: skip
    corners: list[FloatArray] = [np.zeros((0, 4, 2))]
    values: list[FloatArray] = [np.zeros(0)]
    for each in placed:
        if each not in fine:
            boxes = each.boxes()
            own = each.panel.layout.boxes
            order = np.argsort(-np.prod(own[:, 2:] - own[:, :2], axis=1), kind="stable")
            corners.append(boxes[order][:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2))
            values.append(np.asarray(each.panel.values)[order])
    if images and len(corners) == 1:
        return images[0]
    cells = PolyCollection(
        np.concatenate(corners),  # type: ignore[arg-type]
        array=np.concatenate(values), cmap=look.colours, norm=look.norm, edgecolors="face",
        linewidths=0.15, antialiased=False, label=VALUES, zorder=1,
    )  # fmt: skip
    axes.add_collection(cells, autolim=False)
    return cells


def _pixels(each: _Placed) -> FloatArray:
    """A map's values by pixel, no finer than they are printed."""
    side = round(max(each.width, each.height) * _FINE)
    owner = backdrop(each.panel.image, each.panel.layout, side).owner
    values = np.append(np.asarray(each.panel.values, dtype=np.float32), np.float32(np.nan))
    return values[np.where(np.isnan(owner), len(values) - 1, owner).astype(np.intp)]  # type: ignore[no-any-return]


def _unseen(axes: Axes, each: _Placed) -> None:
    """Hatching under the cells, seen where there are none."""
    if each.panel.values is not None and not each.panel.layout.seen.all():
        patch = Rectangle((each.x, each.y), each.width, each.height, fc="#b4b4b4", ec="#8a8a8a", hatch="//////", lw=0)
        axes.add_patch(patch).set_zorder(0.5)


def _photograph(axes: Axes, each: _Placed, photograph: str) -> None:
    """In colour where it stands alone, as ink over a map."""
    alone = each.panel.values is None
    if not alone and photograph not in ("under", "both"):
        return
    ground = backdrop(each.panel.image, each.panel.layout, round(max(each.width, each.height) * _FINE))
    if alone:
        axes.imshow(ground.picture, extent=each.extent, zorder=2)
        return
    ink = np.zeros((*ground.picture.shape[:2], 4), dtype=np.uint8)
    ink[..., 3] = np.round(255 * ground.ink())
    axes.imshow(ink, extent=each.extent, zorder=2)


def _rings(axes: Axes, each: _Placed) -> None:
    if each.panel.marked is None or not each.panel.marked.any():
        return
    x0, y0, x1, y1 = each.boxes()[each.panel.marked].T
    for width, colour in ((1.8, "#222222"), (0.9, "white")):  # seen on light and on dark
        axes.add_collection(
            EllipseCollection(
                0.8 * (x1 - x0), 0.8 * (y1 - y0), np.zeros(len(x0)), units="xy", facecolors="none", edgecolors=colour,
                linewidths=width, offsets=np.stack([(x0 + x1) / 2, (y0 + y1) / 2], -1), transOffset=axes.transData,
                zorder=3,
            ),
            autolim=False,
        )  # fmt: skip


def _bars(axes: Axes, shown: Sequence[ScalarMappable], looks: Sequence[Look], plan: _Plan) -> None:
    """At the right of the first rows, in the room that was left for them."""
    figure = axes.get_figure(root=True)
    height = plan.bar_height
    left, bottom, width, whole = axes.get_position().bounds
    for number, (each, look) in enumerate(zip(shown, looks, strict=True)):
        x = left + (plan.width + 0.09 + number * plan.bar) / plan.width * width
        y = bottom + (1 - (plan.top + height) / plan.height) * whole
        place = (x, y, 0.09 / plan.width * width, height / plan.height * whole)
        bar = figure.colorbar(each, cax=figure.add_axes(place, label="<colorbar>"))  # type: ignore[union-attr]
        name_bar(bar, look.unit, height, labelpad=2)
        bar.ax.tick_params(pad=1.5)
