"""A map under its photograph, honestly: each visual token's box in its own colour, nothing smoothed, nothing invented.

A map blurred over a picture looks finer than the model's patches ever were. Here each box has the colour of its value,
and the photograph lies over it in grey like ink, so that both are seen and the value can be read back from the hue
(``colours.py``); pixels that a crop hid from the model are hatched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from llava_probe.arrays import FloatArray
from llava_probe.layout import ImageLayout
from llava_probe.maps.colours import check_over_a_photograph, colour_map, colour_table

#: How much of the light the darkest parts of a photograph take away.
INK = 0.6

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

    def paint(
        self, values: Any, highest: float | None = None, cmap: str | None = None, signed: bool | None = None
    ) -> npt.NDArray[np.uint8]:
        """RGB [height, width, 3] with ``values`` [N] under it; ``highest`` gets the last colour.

        Of several that share a scale ``signed`` tells whether any has a value below 0; these own ones when None.
        """
        values = np.asarray(values, dtype=np.float32)
        top = scale_of(values) if highest is None else highest
        owner = np.where(np.isnan(self.owner), len(values), self.owner).astype(np.intp)
        pixels = np.append(values, np.float32(np.nan))[owner]
        signed = bool((values < 0).any()) if signed is None else signed
        colours = colour_map(cmap, signed)
        check_over_a_photograph(colours)
        return blend(self.picture, pixels, top, colour_table(colours), signed=signed)

    def ink(self) -> FloatArray:
        """[height, width] in [0, ``INK``], the share of the light that the photograph takes."""
        return _ink(self.picture)


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


def blend(
    picture: npt.NDArray[np.uint8], pixels: FloatArray, top: float, table: FloatArray, *, signed: bool
) -> npt.NDArray[np.uint8]:
    """RGB ``picture`` [height, width, 3] over ``pixels`` [height, width], NaN hatched.

    Args:
        picture, pixels: as above.
        top: the value of the last colour of ``table`` [256, 3]; the first has 0, or where ``signed`` minus as much.
    """
    stripe = max(2, round(max(pixels.shape) / 80))
    mixed = np.empty_like(picture)
    for start in range(0, len(picture), _BAND):
        band = slice(start, start + _BAND)
        seen = ~np.isnan(pixels[band])
        strength = np.clip(np.where(seen, pixels[band], 0) / np.float32(top), -1 if signed else 0, 1)
        index = np.round((strength + 1) * 127.5 if signed else strength * 255).astype(np.uint8)
        light = 1 - _ink(picture[band])[..., None]
        hatched = light * _stripes(start, seen.shape, stripe)[..., None]
        mixed[band] = np.round(np.where(seen[..., None], light * table[index], hatched))
    return mixed


def _ink(picture: npt.NDArray[np.uint8]) -> FloatArray:
    """Half by brightness, half by the weakest colour: a red thing on ground as bright would vanish in plain grey."""
    grey = (picture @ _LUMINANCE + picture.min(-1)) / 510
    return (INK * (1 - grey)).astype(np.float32)


def _stripes(start: int, shape: tuple[int, ...], stripe: int) -> FloatArray:
    """Grey diagonals of a band of rows from ``start``."""
    across = np.add.outer(np.arange(start, start + shape[0]), np.arange(shape[1])) // stripe % 2
    return np.where(across, np.float32(150), np.float32(95))


def _samples(length: int, shrink: float) -> npt.NDArray[np.int64]:
    """The pixel under the centre of each pixel of a shrunken side."""
    count = max(1, round(length * shrink))
    return ((np.arange(count) + 0.5) * length / count).astype(np.int64)
