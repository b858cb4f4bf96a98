"""Parquet read so that no more is held than was said: a file of a few kilobytes can stand for gigabytes.

Pages are compressed, and values that were written once are repeated by number. So what a batch becomes is bounded
before it is made, by what the file says of its columns, and what it was is counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llava_probe.errors import BadInput

#: Bytes that a row may take, and that are held of a file at once.
HELD = 128_000_000

#: How far pages may have been compressed, and all of a file may expand, where that is more than ``HELD``: text and
#: numbers that anybody measured stay far below, a repeated byte goes far beyond.
_RATIO, _EXPANSION = 100, 1000

_SHORT = 1000  # bytes of a value on average
_FEW = 16  # rows at once, below which reading costs more than measuring
_OBJECT = 32  # bytes that Python takes for a number or a short text
_WIDTHS = {
    "BOOLEAN": _OBJECT,
    "INT32": _OBJECT,
    "INT64": _OBJECT,
    "INT96": _OBJECT,
    "FLOAT": _OBJECT,
    "DOUBLE": _OBJECT,
}


def table_batches(path: Path, rows: int = 1024, columns: list[str] | None = None) -> Iterator[Any]:
    """A parquet file as ``pyarrow.RecordBatch``es, each of which fits into ``HELD`` bytes.

    Args:
        path: of the file.
        rows: of a batch, at most; texts inside lists come as pyarrow's dictionaries.
        columns: to read; all by default.

    Raises:
        BadInput: a row or a page is larger than ``HELD``, or all of it is that and a thousand times the file; the
            sentence has both sizes.
    """
    import pyarrow.parquet

    size, total = path.stat().st_size, 0
    with pyarrow.parquet.ParquetFile(path) as opened:
        leaves = [opened.schema.column(number) for number in range(len(opened.schema))]
        chosen = [
            number
            for number, leaf in enumerate(leaves)
            if columns is None or any(leaf.path == name or leaf.path.startswith(f"{name}.") for name in columns)
        ]
        texts = [leaves[number].path for number in chosen if _is_text(opened.metadata, number, leaves[number])]
    with pyarrow.parquet.ParquetFile(path, read_dictionary=texts) as opened:
        for group in range(opened.metadata.num_row_groups):
            step = min(rows, _rows_at_once(path, opened.metadata.row_group(group), leaves, chosen, texts))
            for batch in opened.iter_batches(step, row_groups=[group], columns=columns):
                for part in _fitting(path, batch):
                    total += _bytes(part)
                    if total > max(HELD, _EXPANSION * size):
                        raise BadInput(
                            f"{path} expands to more than {_told(total)} from {_told(size)}; write it anew "
                            "without the repeated values"
                        )
                    yield part


def _is_text(metadata: Any, number: int, leaf: Any) -> bool:
    """Whether a column is measured by its dictionary before it is written out.

    That is dearer than reading few rows at once, so it is done for lists, and where very few rows would be left.
    """
    if leaf.physical_type != "BYTE_ARRAY":
        return False
    chunks = [metadata.row_group(group).column(number) for group in range(metadata.num_row_groups)]
    pages = max((chunk.total_uncompressed_size for chunk in chunks), default=0)
    short = all(chunk.total_uncompressed_size < _SHORT * chunk.num_values for chunk in chunks)
    return leaf.max_repetition_level > 0 or (short and pages > HELD // _FEW)


def _rows_at_once(path: Path, group: Any, leaves: Sequence[Any], chosen: Sequence[int], texts: Sequence[str]) -> int:
    """How many rows of a row group stay within ``HELD``, whatever its encodings repeat.

    A value that is repeated by its number, or by what it shares with the one before, is no longer than its column's
    uncompressed pages.
    """
    repeated = 0
    for number in chosen:
        leaf, chunk = leaves[number], group.column(number)
        packed, pages = chunk.total_compressed_size, chunk.total_uncompressed_size
        if pages > max(HELD, _RATIO * packed):
            raise BadInput(
                f"{path}: {leaf.path} expands from {_told(packed)} to {_told(pages)}; write it in smaller row groups"
            )
        if leaf.max_repetition_level > 0:
            width = _WIDTHS.get(leaf.physical_type, 4)
            delta = "DELTA_BYTE_ARRAY" in chunk.encodings
            held = chunk.num_values * max(width, pages if delta or leaf.physical_type.startswith("FIXED") else 0)
            if held > max(HELD, _EXPANSION * packed):
                raise BadInput(
                    f"{path}: {leaf.path} holds {chunk.num_values:,} values in {_told(packed)}, which may become "
                    f"{_told(held)}; write it in smaller row groups"
                )
        elif leaf.physical_type.endswith("BYTE_ARRAY") and (
            leaf.path not in texts or "DELTA_BYTE_ARRAY" in chunk.encodings
        ):
            repeated += pages
    return max(1, HELD // max(1, repeated))


def _fitting(path: Path, batch: Any) -> Iterator[Any]:
    """A batch, or its halves where it is too large."""
    if (size := _bytes(batch)) <= HELD:
        yield batch
    elif batch.num_rows == 1:
        raise BadInput(f"a row of {path} holds {_told(size)}; a row may hold {_told(HELD)}")
    else:
        half = batch.num_rows // 2
        yield from _fitting(path, batch.slice(0, half))
        yield from _fitting(path, batch.slice(half))


def _bytes(part: Any) -> int:
    """About what a batch or an array takes once it is Python's, its dictionaries written out."""
    import pyarrow
    import pyarrow.compute

    if isinstance(part, pyarrow.RecordBatch):
        return sum(_bytes(part.column(number)) for number in range(part.num_columns))
    if isinstance(part, pyarrow.DictionaryArray):
        lengths = pyarrow.compute.binary_length(part.dictionary)
        return (pyarrow.compute.sum(lengths.take(part.indices)).as_py() or 0) + _OBJECT * len(part)
    if pyarrow.types.is_struct(part.type):
        return sum(map(_bytes, part.flatten())) + _OBJECT * len(part)
    if pyarrow.types.is_nested(part.type) and hasattr(part, "flatten"):
        return _bytes(part.flatten()) + _OBJECT * len(part)
    return part.nbytes + _OBJECT * len(part)


def _told(size: int) -> str:
    """A number of bytes for people to read."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size:,} bytes"
