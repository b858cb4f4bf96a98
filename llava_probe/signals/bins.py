"""Confidences in bins, how far each bin is from the truth, and how far a perfectly calibrated model's would be.

    ECE = sum over bins of (n_b / n) |accuracy_b - mean confidence_b|,    MCE = the largest of these gaps

Equal widths are (b/B, (b+1)/B], the first one closed, so that a confidence of exactly 0 is in it (Guo et al. 2017,
arXiv 1706.04599, with what falls out of other tools put back); equal masses part at the quantiles, equal confidences
staying together. Both errors are biased upwards, the more the fewer answers there are, so beside each stands its floor:
correctness drawn anew, each answer right with the probability that was stated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llava_probe.analyzers.table import Table, Tabular
from llava_probe.arrays import FloatArray, IntArray
from llava_probe.resampling import interval

#: Numbers drawn at once.
_CHUNK = 2_000_000


@dataclass(frozen=True, eq=False)
class Bins(Tabular):
    """The bins that hold an answer, each array [bins]; empty ones are left out.

    Attributes:
        low, high: of its confidences; the first bin holds its low end, the others do not.
        count: answers; ``confidence``: their mean; ``accuracy``: the share that is right.
        accuracy_low, accuracy_high: the 95 % interval of the accuracy over groups.
        floor_low, floor_high: where the accuracy of a perfectly calibrated model lies in 95 % of draws.
    """

    low: FloatArray
    high: FloatArray
    count: IntArray
    confidence: FloatArray
    accuracy: FloatArray
    accuracy_low: FloatArray
    accuracy_high: FloatArray
    floor_low: FloatArray
    floor_high: FloatArray

    def to_dict(self) -> dict[str, list[Any]]:
        """Plain lists by name, ready for JSON."""
        return self._columns().data

    def table(self) -> str:
        """A line for each bin, to print."""
        return self._columns().text()

    def _repr_html_(self) -> str:
        return self._columns().html()

    def _columns(self) -> Table:
        return Table({name: getattr(self, name).tolist() for name in self.__dataclass_fields__})


@dataclass(frozen=True, eq=False)
class Binning:
    """One way of cutting ordered confidences into bins.

    Attributes:
        edges: [bins + 1] of all bins, empty ones too; ``held``: numbers of those that hold an answer.
        starts: where each of these begins among the ordered answers.
    """

    edges: FloatArray
    held: IntArray
    starts: IntArray

    @classmethod
    def at(cls, edges: FloatArray, ordered: FloatArray) -> Binning:
        """Binning where the edges say: what is on an edge belongs to the bin below it."""
        held, starts = np.unique(np.searchsorted(edges[1:-1], ordered), return_index=True)
        return cls(edges, held, starts)

    @classmethod
    def of_width(cls, bins: int, ordered: FloatArray) -> Binning:
        """Bins as wide as each other, from 0 to 1."""
        return cls.at(np.linspace(0, 1, bins + 1), ordered)

    @classmethod
    def of_mass(cls, bins: int, ordered: FloatArray) -> Binning:
        """Bins that hold about as many answers as each other."""
        return cls.at(np.quantile(ordered, np.linspace(0, 1, bins + 1)), ordered)

    def summed(self, values: FloatArray) -> FloatArray:
        """[..., bins] sums over the answers of each, of values [..., n]."""
        found: FloatArray = np.add.reduceat(values, self.starts, axis=-1)
        return found


def errors(gaps: FloatArray, sizes: FloatArray) -> tuple[FloatArray, FloatArray]:
    """ECE and MCE, each [...], of sums [..., bins]: of correctness less confidence, and of answers."""
    apart = np.abs(gaps)
    each = np.divide(apart, sizes, out=np.zeros(np.broadcast(apart, sizes).shape), where=sizes > 0)
    return apart.sum(-1) / sizes.sum(-1), each.max(-1)


@dataclass(frozen=True, eq=False)
class Floor:
    """What a perfectly calibrated model shows at these confidences.

    Attributes:
        ece, mce: [draws]; ``accuracy``: [draws, bins].
    """

    ece: FloatArray
    mce: FloatArray
    accuracy: FloatArray


def floors(cuts: Sequence[Binning], ordered: FloatArray, draws: int, seed: int) -> list[Floor]:
    """The floor of each cut, of the same draws.

    Args:
        cuts: of these confidences.
        ordered: [n] the confidences, rising.
        draws: how often every answer's correctness is drawn; ``seed``: of the draws.
    """
    generator = np.random.default_rng(seed)
    at_once = max(1, _CHUNK // len(ordered))
    rights: list[list[FloatArray]] = [[] for _ in cuts]
    for start in range(0, draws, at_once):
        drawn = generator.random((min(at_once, draws - start), len(ordered))) < ordered
        for cut, found in zip(cuts, rights, strict=True):
            found.append(cut.summed(drawn.astype(np.float64)))
    whole = []
    for cut, found in zip(cuts, rights, strict=True):
        right, sizes = np.concatenate(found), cut.summed(np.ones_like(ordered))
        ece, mce = errors(right - cut.summed(ordered), sizes)
        whole.append(Floor(ece, mce, right / sizes))
    return whole


def held_by(
    cut: Binning, ordered: FloatArray, right: FloatArray, accuracy: tuple[FloatArray, FloatArray], floor: Floor
) -> Bins:
    """The bins of one cut.

    Args:
        cut: of these confidences ``ordered`` [n] and their correctness ``right`` [n].
        accuracy: the ends of its interval, each [bins].
        floor: of the same cut.
    """
    count = cut.summed(np.ones_like(ordered))
    return Bins(
        cut.edges[cut.held],
        cut.edges[cut.held + 1],
        count.astype(np.int64),
        cut.summed(ordered) / count,
        cut.summed(right) / count,
        *accuracy,
        *ends(floor.accuracy, len(count)),
    )


def ends(drawn: Sequence[FloatArray] | FloatArray, size: int) -> tuple[FloatArray, FloatArray]:
    """The ends of the 95 % interval of each of ``size`` numbers over draws; NaN where none has it."""
    columns = np.asarray(drawn, dtype=np.float64).reshape(-1, size).T
    found = np.array([interval(column[~np.isnan(column)]) for column in columns])
    return found[:, 0], found[:, 1]
