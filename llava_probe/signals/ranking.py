"""How well a number puts right answers before wrong ones: AUROC, and what is wrong among the surest.

Everything is a function of how often each answer counts, so that a resample is other counts of the same answers. Equal
confidences have no order: what depends on one is its mean over all orders.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from llava_probe.arrays import FloatArray, IntArray


def tied(ordered: FloatArray) -> IntArray:
    """Where each run of equal values begins in an ordered array."""
    return np.flatnonzero(np.diff(ordered, prepend=np.nan) != 0)


def auroc(weights: npt.NDArray[np.floating], right: FloatArray, runs: IntArray) -> float:
    """The chance that a right answer has a higher confidence than a wrong one; a tie counts half.

    Args:
        weights: [n] how often each answer counts, by rising confidence; ``right``: [n] 1 where it is right, else 0.
        runs: of equal confidences, as ``tied`` finds them.

    Returns:
        NaN where all are right or none is.
    """
    good = np.add.reduceat(weights * right, runs)
    bad = np.add.reduceat(weights, runs) - good
    pairs = good.sum() * bad.sum()
    return float(good @ (np.cumsum(bad) - bad / 2) / pairs) if pairs else math.nan


def risk_area(weights: npt.NDArray[np.floating], right: FloatArray, runs: IntArray) -> float:
    """The share of wrong answers among the k surest, averaged over k from 1 to all (Geifman and El-Yaniv 2017).

    Among m equally sure answers of which e are wrong, behind K surer ones of which E are, the j-th adds e / m: the sum
    of (E + j e/m) / (K + j) over them is e + (E - K e/m) (H(K + m) - H(K)), H the harmonic numbers.

    Args:
        weights, right, runs: as for ``auroc``.
    """
    sizes, wrong = _from_the_surest(weights, right, runs)
    before, errors = np.cumsum(sizes) - sizes, np.cumsum(wrong) - wrong
    total = round(float(sizes.sum()))
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, total + 1))])
    rate = np.divide(wrong, sizes, out=np.zeros_like(wrong), where=sizes > 0)
    places = np.rint(before).astype(np.int64)
    span = harmonic[places + np.rint(sizes).astype(np.int64)] - harmonic[places]
    return float((wrong + (errors - before * rate) * span).sum() / total)


def risk_at(coverage: FloatArray, weights: npt.NDArray[np.floating], right: FloatArray, runs: IntArray) -> FloatArray:
    """[coverages] the share of wrong answers among that share of the surest, at least one answer.

    Args:
        coverage: [coverages] shares of the answers, above 0 and up to 1; rounded up to whole answers.
        weights, right, runs: as for ``auroc``.
    """
    sizes, wrong = _from_the_surest(weights, right, runs)
    reached, errors = np.cumsum(sizes), np.cumsum(wrong)
    # a share of 0.3 of 10 answers is 3 of them, though 0.3 * 10 may be a hair more
    taken = np.maximum(1, np.ceil(np.round(coverage * reached[-1], 9)))
    run = np.minimum(np.searchsorted(reached, taken), len(reached) - 1)
    rate = np.divide(wrong, sizes, out=np.zeros_like(wrong), where=sizes > 0)
    found: FloatArray = (errors[run] - wrong[run] + (taken - reached[run] + sizes[run]) * rate[run]) / taken
    return found


def _from_the_surest(
    weights: npt.NDArray[np.floating], right: FloatArray, runs: IntArray
) -> tuple[FloatArray, FloatArray]:
    """How many answers each run holds and how many of them are wrong, the surest run first."""
    sizes = np.add.reduceat(weights, runs)
    return sizes[::-1], (sizes - np.add.reduceat(weights * right, runs))[::-1]
