"""A row of a data set before anybody has said what it means, and what every kind of source tells of itself."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from llava_probe.errors import BadInput, ProbeError, first_line, shortened

#: Bytes of one line of a text file: several photographs in base64. What is longer is no row of a data set.
LINE_BYTES = 64_000_000
PICTURES = frozenset({".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
BATCH_ROWS = 64  # of a columnar file: pictures may lie inside the rows, and a batch is held at once


@dataclass(frozen=True)
class Broken:
    """Stands where a row cannot be read; ``line`` as of ``LineRow``, None in a source without lines."""

    why: str
    line: int | None = None


class LineRow(dict[str, Any]):
    """A row of a text file, which knows the line that it ends on, from 1, blank lines counted."""

    def __init__(self, columns: Mapping[str, Any], line: int) -> None:
        super().__init__(columns)
        self.line = line


Row: TypeAlias = Mapping[str, Any] | Broken


@dataclass(frozen=True, eq=False)
class Source:
    """Where rows come from.

    Attributes:
        name: for sentences.
        rows: gives them, from the first.
        count: as many as ``rows`` gives; None where only reading everything would tell.
        folder: where relative paths start; the working directory by default.
        pictures: columns that are pictures by their type, whatever they are called.
        columns: what the kind of source says its columns mean.
        box_format: what the kind of source says its boxes are.
        told: what was settled by looking inside, in sentences.
        once: ``rows`` can be called a single time.
    """

    name: str
    rows: Callable[[], Iterator[Row]]
    count: Callable[[], int | None]
    folder: Path | None = None
    pictures: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    box_format: str | None = None
    told: tuple[str, ...] = ()
    once: bool = False


def dict_row(row: Any, name: str, line: int | None = None) -> Row:
    """The row, or why it is none."""
    if isinstance(row, Mapping):
        return row if line is None else LineRow(row, line)
    return Broken(
        f"{name} is a {type(row).__name__}; a row is a dict with a value by column, as in "
        "{'image': 'a.jpg', 'question': 'What?'}",
        line,
    )


def line_of(row: Row) -> int | None:
    """The line of its file that a row ends on; None where it stands on none."""
    return row.line if isinstance(row, (Broken, LineRow)) else None


def on_the_line_of(row: Row, columns: Mapping[str, Any]) -> Row:
    """Other columns in the place of a row."""
    return columns if (line := line_of(row)) is None else LineRow(columns, line)


def blamed(name: str, error: BaseException) -> str:
    """What is wrong with a cell or a turn, with its name before it."""
    told = str(error)
    return f"{name}: {told}" if told.startswith(("the ", "a ", "there ")) else f"{name} {told}"


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Parsers raise about anything at what a stranger wrote; the user gets one ``BadInput`` sentence."""
    try:
        yield
    except ProbeError:
        raise
    except MemoryError:
        raise
    except Exception as error:
        raise BadInput(f"{name} cannot be read: {shortened(first_line(error))}") from error


def listed_names(names: Iterable[Any]) -> str:
    """Names for a sentence, with commas between them."""
    return shortened(", ".join(map(str, names)))


def needed(module: str, what: str) -> Any:
    """A library that reads ``what``.

    Raises:
        BadInput: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        library = module.partition(".")[0]
        install = "run pip install 'llava_probe[features]'"
        raise BadInput(f"{what} is read with {library}, which is not installed; {install}") from None
