"""What a probe scores where there is nothing to find: the numbers without which its accuracy says little.

- **majority**: always the training part's most frequent class (the training mean, for numbers).
- **control task** (Hewitt and Liang 2019, arXiv:1909.03368, section 2): every *type*, a question say, gets one label
  drawn from the empirical distribution, the same in training and test. A probe can score there only by memorising
  types; accuracy less control accuracy is its *selectivity*. It says something only where the types of the test part
  were seen in training, so where they do not recur over pictures there is none, with the reason.
- **shuffled labels**: whole pictures exchange their labels. Another thing: nothing can be memorised for the test
  part, but what depends only on a row's place within its picture (its question) survives.
- **random features**: Gaussian noise of the same width in place of the hidden states: the floor of chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llava_probe.arrays import IntArray
from llava_probe.probes.labels import Labels, column, numbered

#: The column that tells types where none is named.
DEFAULT_TYPES = "question"
#: Below this share of rows whose type other pictures have too, the control would mostly ask for the unseen.
FEWEST_RECURRING = 0.5
#: Draws in which all types got the same label are drawn again, this often at most.
_REDRAWN = 100


@dataclass(frozen=True, eq=False)
class Types:
    """The types of the control task, or why there is none.

    Attributes:
        name: of the column.
        codes: [n] the type of each labelled row; None where the control would be vacuous.
        reason: why it would.
    """

    name: str
    codes: IntArray | None
    reason: str | None = None


def read_types(features: Any, target: Labels, name: str | None) -> Types:
    """The types to give random labels to: those of column ``name``, or of ``question`` where that makes sense.

    Raises:
        BadInput: a named column that is not there.
    """
    asked = name is not None
    if name is None and DEFAULT_TYPES not in features.table().column_names:
        return Types("", None, "no column tells types; pass types=")
    name = name or DEFAULT_TYPES
    values = column(features, name)
    codes = numbered([values[row] for row in target.rows])
    count = int(codes.max()) + 1
    if count < 2:
        return Types(name, None, f"{name!r} has one value only, so there is one type")
    if not asked and target.task == "classification" and count <= len(target.classes):
        return Types(name, None, f"{name!r} has {count} values, no more than the {len(target.classes)} classes")
    recurring = _recurring(codes, target.groups)
    if recurring < FEWEST_RECURRING:
        return Types(
            name, None, f"only {recurring:.0%} of rows have a {name!r} that another {target.grouped_by} has too"
        )
    return Types(name, codes)


def _recurring(codes: IntArray, groups: IntArray) -> float:
    """Share of rows whose type occurs in another group."""
    pairs = np.unique(np.stack([codes, groups]), axis=1)
    return float((np.bincount(pairs[0])[codes] > 1).mean())


def control_labels(target: Labels, codes: IntArray, seed: int) -> npt.NDArray[Any]:
    """[n] or [n, outputs] one label a type, each drawn from the rows' own labels."""
    generator = np.random.default_rng(seed)
    count = int(codes.max()) + 1
    for _ in range(_REDRAWN):
        drawn = target.values[generator.integers(0, len(target), count)]
        if len(np.unique(drawn, axis=0)) > 1:
            break
    labels: npt.NDArray[Any] = drawn[codes]
    return labels


def shuffled_labels(target: Labels, seed: int) -> npt.NDArray[Any]:
    """The labels after whole groups exchanged them: every label is kept, and so are the runs that came together.

    The groups are put in a random order and their labels dealt out again in the old one; where groups differ in size
    a group's labels may be split over two neighbours.
    """
    generator = np.random.default_rng(seed)
    order = np.argsort(target.groups, kind="stable")
    place = generator.permutation(target.group_count)
    source = np.argsort(place[target.groups], kind="stable")
    labels = np.empty_like(target.values)
    labels[order] = target.values[source]
    return labels


def majority(values: npt.NDArray[Any], folds: IntArray, classes: int | None) -> npt.NDArray[Any]:
    """What each row is told by its training part's most frequent class, or mean (``classes`` None)."""
    told = np.empty_like(values)
    for fold in np.unique(folds):
        train = values[folds != fold]
        told[folds == fold] = train.mean(0) if classes is None else np.bincount(train, minlength=classes).argmax()
    return told


def draw_seeds(seed: int, draws: int) -> Sequence[int]:
    """The seeds of the draws, told in the result."""
    return tuple(seed + draw for draw in range(draws))
