"""The other end of ``store.py``: a folder of features as tensors and tables, opened in milliseconds at any size.

    features = lp.Features("features/")
    features["layer_16", "last_prompt"]       # torch.Tensor [rows, D], memory-mapped: no other layer is touched
    features["layer_16", "image"][3]          # the image tokens of row 3, [n, D]
    features.column("label")                  # what the rows are of; also table(), to_pandas(), to_dataset()

With one shard a layer is a plain mapped tensor. With several it is one tensor to the eye, read where it is indexed:
``layer[:1000]`` reads a thousand rows; anything else that torch does with it sees the whole of it.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from llava_probe.errors import BadFile, BadInput, NotCaptured, OutOfRange
from llava_probe.features import store

if TYPE_CHECKING:
    import datasets
    import pandas
    import pyarrow

MAPPED = 16  # shards kept mapped at a time: what was read of the others need not stay in memory


class Features:
    """A store of features, finished or not.

    Args:
        folder: what ``lp.extract`` wrote.

    Raises:
        BadFile: it is no store, damaged, or written by a newer version.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self.manifest: dict[str, Any] = store.read_manifest(self.folder)
        self.complete: bool = self.manifest["complete"]
        self._header = lru_cache(maxsize=None)(lambda number: store.read_header(self.folder, number))
        self._mapped = lru_cache(maxsize=MAPPED)(self._map)
        if self.complete:
            self._rows = {shard["number"]: shard["rows"] for shard in self.manifest["shards"]}
            self._tensors: dict[str, dict[str, Any]] = self.manifest["tensors"]
        else:
            headers = {number: self._header(number) for number in store.numbers(self.folder)}
            self._rows = {number: header.rows for number, header in headers.items()}
            self._tensors = store.described(headers, self.folder)

    def __len__(self) -> int:
        return sum(self._rows.values())

    def __reduce__(self) -> tuple[Any, ...]:
        return Features, (str(self.folder),)  # another process maps the files itself

    def __repr__(self) -> str:
        state = "" if self.complete else ", unfinished"
        return f"Features({str(self.folder)!r}: {len(self):,} rows{state}; {self._names()})"

    def keys(self) -> tuple[tuple[str, str], ...]:
        """What there is, as (what, position): ("layer_16", "last_prompt"). Layers stand by their numbers."""
        names = [name.partition("/") for name in self._tensors]
        return tuple(
            (what, position)
            for what, _, position in sorted(names, key=lambda name: (_by_number(name[0]), name[2]))
            if what not in ("spans", "positions")
        )

    def __getitem__(self, key: tuple[str, str]) -> Tensor | Ragged:
        """One layer at one position: [rows, ...] in the stored dtype, or ``Ragged``.

        Raises:
            NotCaptured: it is not in the store; the message says what is.
            BadFile: a shard is missing or cut short (also when rows are read).
        """
        if not isinstance(key, tuple) or len(key) != 2 or key not in self.keys():
            asked = "/".join(map(str, key)) if isinstance(key, tuple) else repr(key)
            raise NotCaptured(f"{asked} is not in {self.folder}; it holds {self._names()}")
        what, position = key
        if not self._tensors[f"{what}/{position}"]["ragged"]:
            return self._joined(f"{what}/{position}", self._rows)
        values = {number: self._header(number).entries[f"{what}/{position}"].shape[0] for number in self._filled()}
        starts = accumulate(values.values(), initial=0)
        spans = [
            self._mapped(number)[f"spans/{position}"] + start for number, start in zip(values, starts, strict=False)
        ]
        held = f"positions/{position}"
        return Ragged(
            self._joined(f"{what}/{position}", values),
            torch.cat(spans),
            self._joined(held, values) if held in self._tensors else None,
        )

    def numpy(self, what: str, position: str, rows: slice | Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Rows as float32, in memory of their own: [rows, ...]; only those asked for are read."""
        chosen = self._rectangular(what, position)[slice(None) if rows is None else rows]
        return chosen.to(torch.float32, copy=True).numpy()

    def batches(self, what: str, position: str, size: int = 1024) -> Iterator[tuple[slice, Tensor]]:
        """All rows in order, ``size`` at a time, for what does not fit into memory: (which rows, [size, ...])."""
        if size < 1:
            raise BadInput(f"batches hold at least one row, not {size}")
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
        for number in self._rows:
            with store.opened_table(store.index_path(self.folder, number)) as opened:
                there = opened.schema_arrow.names
                names |= dict.fromkeys(there)
                wanted = [name for name in there if columns is None or name in columns or name == "shard_row"]
                tables.append(opened.read(wanted))  # shard_row: a shard without these columns has its rows all the same
        if unknown := [name for name in columns or () if name not in names]:
            raise NotCaptured(f"the index of {self.folder} has no {', '.join(unknown)}; it has {', '.join(names)}")
        table = store.join(tables) if tables else store.arrow().table({})
        return table if columns is None else table.select(list(columns))

    def column(self, name: str) -> list[Any]:
        """One column of the index as a list, a value a row."""
        return self.table([name])[name].to_pylist()

    def errors(self) -> pyarrow.Table:
        """The samples that failed."""
        if not self.complete:
            return store.read_errors(self.folder, self._rows)
        with store.opened_table(self.folder / "errors.parquet") as opened:
            return opened.read()

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
        """Read every shard and compare with its checksum.

        Raises:
            BadFile: the first one that is damaged.
        """
        told = {shard["number"]: shard for shard in self.manifest.get("shards", ())}
        for number in self._rows:
            path = store.index_path(self.folder, number)
            digest = store.file_sha256(path)
            if number in told and digest != told[number]["index_sha256"]:
                raise BadFile(f"{path} is damaged: its checksum is not that of the manifest; {store.REPAIR}")
            path = store.tensors_path(self.folder, number)
            if store.file_sha256(path) != store.tensors_sha256(self.folder, number):
                raise BadFile(f"{path} is damaged: its checksum is not that of its index; {store.REPAIR}")

    def _names(self) -> str:
        return ", ".join("/".join(key) for key in self.keys()) or "no tensors"

    def _rectangular(self, what: str, position: str) -> Tensor:
        found = self[what, position]
        if isinstance(found, Ragged):
            raise BadInput(f"{what}/{position} is ragged: take features[{what!r}, {position!r}][row], or its .mean()")
        return found

    def _filled(self) -> list[int]:
        return [number for number, rows in self._rows.items() if rows]

    def _map(self, number: int) -> dict[str, Tensor]:
        header, path = self._header(number), store.tensors_path(self.folder, number)
        try:
            store.check_size(path, path.stat().st_size, header.size)
            storage = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=header.size)
        except BadFile:
            raise
        except (OSError, RuntimeError) as error:
            raise BadFile(f"{path} cannot be read: {error}; {store.REPAIR}") from error
        return {name: _at(storage, entry) for name, entry in header.entries.items()}

    def _joined(self, name: str, counts: Mapping[int, int]) -> Tensor:
        """The parts of a tensor that each shard holds, ``counts[number]`` rows, as one."""
        shape, dtype = self._tensors[name]["shape"], getattr(torch, self._tensors[name]["dtype"])
        filled = self._filled()

        def part(place: int) -> Tensor:
            number = filled[place]
            tensor = self._mapped(number).get(name)
            if tensor is None or tensor.dtype != dtype or list(tensor.shape) != [counts[number], *shape[1:]]:
                path = store.tensors_path(self.folder, number)
                raise BadFile(f"the {name} of {path} is not what the manifest says; {store.REPAIR}")
            return tensor

        if len(filled) == 1:
            return part(0)
        return ShardedTensor(_Parts(part, [counts[number] for number in filled], tuple(shape[1:]), dtype))


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


@dataclass(frozen=True)
class _Parts:
    """What a ``ShardedTensor`` is made of: ``part(i)`` maps the tensor of shard i, ``counts[i]`` rows."""

    part: Callable[[int], Tensor]
    counts: Sequence[int]
    row_shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(self.counts), *self.row_shape)

    def whole(self) -> Tensor:
        """All rows in memory."""
        made = torch.empty(self.shape, dtype=self.dtype)
        for place, start in enumerate(self.starts()):
            made[start : start + self.counts[place]] = self.part(place)
        return made

    def starts(self) -> list[int]:
        return list(accumulate(self.counts, initial=0))[:-1]

    def pieces(self, rows: range) -> list[Tensor]:
        """The views, one a shard, that hold these rows; ``rows`` ascend."""
        found = []
        for place, start in enumerate(self.starts()):
            first = bisect.bisect_left(rows, start)
            last = bisect.bisect_left(rows, start + self.counts[place])
            if first < last:
                found.append(self.part(place)[rows[first] - start : rows[last - 1] - start + 1 : rows.step])
        return found

    def taken(self, rows: Tensor) -> Tensor:
        """These rows, [k] int64, in their order."""
        made = torch.empty(len(rows), *self.row_shape, dtype=self.dtype)
        starts = torch.tensor(self.starts())
        places = torch.searchsorted(starts, rows, right=True) - 1
        for place in places.unique().tolist():
            here = places == place
            made[here] = self.part(place)[rows[here] - starts[place]]
        return made


class ShardedTensor(Tensor):
    """Rows that lie in several files, as one tensor [rows, ...].

    Shape, dtype and length cost nothing. Indexing reads the rows it asks for: a slice within one shard is a view of
    the file. Every other operation of torch gets the whole of it as a plain tensor. It cannot be written to.
    """

    _parts: _Parts

    @staticmethod
    def __new__(cls, parts: _Parts) -> ShardedTensor:  # noqa: D102 - Tensor's own
        shown = torch.full((1,), torch.nan if parts.dtype.is_floating_point else -1).to(parts.dtype)
        made = Tensor._make_subclass(cls, shown.expand(parts.shape))  # NaN: what slipped past us would show
        made._parts = parts
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _COSTLESS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in _WRITING or (name.endswith("_") and not name.endswith("__")) or _holds(kwargs.get("out")):
            raise BadInput(f"{name} would write to a feature store; take .clone() of the rows first")
        return func(*_plain(args), **_plain(kwargs))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch calls it so, its stub says otherwise
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """What comes past ``__torch_function__``, like ``torch.as_tensor(t, dtype=...)``, from within torch."""
        if func._schema.is_mutable:
            raise BadInput(f"{func} would write to a feature store; take .clone() of the rows first")
        return func(*_plain(args), **_plain(kwargs or {}))

    def __getitem__(self, key: Any) -> Tensor:  # type: ignore[override]
        first, *rest = (key or (...,)) if isinstance(key, tuple) else (key,)
        if isinstance(first, slice) and (first.step is None or first.step > 0):
            return self._sliced(range(*first.indices(len(self))), rest)
        if first is None or first is Ellipsis or isinstance(first, (bool, np.bool_, slice)):
            return self._parts.whole()[key]
        rows = _indices(first, len(self))
        if rows is None:
            return self._parts.whole()[key]
        if not rows.ndim:
            return self._sliced(range(int(rows), int(rows) + 1), [])[(0, *rest)]
        taken = self._parts.taken(rows.reshape(-1))
        if rows.ndim == 1 and not rest:
            return taken
        return taken[(torch.arange(len(taken)).reshape(rows.shape), *rest)]

    def _sliced(self, rows: range, rest: Sequence[Any]) -> Tensor:
        pieces = self._parts.pieces(rows) or [torch.empty(0, *self._parts.row_shape, dtype=self._parts.dtype)]
        if all(part is None or part is Ellipsis or type(part) in (int, slice) for part in rest):
            pieces = [piece[(slice(None), *rest)] for piece in pieces]
            return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        joined = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return joined[(slice(None), *rest)]

    def clone(self, **kwargs: Any) -> Tensor:
        """All rows in memory; what was read is a copy already."""
        return super().clone(**kwargs) if kwargs else self._parts.whole()

    def __iter__(self) -> Iterator[Tensor]:
        for place in range(len(self._parts.counts)):
            yield from self._parts.part(place)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._parts.whole().__reduce_ex__(protocol)

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"ShardedTensor({list(self.shape)}, {self.dtype}, in {len(self._parts.counts)} shards)"


_COSTLESS: set[Any] = {
    getattr(Tensor, name).__get__
    for name in (
        *("shape", "dtype", "device", "layout", "ndim", "itemsize", "nbytes", "requires_grad", "is_leaf", "grad"),
        *("grad_fn", "is_cuda", "is_sparse", "is_quantized", "is_meta"),
    )
} | {
    getattr(Tensor, name)
    for name in (
        *("size", "dim", "ndimension", "numel", "nelement", "element_size", "get_device", "__len__", "__dir__"),
        *("is_floating_point", "is_complex", "is_signed"),
    )
}
_COSTLESS |= {torch.numel, torch.is_floating_point, torch.is_complex}
_WRITING = {"__setitem__"} | {
    f"__i{name}__"
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift", "rshift")
}


def _plain(value: Any) -> Any:
    """``value`` with every ``ShardedTensor`` in it read into memory."""
    if isinstance(value, ShardedTensor):
        return value._parts.whole()
    if type(value) in (list, tuple):
        return type(value)(_plain(part) for part in value)
    return {name: _plain(part) for name, part in value.items()} if type(value) is dict else value


def _holds(value: Any) -> bool:
    return isinstance(value, ShardedTensor) or (isinstance(value, (list, tuple)) and any(map(_holds, value)))


def _indices(key: Any, count: int) -> Tensor | None:
    """Row numbers, int64 and not negative, of whatever picks rows; None for a mask over more than rows."""
    try:
        found = torch.as_tensor(key if isinstance(key, (Tensor, np.ndarray)) or np.isscalar(key) else list(key))
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadInput(f"rows are picked by numbers, a slice or a mask, not by {key!r}") from error
    if found.dtype in (torch.bool, torch.uint8):
        if found.ndim != 1:
            return None
        if len(found) != count:
            raise OutOfRange(f"a mask of {len(found)} rows for {count}")
        return found.nonzero()[:, 0]
    if found.numel() and (found.dtype.is_floating_point or found.dtype.is_complex):
        raise BadInput(f"rows are picked by whole numbers, not by {found.dtype}")
    found = found.long()
    if found.numel() and not -count <= int(found.min()) <= int(found.max()) < count:
        wrong = int(found.min()) if int(found.min()) < -count else int(found.max())
        raise OutOfRange(f"row {wrong} is not there; there are {count}")
    return torch.where(found < 0, found + count, found)


def _at(storage: Any, entry: store.Entry) -> Tensor:
    """The tensor in a mapped file: no byte is read before it is used."""
    flat = torch.empty(0, dtype=entry.dtype)
    return flat.set_(storage, entry.start // entry.dtype.itemsize, entry.shape)  # type: ignore[call-overload]


def _by_number(what: str) -> list[tuple[str, int]]:
    return [(letters, int(digits or -1)) for letters, digits in re.findall(r"(\D*)(\d*)", what)]


def _arrow_column(layer: Tensor | Ragged) -> Any:
    """One value a row: fixed-size lists of float32, inside a list where rows are ragged."""
    pyarrow = store.arrow()
    flat = torch.cat([layer.values[:0], *layer]) if isinstance(layer, Ragged) else layer
    column = pyarrow.array(flat.float().numpy().reshape(-1))
    for size in reversed(flat.shape[1:]):
        column = pyarrow.FixedSizeListArray.from_arrays(column, size)
    if isinstance(layer, Ragged):
        lengths = (layer.spans[:, 1] - layer.spans[:, 0]).tolist()
        offsets = pyarrow.array(list(accumulate(lengths, initial=0)), pyarrow.int32())
        column = pyarrow.ListArray.from_arrays(offsets, column)
    return column
