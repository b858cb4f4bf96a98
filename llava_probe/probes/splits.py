"""Folds in which no picture is on both sides.

Several questions share one picture, and a probe that has seen the picture knows the answer; folds by row would score
memory. Classes are spread evenly as far as whole pictures allow (scikit-learn's ``StratifiedGroupKFold``).

The regularisation is chosen without the test fold, from the *other* folds: for test fold f each candidate is trained
on all but f and j and scored on j, for every j ≠ f. Training on all but {f, j} serves both f and j, so k folds take
k(k - 1)/2 fits a candidate, where inner folds of their own would take k².
"""

from __future__ import annotations

import numpy as np

from llava_probe.arrays import IntArray
from llava_probe.errors import BadInput
from llava_probe.probes.labels import Labels

#: Choosing by the other folds leaves k - 2 to train on.
FEWEST = 3


def assign_folds(target: Labels, folds: int, seed: int) -> IntArray:
    """[n] the test fold of each labelled row, 0 to ``folds - 1``; a picture's rows are all in one.

    Raises:
        BadInput: too few folds, or pictures, or a class in fewer pictures than folds.
    """
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    _refuse_few(target, folds)
    kind = StratifiedGroupKFold if target.task == "classification" else GroupKFold
    labels = target.values if target.task == "classification" else target.values[:, 0]
    assigned = np.full(len(target), -1, dtype=np.int64)
    splitter = kind(n_splits=folds, shuffle=True, random_state=seed)
    for number, (_, test) in enumerate(splitter.split(np.zeros((len(target), 1)), labels, target.groups)):
        assigned[test] = number
    return assigned


def _refuse_few(target: Labels, folds: int) -> None:
    if folds < FEWEST:
        raise BadInput(f"folds is at least {FEWEST}, so that the regularisation can be chosen; got {folds}")
    by = target.grouped_by
    if target.group_count < folds:
        raise BadInput(
            f"{target.group_count} different values of {by!r} cannot fill {folds} folds that share none; "
            f"pass folds={target.group_count}"
            if target.group_count >= FEWEST
            else f"{target.group_count} different values of {by!r} are too few to divide: a probe needs {FEWEST}"
        )
    if target.task == "regression":
        return
    for number, name in enumerate(target.classes):
        held = len(np.unique(target.groups[target.values == number]))
        if held < folds:
            advice = f"pass folds={held}, or leave it out" if held >= FEWEST else "leave it out (None as its label)"
            raise BadInput(
                f"{target.name} = {name!r} occurs with {held} different values of {by!r}, fewer than {folds} folds; "
                f"{advice}"
            )
