"""Figures without pyplot: made where they are asked for, shown by a notebook, written without a clock in them.

pyplot keeps every figure in a global list and opens windows where there is a screen; a run over a data set then fills
the memory. A ``Canvas`` is matplotlib's own ``Figure`` and belongs to whoever made it.
"""

from __future__ import annotations

import io
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import font_manager
from matplotlib.figure import Figure

from llava_probe.border import checked
from llava_probe.errors import BadInput
from llava_probe.stored import place, whole

#: Dots per inch of a saved PNG, and of the picture that a notebook shows.
SAVED_DPI, SHOWN_DPI = 200, 80

#: The metadata in which a format would write the time; equal figures then make equal files.
_TIMELESS: dict[str, dict[str, Any]] = {".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}


class Canvas(Figure):
    """A figure that a notebook shows by itself."""

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height), layout="constrained")

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        self.savefig(png, format="png", dpi=SHOWN_DPI)
        return png.getvalue()


@checked
def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write ``figure`` as .png, or as vectors: .pdf, .svg.

    Raises:
        BadInput: another suffix.
        BadFile: the place cannot be written.
    """
    target = place("figure", path)
    suffix = target.suffix.lower()
    if suffix not in _TIMELESS:
        raise BadInput(f"a figure is written as {', '.join(_TIMELESS)}; got {target.name!r}")
    plain = matplotlib.rc_context({"svg.hashsalt": "llava_probe", "svg.fonttype": "none", "pdf.fonttype": 42})
    with whole("figure", target) as part, plain:
        figure.savefig(part, format=suffix[1:], dpi=SAVED_DPI, metadata=_TIMELESS[suffix])
    return target


def drawable(text: str) -> str:
    """A token's text as matplotlib's font can draw it: line ends as ⏎, what it has no glyph for as □."""
    shown = text.strip().replace("\n", "⏎") or text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")
    glyphs = _glyphs()
    return "".join(c if ord(c) in glyphs and unicodedata.category(c) != "Cc" else "□" for c in shown)


@cache
def _glyphs() -> frozenset[int]:
    font = font_manager.get_font(font_manager.findfont(font_manager.FontProperties()))
    return frozenset(font.get_charmap())
