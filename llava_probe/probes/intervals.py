"""How far the scores of probes would move with other pictures: each measure from sums over each picture.

Rows of one picture are right or wrong together, so pictures are resampled, not rows (``resampling.py``). All cells of
a sweep share the same resamples, so that their differences are paired. The predictions are held fixed: what the
training set's own chance adds is left out.

Every measure here is a function of sums over each picture, so a thousand resamples are one matrix product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llava_probe.arrays import FloatArray, IntArray
from llava_probe.errors import BadInput
from llava_probe.resampling import by_group, weighed


@dataclass(frozen=True, eq=False)
class Sums:
    """What the measures need of each picture, each [groups, ...].

    Attributes:
        parts: by name; ``count`` instances always.
        classes: how many; None for numbers.
    """

    parts: Mapping[str, FloatArray]
    classes: int | None

    def measures(self, counts: npt.NDArray[Any] | None = None) -> dict[str, FloatArray]:
        """Each measure, [resamples] for counts [resamples, groups]; [1] of the pictures themselves when None."""
        if counts is None:
            counts = np.ones((1, len(self.parts["count"])))
        with np.errstate(divide="ignore", invalid="ignore"):  # a resample without a class: NaN, skipped by nanmean
            return self._of({name: weighed(counts, part) for name, part in self.parts.items()})

    def shares(self) -> FloatArray:
        """[groups] what each picture adds to the accuracy, or takes from R² by its errors."""
        if self.classes is not None:
            return self.parts["right"] / self.parts["count"].sum()
        squares, values, count = (self.parts[name].sum(0) for name in ("squares", "values", "count"))
        return -(self.parts["errors"] / (squares - values**2 / count)).mean(1)

    def _of(self, sums: dict[str, FloatArray]) -> dict[str, FloatArray]:
        count = sums["count"]
        if self.classes is not None:
            recall = sums["right of class"] / sums["of class"]
            return {"accuracy": sums["right"] / count, "balanced": np.nanmean(recall, axis=1)}
        spread = sums["squares"] - sums["values"] ** 2 / count[:, None]
        found = {"r2": (1 - sums["errors"] / spread).mean(1), "mae": sums["distance"] / count}
        return found | ({"iou": sums["iou"] / count} if "iou" in sums else {})


def sums_of(
    truth: npt.NDArray[Any], told: npt.NDArray[Any], groups: IntArray, group_count: int, classes: int | None
) -> Sums:
    """Add up by picture.

    Args:
        truth, told: [m] class numbers, or [m, outputs].
        groups: [m] the picture of each instance; ``group_count``: how many there are in the sweep.
        classes: how many; None for numbers.
    """
    parts: dict[str, FloatArray] = {"count": np.ones(len(truth))}
    if classes is not None:
        right = (truth == told).astype(np.float64)
        of_class = np.eye(classes)[truth]
        parts |= {"right": right, "of class": of_class, "right of class": of_class * right[:, None]}
    else:
        # measured from the mean: the squares of numbers far from zero would lose the spread
        parts |= {"values": truth - truth.mean(0), "squares": (truth - truth.mean(0)) ** 2}
        parts |= {"errors": (truth - told) ** 2, "distance": np.abs(truth - told).mean(1)}
        if are_boxes(truth):
            parts["iou"] = overlap(truth, told)
    return Sums({name: by_group(part, groups, group_count) for name, part in parts.items()}, classes)


def are_boxes(values: npt.NDArray[Any]) -> bool:
    """Whether every row is (x0, y0, x1, y1) with its corners in order."""
    return values.ndim == 2 and values.shape[1] == 4 and bool((values[:, :2] <= values[:, 2:]).all())


def overlap(one: FloatArray, other: FloatArray) -> FloatArray:
    """[n] intersection over union of boxes [n, 4]; nothing where a box is inside out."""
    if one.shape != other.shape:
        raise BadInput(f"boxes are compared pair by pair; got {list(one.shape)} and {list(other.shape)}")
    sides = np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2])
    shared = np.prod(np.maximum(sides, 0), axis=1)
    areas = sum(np.prod(np.maximum(box[:, 2:] - box[:, :2], 0), axis=1) for box in (one, other))
    union = areas - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
