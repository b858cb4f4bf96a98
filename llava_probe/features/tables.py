"""What rows are of, as parquet by pyarrow, which is an extra: a store's tensors are read without it.

Columns come from whoever made the samples, so a shard may know one that the next does not, or know it by another type.
Such columns are widened where that loses nothing, and kept as JSON text where it would.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from llava_probe.errors import BadFile, BadInput, ProbeError, first_line, shortened
from llava_probe.features.expanding import table_batches
from llava_probe.features.shards import REPAIR, WholeNumber, errors_path, index_path, opened_file

_NOTE = b"llava_probe.shard"
_JSON = {b"llava_probe": b"json"}  # marks a column whose values are JSON text


def arrow() -> Any:
    """``pyarrow``, with its parquet half.

    Raises:
        BadInput: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise BadInput("a feature store needs pyarrow: pip install 'llava_probe[features]'") from error
    return pyarrow


class ShardNote(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the index of a shard keeps of the other files and of how they were made.

    Attributes:
        tensors_sha256: of its tensors; errors_sha256: of its samples that failed, None where none did.
        source: what it was made of.
        batch_size: how many questions went through the model at once.
    """

    tensors_sha256: str
    errors_sha256: str | None
    source: str
    batch_size: WholeNumber


@contextmanager
def opened_table(path: Path, **options: Any) -> Iterator[Any]:
    """A ``pyarrow.parquet.ParquetFile``.

    Raises:
        BadFile: it is missing, no file, or damaged where it is read.
    """
    pyarrow = arrow()
    try:
        with opened_file(path):
            pass  # it is a file
        with pyarrow.parquet.ParquetFile(path, **options) as opened:
            yield opened
    except ProbeError:
        raise
    except Exception as error:  # a damaged file makes the library raise about anything
        raise BadFile(f"{path} is damaged, or no parquet file: {shortened(first_line(error))}; {REPAIR}") from error


def read_note(folder: Path, number: int) -> tuple[ShardNote, int]:
    """What a shard's index says of its files, and how many rows it has.

    Raises:
        BadFile: it is missing or damaged.
    """
    path = index_path(folder, number)
    with opened_table(path) as opened:
        told = (opened.schema_arrow.metadata or {}).get(_NOTE, b"")
        try:
            return msgspec.json.decode(told, type=ShardNote), opened.metadata.num_rows
        except msgspec.MsgspecError as error:
            raise BadFile(f"{path} is damaged: it does not say what belongs to it ({error}); {REPAIR}") from None


def read_table(path: Path, columns: Callable[[list[str]], list[str]] = list, rows: int | None = None) -> Any:
    """A whole parquet file of a store as a ``pyarrow.Table``.

    Args:
        path: of the file.
        columns: which of the names that are there to read.
        rows: how many there have to be.

    Raises:
        BadFile: it is missing or damaged, or expands beyond what ``table_batches`` allows.
    """
    with opened_table(path) as opened:
        names = opened.schema_arrow.names
        if len({*names}) < len(names):
            raise BadFile(f"{path} is damaged: two of its columns have one name; {REPAIR}")
        if rows is not None and opened.metadata.num_rows != rows:
            raise BadFile(f"{path} is damaged: {opened.metadata.num_rows:,} rows where {rows:,} belong; {REPAIR}")
        wanted = columns(names)
        try:
            for _ in table_batches(path, columns=wanted):
                pass
        except BadInput as error:
            raise BadFile(f"{error}; {REPAIR}") from None
        table = opened.read(wanted)
        table.validate(full=True)
        return table


def read_errors(folder: Path, found: Iterable[int]) -> Any:
    """The failed samples of these shards as one ``pyarrow.Table``, in order; empty where none failed."""
    paths = (errors_path(folder, number) for number in found)
    tables = [read_table(path) for path in paths if path.exists()]
    return join(tables) if tables else table_of([], ("shard",))


def join(tables: Sequence[Any]) -> Any:
    """One ``pyarrow.Table`` under another: columns by name, types widened; those that never fit become JSON text."""
    pyarrow = arrow()
    names = dict.fromkeys(chain.from_iterable(table.column_names for table in tables))
    parts = {name: [table.select([name]) for table in tables if name in table.column_names] for name in names}
    texts = {name for name, those in parts.items() if any(_is_json(part, name) for part in those)}
    for name, those in parts.items():
        try:
            pyarrow.concat_tables(those, promote_options="permissive")
        except pyarrow.ArrowException:
            texts.add(name)
    tables = [_as_texts(table, texts).replace_schema_metadata(None) for table in tables]
    return pyarrow.concat_tables(tables, promote_options="permissive")


def _as_texts(table: Any, names: Iterable[str]) -> Any:
    for name in names:
        if name in table.column_names and not _is_json(table, name):
            place = table.column_names.index(name)
            table = table.set_column(place, *_texts(name, table[name].to_pylist()))
    return table


def _is_json(table: Any, name: str) -> bool:
    return bool((table.schema.field(name).metadata or {}).items() >= _JSON.items())


def table_of(rows: Sequence[Mapping[str, Any]], ends: Sequence[str]) -> Any:
    """Rows as a ``pyarrow.Table``: columns as they first occur, then ``ends`` (whole numbers)."""
    pyarrow = arrow()
    names = dict.fromkeys(name for name in chain.from_iterable(rows) if name not in ends)
    fields, arrays = [], []
    for name in names:
        field, array = _inferred(name, [row.get(name) for row in rows])
        fields.append(field)
        arrays.append(array)
    for name in ends:
        fields.append(pyarrow.field(name, pyarrow.int64()))
        arrays.append(pyarrow.array([row[name] for row in rows], pyarrow.int64()))
    return pyarrow.Table.from_arrays(arrays, schema=pyarrow.schema(fields))


def _inferred(name: str, values: list[Any]) -> tuple[Any, Any]:
    pyarrow = arrow()
    try:
        array = pyarrow.array(values)
    except (pyarrow.ArrowException, ValueError, TypeError, OverflowError):  # a mixture, numbers beyond 64 bits, ...
        return _texts(name, values)
    if "struct<>" in str(array.type):  # parquet knows no struct without fields
        return _texts(name, values)
    return pyarrow.field(name, array.type), array


def _texts(name: str, values: list[Any]) -> tuple[Any, Any]:
    pyarrow = arrow()
    texts = [None if value is None else json.dumps(value, default=str) for value in values]
    return pyarrow.field(name, pyarrow.string(), metadata=_JSON), pyarrow.array(texts, pyarrow.string())


def parquet(table: Any, note: ShardNote | None = None) -> bytes:
    """A table as the bytes of a parquet file, with ``note`` as all that it says besides."""
    written = io.BytesIO()
    metadata = None if note is None else {_NOTE: msgspec.json.encode(note)}
    arrow().parquet.write_table(table.replace_schema_metadata(metadata), written)
    return written.getvalue()
