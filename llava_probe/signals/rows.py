"""Rows of the files of a benchmark, each with where it stands: whatever is wrong with one is told by its line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llava_probe.errors import BadInput, shortened
from llava_probe.features.rows import Broken, Source, line_of


def each_row(source: Source) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Where a row stands ("line 3 of answers.jsonl"), and its columns.

    Raises:
        BadInput: a row that cannot be read: a benchmark has no answer to leave out.
    """
    for place, row in enumerate(source.rows()):
        line = line_of(row)
        where = f"row {place} of {source.name}" if line is None else f"line {line} of {source.name}"
        if isinstance(row, Broken):
            raise BadInput(f"{where} cannot be read: {row.why}")
        yield where, row


def cell_of(row: Mapping[str, Any], names: Sequence[str], where: str, what: str) -> Any:
    """The first of these columns that is there.

    Raises:
        BadInput: none is.
    """
    found = next((row[name] for name in names if row.get(name) is not None), None)
    if found is None:
        has = shortened(", ".join(map(str, row)))
        raise BadInput(f"{where} has no {what}, in a column {' or '.join(names)}; it has {has}")
    return found


def is_looped(given: Any) -> bool:
    """Whether it is looped over as it is: a list or an iterator, no text, no dict and no array without an axis."""
    loose = isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping | Path)
    return loose and not is_table(given) and getattr(given, "ndim", 1) > 0


def is_table(given: Any) -> bool:
    """Whether it has columns, as a frame or a data set has, and is not looped over as it is."""
    return hasattr(given, "columns") or hasattr(given, "column_names")
