"""The files of one shard: where they are, and its tensors as safetensors, written and looked up.

The format is safetensors'. Its header alone tells what a shard holds, where each tensor lies and how long the file has
to be, so a store opens, and a cut file is found, without reading a tensor.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava_probe.errors import BadFile, first_line

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


def shard_numbers(folder: Path) -> list[int]:
    """The shards that are whole, in order."""
    return sorted(int(path.stem) for path in (folder / "index").glob("*.parquet") if path.stem.isdecimal())


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


def read_header(folder: Path, number: int) -> Header:
    """The header of a shard's tensors, checked against the size of the file.

    Raises:
        BadFile: the shard is missing, cut short or damaged.
    """
    path = tensors_path(folder, number)
    try:
        with path.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            length = int.from_bytes(opened.read(8), "little")
            if size < 8 + length:
                raise BadFile(f"{path} is cut short: it ends within its header; {REPAIR}")
            told = json.loads(opened.read(length))
        told.pop("__metadata__", None)
        entries = {
            name: TensorSpan(DTYPES[of["dtype"]], tuple(of["shape"]), 8 + length + of["data_offsets"][0])
            for name, of in told.items()
        }
        expected = 8 + length + max((of["data_offsets"][1] for of in told.values()), default=0)
    except FileNotFoundError:
        raise BadFile(f"{path} is missing; {REPAIR}") from None
    except BadFile:
        raise
    except OSError as error:
        raise BadFile(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise BadFile(f"{path} is damaged, or no safetensors file: {first_line(error)}") from error
    check_size(path, size, expected)
    return Header(entries, expected)


def check_size(path: Path, size: int, expected: int) -> None:
    """Refuse a file that was cut short or grew.

    Raises:
        BadFile: it does not measure what its header says.
    """
    if size != expected:
        what = "cut short" if size < expected else "damaged"
        raise BadFile(f"{path} is {what}: {size:,} bytes of {expected:,}; {REPAIR}")


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
