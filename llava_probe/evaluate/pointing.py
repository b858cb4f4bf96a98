"""The pointing game: does a map's highest place lie on the object?

Only the top counts, so a map that is right about the rest is not rewarded and one that is vague is not punished.
``pointing`` asks about the one point that ``peak`` gives; ``touches`` about the top token's whole box, which on a
coarse grid may be larger than the object (Zhang et al. 2018, arXiv:1608.00507).
"""

from __future__ import annotations

from typing import Annotated

import numpy as np

from llava_probe.border import Limits, Numeric, checked
from llava_probe.evaluate.cells import wanted
from llava_probe.maps.maps import ImageMap


@checked
def pointing(m: ImageMap, mask: Numeric, row: int | None = None, tolerance: Annotated[float, Limits(0)] = 0.0) -> bool:
    """Whether ``m.peak(row)`` lies on the mask: the centre of the top token's box, of several the mean of theirs.

    A pixel is a square of side one, its border included, so a point on the border of two lies on both.

    Args:
        mask: [height, width] bool on the original photograph.
        tolerance: how far in pixels the point may lie from the mask and still count; the paper takes 15.

    Raises:
        BadInput: the mask is of another size, or nothing of it could be seen; a tolerance below zero.
        OutOfRange: there is no such row.
    """
    x, y = m.peak(row)
    down, across = np.nonzero(wanted(m.layout, mask))
    dx = np.maximum(np.maximum(across - x, x - across - 1), 0)
    dy = np.maximum(np.maximum(down - y, y - down - 1), 0)
    return bool(np.hypot(dx, dy).min() <= tolerance)


@checked
def touches(m: ImageMap, mask: Numeric, row: int | None = None) -> float:
    """Whether the top token's box overlaps the mask: 1 or 0; where several tie, the share of them that do.

    Args:
        mask: [height, width] bool on the original photograph.

    Raises:
        BadInput: the mask is of another size, or nothing of it could be seen.
        OutOfRange: there is no such row.
    """
    covered = m.layout.to_tokens(wanted(m.layout, mask))
    values = m.row(row)
    return float((covered[(values == values.max()).numpy()] > 0).mean())
