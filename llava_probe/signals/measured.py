"""A number of a data set with its interval, and how answers are told to belong to pictures.

What is said of one picture is right or wrong together, so intervals draw pictures again, not answers.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from llava_probe.arrays import FloatArray, IntArray
from llava_probe.border import checked
from llava_probe.errors import BadInput
from llava_probe.probes.labels import numbered
from llava_probe.resampling import by_group, interval, resamples, weighed

#: Resamples of an interval: an end of it rests on 25 of them.
RESAMPLED = 1_000


@checked
@dataclass(frozen=True)
class Estimate:
    """A number of a data set; ``float(measure)`` is the number alone.

    Attributes:
        value: of the data as they are; NaN where they do not define it.
        low, high: its 95 % interval over groups (pictures); NaN for fewer than two of them.
        floor, floor_high: of a calibration error, what a perfectly calibrated model shows at this many answers: the
            mean, and what it stays under in 95 % of draws. None of other measures.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    floor: float | None = None
    floor_high: float | None = None

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        told = f"{self.value:.3f}" if math.isnan(self.low) else f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"
        if self.floor is None:
            return told
        return f"{told}, floor {self.floor:.3f} (95 %: {self.floor_high:.3f})"

    def to_dict(self) -> dict[str, float | None]:
        """Its numbers by name; None for what is not defined, so that JSON holds it."""
        found = {"value": self.value, "low": self.low, "high": self.high}
        told = {name: None if math.isnan(number) else number for name, number in found.items()}
        return told if self.floor is None else {**told, "floor": self.floor, "floor_high": self.floor_high}


def grouped(groups: Sequence[Hashable] | None, count: int, what: str) -> tuple[IntArray, int]:
    """[count] the number of each answer's group, and how many groups there are; each its own where None is given.

    Raises:
        BadInput: not as many groups as answers.
    """
    if groups is None:
        return np.arange(count), count
    if len(groups) != count:
        raise BadInput(f"groups= names one group, a picture say, for each of {count} {what}; got {len(groups)}")
    found = numbered(groups)
    return found, int(found.max()) + 1


def ratio(above: FloatArray, below: FloatArray, groups: IntArray, count: int, seed: int = 0) -> Estimate:
    """A quotient of two sums over answers with its interval over groups.

    Args:
        above, below: [answers] what is summed over the line and under it.
        groups: [answers] the number of each one's group; ``count``: how many there are.
        seed: of the draws: the same seed draws the same groups.
    """
    tops, bottoms = (by_group(np.asarray(part, dtype=np.float64), groups, count) for part in (above, below))
    total = bottoms.sum()
    value = float(tops.sum() / total) if total else math.nan
    if count < 2 or not total:
        return Estimate(value)
    drawn = resamples(count, RESAMPLED, seed)
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample without any: NaN, left out
        found = weighed(drawn, tops) / weighed(drawn, bottoms)
    return Estimate(value, *interval(found[~np.isnan(found)]))
