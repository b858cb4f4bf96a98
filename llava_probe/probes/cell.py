"""One layer and position of a sweep: its score, its interval, and beside it what the score would be of nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from llava_probe.arrays import FloatArray, IntArray
from llava_probe.probes import controls
from llava_probe.probes.instances import Instances, noise, read_instances
from llava_probe.probes.intervals import Sums, sums_of
from llava_probe.probes.study import Key, Study, out_of_fold, refuse_thin
from llava_probe.resampling import interval


@dataclass(frozen=True, eq=False)
class Cell:
    """How well a read-out of one layer and position does on pictures that it was not fitted on.

    ``score`` is the accuracy, or R² of numbers (the mean over the outputs), over all rows, each told by the fold that
    left it out. The controls are in the same measure.

    Attributes:
        layer, position: the store's names.
        score: with its 95 % interval ``low`` to ``high`` over pictures.
        measures: all of them: ``accuracy`` and ``balanced`` accuracy, or ``r2``, ``mae`` and for boxes ``iou``.
        majority: of the training part's most frequent class, or of its mean.
        control: of the control task, the mean of its draws; None where ``control_reason`` says why there is none.
        selectivity: score less control, with its interval.
        shuffled: where whole pictures exchanged labels, the mean of the draws.
        random_features: of Gaussian noise of the same width; ``random_model``: of a model with random weights.
        strengths: the regularisation chosen for each fold.
        rows: labelled rows that have a token here; ``owner``: [m] the labelled row of each instance.
        truth, predicted: [m] class numbers or [m, outputs].
        sums: what the measures need of each picture.
    """

    layer: str
    position: str
    score: float
    low: float
    high: float
    measures: Mapping[str, float]
    majority: float
    control: float | None
    control_reason: str | None
    selectivity: float | None
    selectivity_low: float | None
    selectivity_high: float | None
    shuffled: float
    random_features: float
    random_model: float | None
    strengths: tuple[float, ...]
    rows: int
    control_draws: tuple[float, ...] = field(repr=False)
    shuffled_draws: tuple[float, ...] = field(repr=False)
    owner: IntArray = field(repr=False)
    truth: npt.NDArray[Any] = field(repr=False)
    predicted: npt.NDArray[Any] = field(repr=False)
    sums: Sums = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, a line of the table."""
        named = ("layer", "position", "score", "low", "high")
        rest = ("majority", "control", "selectivity", "shuffled", "random_features", "random_model", "rows")
        others = list(self.measures.items())[1:]
        return {
            **{name: getattr(self, name) for name in named},
            **dict(others),
            **{name: getattr(self, name) for name in rest},
        }


def measure_cell(study: Study, key: Key, floor: float) -> Cell:
    """Fit, score and control one cell.

    Args:
        study: what is asked.
        key: (layer, position).
        floor: the score of random features, which cells of one shape share.
    """
    target, draws = study.target, controls.draw_seeds(study.seed, study.draws)
    data = study.instances(key)
    refuse_thin(study, key, data)
    codes = study.types.codes
    random_labels = [] if codes is None else [controls.control_labels(target, codes, seed) for seed in draws]
    exchanged = [controls.shuffled_labels(target, seed) for seed in draws]
    targets = [target.values, *random_labels, *exchanged]
    found = out_of_fold(study, data, targets)
    tallies = [_sums(study, data, labels, told) for labels, told in zip(targets, found.told, strict=True)]
    own, asked, mixed = tallies[0], tallies[1 : 1 + len(random_labels)], tallies[1 + len(random_labels) :]
    control = [headline(each) for each in asked]
    resampled = _resampled(own, study)
    apart = resampled - np.mean([_resampled(each, study) for each in asked], axis=0) if asked else None
    truth = target.values[data.owner]
    told = controls.majority(truth, study.folds[data.owner], study.readout.classes)
    low, high = interval(resampled)
    around = (None, None) if apart is None else interval(apart)
    return Cell(
        *key,
        score=headline(own),
        low=low,
        high=high,
        measures={name: float(value[0]) for name, value in own.measures().items()},
        majority=headline(sums_of(truth, told, target.groups[data.owner], target.group_count, study.readout.classes)),
        control=_mean(control),
        control_reason=study.types.reason,
        selectivity=headline(own) - float(np.mean(control)) if control else None,
        selectivity_low=around[0],
        selectivity_high=around[1],
        shuffled=float(np.mean([headline(each) for each in mixed])),
        random_features=floor,
        random_model=_random_model(study, key),
        strengths=found.strengths,
        rows=len(np.unique(data.owner)),
        control_draws=tuple(control),
        shuffled_draws=tuple(headline(each) for each in mixed),
        owner=data.owner,
        truth=truth,
        predicted=found.told[0],
        sums=own,
    )


def headline(sums: Sums) -> float:
    """The accuracy, or R²."""
    return float(next(iter(sums.measures().values()))[0])


def noise_score(study: Study, data: Instances) -> float:
    """The score of standard normal features in the shape of ``data``.

    Their mean and variance are left at 0 and 1: penalised read-outs standardise first, and the rule of the nearest
    class mean does not change with the origin or with one scale for all features.
    """
    blank = noise(data, study.seed, study.memory)
    found = out_of_fold(study, blank, [study.target.values])
    return headline(_sums(study, blank, study.target.values, found.told[0]))


def _random_model(study: Study, key: Key) -> float | None:
    if study.random_model is None or key not in study.random_model[0].keys():  # noqa: SIM118 - no mapping
        return None
    features, rows = study.random_model
    data = read_instances(features, key, rows, study.pool, study.memory)
    refuse_thin(study, key, data)
    found = out_of_fold(study, data, [study.target.values])
    return headline(_sums(study, data, study.target.values, found.told[0]))


def _sums(study: Study, data: Instances, labels: npt.NDArray[Any], told: npt.NDArray[Any]) -> Sums:
    target = study.target
    return sums_of(labels[data.owner], told, target.groups[data.owner], target.group_count, study.readout.classes)


def _resampled(sums: Sums, study: Study) -> FloatArray:
    return next(iter(sums.measures(study.counts).values()))


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
