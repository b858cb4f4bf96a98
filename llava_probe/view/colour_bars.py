"""Colour bars: slim, named by what a value is, their numbers short whatever the scale, pointed where values go beyond.

matplotlib writes a factor such as 1e-6 beside a bar, where nothing keeps room for it: here it stands in the bar's name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize
from matplotlib.ticker import ScalarFormatter

from llava_probe.arrays import FloatArray
from llava_probe.view.canvas import room_of, text_width, wrapped

#: Scales from the first to below the second have their numbers written out.
_PLAIN = (1e-3, 1e5)
#: A value beyond the scale by less than this share of it is there by rounding.
_ROUNDING = 1e-6
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


class Scale(Normalize):
    """From the first to the last colour; colour bars are pointed at the ends that some of the values go beyond."""

    def __init__(self, values: Iterable[FloatArray], low: float, high: float) -> None:
        super().__init__(low, high)
        finite = [each[np.isfinite(each)] for each in map(np.asarray, values)]
        self._ends = [(float(each.min()), float(each.max())) for each in finite if each.size]

    @property
    def extend(self) -> str:
        """As matplotlib's colour bars read it: ``"neither"``, ``"min"``, ``"max"`` or ``"both"``."""
        low, high = float(self.vmin or 0.0), float(self.vmax or 0.0)
        slack = _ROUNDING * (high - low)
        under = any(each < low - slack for each, _ in self._ends)
        over = any(each > high + slack for _, each in self._ends)
        return {(True, True): "both", (True, False): "min", (False, True): "max"}.get((under, over), "neither")


def colour_bar(ax: Axes | Sequence[Axes], shown: ScalarMappable, unit: str, **where: Any) -> None:
    """A slim bar beside one axes or several, with what a value is."""
    first = ax if isinstance(ax, Axes) else ax[0]
    along = room_of(first)["orientation" not in where] * where.get("shrink", 1.0)
    options = {"fraction": 0.05, "pad": 0.03, "panchor": False, **where}
    bar = first.get_figure(root=False).colorbar(shown, ax=ax, **options)  # type: ignore[union-attr,arg-type]
    name_bar(bar, unit, along, 3)


def name_bar(bar: Colorbar, unit: str, along: float, lines: int = 2, **options: Any) -> None:
    """Name a bar that is ``along`` inches long, its unit in at most so many lines."""
    power = _power(bar.norm)
    numbers = ScalarFormatter(useOffset=False)
    numbers.set_scientific(bool(power))
    numbers.set_powerlimits((power, power))  # equal: this factor, whatever the ticks
    bar.formatter = numbers
    bar.update_ticks()
    for axis in (bar.ax.xaxis, bar.ax.yaxis):
        axis.get_offset_text().set_visible(False)
    bar.set_label(bar_name(unit, bar.norm, along, lines), **options)
    bar.outline.set_visible(False)  # type: ignore[operator]


def bar_name(unit: str, norm: Normalize, along: float, lines: int = 2) -> str:
    """The unit in at most so many lines, and the factor of the numbers, in a line of its own where need be."""
    size, power = "axes.labelsize", _power(norm)
    if not power:
        return wrapped(unit, along, size, lines)
    factor = f"×10{str(power).translate(_RAISED)}"
    whole = f"{unit}, {factor}"
    return whole if text_width(whole, size) <= along else f"{wrapped(unit, along, size, lines)}\n{factor}"


def _power(norm: Normalize) -> int:
    """Of ten, that the numbers of a bar are told in; 0 where they are told as they are."""
    largest = max(abs(float(norm.vmin or 0.0)), abs(float(norm.vmax or 0.0)))
    if largest == 0 or _PLAIN[0] <= largest < _PLAIN[1]:
        return 0
    return math.floor(math.log10(largest))
