"""What a probe is to find: the labels of a feature store's rows, as class numbers or as numbers, and their pictures.

    target = read_target(features, "colour", groups="picture")
    target.classes          # ("blue", "green", "red"): always in the order of their text, whatever the process
    target.values           # [n] class numbers

Whole numbers, booleans and strings are classes; floats and lists (a box) are numbers. Rows without a label are left
out and counted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from llava_probe.arrays import FloatArray, IntArray
from llava_probe.errors import BadInput

TASKS = ("classification", "regression")

#: Column names listed in an error before the rest is counted.
_LISTED = 20


@dataclass(frozen=True, eq=False)
class Labels:
    """The labelled rows of a feature store.

    Attributes:
        name: of the label.
        task: ``"classification"`` or ``"regression"``.
        classes: the different labels by their text; for numbers the names of the outputs.
        rows: [n] row numbers of the store that have a label, ascending.
        values: [n] class numbers int64, or [n, outputs] float64.
        groups: [n] the number of each row's group (picture), from 0 in order of appearance.
        grouped_by: the column that they come from.
        missing: rows left out because they have no label.
    """

    name: str
    task: str
    classes: tuple[Any, ...]
    rows: IntArray
    values: npt.NDArray[Any]
    groups: IntArray
    grouped_by: str
    missing: int

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def group_count(self) -> int:
        """How many different pictures there are."""
        return int(self.groups.max()) + 1


@runtime_checkable
class FeaturesLike(Protocol):
    """``lp.Features``, or whatever reads like it."""

    def keys(self) -> Any:
        """The (layer, position) pairs."""

    def table(self, columns: Sequence[str] | None = None) -> Any:
        """The index, a row a sample."""

    def column(self, name: str) -> list[Any]:
        """One column of it."""

    def __getitem__(self, key: tuple[str, str]) -> Any:
        """The values of one pair."""


def read_target(features: Any, label: str | Sequence[str], groups: str, task: str | None = None) -> Labels:
    """Read and check the labels of a store.

    Args:
        features: an opened feature store.
        label: a column; or several columns of numbers, the outputs of one regression.
        groups: the column whose equal values keep rows together: the picture.
        task: one of ``TASKS``; read off the labels when None.

    Raises:
        BadInput: no such column, no labels, labels of several sorts, fewer than two classes.
    """
    if task is not None and task not in TASKS:
        raise BadInput(f"task is one of {', '.join(TASKS)}; got {task!r}")
    names = (label,) if isinstance(label, str) else tuple(label)
    columns = [column(features, name) for name in names]
    labels = columns[0] if len(columns) == 1 else [_joined(parts) for parts in zip(*columns, strict=True)]
    told = ", ".join(names)
    rows = [row for row, value in enumerate(labels) if not _absent(value)]
    if not rows:
        raise BadInput(f"label {told!r} is empty in all {len(labels)} rows")
    kept = [labels[row] for row in rows]
    task = task or _task_of(kept)
    codes = numbered(column(features, groups))
    kept_groups = np.unique(codes[rows], return_inverse=True)[1].astype(np.int64)
    classes, values = _classes(told, kept) if task == "classification" else _numbers(told, names, kept)
    return Labels(told, task, classes, np.array(rows), values, kept_groups, groups, missing=len(labels) - len(rows))


def column(features: Any, name: str) -> list[Any]:
    """The values of one column in row order.

    Raises:
        BadInput: there is no such column.
    """
    there = list(features.table().column_names)
    if name not in there:
        rest = f" and {len(there) - _LISTED} more" if len(there) > _LISTED else ""
        raise BadInput(f"there is no column {name!r} in these features; there are {', '.join(there[:_LISTED])}{rest}")
    return list(features.column(name))


def numbered(values: Sequence[Any]) -> IntArray:
    """[n] a number for each different value, in order of appearance; what cannot be hashed counts by its text."""
    codes: dict[Hashable, int] = {}
    plain = (value if isinstance(value, Hashable) else repr(value) for value in values)
    return np.array([codes.setdefault(value, len(codes)) for value in plain], dtype=np.int64)


def _joined(parts: Sequence[Any]) -> list[Any] | None:
    return None if any(map(_absent, parts)) else list(parts)


def _absent(value: Any) -> bool:
    if isinstance(value, float):
        return math.isnan(value)
    if isinstance(value, list | tuple):
        return not value or any(map(_absent, value))
    return value is None


def _task_of(labels: Sequence[Any]) -> str:
    numeric = all(isinstance(value, float | list | tuple | np.ndarray) for value in labels)
    return "regression" if numeric else "classification"


def _classes(name: str, labels: Sequence[Any]) -> tuple[tuple[Any, ...], IntArray]:
    unhashable = [value for value in labels if not isinstance(value, Hashable)]
    if unhashable:
        raise BadInput(f"label {name!r} holds {unhashable[0]!r}, which is no class; pass task='regression'")
    classes = tuple(sorted(Counter(labels), key=lambda value: (str(value), type(value).__name__)))
    if len(classes) < 2:
        raise BadInput(f"label {name!r} is {classes[0]!r} in every row; a probe needs at least two classes")
    number = {value: code for code, value in enumerate(classes)}
    return classes, np.array([number[value] for value in labels], dtype=np.int64)


def _numbers(name: str, names: Sequence[str], labels: Sequence[Any]) -> tuple[tuple[str, ...], FloatArray]:
    lengths = sorted({len(value) if isinstance(value, list | tuple | np.ndarray) else 1 for value in labels})
    if len(lengths) > 1:
        raise BadInput(f"label {name!r} holds lists of {lengths} numbers; a regression takes as many in each row")
    try:
        values = np.array(labels, dtype=np.float64).reshape(len(labels), -1)
    except (TypeError, ValueError):
        raise BadInput(
            f"label {name!r} holds {labels[0]!r}, which is no number; leave task out to read it as classes"
        ) from None
    if not np.isfinite(values).all():
        raise BadInput(f"label {name!r} holds an infinite number in row {int(np.argmin(np.isfinite(values).all(1)))}")
    if (np.ptp(values, axis=0) == 0).any():
        raise BadInput(f"label {name!r} has an output that is {values[0].tolist()} in every row: nothing to find")
    outputs = tuple(names) if len(names) > 1 else tuple(f"{name}[{i}]" for i in range(values.shape[1]))
    return (outputs if values.shape[1] > 1 else (name,)), values
