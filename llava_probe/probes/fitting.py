"""``fit_probe``: what can be read from the hidden states of a feature store, layer by layer, and with which controls.

The probes are linear: what they find is there to be read by one direction, no more is claimed (Alain and Bengio 2016,
arXiv:1610.01644). The score is of pictures that no fold's training saw, and never stands alone: see ``controls``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Annotated, Any

import numpy as np
from tqdm import tqdm

from llava_probe.arrays import IntArray
from llava_probe.border import Count, Limits, Positive, Seed, checked
from llava_probe.errors import BadInput
from llava_probe.probes.cell import measure_cell, noise_score
from llava_probe.probes.controls import read_types
from llava_probe.probes.instances import POOLS
from llava_probe.probes.labels import FeaturesLike, Labels, column, read_target
from llava_probe.probes.readouts import readout
from llava_probe.probes.splits import assign_folds
from llava_probe.probes.study import Key, Study
from llava_probe.probes.sweep import Sweep
from llava_probe.resampling import resamples

#: What is fitted where no layers are named: not the attention or the logits that a store may hold too.
_LAYER = re.compile(r"_\d+$")
#: Rows that are named when they are missing from the random model's features.
_LISTED = 3


@checked
def fit_probe(
    features: FeaturesLike,
    label: str | Sequence[str],
    *,
    layers: Sequence[str | int] | str | int | None = None,
    positions: Sequence[str] | str | None = None,
    kind: str | None = None,
    task: str | None = None,
    groups: str = "picture",
    types: str | None = None,
    folds: Count = 5,
    seed: Seed = 0,
    balance: bool = True,
    strengths: Sequence[Positive] | None = None,
    pool: str = "mean",
    draws: Count = 5,
    random_features: FeaturesLike | None = None,
    bootstrap: Annotated[int, Limits(0, 100_000)] = 1000,
    memory: Annotated[int, Limits(0)] = 2_000_000_000,
    progress: bool = False,
) -> Sweep:
    """Fit a linear probe for ``label`` on each layer and position of a feature store, and its controls.

    Args:
        features: an opened ``lp.Features``.
        label: the column to predict. Strings, whole numbers and booleans are classes; floats and lists (a box) are
            numbers, and so are several columns.
        layers, positions: which cells; by default all layers (``layer_16``, ``vision_22``) at all positions. A layer
            is a name or the model's own number.
        kind: ``"logistic"`` (the default for classes), ``"ridge"`` (for numbers) or ``"mean_difference"``.
        task: ``"classification"`` or ``"regression"``, where the labels' type would say otherwise.
        groups: the column whose equal values never part over training and test.
        types: the column whose values the control task gives random labels; ``"question"`` where it has more values
            than there are classes.
        folds: at least 3; ``seed``: of folds, controls, noise and resamples.
        balance: weigh classes equally in fitting, and choose the regularisation by balanced accuracy.
        strengths: candidates for C (logistic) or alpha (ridge); ``readouts.STRENGTHS`` by default.
        pool: ``"mean"`` of a row's tokens at ragged positions, or each of the ``"tokens"`` as an instance.
        draws: of the control task and of the shuffled labels; they reuse the regularisation chosen for the labels.
        random_features: the same rows from a model with random weights, by their ``id``.
        bootstrap: resamples of pictures.
        memory: bytes of a cell in float32 beyond which it is read a block at a time: the same numbers, slowly (only
            the noise of the control is drawn otherwise). Held in float64 it takes twice that, and a fit a few copies.
        progress: show a bar.

    Raises:
        BadInput: scikit-learn is missing; labels, groups or cells that cannot be probed; each says what to change.
        NotANumber: features that are not finite.
    """
    if find_spec("sklearn") is None:
        raise BadInput("fit_probe needs scikit-learn: pip install 'llava_probe[probes]'")
    if pool not in POOLS:
        raise BadInput(f"pool is one of {', '.join(POOLS)}; got {pool!r}")
    keys = _chosen(features, layers, positions)
    target = read_target(features, label, groups, task)
    classes = len(target.classes) if target.task == "classification" else None
    study = Study(
        features=features,
        target=target,
        folds=assign_folds(target, folds, seed),
        fold_count=folds,
        readout=readout(kind, classes, balance, strengths),
        types=read_types(features, target, types),
        draws=draws,
        seed=seed,
        pool=pool,
        memory=memory,
        counts=resamples(target.group_count, bootstrap, seed),
        random_model=None
        if random_features is None
        else (random_features, _matched(features, random_features, target)),
    )
    with study.quietly():
        floor: dict[tuple[Any, ...], float] = {}
        cells = {}
        for key in tqdm(keys, desc=f"probes of {target.name}", unit="cell", disable=None if progress else True):
            shape = _shape(study, key)
            if shape not in floor:
                floor[shape] = noise_score(study, study.instances(key))
            cells[key] = measure_cell(study, key, floor[shape])
    return Sweep(cells, study)


def _shape(study: Study, key: Key) -> tuple[Any, ...]:
    """What cells must share for their random features to be the same: the width and which rows have how many."""
    cell = study.features[key]
    if not hasattr(cell, "spans"):
        return ("one", cell.shape[1])
    counts = np.diff(np.asarray(cell.spans)[study.target.rows], axis=1)
    return ("several", cell.values.shape[1], (counts if study.pool == "tokens" else counts > 0).tobytes())


def _chosen(
    features: Any, layers: Sequence[str | int] | str | int | None, positions: Sequence[str] | str | None
) -> list[Key]:
    """The (layer, position) pairs asked for, in the store's order."""
    keys = [tuple(key) for key in features.keys()]  # noqa: SIM118 - no mapping
    if layers is None:
        keys = [(layer, at) for layer, at in keys if _LAYER.search(layer)]
    wanted_layers = _among("layer", [layer for layer, _ in keys], layers)
    wanted_positions = _among("position", [position for _, position in keys], positions)
    chosen = [(layer, at) for layer, at in keys if layer in wanted_layers and at in wanted_positions]
    if not chosen:
        raise BadInput(f"none of {wanted_layers} was extracted at {wanted_positions}; there are {keys}")
    return chosen


def _among(what: str, there: Sequence[str], wanted: Any) -> list[str]:
    names = list(dict.fromkeys(there))
    if wanted is None:
        return names
    listed = [wanted] if isinstance(wanted, str | int) else wanted
    asked = [f"layer_{each}" if isinstance(each, int) else str(each) for each in listed]
    unknown = [name for name in asked if name not in names]
    if unknown:
        raise BadInput(f"there is no {what} {unknown[0]!r} in these features; there are {', '.join(names)}")
    return asked


def _matched(features: Any, other: Any, target: Labels) -> IntArray:
    """[n] the row of ``other`` that has each labelled row's id."""
    place = {each: row for row, each in enumerate(column(other, "id"))}
    ids = column(features, "id")
    missing = [ids[row] for row in target.rows if ids[row] not in place]
    if missing:
        raise BadInput(
            f"random_features lacks {len(missing)} of the {len(target)} labelled rows, such as "
            f"{', '.join(map(repr, missing[:_LISTED]))}; extract the same samples with the random model"
        )
    return np.array([place[ids[row]] for row in target.rows])
