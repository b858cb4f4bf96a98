"""Colours that values can be read back from, over a photograph too.

A photograph lies over a map as ink lies on coloured paper: in grey, so that it only darkens. Darkening leaves the
proportions of red, green and blue as they are: a pixel's hue is that of its value in the colour bar, however dark the
photograph is there. It needs a colour map in which each value has proportions of its own; a grey ramp has none.

``HEAT`` is made so: from white, which leaves the photograph alone, by yellow, orange and red to purple, in equal steps
of CIE 1976 L*a*b* and ever darker, so that the colour-blind and a grey print tell it apart. For signed values serves
Moreland's "coolwarm" (2009, "Diverging Color Maps for Scientific Visualization").
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from llava_probe.arrays import FloatArray
from llava_probe.errors import BadInput, shortened

if TYPE_CHECKING:
    from matplotlib.colors import Colormap

#: The name of the colour map for values that are nowhere negative.
HEAT = "heat"
#: For maps with negative values: blue against, red for.
SIGNED = "coolwarm"

_HEAT = np.array([(250, 250, 250), (255, 228, 130), (253, 174, 60), (240, 95, 45), (205, 20, 90), (150, 0, 130)])
_LEVELS = 256
#: Values so far apart, as a part of the scale, must differ in their proportions by this much: thrice what 8 bits blur.
_APART, _BLUR = 1 / 8, 0.02


@cache
def colour_map(name: str | None = None, signed: bool = False) -> Colormap:
    """The colour map of that name, ``HEAT`` or matplotlib's; the one for signed or unsigned values when None.

    Raises:
        BadInput: there is none of that name.
    """
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    name = (SIGNED if signed else HEAT) if name is None else name
    if name in (HEAT, f"{HEAT}_r"):
        colours = _even(_HEAT) / 255
        return ListedColormap((colours if name == HEAT else colours[::-1]).tolist(), name)
    if name not in colormaps:
        raise BadInput(f"cmap= takes {HEAT!r} or the name of one of matplotlib's; got {shortened(repr(name))}")
    return colormaps[name]


def colour_table(colours: Colormap) -> FloatArray:
    """[256, 3] colours in [0, 255], from the lowest value to the highest."""
    return (255 * colours(np.linspace(0, 1, _LEVELS))[:, :3]).astype(np.float32)


def check_over_a_photograph(colours: Colormap) -> None:
    """Refuse a colour map whose values look alike under a photograph.

    Raises:
        BadInput: it has such values.
    """
    if not _told_apart(colours):
        raise BadInput(
            f"values of the colour map {colours.name!r} cannot be told apart under a photograph, which darkens them; "
            f'pass photograph="beside", or cmap={HEAT!r}, "plasma", "viridis" ...'
        )


def _told_apart(colours: Colormap) -> bool:
    table = colour_table(colours)[::4].astype(np.float64)
    hue = table / table.sum(1, keepdims=True).clip(1e-9)
    levels = np.linspace(0, 1, len(table))
    far = np.abs(np.subtract.outer(levels, levels)) >= _APART
    return bool(np.linalg.norm(hue[:, None] - hue[None], axis=-1)[far].min() > _BLUR)


def _even(corners: FloatArray) -> FloatArray:
    """[256, 3] on straight lines between corners of sRGB, in equal steps to the eye."""
    places = np.linspace(0, len(corners) - 1, 40 * _LEVELS)
    fine = _between(corners, places)
    steps = np.linalg.norm(np.diff(_lab(fine), axis=0), axis=1)
    way = np.concatenate([[0.0], steps.cumsum()])
    return _between(corners, np.interp(np.linspace(0, way[-1], _LEVELS), way, places))


def _between(corners: FloatArray, places: FloatArray) -> FloatArray:
    return np.stack([np.interp(places, np.arange(len(corners)), channel) for channel in corners.T], axis=-1)


def _lab(rgb: FloatArray) -> FloatArray:
    """CIE L*a*b* of sRGB in [0, 255], under D65 (IEC 61966-2-1)."""
    c = rgb / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / to_xyz.sum(1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = f.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
