"""The rows of a data set as it lies: a file, a folder, a Hugging Face data set or any iterable of dicts.

A source is opened once and may be looped over often; a loop holds one row, or one batch of a columnar file, at a
time, so that a file of ten million lines costs no more memory than one of ten. What a row means (which column is the
picture, which the question) is not decided here but in ``samples.py``.
"""

from __future__ import annotations

import csv
import importlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from llava_probe.errors import BadInput, first_line, shortened
from llava_probe.features.expanding import table_batches

PICTURES = frozenset({".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # as Hugging Face's imagefolder names them
BATCH_ROWS = 64  # of a columnar file: pictures may lie inside the rows, and a batch is held at once

_HUGGING_FACE = ("datasets.arrow_dataset", "datasets.iterable_dataset", "datasets.dataset_dict")


@dataclass(frozen=True)
class Broken:
    """Stands where a row cannot be read."""

    why: str


Row: TypeAlias = Mapping[str, Any] | Broken


@dataclass(frozen=True, eq=False)
class Source:
    """Where rows come from."""

    name: str
    rows: Callable[[], Iterator[Row]]
    count: Callable[[], int | None]  # as many as ``rows`` gives; None where only reading everything would tell
    folder: Path | None = None  # where relative paths start; the working directory by default
    columns: Mapping[str, str] = field(default_factory=dict)  # what the kind of source says its columns mean
    once: bool = False  # ``rows`` can be called a single time


def open_source(source: Any, split: str | None = None) -> Source:
    """The source behind a path, a data set's name, a data set or an iterable of dicts.

    Args:
        source: as ``read_samples`` takes it.
        split: of a Hugging Face data set with several; no other source takes one.

    Raises:
        BadInput: there is nothing by that name, it is of no known kind, or it is damaged as a whole.
    """
    if _is_hugging_face(source):
        return _of_dataset(source, split)
    if isinstance(source, (str, os.PathLike)):
        with _reading(f"the path {shortened(os.fspath(source))!r}"):
            path = Path(source).expanduser().absolute()
            exists = path.exists()
        if not exists and isinstance(source, str) and _may_be_a_name(source):
            return _of_name(source, split)
        if _is_saved_dataset(path):
            return _of_saved_dataset(path, split)
        opened = _of_path(path)
    else:
        opened = _of_iterable(source)
    if split is not None:
        raise BadInput(f"{opened.name} has no splits; leave split={split!r} out, it is for Hugging Face data sets")
    return opened


def _of_path(path: Path) -> Source:
    name = shortened(path.name)
    if path.is_dir():
        return _of_folder(path)
    if not path.is_file():
        raise BadInput(f"there is no file or folder {shortened(str(path))!r}")
    with _reading(name):
        path.open("rb").close()
    suffix = path.suffix.lower()
    if suffix not in _FILES:
        kinds = f"{', '.join(_FILES)}, a folder or the name of a Hugging Face data set"
        raise BadInput(f"{name!r} is of no kind that can be read as a data set; pass {kinds}")
    return _FILES[suffix](path, name)


def _of_jsonl(path: Path, name: str) -> Source:
    def rows() -> Iterator[Row]:
        with _reading(name), path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _json_row(line, number)

    def count() -> int:
        with _reading(name), path.open("rb") as file:
            return sum(1 for line in file if not line.isspace())

    return Source(name, rows, count, path.parent)


def _json_row(line: bytes, number: int) -> Row:
    try:
        row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except (ValueError, RecursionError) as error:
        return Broken(f"line {number} is no JSON: {shortened(first_line(error))}")
    return _dict_row(row, f"line {number}")


def _dict_row(row: Any, name: str) -> Row:
    if isinstance(row, Mapping):
        return row
    return Broken(f"{name} is a {type(row).__name__}; a row is an object (a dict) with a value by column")


def _of_json(path: Path, name: str) -> Source:
    with _reading(name):
        listed = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(listed, list):
        keys = f" with the keys {_listed(listed)}" if isinstance(listed, dict) else ""
        raise BadInput(f"{name} holds a {type(listed).__name__}{keys}, not a list of objects; pass the list inside it")

    def rows() -> Iterator[Row]:
        return (_dict_row(row, f"entry {place}") for place, row in enumerate(listed))

    return Source(name, rows, lambda: len(listed), path.parent)


def _of_csv(path: Path, name: str) -> Source:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","

    def rows() -> Iterator[Row]:
        # bytes that are no UTF-8 pass as surrogates, so that they cost their own row and not the file
        with _reading(name), path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter)
            header = next(reader, [])
            if len(set(header)) < len(header):
                raise BadInput(f"{name} has two columns of the same name among {_listed(header)}; rename one")
            while True:
                try:
                    fields = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield Broken(f"line {reader.line_num} cannot be read: {error}")
                    continue
                if fields:
                    yield _csv_row(header, fields, f"line {reader.line_num}")

    return Source(name, rows, lambda: sum(1 for _ in rows()), path.parent)


def _csv_row(header: list[str], fields: list[str], name: str) -> Row:
    if len(fields) != len(header):
        return Broken(f"{name} has {len(fields)} fields where the header has {len(header)}")
    if any("\udc80" <= letter <= "\udcff" for value in fields if not value.isascii() for letter in value):
        return Broken(f"{name} is not UTF-8")
    return dict(zip(header, fields, strict=True))


def _of_parquet(path: Path, name: str) -> Source:
    parquet = _needs("pyarrow.parquet", name)
    with _reading(name), parquet.ParquetFile(path) as opened:
        count = opened.metadata.num_rows

    def rows() -> Iterator[Row]:
        with _reading(name):
            for batch in table_batches(path, BATCH_ROWS):
                yield from batch.to_pylist()

    return Source(name, rows, lambda: count, path.parent)


_FILES: dict[str, Callable[[Path, str], Source]] = {
    ".jsonl": _of_jsonl,
    ".ndjson": _of_jsonl,
    ".json": _of_json,
    ".csv": _of_csv,
    ".tsv": _of_csv,
    ".parquet": _of_parquet,
}


def _of_folder(folder: Path) -> Source:
    """Its pictures, or the rows of the metadata file that names them."""
    for metadata in METADATA:
        if (folder / metadata).is_file():
            inside = _of_path(folder / metadata)
            name = f"{folder.name}/{metadata}"
            return Source(name, inside.rows, inside.count, folder, columns={"image": "file_name"})
    name = shortened(folder.name)
    with _reading(name):
        pictures = sorted(_pictures(folder))
    if not pictures:
        files = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in _FILES)
        instead = f"; pass one of its files: {_listed(files)}" if files else ""
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


def _is_hugging_face(source: Any) -> bool:
    """By the name of its class: whoever holds such an object has imported the library, we need not."""
    return any(kind.__module__ in _HUGGING_FACE for kind in type(source).__mro__)


def _is_saved_dataset(path: Path) -> bool:
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def _may_be_a_name(text: str) -> bool:
    is_file = Path(text).suffix.lower() in {*_FILES, *PICTURES}
    return not is_file and re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", text) is not None


def _of_saved_dataset(path: Path, split: str | None) -> Source:
    datasets = _needs("datasets", path.name)
    with _reading(path.name):
        saved = datasets.load_from_disk(path)
    return _of_dataset(saved, split, shortened(path.name), path)


def _of_name(name: str, split: str | None) -> Source:
    datasets = _needs("datasets", f"{name!r} is no file or folder here, and a Hugging Face data set")
    try:
        loaded = datasets.load_dataset(name, split=split)
    except Exception as error:  # the library raises about anything, from a missing name to the network's own errors
        reason = shortened(first_line(error))
        raise BadInput(f"{name!r} is no file or folder here, and as a Hugging Face data set: {reason}") from None
    return _of_dataset(loaded, None if split else split, name)


def _of_dataset(dataset: Any, split: str | None, name: str | None = None, folder: Path | None = None) -> Source:
    if isinstance(dataset, dict):  # DatasetDict, IterableDatasetDict
        dataset = _of_split(dataset, split, name or type(dataset).__name__)
    elif split is not None and split != str(dataset.split):
        raise BadInput(f"this data set is a single split ({dataset.split}); leave split={split!r} out")
    name = name or dataset.info.dataset_name or type(dataset).__name__
    name = f"{name} ({dataset.split})" if dataset.split else name
    has_count = hasattr(dataset, "__len__")
    return Source(name, lambda: _undecoded(dataset), lambda: len(dataset) if has_count else None, folder)


def _of_split(splits: dict[str, Any], split: str | None, name: str) -> Any:
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    if split not in splits:
        given = "pass one" if split is None else f"split={split!r} is none of them"
        raise BadInput(f"{name} has the splits {_listed(splits)}; {given}, such as split={next(iter(splits), '')!r}")
    return splits[split]


def _undecoded(dataset: Any) -> Iterator[Row]:
    """Rows with pictures as their file's bytes or path: decoding is for whoever needs the pixels."""
    if not hasattr(dataset, "__len__"):
        yield from dataset.decode(False) if dataset.features else dataset
    elif dataset.format["type"] == "custom":  # the user's own with_transform, which expects decoded pictures
        yield from dataset
    else:
        for table in dataset.with_format("arrow").iter(BATCH_ROWS):
            yield from table.to_pylist()


def _of_iterable(source: Any) -> Source:
    name = type(source).__name__
    if isinstance(source, (Mapping, bytes)) or not isinstance(source, Iterable):
        hint = ", as in [row]" if isinstance(source, Mapping) else ""
        raise BadInput(f"a source of type {name} is no data set; pass a path, a name, a data set or dicts{hint}")
    count = len(source) if isinstance(source, Sized) else None

    def rows() -> Iterator[Row]:
        return (_dict_row(row, f"row {place}") for place, row in enumerate(source))

    return Source(name, rows, lambda: count, once=isinstance(source, Iterator))


def _needs(module: str, what: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        library = module.partition(".")[0]
        install = "run pip install 'llava_probe[features]'"
        raise BadInput(f"{what} is read with {library}, which is not installed; {install}") from None


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except BadInput:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # pyarrow's errors are among them
        raise BadInput(f"{name} cannot be read: {shortened(first_line(error))}") from None


def _listed(names: Iterable[Any]) -> str:
    return shortened(", ".join(map(str, names)))
