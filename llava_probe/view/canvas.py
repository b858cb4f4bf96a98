"""What all figures stand on: one style, sizes in columns, titles that fit, and places to draw in, without pyplot.

    @styled
    def confusion(sweep: Sweep, ..., *, ax: Axes | None = None, width: Width = "column", title: Title = True) -> Figure:
        host = hosted(ax, width, height=2.5)     # a figure of its own, or the place of an axes
        ...
        return finished(host, title, "what it is called by itself")

pyplot keeps every figure in a global list and opens windows where there is a screen; a run over a data set then fills
the memory. A ``Canvas`` is matplotlib's own ``Figure`` and belongs to whoever made it. How things look stands in
``paper.mplstyle``.
"""

from __future__ import annotations

import functools
import io
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextToPath

from llava_probe.border import Limits, checked
from llava_probe.errors import BadInput, shortened
from llava_probe.stored import place, whole
from llava_probe.view.limits import DPI_LIMIT, WIDTH_LIMITS

#: Dots per inch of a saved PNG, what publishers ask of halftones; and of what a notebook shows.
SAVED_DPI, SHOWN_DPI = 300, 144

#: Inches of a column and of a page's text, as in the two-column conferences; any other number of inches may be given.
WIDTHS = {"column": 3.25, "page": 6.875}

#: Inches of a line of a title.
LINE = 0.13

#: ``"column"``, ``"page"`` or inches.
Width = str | Annotated[float, Limits(*WIDTH_LIMITS)]
#: Dots per inch.
Dpi = Annotated[int, Limits(1, DPI_LIMIT)]
#: True for a figure's own title, False for none, or a title.
Title = str | bool
#: A colour map, or its name.
Colours = str | Colormap
Host = Figure | SubFigure

Drawing = TypeVar("Drawing", bound=Callable[..., Any])

#: The metadata in which a format would write the time; equal figures then make equal files.
_TIMELESS: dict[str, dict[str, Any]] = {".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
#: Widths of text are measured without hinting; what is drawn may be so much wider.
_HINTED = 1.04


@contextmanager
def paper() -> Iterator[None]:
    """Everything drawn here has our style."""
    with matplotlib.rc_context(dict(_style())):
        yield


@cache
def _style() -> matplotlib.RcParams:
    return matplotlib.rc_params_from_file(Path(__file__).with_name("paper.mplstyle"), use_default_template=False)


def styled(function: Drawing) -> Drawing:
    """A figure function under our style, its arguments read by their annotations."""
    guarded = checked(function)

    @functools.wraps(function)
    def drawn(*args: Any, **kwargs: Any) -> Any:
        with paper():
            return guarded(*args, **kwargs)

    return drawn  # type: ignore[return-value]


class Canvas(Figure):
    """A figure that a notebook shows by itself."""

    def __init__(self, width: float, height: float, layout: Any = "constrained") -> None:
        super().__init__(figsize=(width, height), layout=layout)

    def draw(self, renderer: Any) -> None:
        """Ticks are made when they are drawn: under our style too."""
        with paper():
            super().draw(renderer)

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        self.savefig(png, format="png", dpi=SHOWN_DPI, pil_kwargs={"optimize": True})
        return png.getvalue()


@checked
def save(figure: Figure, path: str | Path, dpi: Dpi = SAVED_DPI) -> Path:
    """Write a figure as .png, or as vectors with its fonts inside: .pdf, .svg.

    Args:
        figure: any of matplotlib's.
        path: where to.
        dpi: dots per inch of a PNG, and of photographs among vectors; 1200 at most.

    Raises:
        BadInput: another suffix, or more dots.
        BadFile: the place cannot be written.
    """
    target = place("figure", path)
    suffix = target.suffix.lower()
    if suffix not in _TIMELESS:
        raise BadInput(f"a figure is written as {', '.join(_TIMELESS)}; got {target.name!r}")
    with whole("figure", target) as part, paper():
        figure.savefig(part, format=suffix[1:], dpi=dpi, metadata=_TIMELESS[suffix])
    return target


@checked
def mappable(drawn: Figure | Axes) -> ScalarMappable:
    """What the colours of a figure mean, for a colour bar of your own: ``figure.colorbar(mappable(figure), ax=...)``.

    Panels share its norm: ``mappable(figure).set_clim(0, 0.1)`` changes them all.

    Args:
        drawn: a figure of ours, or the axes that it was drawn in.

    Raises:
        BadInput: nothing there has colours that mean values.
    """
    for axes in [drawn] if isinstance(drawn, Axes) else drawn.axes:
        for artist in [*axes.collections, *axes.images]:
            if artist.get_label() == VALUES:
                return artist
    raise BadInput("nothing in this figure has colours that stand for values")


#: The label of artists whose colours are values.
VALUES = "values"


def inches(width: str | float) -> float:
    """A width as a number.

    Raises:
        BadInput: a name that is none.
    """
    if isinstance(width, str):
        if width not in WIDTHS:
            raise BadInput(f'width= takes "column", "page" or inches; got {shortened(repr(width))}')
        return WIDTHS[width]
    return float(width)


def hosted(ax: Axes | None, width: str | float, height: float) -> Host:
    """Where a figure of several panels is drawn: a canvas of its own, or the place of ``ax``, which gives it up.

    Raises:
        BadInput: an axes that has no place in a grid.
    """
    if ax is None:
        return Canvas(inches(width), height)
    spec = ax.get_subplotspec()
    if spec is None:
        raise BadInput("ax= takes an axes of a grid, as subplots() and subplot_mosaic() make them: it is divided here")
    figure = ax.get_figure(root=False)
    ax.remove()
    return figure.add_subfigure(spec)  # type: ignore[union-attr]


def on_axes(ax: Axes | None, width: str | float, height: float) -> Axes:
    """The axes of a figure of one panel: a canvas of its own, or the given one under our style."""
    if ax is None:
        return Canvas(inches(width), height).add_subplot()
    for axis, side in ((ax.xaxis, "x"), (ax.yaxis, "y")):
        axis.label.set_fontsize(matplotlib.rcParams["axes.labelsize"])
        ax.tick_params(axis=side, labelsize=matplotlib.rcParams["xtick.labelsize"])  # type: ignore[arg-type]
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def finished(drawn: Host | Axes, title: str | bool, own: str) -> Figure:
    """The whole figure, its title wrapped to what it stands over; one of our own gets higher by its lines.

    Args:
        drawn: what the title belongs to.
        title: as it was asked for; ``own``: what the figure calls itself.
    """
    told = own if title is True else title or ""
    figure = drawn.get_figure(root=True)
    if not told:
        return figure  # type: ignore[return-value]
    if isinstance(drawn, Axes):
        lines = wrapped(told, room_of(drawn)[0], "axes.titlesize")
        drawn.set_title(lines)
    else:
        lines = wrapped(told, drawn.bbox.width / figure.dpi - 0.1, "figure.titlesize")  # type: ignore[union-attr]
        drawn.suptitle(lines)
    if isinstance(figure, Canvas):
        figure.set_figheight(figure.get_figheight() + LINE * lines.count("\n"))
    return figure  # type: ignore[return-value]


def room_of(ax: Axes) -> tuple[float, float]:
    """Width and height of an axes in inches, before a layout engine moves it."""
    box, dpi = ax.get_window_extent(), ax.get_figure(root=True).dpi  # type: ignore[union-attr]
    return box.width / dpi, box.height / dpi


# --- text ---


def drawable(text: str) -> str:
    """A token's text as matplotlib's font can draw it: line ends as ⏎, what it has no glyph for as □."""
    shown = text.strip().replace("\n", "⏎") or text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")
    glyphs = _glyphs()
    return "".join(c if ord(c) in glyphs and unicodedata.category(c) != "Cc" else "□" for c in shown)


def text_width(text: str, size: str | float) -> float:
    """Inches that one line of text takes, at a size in points or one that the style names."""
    points = matplotlib.rcParams[size] if isinstance(size, str) else size  # type: ignore[index]
    return _HINTED * _PATHS.get_text_width_height_descent(text, FontProperties(size=points), False)[0] / 72


def wrapped(text: str, room: float, size: str | float, lines: int = 4) -> str:
    """Lines of at most ``room`` inches, broken between words where that goes; … ends the last where there are more."""
    found: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split(" "):
            longer = f"{line} {word}" if line else word
            if text_width(longer, size) <= room:
                line = longer
                continue
            found += [line] if line else []
            while text_width(word, size) > room and len(word) > 1:
                fits = _fitting(word, room, size)
                found.append(word[:fits])
                word = word[fits:]
                if len(found) > lines:
                    break
            line = word
        found.append(line)
    if len(found) <= lines:
        return "\n".join(found)
    last = found[lines - 1]
    while last and text_width(f"{last}…", size) > room:
        last = last[:-1]
    return "\n".join([*found[: lines - 1], f"{last.rstrip()}…"])


def _fitting(word: str, room: float, size: str | float) -> int:
    """How many letters of a word go into a line; one at least."""
    low, high = 1, len(word)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if text_width(word[:middle], size) <= room else (low, middle - 1)
    return low


_PATHS = TextToPath()


@cache
def _glyphs() -> frozenset[int]:
    font = font_manager.get_font(font_manager.findfont(FontProperties(family="DejaVu Sans")))
    return frozenset(font.get_charmap())
