"""A map's row laid against a mask on the photograph, token by token.

A map is constant over the pixels that a token owns, so every measure over pixels is a sum over tokens of how many
pixels each owns and how many of those the mask covers: exact, and as quick on a large photograph as on a small one.
What a crop hid from the model counts nowhere: no map could have found it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from llava_probe.arrays import BoolArray, FloatArray, IntArray
from llava_probe.errors import BadInput
from llava_probe.layout import ImageLayout
from llava_probe.maps.maps import ImageMap


@dataclass(frozen=True, eq=False)
class Cells:
    """The tokens that own pixels of the photograph, under one mask.

    Attributes:
        values: [C] of the map's row.
        pixels: [C] how many pixels each owns, at least one.
        inside: [C] how many of those the mask covers.
    """

    values: FloatArray
    pixels: IntArray
    inside: IntArray

    def levels(self) -> tuple[FloatArray, IntArray, IntArray]:
        """The map's distinct values, highest first, and at each the pixels with as much or more.

        Returns:
            values [K], pixels [K], and those of them that the mask covers [K].
        """
        values, place = np.unique(self.values, return_inverse=True)
        pixels, inside = (np.zeros(len(values), dtype=np.int64) for _ in range(2))
        np.add.at(pixels, place, self.pixels)
        np.add.at(inside, place, self.inside)
        return values[::-1], pixels[::-1].cumsum(), inside[::-1].cumsum()


def cells(m: ImageMap, mask: Any, row: int | None = None) -> Cells:
    """Lay a row of ``m``, or the mean of all, against ``mask`` [height, width].

    Raises:
        BadInput: the mask is not of the photograph's size, or nothing of it could be seen.
        OutOfRange: there is no such row.
    """
    values = m.row(row).numpy().astype(np.float64)
    covered = wanted(m.layout, mask)
    owner = owners(m.layout)
    pixels = _count(owner, len(m.layout))
    there = pixels > 0
    return Cells(values[there], pixels[there], _count(owner[covered], len(m.layout))[there])


def wanted(layout: ImageLayout, mask: Any) -> BoolArray:
    """[height, width] bool, ``mask`` once it is known to fit the photograph and to hold something that was seen.

    Raises:
        BadInput: it does not.
    """
    width, height = layout.size
    covered = np.asarray(mask)
    if covered.shape != (height, width) or covered.dtype.kind not in "bui":
        raise BadInput(
            f"a mask is [height, width] = [{height}, {width}] of bool, as large as the photograph; "
            f"got {list(covered.shape)} of {covered.dtype}"
        )
    covered = covered != 0
    if not covered.any():
        raise BadInput("the mask is empty: there is nothing to find")
    if not covered[layout.seen].any():
        raise BadInput("the mask lies wholly where the model saw nothing: there is nothing to find")
    return covered


def owners(layout: ImageLayout) -> IntArray:
    """[height, width] the token whose value ``to_pixels`` paints on each pixel, -1 where none."""
    owner = layout.to_pixels(np.arange(len(layout)))  # float32 counts exactly to 16 million
    return np.where(np.isnan(owner), -1, owner).astype(np.int64)


def _count(owner: IntArray, tokens: int) -> IntArray:
    return np.bincount(owner[owner >= 0], minlength=tokens)
