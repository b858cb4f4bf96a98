"""How far a number would move with other pictures: intervals and paired tests with the picture as the unit.

What is said of one picture is right or wrong together, so pictures are resampled, not answers: 95 % percentile
intervals (Efron and Tibshirani 1993, chapter 13), and for two of the same pictures a test that exchanges them.

    counts = resamples(pictures, 1000, seed=0)
    interval(weighed(counts, sums) / weighed(counts, sizes))    # of a mean over what the pictures hold
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from llava_probe.arrays import FloatArray, IntArray

LEVEL = 0.95
#: Random sign flips of the paired test; below ``_EXACT`` differing pictures all of them are counted out.
FLIPS, _EXACT = 10_000, 13
#: Resamples multiplied at once.
_CHUNK = 64

Counts = npt.NDArray[np.uint16]


def resamples(group_count: int, times: int, seed: int) -> Counts:
    """[times, groups] how often each picture was drawn."""
    counts = np.empty((times, group_count), dtype=np.uint16)
    for row, drawn in zip(counts, each_resample(group_count, times, seed), strict=True):
        row[:] = drawn
    return counts


def each_resample(group_count: int, times: int, seed: int) -> Iterator[IntArray]:
    """The same, [groups] at a time: for measures that are no sums."""
    generator = np.random.default_rng(seed)
    for _ in range(times):
        yield np.bincount(generator.integers(0, group_count, group_count), minlength=group_count)


def interval(values: FloatArray) -> tuple[float, float]:
    """The middle 95 % of resampled values."""
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def sign_flip(differences: FloatArray, seed: int) -> float:
    """Two-sided p of a sum of paired differences, [groups], if the two of each pair could as well be exchanged.

    McNemar's test with whole pictures in place of single answers; exact where few pictures differ, NaN where one is.
    """
    if np.isnan(differences).any():
        return float("nan")
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
    """Twice the smaller share of resampled differences on one side of zero, NaN ones left out."""
    differences = differences[~np.isnan(differences)]
    if not len(differences):
        return float("nan")
    side = min(np.count_nonzero(differences <= 0), np.count_nonzero(differences >= 0))
    return min(1.0, 2 * (1 + side) / (1 + len(differences)))


def by_group(part: FloatArray, groups: IntArray, group_count: int) -> FloatArray:
    """[groups, ...] sums of ``part`` [m, ...] over the rows of each group; ``groups`` [m] are their numbers."""
    added = np.zeros((group_count, *part.shape[1:]))
    np.add.at(added, groups, part)
    return added


def weighed(counts: npt.NDArray[Any], part: FloatArray) -> FloatArray:
    """[resamples, ...] sums of ``part`` [groups, ...], each group as often as it was drawn."""
    chunks = [counts[start : start + _CHUNK].astype(np.float64) @ part for start in range(0, len(counts), _CHUNK)]
    return np.concatenate(chunks) if chunks else np.zeros((0, *part.shape[1:]))
