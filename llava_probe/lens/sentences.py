"""The sentences that a bank of words is made of, however somebody has them: lines, strings, a column of a data set."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llava_probe.errors import BadInput, first_line, shortened
from llava_probe.features.rows import Broken, Row, listed_names
from llava_probe.features.sources import open_source
from llava_probe.stored import opened

#: What a column of sentences goes by; the first that is there.
SENTENCE_COLUMNS = ("sentence", "text", "caption", "captions", "prompt", "answer")
_LINES = (".txt", "")


def read_sentences(source: Any, column: str | None = None) -> Iterator[str]:
    """Sentences in their order, without the space around them; empty ones are left out.

    Args:
        source: a text file with one on each line; a list of strings; or a data set, as ``lp.extract`` reads it.
        column: of the data set, where it goes by none of ``SENTENCE_COLUMNS``; a cell may be a list of sentences.

    Raises:
        BadInput: nothing is there, it cannot be read, or has no such column.
    """
    if isinstance(source, str | os.PathLike) and _is_text(Path(source)):
        found = _lines(source)
    elif isinstance(source, list | tuple) and all(isinstance(each, str) for each in source):
        found = iter(source)
    else:
        found = _cells(source, column)
    return (sentence for each in found if (sentence := each.strip()))


def _is_text(path: Path) -> bool:
    return path.suffix.lower() in _LINES and path.expanduser().is_file()


def _lines(path: Any) -> Iterator[str]:
    with opened("file of sentences", path, refuse=BadInput) as file:
        for number, line in enumerate(file, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise BadInput(f"line {number} of {path} is no text in UTF-8: {first_line(error)}") from None


def _cells(source: Any, column: str | None) -> Iterator[str]:
    rows = open_source(source)
    seen: dict[str, None] = {}
    found = False
    for row in rows.rows():
        for cell in _of_row(row, column, seen):
            found = True
            yield cell
    if not found:
        wanted = f"column {column!r}" if column else f"column of sentences ({', '.join(SENTENCE_COLUMNS)})"
        told = f"; it has {listed_names(seen)}: name one with column=" if seen else ""
        raise BadInput(f"{shortened(rows.name)} has no {wanted}{told}")


def _of_row(row: Row, column: str | None, seen: dict[str, None]) -> list[str]:
    if isinstance(row, Broken) or not isinstance(row, Mapping):
        return []
    seen.update(dict.fromkeys(row))
    cells = (_texts(row.get(name)) for name in ([column] if column else SENTENCE_COLUMNS))
    return next((texts for texts in cells if any(text.strip() for text in texts)), [])


def _texts(cell: Any) -> list[str]:
    """The sentences in a cell: one, or those of a list."""
    cells = cell if isinstance(cell, list | tuple) else [cell]
    return [each for each in cells if isinstance(each, str)]
