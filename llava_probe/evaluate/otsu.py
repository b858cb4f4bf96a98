"""Otsu's threshold (1979): the cut that sets two groups of values furthest apart.

    threshold = otsu(values)
    values > threshold               # the foreground

Image libraries sort the values into 256 bins first; a map has few distinct values, so all cuts are tried as they are.
"""

from __future__ import annotations

import numpy as np

from llava_probe.border import Numeric, checked
from llava_probe.errors import BadInput


@checked
def otsu(values: Numeric, weights: Numeric | None = None) -> float:
    """The value with the largest variance between those above it and the rest.

    Args:
        values: any shape, finite.
        weights: how often each value occurs, of the same shape; once when None.

    Returns:
        The largest value of the lower group; of equally good cuts the lowest. Where all values are the same, that
        value: nothing is above it.

    Raises:
        BadInput: no values, or some that are not finite; weights that do not fit them.
    """
    numbers = np.asarray(values, dtype=np.float64).reshape(-1)
    given = np.ones(len(numbers)) if weights is None else np.asarray(weights)
    if given.size != len(numbers) or not (given >= 0).all():
        raise BadInput(f"otsu takes a weight of 0 or more for each of {len(numbers)} values; got {given.size}")
    often = given.astype(np.float64).reshape(-1)
    numbers, often = numbers[often > 0], often[often > 0]
    if not len(numbers) or not np.isfinite(numbers).all():
        raise BadInput("otsu takes finite values, at least one")
    levels, place = np.unique(numbers, return_inverse=True)
    counts = np.bincount(place, often)
    if len(levels) == 1:
        return float(levels[0])
    below = counts.cumsum()[:-1]
    above = counts.sum() - below
    centred = levels - counts @ levels / counts.sum()  # far from zero the difference of two means would lose digits
    sums = (counts * centred).cumsum()[:-1]
    apart = sums / below + sums / above  # the sums above are -sums
    return float(levels[np.argmax(below * above * apart**2)])
