"""The energy-based pointing game: how much of a map lies on the object (Wang et al. 2020, arXiv:1910.01279).

It needs no threshold, but it knows no scale either: a faint haze over the whole photograph outweighs a bright spot on
a small object. A uniform map scores the share of the photograph that the mask covers.
"""

from __future__ import annotations

import numpy as np

from llava_probe.border import Numeric, checked
from llava_probe.evaluate.cells import cells
from llava_probe.maps.maps import ImageMap


@checked
def energy_inside(m: ImageMap, mask: Numeric, row: int | None = None) -> float:
    """The share of the map's positive values, summed over seen pixels, that lies inside the mask.

    Args:
        mask: [height, width] bool on the original photograph.

    Returns:
        0 to 1; 0 for a map that is positive nowhere.

    Raises:
        BadInput: the mask is of another size, or nothing of it could be seen.
        OutOfRange: there is no such row.
    """
    laid = cells(m, mask, row)
    positive = np.maximum(laid.values, 0)
    total = positive @ laid.pixels
    return float(positive @ laid.inside / total) if total else 0.0
