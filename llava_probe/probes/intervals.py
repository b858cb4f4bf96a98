"""How far the scores would move with other pictures: intervals and paired tests with the picture as the unit.

Rows of one picture are right or wrong together, so pictures are resampled, not rows: 95 % percentile intervals of the
out-of-fold score (Efron and Tibshirani 1993, chapter 13). All cells of a sweep share the same resamples, so that
their differences are paired. The predictions are held fixed: what the training set's own chance adds is left out.

Every measure here is a function of sums over each picture, so a thousand resamples are one matrix product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llava_probe.errors import BadInput
from llava_probe.probes.labels import FloatArray, IntArray

LEVEL = 0.95
#: Random sign flips of the paired test; below ``_EXACT`` differing pictures all of them are counted out.
FLIPS, _EXACT = 10_000, 13
#: Resamples multiplied at once.
_CHUNK = 64

Counts = npt.NDArray[np.uint16]


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
            return self._of({name: _weighed(counts, part) for name, part in self.parts.items()})

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
    return Sums({name: _grouped(part, groups, group_count) for name, part in parts.items()}, classes)


def resamples(group_count: int, times: int, seed: int) -> Counts:
    """[times, groups] how often each picture was drawn."""
    generator = np.random.default_rng(seed)
    counts = np.empty((times, group_count), dtype=np.uint16)
    for row in counts:
        row[:] = np.bincount(generator.integers(0, group_count, group_count), minlength=group_count)
    return counts


def interval(values: FloatArray) -> tuple[float, float]:
    """The middle 95 % of resampled values."""
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def sign_flip(differences: FloatArray, seed: int) -> float:
    """Two-sided p of a sum of paired differences, [groups], if the two of each pair could as well be exchanged.

    McNemar's test with whole pictures in place of single answers; exact where few pictures differ.
    """
    differences = differences[differences != 0]
    if not len(differences):
        return 1.0
    observed = abs(differences.sum()) * (1 - 1e-12)  # equal sums in another order still count as equal
    if len(differences) < _EXACT:
        signs = 1 - 2.0 * (np.arange(2 ** len(differences))[:, None] >> np.arange(len(differences)) & 1)
        return float((np.abs(signs @ differences) >= observed).mean())
    generator = np.random.default_rng(seed)
    beyond = 0
    for start in range(0, FLIPS, _CHUNK):
        shape = (min(_CHUNK, FLIPS - start), len(differences))
        signs = 1.0 - 2.0 * generator.integers(0, 2, shape)
        beyond += int((np.abs(signs @ differences) >= observed).sum())
    return (1 + beyond) / (1 + FLIPS)


def two_sided(differences: FloatArray) -> float:
    """Twice the smaller share of resampled differences on one side of zero."""
    if not len(differences):
        return float("nan")
    side = min(np.count_nonzero(differences <= 0), np.count_nonzero(differences >= 0))
    return min(1.0, 2 * (1 + side) / (1 + len(differences)))


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


def _grouped(part: FloatArray, groups: IntArray, group_count: int) -> FloatArray:
    added = np.zeros((group_count, *part.shape[1:]))
    np.add.at(added, groups, part)
    return added


def _weighed(counts: npt.NDArray[Any], part: FloatArray) -> FloatArray:
    chunks = [counts[start : start + _CHUNK].astype(np.float64) @ part for start in range(0, len(counts), _CHUNK)]
    return np.concatenate(chunks) if chunks else np.zeros((0, *part.shape[1:]))
