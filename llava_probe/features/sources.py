"""The rows of a data set as it lies: a file, a folder, a Hugging Face data set or any iterable of dicts.

A source is opened once and may be looped over often; a loop holds one row, or one batch of a columnar file, at a
time, so that a file of ten million lines costs no more memory than one of ten. What a row means (which column is the
picture, which the question) is not decided here but in ``samples.py``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any

from llava_probe.errors import BadInput, shortened
from llava_probe.features.by_column import by_column
from llava_probe.features.expanding import table_batches
from llava_probe.features.hugging_face import is_dataset, is_saved_dataset, of_dataset, of_name, of_saved_dataset
from llava_probe.features.rows import (
    BATCH_ROWS,
    PICTURES,
    Broken,
    Row,
    Source,
    dict_row,
    line_of,
    listed_names,
    needed,
    on_the_line_of,
    reading,
)
from llava_probe.features.text_files import of_json, of_jsonl, of_table

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # as Hugging Face's imagefolder names them
_JOINED_BY = ("question_id", "id")


def open_source(source: Any, split: str | None = None) -> Source:
    """The source behind a path, a data set's name, a data set or an iterable of dicts.

    Args:
        source: as ``read_samples`` takes it; one that is open stays as it is.
        split: of a Hugging Face data set with several; no other source takes one.

    Raises:
        BadInput: there is nothing by that name, it is of no known kind, or it is damaged as a whole.
    """
    if isinstance(source, Source):
        return source
    if is_dataset(source):
        return of_dataset(source, split)
    if isinstance(source, (str, os.PathLike)):
        with reading(f"the path {shortened(os.fspath(source))!r}"):
            path = Path(source).expanduser().absolute()
            exists = path.exists()
        if not exists and isinstance(source, str) and _may_be_a_name(source):
            return of_name(source, split)
        if is_saved_dataset(path):
            return of_saved_dataset(path, split)
        opened = _of_path(path)
    else:
        opened = _of_iterable(source)
    if split is not None:
        raise BadInput(f"{opened.name} has no splits; leave split={split!r} out, it is for Hugging Face data sets")
    return opened


def joined_with(source: Source, answers: Any) -> Source:
    """The source's rows, each with the columns of the other row of its ``question_id``, or ``id``.

    Args:
        source: the rows.
        answers: another source, as ``open_source`` takes it; it is held whole.

    Raises:
        BadInput: it cannot be read, or has no such column.
    """
    other = open_source(answers)
    held: dict[str, dict[str, Mapping[str, Any]]] = {name: {} for name in _JOINED_BY}
    for row in other.rows():
        for name, by_key in held.items():
            if isinstance(row, Mapping) and row.get(name) is not None:
                by_key[str(row[name])] = row
    by = next((name for name in _JOINED_BY if held[name]), None)
    if by is None:
        raise BadInput(f"answers={other.name!r} has no column {' or '.join(_JOINED_BY)} to find its rows by")

    def rows() -> Iterator[Row]:
        for row in source.rows():
            if isinstance(row, Broken):
                yield row
            elif (found := held[by].get(str(row.get(by)))) is not None:
                yield on_the_line_of(row, {**found, **row})
            else:
                yield Broken(f"{other.name} has no row for the {by} {shortened(repr(row.get(by)))}", line_of(row))

    told = (*source.told, *other.told, f"{other.name} is joined by {by}")
    return replace(source, rows=rows, columns={**source.columns, **other.columns}, told=told)


def _of_path(path: Path) -> Source:
    name = shortened(path.name)
    if path.is_dir():
        return _of_folder(path)
    if not path.is_file():
        raise BadInput(f"there is no file or folder {shortened(str(path))!r}")
    with reading(name):
        path.open("rb").close()
    suffix = path.suffix.lower()
    if suffix not in _FILES:
        kinds = f"{', '.join(_FILES)}, a folder or the name of a Hugging Face data set"
        raise BadInput(f"{name!r} is of no kind that can be read as a data set; pass {kinds}")
    return _FILES[suffix](path, name)


def _of_parquet(path: Path, name: str) -> Source:
    parquet = needed("pyarrow.parquet", name)
    with reading(name), parquet.ParquetFile(path) as opened:
        count = opened.metadata.num_rows

    def rows() -> Iterator[Row]:
        with reading(name):
            for batch in table_batches(path, BATCH_ROWS):
                yield from batch.to_pylist()

    return Source(name, rows, lambda: count, path.parent)


_FILES: dict[str, Callable[[Path, str], Source]] = {
    ".jsonl": of_jsonl,
    ".ndjson": of_jsonl,
    ".json": of_json,
    ".csv": of_table,
    ".tsv": of_table,
    ".parquet": _of_parquet,
}


def _of_folder(folder: Path) -> Source:
    """Its pictures, or the rows of the metadata file that names them."""
    for metadata in METADATA:
        if (folder / metadata).is_file():
            inside = _of_path(folder / metadata)
            name = f"{folder.name}/{metadata}"
            return replace(inside, name=name, folder=folder, columns={"image": "file_name"})
    name = shortened(folder.name)
    with reading(name):
        pictures = sorted(_pictures(folder))
    if not pictures:
        files = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in _FILES)
        instead = f"; pass one of its files: {listed_names(files)}" if files else ""
        raise BadInput(f"the folder {name!r} holds no pictures ({', '.join(sorted(PICTURES))}){instead}")
    return Source(name, lambda: map(_picture_row, pictures), lambda: len(pictures), folder)


def _pictures(folder: Path) -> Iterator[str]:
    """Relative paths with forward slashes, so that the order is the same on every system."""
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)  # such as macOS' ._photo.jpg: no picture
        if path.suffix.lower() in PICTURES and not hidden and path.is_file():
            yield relative.as_posix()


def _picture_row(relative: str) -> Row:
    parents = relative.split("/")[:-1]
    return {"id": relative, "image": relative} | ({"folder": parents[-1]} if parents else {})


def _may_be_a_name(text: str) -> bool:
    is_file = Path(text).suffix.lower() in {*_FILES, *PICTURES}
    return not is_file and re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", text) is not None


def _of_iterable(source: Any) -> Source:
    name = type(source).__name__
    if (columns := by_column(source)) is not None:
        held, rows_of = columns
        return Source(name, rows_of, lambda: held)
    scalar = getattr(source, "ndim", 1) == 0  # of torch: iterable by its class alone
    indexed = isinstance(source, Sized) and hasattr(source, "__getitem__") and not hasattr(source, "__iter__")
    if indexed and not isinstance(source, Mapping):  # as torch's own data sets are
        source = _Indexed(source)
    if isinstance(source, (Mapping, bytes)) or not isinstance(source, Iterable) or scalar:
        hint = ", as in [row]" if isinstance(source, Mapping) else ""
        raise BadInput(f"a source of type {name} is no data set; pass a path, a name, a data set or dicts{hint}")
    count = len(source) if isinstance(source, Sized) else None

    def rows() -> Iterator[Row]:
        with reading(f"what the {name} gives"):  # it may be somebody's program, which raises what it likes
            for place, row in enumerate(source):
                yield dict_row(row, f"row {place}")

    return Source(name, rows, lambda: count, once=isinstance(source, Iterator))


class _Indexed:
    """What gives its rows by their numbers, as something to loop over."""

    def __init__(self, held: Any) -> None:
        self._held = held

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Any]:
        return (self._held[place] for place in range(len(self)))
