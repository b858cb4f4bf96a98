"""Rows of what is held column by column: pandas' and polars' frames, Arrow's tables, dicts of lists.

by_column({"image": ["a.jpg", "b.jpg"], "question": ["What?", "Where?"]})    # (2, two dicts)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from llava_probe.errors import BadInput, shortened
from llava_probe.features.rows import Row

#: What gives one row of a frame, by the name of the class and the first part of its module.
_FRAMES: Mapping[tuple[str, str], Callable[[Any, int], Mapping[str, Any]]] = {
    ("pandas", "DataFrame"): lambda frame, place: {str(name): frame[name].iloc[place] for name in frame.columns},
    ("polars", "DataFrame"): lambda frame, place: frame.row(place, named=True),
    ("pyarrow", "Table"): lambda table, place: table.slice(place, 1).to_pylist()[0],
}


def by_column(held: Any) -> tuple[int, Callable[[], Iterator[Row]]] | None:
    """How many rows are held by column, and what gives them; None where ``held`` is something else.

    Raises:
        BadInput: columns of several lengths, or two of one name.
    """
    kinds = [(kind.__module__.partition(".")[0], kind.__name__) for kind in type(held).__mro__]
    one = next((_FRAMES[kind] for kind in kinds if kind in _FRAMES), None)
    if one is not None:
        names = [str(name) for name in getattr(held, "column_names", None) or held.columns]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise BadInput(f"{type(held).__name__} has two columns {twice[0]!r}; rename one")
        return len(held), lambda: (one(held, place) for place in range(len(held)))
    if not isinstance(held, Mapping) or not held or not all(map(_is_column, held.values())):
        return None
    lengths = {str(name): len(column) for name, column in held.items()}
    if len({*lengths.values()}) > 1:
        told = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise BadInput(f"the columns of a {type(held).__name__} have several lengths ({shortened(told)})")
    count = next(iter(lengths.values()))
    return count, lambda: ({str(name): held[name][place] for name in held} for place in range(count))


def _is_column(value: Any) -> bool:
    """A list of values, or an array of them."""
    return (isinstance(value, Sequence) and not isinstance(value, (str, bytes))) or getattr(value, "ndim", 0) > 0
