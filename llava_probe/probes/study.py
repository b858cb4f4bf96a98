"""One question put to a feature store: the labels, folds, read-out and controls that every cell of a sweep shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from llava_probe.arrays import FloatArray, IntArray
from llava_probe.errors import BadInput
from llava_probe.probes.controls import Types
from llava_probe.probes.fit import fit
from llava_probe.probes.instances import Instances, read_instances
from llava_probe.probes.intervals import sums_of
from llava_probe.probes.labels import Labels
from llava_probe.probes.readouts import Linear, Readout, apply
from llava_probe.resampling import Counts

Key = tuple[str, str]


@dataclass(frozen=True, eq=False)
class Study:
    """What a sweep asks and how.

    Attributes:
        features: the opened store; ``target``: its labels.
        folds: [n] test fold of each labelled row; ``fold_count``: how many there are.
        readout: what is fitted.
        types: of the control task; ``draws``: of each control; ``seed``: of the first draw.
        pool: of ragged positions; ``memory``: bytes before a cell is read a block at a time.
        counts: [resamples, groups] of the intervals.
        random_model: features of a model with random weights and, for each labelled row, its row there.
    """

    features: Any
    target: Labels
    folds: IntArray
    fold_count: int
    readout: Readout
    types: Types
    draws: int
    seed: int
    pool: str
    memory: int
    counts: Counts
    random_model: tuple[Any, IntArray] | None

    def instances(self, key: Key) -> Instances:
        """The instances of one cell, in memory if they fit."""
        return read_instances(self.features, key, self.target.rows, self.pool, self.memory)

    @staticmethod
    def quietly() -> Any:
        """One thread for each fit: at these sizes several slow each other down, and the sums then never differ."""
        from threadpoolctl import threadpool_limits

        return threadpool_limits(1)


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """What each instance was told by the read-out of the fold that left it out.

    Attributes:
        told: for each target [m] class numbers or [m, outputs].
        strengths: the regularisation chosen for each fold, without it.
    """

    told: tuple[npt.NDArray[Any], ...]
    strengths: tuple[float, ...]


def out_of_fold(study: Study, data: Instances, targets: Sequence[npt.NDArray[Any]]) -> OutOfFold:
    """Predictions for every instance; the regularisation is chosen for the first target and serves them all.

    Args:
        study: folds and read-out.
        data: the instances.
        targets: each [n] or [n, outputs], by labelled row.
    """
    folds = study.folds[data.owner]
    labels = [target[data.owner] for target in targets]
    strengths = choose_strengths(study, data, labels[0])
    told = [np.empty_like(each) for each in labels]
    for fold in range(study.fold_count):
        test = folds == fold
        fitted = fit(study.readout, data, ~test, labels, [strengths[fold]])
        for place, scores in enumerate(apply(data, test, [each[0] for each in fitted])):
            told[place][test] = decided(scores, study.readout.classes)
    return OutOfFold(tuple(told), strengths)


def choose_strengths(study: Study, data: Instances, labels: npt.NDArray[Any]) -> tuple[float, ...]:
    """The strength for each fold that scores best on the other folds; of equals the most regularised.

    The score is the balanced accuracy, or the accuracy under ``balance=False``, or R².
    """
    candidates, count = study.readout.strengths, study.fold_count
    if len(candidates) == 1:
        return candidates * count
    scores = np.zeros((count, count, len(candidates)))  # [left out, scored on, strength]
    folds = study.folds[data.owner]
    for pair in combinations(range(count), 2):
        fitted = fit(study.readout, data, ~np.isin(folds, pair), [labels], candidates)[0]
        for scored, left_out in (pair, pair[::-1]):
            scores[left_out, scored] = _scores(study, data, folds == scored, labels, fitted)
    mean = scores.sum(1) / (count - 1)
    return tuple(candidates[best] for best in np.round(mean, 12).argmax(1))


def refit(study: Study, data: Instances, strength: float) -> Linear:
    """The read-out of all labelled rows."""
    labels = study.target.values[data.owner]
    return fit(study.readout, data, np.ones(len(data), dtype=bool), [labels], [strength])[0][0]


def decided(scores: FloatArray, classes: int | None) -> npt.NDArray[Any]:
    """[n] the class of the highest score; numbers as they are."""
    return scores if classes is None else scores.argmax(1)


def refuse_thin(study: Study, key: Key, data: Instances) -> None:
    """Raise ``BadInput`` where the rows that have a token at ``key`` no longer fill the folds, or lack a class."""
    folds = study.folds[data.owner]
    empty = [fold for fold in range(study.fold_count) if not (folds == fold).any()]
    if empty:
        raise BadInput(
            f"{', '.join(key)}: only {len(np.unique(data.owner))} of {len(study.target)} labelled rows have a token "
            f"there and fold {empty[0]} has none of them; pass fewer folds, or leave the position out"
        )
    if study.readout.classes is None:
        return
    seen = set(study.target.values[data.owner].tolist())
    if missing := [name for number, name in enumerate(study.target.classes) if number not in seen]:
        raise BadInput(f"{', '.join(key)}: no row of class {missing[0]!r} has a token there; leave the position out")


def _scores(
    study: Study, data: Instances, mask: npt.NDArray[np.bool_], labels: npt.NDArray[Any], fitted: Sequence[Linear]
) -> list[float]:
    classes = study.readout.classes
    name = "r2" if classes is None else ("balanced" if study.readout.balance else "accuracy")
    truth, groups = labels[mask], np.zeros(int(mask.sum()), dtype=np.int64)
    told = (decided(scores, classes) for scores in apply(data, mask, fitted))
    return [float(sums_of(truth, each, groups, 1, classes).measures()[name][0]) for each in told]
