"""A map as a ranking of pixels: how many of the first ones lie on the object, at every threshold at once.

    curve = pr_curve(m, mask, row)
    average_precision(m, mask, row)    # the curve as steps
    pr_area(m, mask, row)              # the curve as straight lines

Steps and lines are scikit-learn's ``average_precision_score`` and ``auc``. Lines are the more generous: between two
thresholds precision does not fall along a line (Davis and Goadrich 2006). Both see the order of the values alone. A
uniform map has an average precision of the share of the seen photograph that the mask covers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llava_probe.arrays import FloatArray
from llava_probe.border import Numeric, checked
from llava_probe.evaluate.cells import cells
from llava_probe.maps.maps import ImageMap


@checked
@dataclass(frozen=True, eq=False)
class Curve:
    """Precision and recall of the pixels at or above each of the map's values, highest first.

    Attributes:
        thresholds: [K] the distinct values.
        precision: [K] share of the chosen pixels that lie inside the mask.
        recall: [K] share of the mask that is chosen; the last is 1.
    """

    thresholds: FloatArray
    precision: FloatArray
    recall: FloatArray


@checked
def pr_curve(m: ImageMap, mask: Numeric, row: int | None = None) -> Curve:
    """Precision and recall over seen pixels.

    Args:
        mask: [height, width] bool on the original photograph.

    Raises:
        BadInput: the mask is of another size, or nothing of it could be seen.
        OutOfRange: there is no such row.
    """
    thresholds, chosen, found = cells(m, mask, row).levels()
    return Curve(thresholds, found / chosen, found / found[-1])


@checked
def average_precision(m: ImageMap, mask: Numeric, row: int | None = None) -> float:
    """Σ (Rₙ − Rₙ₋₁) Pₙ over the curve's points; arguments and errors as for ``pr_curve``."""
    curve = pr_curve(m, mask, row)
    return float(np.diff(curve.recall, prepend=0.0) @ curve.precision)


@checked
def pr_area(m: ImageMap, mask: Numeric, row: int | None = None) -> float:
    """The curve's area by trapezoids, from precision 1 at recall 0; arguments and errors as for ``pr_curve``."""
    curve = pr_curve(m, mask, row)
    return float(np.trapezoid(np.append(1.0, curve.precision), np.append(0.0, curve.recall)))
