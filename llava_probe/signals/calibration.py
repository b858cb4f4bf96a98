"""Whether confidences can be believed: calibration errors beside their noise floor, and how well they rank.

    c = lp.calibration(confidence, correct, groups=pictures)
    print(c)                          # each number with its interval; calibration errors with their floor
    float(c.ece), c.ece.floor_high    # 0.061, and what a perfectly calibrated model stays under at this n: 0.048
    c.accuracy_at(0.8)                # of the surest 80 %
    lp.figures.reliability(c)

A calibration error alone says little: with 200 answers in 15 bins a perfectly calibrated model shows an ECE of about
0.08. Beside each therefore stands its floor; an error that is not above it is no evidence against the model.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np

from llava_probe.analyzers.table import Table, Tabular, rounded
from llava_probe.arrays import FloatArray
from llava_probe.border import Limits, Numeric, Seed, checked
from llava_probe.resampling import LEVEL, interval
from llava_probe.signals.bins import Binning, Bins, Floor, ends, floors, held_by
from llava_probe.signals.measured import RESAMPLED, Estimate, grouped
from llava_probe.signals.ordered import COVERAGES, Ordered, paired

#: As many as in most papers since Guo et al. 2017.
BIN_COUNT = 15
BinCount = Annotated[int, Limits(1, 1_000)]
DrawCount = Annotated[int, Limits(2, 10_000)]
Coverage = Annotated[float, Limits(above=0, most=1)]
_MEASURES = ("accuracy", "confidence", "ece", "ece_mass", "mce", "brier", "nll", "auroc", "risk_area")


@checked
@dataclass(frozen=True, eq=False)
class Calibration(Tabular):
    """How far confidences can be believed; intervals are 95 % over groups.

    Attributes:
        count: answers; ``groups``: pictures that they are of.
        accuracy: the share that is right; ``confidence``: its mean.
        ece: expected calibration error of bins of equal width; ``ece_mass``: of equal mass; ``mce``: the largest gap of
            a bin of equal width. Each with its floor.
        brier: mean squared difference of confidence and correctness; ``nll``: mean of -log of the probability that was
            given to what was so, in nats.
        auroc: the chance that a right answer is surer than a wrong one; NaN where all are right, or none.
        risk_area: the share of wrong answers among the k surest, averaged over all k (AURC).
        bins, mass_bins: of equal width, of equal mass.
        coverage: [100] shares of the answers, the surest first; ``risk``: [100] the share of wrong ones among them, and
            ``risk_low``, ``risk_high``: its interval.
    """

    count: int
    groups: int
    accuracy: Estimate
    confidence: Estimate
    ece: Estimate
    ece_mass: Estimate
    mce: Estimate
    brier: Estimate
    nll: Estimate
    auroc: Estimate
    risk_area: Estimate
    bins: Bins = field(repr=False)
    mass_bins: Bins = field(repr=False)
    coverage: FloatArray = field(repr=False)
    risk: FloatArray = field(repr=False)
    risk_low: FloatArray = field(repr=False)
    risk_high: FloatArray = field(repr=False)
    _answers: Ordered = field(repr=False)

    @property
    def measures(self) -> dict[str, Estimate]:
        """All of them by name."""
        return {name: getattr(self, name) for name in _MEASURES}

    def accuracy_at(self, coverage: Coverage) -> Estimate:
        """The share of right answers among the surest of them.

        Args:
            coverage: the share of all answers that is kept, rounded up to whole answers.
        """
        share = np.array([coverage])
        drawn = np.array([self._answers.risk(weights, share)[0] for weights in self._answers.resampled()])
        value = 1 - float(self._answers.risk(self._answers.once, share)[0])
        return Estimate(value, *interval(1 - drawn))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, ready for JSON; None for what is not defined."""
        curve = {name: getattr(self, name).tolist() for name in ("coverage", "risk", "risk_low", "risk_high")}
        return {
            "count": self.count,
            "groups": self.groups,
            **{name: measure.to_dict() for name, measure in self.measures.items()},
            **{name: _defined(getattr(self, name).to_dict()) for name in ("bins", "mass_bins")},
            **_defined(curve),
        }

    def table(self) -> str:
        """A line for each measure, with its interval and its floor, to print."""
        return self._shown().text()

    def __str__(self) -> str:
        return f"{self.table()}\n{self._size()}"

    def _repr_html_(self) -> str:
        return self._shown().html(self._size())

    def _size(self) -> str:
        return f"{self.count:,} answers in {self.groups:,} groups; floor: a perfectly calibrated model's mean, and 95 %"

    def _shown(self) -> Table:
        found = list(self.measures.values())
        floors = [
            "" if one.floor is None else f"{rounded(one.floor, 3)}, {rounded(one.floor_high or 0, 3)}" for one in found
        ]
        return Table(
            {
                "measure": list(self.measures),
                "value": [rounded(one.value, 3) for one in found],
                "95 %": ["" if math.isnan(one.low) else f"[{one.low:.3f}, {one.high:.3f}]" for one in found],
                "floor": floors,
            }
        )

    def _columns(self) -> Table:
        columns: dict[str, list[Any]] = {"measure": list(self.measures)}
        for name in ("value", "low", "high", "floor", "floor_high"):
            cells = [getattr(measure, name) for measure in self.measures.values()]
            columns[name] = [math.nan if cell is None else cell for cell in cells]
        return Table(columns)


def _defined(columns: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    return {name: [None if cell != cell else cell for cell in column] for name, column in columns.items()}


@checked
def calibration(
    confidence: Numeric,
    correct: Numeric,
    groups: Sequence[Hashable] | None = None,
    *,
    bins: BinCount = BIN_COUNT,
    times: DrawCount = RESAMPLED,
    draws: DrawCount = 1_000,
    seed: Seed = 0,
) -> Calibration:
    """How far confidences can be believed, and how well they put right answers before wrong ones.

    The confidence of an answer is the probability that it is right, as the model tells it. Of yes and no it may as well
    be the probability of yes, with whether yes is right for ``correct``.

    The intervals of ECE and MCE are the basic bootstrap's, since resampling adds to their bias as much as sampling did;
    they begin at 0 where the error is not above what a perfectly calibrated model shows. In simulations of 200 and
    1,000 answers that of the ECE held the truth in 87 to 93 of 100 draws, where percentiles held it in 0 to 92.

    Args:
        confidence: [n] probabilities.
        correct: [n] whether each answer is right, True and False or 1 and 0.
        groups: [n] of each answer any key, equal for answers of one picture: intervals are over these. Each answer
            stands for itself when None, which makes intervals too narrow where pictures are asked often.
        bins: of each calibration error.
        times: resamples of an interval.
        draws: of the floor: how often each answer's correctness is drawn with its confidence.
        seed: of both.

    Raises:
        BadInput: no answers, not as many confidences as answers, a confidence outside 0 to 1, or correctness that is
            neither 0 nor 1.
    """
    stated, right = paired(confidence, correct)
    numbers, count = grouped(groups, len(stated), "answers")
    order = np.argsort(stated, kind="stable")
    ordered = stated[order]
    cuts = (Binning.of_width(bins, ordered), Binning.of_mass(bins, ordered))
    answers = Ordered(ordered, right[order], numbers[order], count, cuts, times, seed)
    whole, drawn = answers.told(answers.once), [answers.told(weights) for weights in answers.resampled()]
    floor = floors(cuts, ordered, draws, seed)
    risk_low, risk_high = ends([each.risk for each in drawn], len(COVERAGES))
    accuracies = [ends([each.accuracy[place] for each in drawn], len(cut.held)) for place, cut in enumerate(cuts)]
    width, mass = (
        held_by(cut, ordered, answers.right, accuracy, each)
        for cut, accuracy, each in zip(cuts, accuracies, floor, strict=True)
    )
    measures: dict[str, Any] = {**_measured(whole.measures, [each.measures for each in drawn], floor)}
    return Calibration(
        count=len(stated),
        groups=count,
        **measures,
        bins=width,
        mass_bins=mass,
        coverage=COVERAGES,
        risk=whole.risk,
        risk_low=risk_low,
        risk_high=risk_high,
        _answers=answers,
    )


def _measured(
    whole: Mapping[str, float], drawn: Sequence[Mapping[str, float]], floor: Sequence[Floor]
) -> dict[str, Estimate]:
    width, mass = floor
    low = {"ece": width.ece, "ece_mass": mass.ece, "mce": width.mce}
    found = {}
    for name, value in whole.items():
        values = np.array([each[name] for each in drawn])
        span = interval(values[~np.isnan(values)])
        found[name] = _binned(value, *span, low[name]) if name in low else Estimate(value, *span)
    return found


def _binned(value: float, low: float, high: float, floor: FloatArray) -> Estimate:
    """A calibration error: resamples lie above it by as much as it lies above the truth, so they are mirrored."""
    highest = float(np.quantile(floor, LEVEL))
    bottom = 0.0 if value <= highest else max(0.0, 2 * value - high)
    if low != low:
        return Estimate(value, floor=float(floor.mean()), floor_high=highest)
    return Estimate(value, bottom, min(1.0, max(bottom, 2 * value - low)), float(floor.mean()), highest)
