"""Where in a model something can be read: one probe for each layer and position, all on the same folds.

sweep = lp.fit_probe(features, label="colour")
print(sweep)                                     # score, interval and controls of each cell
sweep.compare(("layer_16", "last_prompt"), ("layer_8", "last_prompt"))
sweep.probe("layer_16", "last_prompt").save("colour.probe")

Cells share folds, control labels and resamples, so that what differs between them is the hidden states alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llava_probe.arrays import IntArray
from llava_probe.border import checked
from llava_probe.errors import BadInput, OutOfRange
from llava_probe.probes.cell import Cell
from llava_probe.probes.intervals import sums_of
from llava_probe.probes.probe import Probe
from llava_probe.probes.study import Key, Study, refit
from llava_probe.resampling import interval, sign_flip, two_sided

_TITLES = {"random_features": "random features", "random_model": "random model", "shuffled": "shuffled labels"}


@dataclass(frozen=True)
class Comparison:
    """One cell against another on the rows that both have.

    Attributes:
        difference: score of the first less that of the second, with its 95 % interval ``low`` to ``high``.
        p: two-sided, of exchanging the two cells' answers picture by picture; ``bootstrap_p``: of the resamples.
        rows, groups: labelled rows and pictures compared.
    """

    first: Key
    second: Key
    difference: float
    low: float
    high: float
    p: float
    bootstrap_p: float
    rows: int
    groups: int

    def __str__(self) -> str:
        return (
            f"{', '.join(self.first)} less {', '.join(self.second)}: {self.difference:+.3f} "
            f"[{self.low:+.3f}, {self.high:+.3f}], p = {self.p:.2g} over {self.groups} groups"
        )


@checked
@dataclass(frozen=True, eq=False)
class Sweep:
    """The cells of one sweep.

    Attributes:
        cells: by (layer, position), in the store's order.
        study: labels, folds, read-out and controls that they share.
    """

    cells: dict[Key, Cell]
    study: Study = field(repr=False)

    def __getitem__(self, key: Key) -> Cell:
        if key not in self.cells:
            raise OutOfRange(f"{key!r} was not fitted; this sweep has {', '.join(map(str, self.cells))}")
        return self.cells[key]

    def __iter__(self) -> Iterator[Cell]:
        return iter(self.cells.values())

    def __len__(self) -> int:
        return len(self.cells)

    @property
    def label(self) -> str:
        """What is read."""
        return self.study.target.name

    @property
    def task(self) -> str:
        """``"classification"`` or ``"regression"``."""
        return self.study.target.task

    @property
    def classes(self) -> tuple[Any, ...]:
        """The labels in the order of their numbers; for numbers the names of the outputs."""
        return self.study.target.classes

    @property
    def missing(self) -> int:
        """Rows left out because they have no label."""
        return self.study.target.missing

    @property
    def folds(self) -> list[tuple[IntArray, IntArray]]:
        """(training, test) row numbers of the store, for each fold."""
        rows, folds = self.study.target.rows, self.study.folds
        return [(rows[folds != fold], rows[folds == fold]) for fold in range(self.study.fold_count)]

    @property
    def best(self) -> Cell:
        """The cell with the highest score, the first of equals; chosen by its score, so somewhat too good."""
        return max(self, key=lambda cell: cell.score)

    def confusion(self, layer: str, position: str) -> IntArray:
        """[classes, classes] how many instances of each class (row) were told to be each (column).

        Raises:
            BadInput: the labels are numbers.
        """
        if self.task == "regression":
            raise BadInput("numbers are not confused; read cell.truth beside cell.predicted")
        cell, table = self[layer, position], np.zeros((len(self.classes),) * 2, dtype=np.int64)
        np.add.at(table, (cell.truth, cell.predicted), 1)
        return table

    def compare(self, first: Key, second: Key) -> Comparison:
        """A paired test of two cells, over pictures.

        Raises:
            OutOfRange: a cell that was not fitted.
            BadInput: no row has tokens in both.
        """
        target, classes = self.study.target, self.study.readout.classes
        cells = self[first], self[second]
        shared = np.intersect1d(cells[0].owner, cells[1].owner)
        if not len(shared):
            raise BadInput(f"{first!r} and {second!r} have no row in common")
        sums = []
        for cell in cells:
            kept = np.isin(cell.owner, shared)
            groups = target.groups[cell.owner[kept]]
            sums.append(sums_of(cell.truth[kept], cell.predicted[kept], groups, target.group_count, classes))
        name = "r2" if classes is None else "accuracy"
        apart = sums[0].measures(self.study.counts)[name] - sums[1].measures(self.study.counts)[name]
        low, high = interval(apart)
        shares = sums[0].shares() - sums[1].shares()
        return Comparison(
            first,
            second,
            float(sums[0].measures()[name][0] - sums[1].measures()[name][0]),
            low,
            high,
            sign_flip(shares, self.study.seed),
            two_sided(apart),
            len(shared),
            len(np.unique(target.groups[shared])),
        )

    def probe(self, layer: str, position: str) -> Probe:
        """One cell's read-out fitted on all labelled rows, with the median of the strengths its folds chose."""
        cell, study = self[layer, position], self.study
        data = study.instances((layer, position))
        strength = sorted(cell.strengths)[(len(cell.strengths) - 1) // 2]
        told = {
            **cell.to_dict(),
            "measures": dict(cell.measures),
            "control_reason": cell.control_reason,
            "types": study.types.name,
            "folds": study.fold_count,
            "seed": study.seed,
            "strength": None if study.readout.kind == "mean_difference" else strength,
            "balance": study.readout.balance,
            "pool": study.pool,
            "groups": study.target.grouped_by,
        }
        with study.quietly():
            return Probe.of(
                refit(study, data, strength),
                label=self.label,
                task=self.task,
                kind=study.readout.kind,
                classes=self.classes,
                layer=layer,
                position=position,
                about=told,
            )

    # --- as data, as text ---

    def to_dicts(self) -> list[dict[str, Any]]:
        """A plain dictionary for each cell, ready for JSON or a DataFrame."""
        return [cell.to_dict() for cell in self]

    def table(self) -> str:
        """A line for each cell, to print; under it what the columns rest on."""
        lines = self.to_dicts()
        names = [name for name in lines[0] if any(line[name] is not None for line in lines)]
        text = [[_TITLES.get(name, name) for name in names]]
        text += [[_shown(line[name]) for name in names] for line in lines]
        widths = [max(map(len, column)) for column in zip(*text, strict=True)]
        form = "  ".join(
            f"{{:{'<' if name in ('layer', 'position') else '>'}{width}}}"
            for name, width in zip(names, widths, strict=True)
        )
        return "\n".join([*(form.format(*line).rstrip() for line in text), *self.notes()])

    def notes(self) -> list[str]:
        """What the numbers rest on, in sentences."""
        study = self.study
        measure = "accuracy" if self.task == "classification" else "R²"
        by = study.target.grouped_by
        notes = [
            f"score: {measure} of {study.readout.kind} probes of {self.label!r} over {study.fold_count} folds that "
            f"share no {by}; 95 % intervals over {study.target.group_count} values of {by}"
        ]
        seeds = f"{study.draws} draws, seeds {study.seed} to {study.seed + study.draws - 1}"
        if study.types.reason is None:
            notes.append(f"control: each {study.types.name!r} has a random label ({seeds})")
        else:
            notes.append(f"no control task: {study.types.reason}")
        notes.append(f"shuffled labels: exchanged between values of {by} ({seeds})")
        if self.missing:
            notes.append(f"{self.missing} rows without a label were left out")
        return notes

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        best = self.best
        return (
            f"Sweep({self.label!r}: {len(self)} cells, best {best.layer}, {best.position} "
            f"{best.score:.3f} [{best.low:.3f}, {best.high:.3f}])"
        )


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
