"""A map over its photograph, honestly: each visual token's box in its own colour, nothing smoothed, nothing invented.

A map blurred over a picture looks finer than the model's patches ever were. Here the photograph fades, each box takes
the colour of its value, the more opaque the larger, so that the picture stays readable where the map says little;
pixels that a crop hid from the model are hatched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from llava_probe.arrays import FloatArray
from llava_probe.layout import ImageLayout

#: Perceptually uniform, and ending in a yellow that stands out from faded photographs.
COLOUR_MAP = "plasma"
#: For maps with negative values: blue against, red for.
SIGNED_COLOUR_MAP = "RdBu_r"
#: Opacity of a box at zero and at the largest value.
OPACITY = (0.08, 0.62)

#: How much of its colour the photograph keeps: none, and things as bright as their ground would vanish.
_COLOUR_KEPT = 0.55

_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)
#: Rows that are blended at once: a photograph of 12 megapixels takes megabytes, not gigabytes.
_BAND = 256


@dataclass(frozen=True, eq=False)
class Backdrop:
    """A photograph ready to be painted over, any number of times.

    Attributes:
        picture: [height, width, 3] uint8.
        owner: [height, width] index of the visual token that each pixel takes its value from, NaN where none.
    """

    picture: npt.NDArray[np.uint8]
    owner: FloatArray

    def paint(self, values: Any, highest: float | None = None) -> npt.NDArray[np.uint8]:
        """RGB [height, width, 3] with ``values`` [N] over it; ``highest`` gets the full colour."""
        values = np.asarray(values, dtype=np.float32)
        top = scale_of(values) if highest is None else highest
        owner = np.where(np.isnan(self.owner), len(values), self.owner).astype(np.intp)
        pixels = np.append(values, np.float32(np.nan))[owner]
        return blend(self.picture, pixels, top, signed=bool((values < 0).any()))


def backdrop(image: Image.Image, layout: ImageLayout, side: int | None = None) -> Backdrop:
    """The photograph, shrunken to ``side`` pixels along its longer side where it is larger, and its tokens' places.

    Args:
        image: the original, or a smaller copy of it.
        layout: of the original.
        side: in pixels; the copy's own when None.
    """
    width, height = layout.size
    shrink = min(1.0, (max(image.size) if side is None else min(side, max(image.size))) / max(width, height))
    columns, rows = _samples(width, shrink), _samples(height, shrink)
    picture = image.convert("RGB")
    if picture.size != (len(columns), len(rows)):
        picture = picture.resize((len(columns), len(rows)), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return Backdrop(np.asarray(picture), layout.to_pixels(np.arange(len(layout)))[np.ix_(rows, columns)])


def is_copy(image: Image.Image, layout: ImageLayout) -> bool:
    """Whether a picture is the layout's original, or the same made smaller."""
    shrink = min(1.0, max(image.size) / max(layout.size))
    return all(abs(length - whole * shrink) < 1 for length, whole in zip(image.size, layout.size, strict=True))


def scale_of(values: FloatArray) -> float:
    """The magnitude that gets the full colour; 1 for a map of zeros."""
    return float(np.nanmax(np.abs(values), initial=0.0)) or 1.0


def blend(picture: npt.NDArray[np.uint8], pixels: FloatArray, top: float, *, signed: bool) -> npt.NDArray[np.uint8]:
    """RGB ``picture`` [height, width, 3] under ``pixels`` [height, width], NaN hatched."""
    table = colour_table(signed)
    stripe = max(2, round(max(pixels.shape) / 80))
    mixed = np.empty_like(picture)
    for start in range(0, len(picture), _BAND):
        band = slice(start, start + _BAND)
        seen = ~np.isnan(pixels[band])
        strength = np.clip(np.where(seen, pixels[band], 0) / np.float32(top), -1, 1)
        index = np.round((strength + 1) * 127.5 if signed else strength * 255).astype(np.uint8)
        opacity = (OPACITY[0] + (OPACITY[1] - OPACITY[0]) * np.abs(strength))[..., None]
        grey = (picture[band] @ _LUMINANCE)[..., None]
        faded = grey + _COLOUR_KEPT * (picture[band] - grey)
        covered = (1 - opacity) * (40 + 0.8 * faded) + opacity * table[index]
        hatched = 0.35 * grey + _stripes(start, grey.shape[:2], stripe)[..., None]
        mixed[band] = np.where(seen[..., None], covered, hatched)
    return mixed


def colour_table(signed: bool) -> FloatArray:
    """[256, 3] colours in [0, 255] of strengths from 0 to 1, or from -1 to 1."""
    from matplotlib import colormaps

    return (255 * colormaps[SIGNED_COLOUR_MAP if signed else COLOUR_MAP](np.arange(256))[:, :3]).astype(np.float32)


def _stripes(start: int, shape: tuple[int, ...], stripe: int) -> FloatArray:
    """Grey diagonals of a band of rows from ``start``."""
    across = np.add.outer(np.arange(start, start + shape[0]), np.arange(shape[1])) // stripe % 2
    return np.where(across, np.float32(150), np.float32(95))


def _samples(length: int, shrink: float) -> npt.NDArray[np.int64]:
    """The pixel under the centre of each pixel of a shrunken side."""
    count = max(1, round(length * shrink))
    return ((np.arange(count) + 0.5) * length / count).astype(np.int64)
