"""One number for a data set of cases, and how far it would move with other pictures.

    summary(scores, pictures)                  # Score: 0.71 [0.66, 0.76] over 480 cases of 200 pictures
    difference(of_one, of_other, pictures)     # Difference: of two methods on the same cases

Cases of one picture are easy or hard together, so pictures are drawn again, not cases (``resampling.py``).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from llava_probe.arrays import FloatArray, IntArray
from llava_probe.border import Limits, Seed, checked
from llava_probe.errors import BadInput
from llava_probe.resampling import by_group, interval, resamples, sign_flip, weighed

Scores = Sequence[float | bool]
#: Resamples of the pictures, all drawn at once.
Times = Annotated[int, Limits(1, 100_000)]
#: An end of the interval then rests on 50 of them.
TIMES = 2000


@checked
@dataclass(frozen=True)
class Score:
    """A mean over cases.

    Attributes:
        mean: every case counts once.
        low, high: its 95 % percentile bootstrap interval over pictures; NaN for fewer than two pictures.
        cases, pictures: how many there are.
    """

    mean: float
    low: float
    high: float
    cases: int
    pictures: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}] over {self.cases} cases of {self.pictures} pictures"


@checked
@dataclass(frozen=True)
class Difference:
    """The mean of one method less that of another on the same cases.

    Attributes:
        mean, low, high, cases, pictures: as in ``Score``.
        p: two-sided, of exchanging the two methods' scores picture by picture.
    """

    mean: float
    low: float
    high: float
    p: float
    cases: int
    pictures: int

    def __str__(self) -> str:
        return (
            f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}], p = {self.p:.2g} "
            f"over {self.cases} cases of {self.pictures} pictures"
        )


@checked
def summary(scores: Scores, pictures: Sequence[Hashable], *, times: Times = TIMES, seed: Seed = 0) -> Score:
    """The mean of one score a case, with its interval.

    Args:
        scores: one for each case, bools among them.
        pictures: of each case, any key that is equal for cases of one picture (``Case.picture``).
        times: resamples; ``seed``: of the draws. The same seed draws the same pictures.

    Raises:
        BadInput: no cases, not as many pictures as scores, or a score that is no finite number.
    """
    values, groups, count = _grouped(scores, pictures)
    return Score(float(values.mean()), *_interval(values, groups, count, times, seed), len(values), count)


@checked
def difference(
    one: Scores, other: Scores, pictures: Sequence[Hashable], *, times: Times = TIMES, seed: Seed = 0
) -> Difference:
    """The paired difference of two methods' scores; arguments and errors as for ``summary``.

    Raises:
        BadInput: also where the methods have not as many scores.
    """
    if len(one) != len(other):
        raise BadInput(f"two methods are compared on the same cases; got {len(one)} and {len(other)} scores")
    (first, groups, count), (second, _, _) = (_grouped(scores, pictures) for scores in (one, other))
    apart = first - second
    low, high = _interval(apart, groups, count, times, seed)
    p = sign_flip(by_group(apart, groups, count), seed)
    return Difference(float(apart.mean()), low, high, p, len(apart), count)


def _grouped(scores: Scores, pictures: Sequence[Hashable]) -> tuple[FloatArray, IntArray, int]:
    """Scores [m], the number of each one's picture [m], and how many pictures there are."""
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or not len(values) or len(values) != len(pictures):
        raise BadInput(f"one score and one picture for each case; got {list(values.shape)} and {len(pictures)}")
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise BadInput(f"score {wrong[0]} is {values[wrong[0]]}; leave the case out or say what it counts as")
    numbers: dict[Hashable, int] = {}
    groups = np.array([numbers.setdefault(picture, len(numbers)) for picture in pictures], dtype=np.int64)
    return values, groups, len(numbers)


def _interval(values: FloatArray, groups: IntArray, count: int, times: int, seed: int) -> tuple[float, float]:
    if count < 2:
        return float("nan"), float("nan")
    counts = resamples(count, times, seed)
    return interval(
        weighed(counts, by_group(values, groups, count)) / weighed(counts, np.bincount(groups).astype(float))
    )
