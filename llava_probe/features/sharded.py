"""One layer that lies in several files, as one tensor: what was written shard by shard is used as a whole.

``layer[:1000]`` reads a thousand rows of whichever shards hold them; anything else that torch does sees all rows.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llava_probe.errors import BadInput, OutOfRange
from llava_probe.inside import seam


@dataclass(frozen=True)
class Parts:
    """What a ``ShardedTensor`` is made of: ``part(i)`` maps the tensor of shard i, ``counts[i]`` rows."""

    part: Callable[[int], Tensor]
    counts: Sequence[int]
    row_shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """That of all rows: [rows, ...]."""
        return (sum(self.counts), *self.row_shape)

    def whole(self) -> Tensor:
        """All rows in memory."""
        made = torch.empty(self.shape, dtype=self.dtype)
        for place, start in enumerate(self.starts()):
            made[start : start + self.counts[place]] = self.part(place)
        return made

    def starts(self) -> list[int]:
        """The first row of each shard."""
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

    _parts: Parts

    @staticmethod
    def __new__(cls, parts: Parts) -> ShardedTensor:  # noqa: D102 - Tensor's own
        shown = torch.full((1,), torch.nan if parts.dtype.is_floating_point else -1).to(parts.dtype)
        made: ShardedTensor = seam.shown_as(cls, shown.expand(parts.shape))  # NaN: what slipped past us would show
        made._parts = parts
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _COSTLESS:
            return seam.as_plain_tensor(func, args, kwargs)
        name = getattr(func, "__name__", "")
        if name in _WRITING or (name.endswith("_") and not name.endswith("__")) or _holds(kwargs.get("out")):
            raise BadInput(f"{name} would write to a feature store; take .clone() of the rows first")
        return func(*_plain(args), **_plain(kwargs))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch calls it so, its stub says otherwise
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """What comes past ``__torch_function__``, like ``torch.as_tensor(t, dtype=...)``, from within torch."""
        if seam.writes(func):
            raise BadInput(f"{func} would write to a feature store; take .clone() of the rows first")
        return func(*_plain(args), **_plain(kwargs or {}))

    def __getitem__(self, key: Any) -> Tensor:  # type: ignore[override]
        first, *rest = (key or (...,)) if isinstance(key, tuple) else (key,)
        if isinstance(first, slice):
            try:
                rows_of = range(*first.indices(len(self)))
            except (TypeError, ValueError) as error:
                raise BadInput(f"rows are picked by a slice of whole numbers, not by {first!r}") from error
            if rows_of.step > 0:
                return self._sliced(rows_of, rest)
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
