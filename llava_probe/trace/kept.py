"""Where positions, layers and heads stand along the axes of what was kept, and what would have kept those that are not.

A trace keeps a selection of positions, of layers and of heads; a reader names them by the model's own numbers.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from llava_probe.errors import BadInput, NotCaptured, OutOfRange
from llava_probe.trace.explained import (
    ALL,
    ANSWER,
    GENERATED,
    IMAGE,
    LAST,
    PREDICTING,
    PROMPT,
    TEXT,
    At,
    InTokens,
    Place,
    place_named,
    positions,
)

#: More missing positions than this are not listed one by one.
_LISTED = 9

#: How ``Capture`` spells the places that it can keep.
_KEPT_AS: dict[Place | None, str] = {each: each.name for each in (PREDICTING, ALL, PROMPT, IMAGE, TEXT)}
_KEPT_AS[LAST] = "last_prompt"


def kept_rows(written: InTokens, at: At, kept: tuple[int, ...], what: str, field_name: str) -> list[int]:
    """Where the positions that ``at`` names stand along an axis that holds the positions ``kept``.

    Args:
        written: the trace.
        at: as for ``positions``.
        kept: the positions along the axis.
        what: is read, and ``field_name``: which field of ``Capture`` keeps it, for the error.

    Raises:
        NotCaptured: a position that was not kept; the message says what would have kept it.
    """
    index = {position: row for row, position in enumerate(kept)}
    wanted, place = positions(written, at), place_named(at)
    last = len(written.tokens) - 1
    if place in (GENERATED, ANSWER):
        wanted = [position for position in wanted if position != last]  # it was never fed to the model
    missing = [position for position in wanted if position not in index]
    if missing:
        if missing == [last]:
            raise NotCaptured(
                f"{what} at position {last} do not exist: the last token was never fed to the model; "
                "at=lp.PREDICTING reads where each token of the answer was predicted"
            )
        in_prompt = [position for position in missing if position < written.prompt_length]
        named: list[str | int] = [*in_prompt] if len(in_prompt) < _LISTED else ["all"]
        if place in _KEPT_AS:
            named = [_KEPT_AS[place]]
        advice: list[str | int] = list(dict.fromkeys(["predicting", *named]))
        raise NotCaptured(
            f"{what} at {told_positions(missing)} were not kept, only at {told_positions(kept)}; "
            f"pass Capture({field_name}={advice})"
        )
    return [index[position] for position in wanted]


def kept_columns(
    wanted: int | Sequence[int] | None,
    kept: tuple[int, ...],
    total: int,
    what: str,
    field_name: str,
    others: Mapping[int, str] | None = None,
) -> list[int]:
    """Where the layers or heads that are wanted stand along an axis that holds ``kept`` of ``total``; None: all.

    Args:
        wanted: the model's own numbers, negative from the end.
        kept, total, what, field_name: as for ``kept_rows``.
        others: what kind of layer those are that have nothing of this sort to keep.

    Raises:
        OutOfRange: a number that the model does not have.
        NotCaptured: one that was not kept.
    """
    if wanted is None:
        return list(range(len(kept)))
    columns = []
    listed: Any = [wanted] if _single(wanted) else wanted
    for given in listed:
        number = _index(given, what)
        if not -total <= number < total:
            raise OutOfRange(f"{what} {number} is not there: this model has 0 to {total - 1}")
        if number % total not in kept:
            number %= total
            kind = (others or {}).get(number)
            if kind is not None:
                raise OutOfRange(f"{what} {number} does not exist: that layer is {kind}")
            raise NotCaptured(f"{what} {number} were not kept; pass Capture({field_name}=[{number}])")
        columns.append(kept.index(number % total))
    return columns


def _single(given: Any) -> bool:
    """Whether one number was given: Python's, NumPy's or a tensor's."""
    return isinstance(given, Integral) or getattr(given, "ndim", None) == 0


def _index(given: Any, what: str) -> int:
    try:
        return operator.index(given)
    except TypeError:
        raise BadInput(f"{what} is named by a whole number; got {given!r}") from None


def picked(record: Tensor, *axes: Sequence[int]) -> Tensor:
    """The entries of the first axes that are listed, in one copy."""
    wanted = [torch.tensor(axis, dtype=torch.long) for axis in axes]
    return record[torch.meshgrid(*wanted, indexing="ij")]


def squeezed(found: Tensor, *named: Any) -> Tensor:
    """Without the first axes that a single number named."""
    for axis in reversed(range(len(named))):
        if _single(named[axis]):
            found = found.squeeze(axis)
    return found


def told_positions(places: Sequence[int]) -> str:
    """Positions as an error tells them: how many, and from where to where."""
    if not places:
        return "no position"
    if len(places) == 1:
        return f"position {places[0]}"
    return f"{len(places)} positions from {min(places)} to {max(places)}"
