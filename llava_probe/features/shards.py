"""The files of one shard: where they are, and its tensors as safetensors, written and looked up.

The format is safetensors'. Its header alone tells what a shard holds, where each tensor lies and how long the file has
to be, so a store opens, and a cut file is found, without reading a tensor.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
import torch
from torch import Tensor

from llava_probe.errors import BadFile, first_line, shortened

ALIGNMENT = 64  # bytes; a cache line, so that mapped tensors start where vector instructions like it
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}  # safetensors' own names
CODES = {dtype: code for code, dtype in DTYPES.items()}

HEADER_BYTES = 100_000_000  # as safetensors itself allows

WholeNumber: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**53)]

#: Of a shard, as its files are called; a longer one is somebody else's.
_NUMBER = re.compile("[0-9]{5}|[1-9][0-9]{5,9}")

REPAIR = "the same extraction run again makes that shard anew"


def tensors_path(folder: Path, number: int) -> Path:
    """Where the tensors of a shard are."""
    return folder / "shards" / f"{number:05d}.safetensors"


def index_path(folder: Path, number: int) -> Path:
    """Where the rows of a shard are."""
    return folder / "index" / f"{number:05d}.parquet"


def errors_path(folder: Path, number: int) -> Path:
    """Where the samples of a shard that failed are, if any did."""
    return folder / "errors" / f"{number:05d}.parquet"


def _at_once(path: str, flags: int) -> int:
    """Opens without waiting for whoever writes to a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


@contextmanager
def opened_file(path: Path, instead: str = REPAIR) -> Iterator[io.BufferedReader]:
    """One of a store's files, open for reading: what is no file (a pipe, a device) is refused before it can hang.

    Args:
        path: of the file.
        instead: what to do where it cannot be read, for the sentence.

    Raises:
        BadFile: it is missing, no file, or cannot be read.
    """
    try:
        with open(path, "rb", opener=_at_once) as opened:
            if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
                raise BadFile(f"{path} is no file; {instead}")
            yield opened
    except FileNotFoundError:
        raise BadFile(f"{path} is missing; {instead}") from None
    except BadFile:
        raise
    except OSError as error:
        raise BadFile(f"{path} cannot be read: {error.strerror}; {instead}") from error


def shard_numbers(folder: Path) -> list[int]:
    """The shards that are whole, in order."""
    return sorted(int(path.stem) for path in (folder / "index").glob("*.parquet") if _NUMBER.fullmatch(path.stem))


@dataclass(frozen=True)
class TensorSpan:
    """Where one tensor lies in a safetensors file: ``start`` in bytes from the file's start."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself; ``size`` in bytes is what it has to measure."""

    entries: Mapping[str, TensorSpan]
    size: int

    @property
    def rows(self) -> int:
        """The samples of the shard; 0 where every one failed."""
        for name, entry in self.entries.items():
            if not (name.startswith("positions/") or is_ragged(name, self.entries)):
                return entry.shape[0]
        return 0


class _Entry(msgspec.Struct):
    """One tensor as a safetensors header tells of it."""

    dtype: Literal["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"]
    shape: list[WholeNumber]
    data_offsets: tuple[WholeNumber, WholeNumber]


def read_header(folder: Path, number: int) -> Header:
    """The header of a shard's tensors, checked in itself and against the size of the file.

    Raises:
        BadFile: the shard is missing, cut short or damaged.
    """
    path = tensors_path(folder, number)
    with opened_file(path) as opened:
        size = os.fstat(opened.fileno()).st_size
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 + length:
            raise BadFile(f"{path} is cut short: it ends within its header; {REPAIR}")
        if length > HEADER_BYTES:
            raise BadFile(f"{path} is no safetensors file: a header of {length:,} bytes; {REPAIR}")
        told = opened.read(length)
    try:
        found = msgspec.json.decode(told, type=dict[str, msgspec.Raw])
        found.pop("__metadata__", None)
        entries = {name: msgspec.json.decode(of, type=_Entry) for name, of in found.items()}
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise BadFile(f"{path} is damaged, or no safetensors file: {first_line(error)}; {REPAIR}") from error
    start = 0
    for name, of in sorted(entries.items(), key=lambda entry: entry[1].data_offsets):
        if of.data_offsets != (start, start := start + math.prod(of.shape) * DTYPES[of.dtype].itemsize):
            raise BadFile(f"{path} is damaged: {shortened(name)} of {of.shape} does not lie where it should; {REPAIR}")
    check_size(path, size, 8 + length + start)
    spans = {
        name: TensorSpan(DTYPES[of.dtype], tuple(of.shape), 8 + length + of.data_offsets[0])
        for name, of in entries.items()
    }
    check_fit(path, spans)
    return Header(spans, size)


def check_fit(path: Path, entries: Mapping[str, TensorSpan]) -> None:
    """Refuse tensors that are not of the same rows.

    Raises:
        BadFile: a name, a dtype or a shape that no shard of ours has.
    """
    rows: dict[int, str] = {}
    values: dict[tuple[str, int], str] = {}
    for name, entry in entries.items():
        what, slash, position = name.partition("/")
        ragged = is_ragged(name, entries) or what == "positions"
        wrong = not (what and slash and position and entry.shape)
        wrong |= what == "spans" and (entry.dtype != torch.int64 or entry.shape[1:] != (2,))
        wrong |= what == "positions" and (len(entry.shape) != 1 or f"spans/{position}" not in entries)
        if wrong:
            raise BadFile(f"{path} is damaged: no store has {shortened(name)} of {list(entry.shape)}; {REPAIR}")
        if ragged:
            values[position, entry.shape[0]] = name
        else:
            rows[entry.shape[0]] = name
    if len(rows) > 1 or len({position for position, _ in values}) < len(values):
        first, second, *_ = rows.values() if len(rows) > 1 else values.values()
        raise BadFile(f"{path} is damaged: {first} and {second} are not of the same rows; {REPAIR}")


def check_size(path: Path, size: int, expected: int) -> None:
    """Refuse a file that was cut short or grew.

    Raises:
        BadFile: it does not measure what its header says.
    """
    if size != expected:
        what = "cut short" if size < expected else "damaged"
        raise BadFile(f"{path} is {what}: {size:,} bytes of {expected:,}; {REPAIR}")


def map_tensors(folder: Path, number: int, header: Header) -> dict[str, Tensor]:
    """The tensors of a shard, mapped: no byte is read before it is used.

    Raises:
        BadFile: the file is missing, cut short, or its spans leave its values.
    """
    path = tensors_path(folder, number)
    try:
        check_size(path, path.stat().st_size, header.size)
        storage = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=header.size)
    except BadFile:
        raise
    except (OSError, RuntimeError) as error:
        raise BadFile(f"{path} cannot be read: {first_line(error)}; {REPAIR}") from error
    tensors = {name: _at(storage, entry) for name, entry in header.entries.items()}
    for name, entry in header.entries.items():
        spans = tensors.get(f"spans/{name.partition('/')[2]}")
        if spans is None or not is_ragged(name, tensors):
            continue
        start, stop, count = spans[:, 0], spans[:, 1], entry.shape[0]
        if not bool(((start >= 0) & (start <= stop) & (stop <= count)).all()):
            raise BadFile(f"{path} is damaged: its spans leave the {count:,} values of {name}; {REPAIR}")
    return tensors


def _at(storage: Any, entry: TensorSpan) -> Tensor:
    flat = torch.empty(0, dtype=entry.dtype)
    return flat.set_(storage, entry.start // entry.dtype.itemsize, entry.shape)  # type: ignore[call-overload]


def file_sha256(path: Path) -> str:
    """The checksum of a file, read piece by piece.

    Raises:
        BadFile: it is missing, no file, or cannot be read.
    """
    with opened_file(path) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def is_ragged(name: str, names: Iterable[str]) -> bool:
    """Whether rows of this tensor are spans of values: there is a ``spans/<position>`` of its position."""
    what, _, position = name.partition("/")
    return what not in ("spans", "positions") and f"spans/{position}" in names


def tensor_table(headers: Mapping[int, Header], folder: Path) -> dict[str, dict[str, Any]]:
    """``{name: {dtype, shape, ragged}}`` of all shards, the first axis None.

    Raises:
        BadFile: shards do not hold the same.
    """
    first: dict[str, dict[str, Any]] = {}
    for number, header in headers.items():
        here = {
            name: {
                "dtype": str(entry.dtype).removeprefix("torch."),
                "shape": [None, *entry.shape[1:]],
                "ragged": is_ragged(name, header.entries),
            }
            for name, entry in sorted(header.entries.items())
        }
        first = first or here
        if here and here != first:
            name = min(name for name in here.keys() | first.keys() if here.get(name) != first.get(name))
            told = f"{name} is {here.get(name, 'not there')}, in the shards before {first.get(name, 'not there')}"
            raise BadFile(f"{tensors_path(folder, number)} does not fit the others: {told}")
    return first


def safetensors(tensors: Mapping[str, Tensor]) -> Iterator[memoryview | bytes]:
    """A safetensors file, piece by piece: ``save_file`` refuses views of one tensor, and would be read for its sum."""
    ordered = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # each on its own alignment
    told, start = {}, 0
    for name in ordered:
        tensor = tensors[name]
        end = start + tensor.numel() * tensor.element_size()
        told[name] = {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    header = json.dumps(told, separators=(",", ":")).encode()
    header = header.ljust(math.ceil((8 + len(header)) / ALIGNMENT) * ALIGNMENT - 8)
    yield len(header).to_bytes(8, "little") + header
    for name in ordered:
        yield tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
