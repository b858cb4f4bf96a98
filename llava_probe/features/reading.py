"""The other end of ``store.py``: a folder of features as tensors and tables, opened in milliseconds at any size.

    features = lp.Features("features/")
    features["layer_16", "last_prompt"]       # torch.Tensor [rows, D], memory-mapped: no other layer is touched
    features["layer_16", "image"][3]          # the image tokens of row 3, [n, D]
    features.column("label")                  # what the rows are of; also table(), to_pandas(), to_dataset()

With one shard a layer is a plain mapped tensor. With several it is a ``ShardedTensor``, read where it is indexed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from llava_probe.border import Count, WholeNumeric, checked
from llava_probe.errors import BadFile, BadInput, NotCaptured, OutOfRange, shortened
from llava_probe.features import shards
from llava_probe.features.manifest import read_manifest
from llava_probe.features.sharded import Parts, ShardedTensor
from llava_probe.features.tables import arrow, join, read_errors, read_table
from llava_probe.features.verifying import check_files, verify
from llava_probe.trace.request import spelled

if TYPE_CHECKING:
    import datasets
    import pandas
    import pyarrow

MAPPED = 16  # shards kept mapped at a time: what was read of the others need not stay in memory


@checked
class Features:
    """A store of features, finished or not.

    Args:
        folder: what ``lp.extract`` wrote.

    Raises:
        BadFile: it is no store, damaged, or written by a newer version.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        told = read_manifest(self.folder)
        self.manifest: Mapping[str, Any] = told.told
        self.complete: bool = told.complete
        self._header = lru_cache(maxsize=None)(self._read_header)
        self._mapped = lru_cache(maxsize=MAPPED)(self._map)
        if self.complete:
            check_files(self.folder, told)
            self._rows = {shard.number: shard.rows for shard in told.shards}
            self._tensors: dict[str, dict[str, Any]] = self.manifest["tensors"]
        else:
            numbers = shards.shard_numbers(self.folder)
            headers = {number: shards.read_header(self.folder, number) for number in numbers}
            self._rows = {number: header.rows for number, header in headers.items()}
            self._tensors = shards.tensor_table(headers, self.folder)

    @property
    def interventions(self) -> tuple[Mapping[str, Any], ...]:
        """What was in force when they were made, outermost first; empty for the model as it is."""
        return tuple(self.manifest["settings"].get("interventions", ()))

    def __len__(self) -> int:
        return sum(self._rows.values())

    def __reduce__(self) -> tuple[Any, ...]:
        return Features, (str(self.folder),)  # another process maps the files itself

    def __repr__(self) -> str:
        state = "" if self.complete else ", unfinished"
        state += "".join(f", under {spelled(each)}" for each in self.interventions)
        return f"Features({str(self.folder)!r}: {len(self):,} rows{state}; {self._names()})"

    def keys(self) -> tuple[tuple[str, str], ...]:
        """What there is, as (what, position): ("layer_16", "last_prompt"). Layers stand by their numbers."""
        names = [name.partition("/") for name in self._tensors]
        return tuple(
            (what, position)
            for what, _, position in sorted(names, key=lambda name: (_by_number(name[0]), name[2]))
            if what not in ("spans", "positions")
        )

    def __getitem__(self, key: str | tuple[str, str]) -> Tensor | Ragged:
        """One layer at one position: [rows, ...] in the stored dtype, or ``Ragged``.

        Raises:
            NotCaptured: it is not in the store; the message says what is.
            BadFile: a shard is missing or cut short (also when rows are read).
        """
        if not isinstance(key, tuple) or len(key) != 2 or key not in self.keys():
            asked = shortened("/".join(map(str, key)) if isinstance(key, tuple) else repr(key))
            raise NotCaptured(f"{asked} is not in {self.folder}; it holds {self._names()}")
        what, position = key
        if not self._tensors[f"{what}/{position}"]["ragged"]:
            return self._joined(f"{what}/{position}", self._rows)
        name, held = f"{what}/{position}", f"positions/{position}"
        values = {number: self._header(number).entries[name].shape[0] for number in self._filled()}
        starts = accumulate(values.values(), initial=0)
        spans = [
            self._mapped(number)[f"spans/{position}"] + start for number, start in zip(values, starts, strict=False)
        ]
        return Ragged(
            self._joined(name, values), torch.cat(spans), self._joined(held, values) if held in self._tensors else None
        )

    def numpy(self, what: str, position: str, rows: slice | WholeNumeric | None = None) -> np.ndarray:
        """Rows as float32, in memory of their own: [rows, ...]; only those asked for are read."""
        chosen = self._rectangular(what, position)[slice(None) if rows is None else rows]
        return chosen.to(torch.float32, copy=True).numpy()

    def batches(self, what: str, position: str, size: Count = 1024) -> Iterator[tuple[slice, Tensor]]:
        """All rows in order, ``size`` at a time, for what does not fit into memory: (which rows, [size, ...])."""
        layer = self._rectangular(what, position)
        for start in range(0, len(layer), size):
            rows = slice(start, min(start + size, len(layer)))
            yield rows, layer[rows]

    def table(self, columns: Sequence[str] | None = None) -> pyarrow.Table:
        """The index in the order of the rows, all columns or these.

        Raises:
            NotCaptured: there is no such column.
            BadFile: the index of a shard is missing or damaged.
        """
        tables, names = [], dict[str, None]()

        def chosen(there: list[str]) -> list[str]:
            names.update(dict.fromkeys(there))  # shard_row: a shard without these columns has its rows all the same
            return [name for name in there if columns is None or name in columns or name == "shard_row"]

        for number, rows in self._rows.items():
            tables.append(read_table(shards.index_path(self.folder, number), chosen, rows))
        if unknown := [name for name in columns or () if name not in names]:
            raise NotCaptured(f"the index of {self.folder} has no {', '.join(unknown)}; it has {', '.join(names)}")
        table = join(tables) if tables else arrow().table({})
        return table if columns is None else table.select(list(columns))

    def column(self, name: str) -> list[Any]:
        """One column of the index as a list, a value a row."""
        return self.table([name])[name].to_pylist()

    def errors(self) -> pyarrow.Table:
        """The samples that failed."""
        if not self.complete:
            return read_errors(self.folder, self._rows)
        return read_table(self.folder / "errors.parquet")

    def to_pandas(self) -> pandas.DataFrame:
        """The index as a DataFrame; row i belongs to row i of every tensor."""
        try:
            return self.table().to_pandas()
        except ImportError as error:
            raise BadInput("to_pandas() needs pandas: pip install pandas; table() does not") from error

    def to_dataset(self, layers: Sequence[tuple[str, str]] = ()) -> datasets.Dataset:
        """The index as a ``datasets.Dataset``; ``layers``, pairs like those of ``keys()``, become float32 columns."""
        try:
            from datasets import Dataset
        except ImportError as error:
            raise BadInput("to_dataset() needs datasets: pip install datasets; table() does not") from error
        table = self.table()
        for what, position in layers:
            table = table.append_column(f"{what}/{position}", _arrow_column(self[what, position]))
        return Dataset(table)

    def verify(self) -> None:
        """Read every file and hold it to its checksum, and the manifest to what the files hold.

        Raises:
            BadFile: the first thing that is damaged, missing, of another run or not known to the manifest.
        """
        verify(self.folder)

    def _names(self) -> str:
        return ", ".join("/".join(key) for key in self.keys()) or "no tensors"

    def _rectangular(self, what: str, position: str) -> Tensor:
        found = self[what, position]
        if isinstance(found, Ragged):
            raise BadInput(f"{what}/{position} is ragged: take features[{what!r}, {position!r}][row], or its .mean()")
        return found

    def _filled(self) -> list[int]:
        return [number for number, rows in self._rows.items() if rows]

    def _read_header(self, number: int) -> shards.Header:
        """A shard's header, which holds what the manifest says."""
        header, path = shards.read_header(self.folder, number), shards.tensors_path(self.folder, number)
        if header.rows != self._rows[number]:
            raise BadFile(f"{path} has {header.rows:,} rows, {self._rows[number]:,} were expected; {shards.REPAIR}")
        if header.entries and (here := shards.tensor_table({number: header}, self.folder)) != self._tensors:
            name = min(name for name in here.keys() | self._tensors if here.get(name) != self._tensors.get(name))
            raise BadFile(f"the {name} of {path} is not what the manifest says; {shards.REPAIR}")
        return header

    def _map(self, number: int) -> dict[str, Tensor]:
        return shards.map_tensors(self.folder, number, self._header(number))

    def _joined(self, name: str, counts: Mapping[int, int]) -> Tensor:
        """The parts of a tensor that each shard holds, ``counts[number]`` rows, as one."""
        shape, dtype = self._tensors[name]["shape"], getattr(torch, self._tensors[name]["dtype"])
        filled = self._filled()

        def part(place: int) -> Tensor:
            number = filled[place]
            tensor = self._mapped(number).get(name)
            if tensor is None or tensor.dtype != dtype or list(tensor.shape) != [counts[number], *shape[1:]]:
                path = shards.tensors_path(self.folder, number)
                raise BadFile(f"the {name} of {path} is not what the manifest says; {shards.REPAIR}")
            return tensor

        if len(filled) == 1:
            return part(0)
        return ShardedTensor(Parts(part, [counts[number] for number in filled], tuple(shape[1:]), dtype))


@checked
@dataclass(frozen=True)
class Ragged:
    """Rows of differing lengths; rows of one picture may share their values.

    Attributes:
        values: [values, D] of all rows, memory-mapped.
        spans: [rows, 2] int64, the start and stop in ``values`` of each row.
        positions: [values] int32, the place in the sequence of each value; None where there is no sequence.
    """

    values: Tensor
    spans: Tensor
    positions: Tensor | None = None

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, row: int) -> Tensor:
        """The values of one row: [n, D]."""
        return self.values[self._span(row)]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[row] for row in range(len(self)))

    def positions_of(self, row: int) -> Tensor:
        """The place in the sequence of each value of one row: [n].

        Raises:
            NotCaptured: these values are not of a sequence.
        """
        if self.positions is None:
            raise NotCaptured("these values have no positions in a sequence: they were made before the language model")
        return self.positions[self._span(row)]

    def mean(self) -> Tensor:
        """The mean of each row, float32 [rows, D]; NaN for a row without values."""
        spans, rows = self.spans.unique(dim=0, return_inverse=True)
        means = [self.values[start:stop].float().mean(0) for start, stop in spans.tolist()]
        return torch.stack(means)[rows] if means else torch.empty(0, *self.values.shape[1:])

    def _span(self, row: int) -> slice:
        if not -len(self) <= row < len(self):
            raise OutOfRange(f"row {row} is not there; there are {len(self)}")
        return slice(*self.spans[row].tolist())


def _by_number(what: str) -> list[tuple[str, int]]:
    return [(letters, int(digits or -1)) for letters, digits in re.findall(r"(\D*)(\d*)", what)]


def _arrow_column(layer: Tensor | Ragged) -> Any:
    """One value a row: fixed-size lists of float32, inside a list where rows are ragged."""
    pyarrow = arrow()
    flat = torch.cat([layer.values[:0], *layer]) if isinstance(layer, Ragged) else layer
    column = pyarrow.array(flat.float().numpy().reshape(-1))
    for size in reversed(flat.shape[1:]):
        column = pyarrow.FixedSizeListArray.from_arrays(column, size)
    if isinstance(layer, Ragged):
        lengths = (layer.spans[:, 1] - layer.spans[:, 0]).tolist()
        offsets = pyarrow.array(list(accumulate(lengths, initial=0)), pyarrow.int32())
        column = pyarrow.ListArray.from_arrays(offsets, column)
    return column
