"""Of what a method tells of its map, the parts that are read again: each is in its form, or is told as wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llava_probe.errors import shortened


def wrong_about(about: Mapping[str, Any], rows: int) -> Iterator[str]:
    """What is wrong with ``about``, a sentence each.

    Args:
        about: ``"contrast"``, a word or None for each row; ``"positions"``, the row's tokens' for each; ``"unit"``.
        rows: of the map.
    """
    weighed, spans, unit = about.get("contrast"), about.get("positions"), about.get("unit", "")
    if weighed is not None and not (_listed(weighed, rows) and all(isinstance(each, str | None) for each in weighed)):
        yield f"its contrast is no list of {rows} words"
    if spans is not None and not (_listed(spans, rows) and all(map(_are_positions, spans))):
        yield f"its positions are no list of {rows} lists of positions"
    if not isinstance(unit, str):
        yield f"its unit is {shortened(repr(unit))}, no text"


def _listed(value: Any, rows: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == rows


def _are_positions(value: Any) -> bool:
    return isinstance(value, list | tuple | range) and all(type(each) is int and each >= 0 for each in value)
