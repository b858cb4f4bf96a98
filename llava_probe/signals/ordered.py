"""Answers in the order of their confidence, and everything that a calibration tells of them as a function of weights.

A resample of the pictures is the same answers with other weights, so nothing is sorted or cut twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from llava_probe.arrays import FloatArray, IntArray
from llava_probe.errors import BadInput
from llava_probe.resampling import each_resample
from llava_probe.signals.bins import Binning, errors
from llava_probe.signals.ranking import auroc, risk_area, risk_at, tied

#: What float64 tells apart at 1: as in scikit-learn's log_loss, a certain answer that is wrong costs 36 nats.
_EDGE = float(np.finfo(np.float64).eps)
#: The coverages of a curve.
COVERAGES = np.arange(1, 101) / 100


@dataclass(frozen=True)
class Weighed:
    """What weights make of the answers.

    Attributes:
        measures: by name; ``accuracy``: of each cut [bins], NaN where nothing counts; ``risk``: [coverages].
    """

    measures: dict[str, float]
    accuracy: tuple[FloatArray, ...]
    risk: FloatArray


@dataclass(frozen=True, eq=False)
class Ordered:
    """Answers by rising confidence.

    Attributes:
        stated: [n] confidences; ``right``: [n] 1 where the answer is right, else 0.
        numbers: [n] of each answer's group; ``groups``: how many there are.
        cuts: of equal width and of equal mass.
        times, seed: of the resamples.
    """

    stated: FloatArray
    right: FloatArray
    numbers: IntArray
    groups: int
    cuts: tuple[Binning, Binning]
    times: int
    seed: int

    @cached_property
    def once(self) -> FloatArray:
        """[n] weights of the answers as they are."""
        return np.ones_like(self.stated)

    def resampled(self) -> Iterator[FloatArray]:
        """[n] weights of each resample of the groups; none of fewer than two of them."""
        if self.groups > 1:
            for counts in each_resample(self.groups, self.times, self.seed):
                yield counts[self.numbers].astype(np.float64)

    def told(self, weights: FloatArray) -> Weighed:
        """Everything for weights [n]."""
        total = weights.sum()
        gaps = [cut.summed(weights * self._apart) for cut in self.cuts]
        sizes = [cut.summed(weights) for cut in self.cuts]
        (ece, mce), (mass, _) = (errors(gap, size) for gap, size in zip(gaps, sizes, strict=True))
        measures = {
            "accuracy": weights @ self.right / total,
            "confidence": weights @ self.stated / total,
            "ece": ece,
            "ece_mass": mass,
            "mce": mce,
            "brier": weights @ self._apart**2 / total,
            "nll": weights @ self._nats / total,
            "auroc": auroc(weights, self.right, self._runs),
            "risk_area": risk_area(weights, self.right, self._runs),
        }
        accuracy = tuple(
            np.divide(right, size, out=np.full_like(size, np.nan), where=size > 0)
            for right, size in zip((cut.summed(weights * self.right) for cut in self.cuts), sizes, strict=True)
        )
        return Weighed(
            {name: float(value) for name, value in measures.items()}, accuracy, self.risk(weights, COVERAGES)
        )

    def risk(self, weights: FloatArray, coverage: FloatArray) -> FloatArray:
        """[coverages] the share of wrong answers among the surest."""
        return risk_at(coverage, weights, self.right, self._runs)

    @cached_property
    def _runs(self) -> IntArray:
        return tied(self.stated)

    @cached_property
    def _apart(self) -> FloatArray:
        return self.right - self.stated

    @cached_property
    def _nats(self) -> FloatArray:
        given = np.where(self.right == 1, self.stated, 1 - self.stated)
        return -np.log(np.clip(given, _EDGE, 1 - _EDGE))


def paired(confidence: Any, correct: Any) -> tuple[FloatArray, FloatArray]:
    """Confidences [n] and correctness [n] as float64.

    Raises:
        BadInput: no answers, not as many of both, a confidence outside 0 to 1, or correctness that is neither 0 nor 1.
    """
    stated, right = (_numbers(each) for each in (confidence, correct))
    if stated.ndim != 1 or stated.shape != right.shape or not len(stated):
        raise BadInput(
            f"one confidence and one correctness for each answer; got {list(stated.shape)} and {list(right.shape)}"
        )
    outside = np.flatnonzero(~((stated >= 0) & (stated <= 1)))
    if len(outside):
        raise BadInput(f"a confidence is a probability from 0 to 1; number {outside[0]} is {stated[outside[0]]:g}")
    wrong = np.flatnonzero((right != 0) & (right != 1))
    if len(wrong):
        raise BadInput(f"correct= says 0 or 1 of each answer; number {wrong[0]} is {right[wrong[0]]:g}")
    return stated, right


def _numbers(given: Any) -> FloatArray:
    if hasattr(given, "detach"):  # a tensor: in a dtype that NumPy may not have
        given = given.detach().cpu().double()
    return np.asarray(given, dtype=np.float64)
