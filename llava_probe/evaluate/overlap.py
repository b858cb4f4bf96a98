"""A map cut at a threshold, as a segmentation of the object.

iou(m, mask, row)                # at the best threshold: what the map could give
iou(m, mask, row, "otsu")        # at one that does not know the answer
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llava_probe.border import Numeric, checked
from llava_probe.errors import BadInput
from llava_probe.evaluate.cells import Cells, cells
from llava_probe.evaluate.otsu import otsu
from llava_probe.maps.maps import ImageMap


@checked
@dataclass(frozen=True)
class Overlap:
    """How the pixels above a threshold and the mask cover each other, among those that were seen.

    Attributes:
        iou: pixels in both over pixels in either.
        precision: share of the pixels above the threshold that lie inside the mask; 0 where there are none.
        recall: share of the mask that is above the threshold.
        threshold: pixels of larger values are taken; minus infinity takes all.
    """

    iou: float
    precision: float
    recall: float
    threshold: float


@checked
def iou(m: ImageMap, mask: Numeric, row: int | None = None, threshold: str | float = "best") -> Overlap:
    """The overlap of the map above a threshold with the mask, over seen pixels.

    Args:
        mask: [height, width] bool on the original photograph.
        threshold: ``"best"``, of all thresholds that of the largest IoU (of equals the highest); ``"otsu"``, Otsu's on
            the pixels; or a value of the map.

    Raises:
        BadInput: the mask is of another size, or nothing of it could be seen; a threshold that is none of these.
        OutOfRange: there is no such row.
    """
    laid = cells(m, mask, row)
    if threshold == "best":
        return _best(laid)
    if threshold == "otsu":
        return _above(laid, otsu(laid.values, laid.pixels))
    if isinstance(threshold, str) or threshold != threshold:
        raise BadInput(f"threshold={threshold!r} is neither 'best' nor 'otsu' nor a number")
    return _above(laid, float(threshold))


def _best(laid: Cells) -> Overlap:
    values, chosen, found = laid.levels()
    shares = found / (chosen + found[-1] - found)
    best = int(np.argmax(shares))
    threshold = values[best + 1] if best + 1 < len(values) else -np.inf
    return Overlap(*map(float, (shares[best], found[best] / chosen[best], found[best] / found[-1], threshold)))


def _above(laid: Cells, threshold: float) -> Overlap:
    above = laid.values > threshold
    chosen, found, total = int(laid.pixels[above].sum()), int(laid.inside[above].sum()), int(laid.inside.sum())
    return Overlap(found / (chosen + total - found), found / chosen if chosen else 0.0, found / total, threshold)
