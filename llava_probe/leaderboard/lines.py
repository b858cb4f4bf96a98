"""One line of scores and what a folder of them was made with, by type: what is read is what ``scoring.py`` writes.

A line that is something else is refused by its number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from llava_probe.described import Natural
from llava_probe.errors import BadFile
from llava_probe.json_lines import each_line
from llava_probe.stored import converted

#: No score, time or count is larger; sums of larger ones overflow.
_LARGEST = 1e12


class CaseScores(TypedDict):
    """What one map scored on one case, each larger when better."""

    touches: float
    inside: float
    precision: float
    energy: float
    iou: float
    otsu: float


class EntryScores(TypedDict):
    """What one entry scored on one question, or why it was ``refused``; ``seconds`` are of a word, passes of all."""

    refused: NotRequired[str]
    seconds: NotRequired[float]
    forwards: NotRequired[float]
    backwards: NotRequired[float]
    cases: NotRequired[list[CaseScores]]
    deletion: NotRequired[float]
    insertion: NotRequired[float]
    tam: NotRequired[tuple[float, float]]


class LineAgreement(TypedDict):
    """Rank correlations of each two entries' maps, [names, names]."""

    names: list[str]
    values: list[list[float]]


LineRemoval = TypedDict(
    "LineRemoval",
    {
        "whole": float,
        "without its tokens": float,
        "its tokens alone": float,
        "without others": float,
        "without its pixels": float,
    },
)


class Line(TypedDict):
    """One question; ``asked`` is a digest of it and its masks. Without entries where it was not answered right."""

    question: str
    picture: str
    kind: str
    answer: str
    right: bool
    blind: bool
    cases: list[str]
    asked: NotRequired[str]
    entries: NotRequired[dict[str, EntryScores]]
    random: NotRequired[dict[str, list[CaseScores]]]
    removal: NotRequired[LineRemoval]
    agreement: NotRequired[LineAgreement]


class ChosenHeads(TypedDict):
    """Localisation heads, (layer, head) each, and how many samples chose them."""

    samples: Natural
    chosen: list[tuple[Natural, Natural]]


class EntryMade(TypedDict):
    """A method and its options, of which the heads alone are read again."""

    method: NotRequired[str]
    heads: NotRequired[ChosenHeads | None]


class Made(TypedDict):
    """The model and the plan of a folder of scores."""

    model: NotRequired[dict[str, Any]]
    processor: NotRequired[str]
    interventions: NotRequired[list[dict[str, Any]]]
    entries: NotRequired[dict[str, EntryMade]]
    closer: NotRequired[Natural]
    random: NotRequired[Natural]
    own: NotRequired[list[str]]
    code: NotRequired[dict[str, str]]


def read_scores(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """The finished questions of some files.

    Raises:
        BadFile: a line is damaged, or none of ours; its number is told.
    """
    for path in paths:
        for where, plain in each_line("file of scores", path):
            _check_line(plain, where)
            yield plain


def _check_line(plain: dict[str, Any], what: str) -> None:
    line = converted(f"{what} is damaged", plain, Line)
    if any(not abs(number) <= _LARGEST for number in _floats(plain) if not math.isnan(number)):
        raise BadFile(f"{what} is damaged: it holds a number beyond {_LARGEST:.0e}")
    if line["right"] and not any("cases" in found for found in line.get("entries", {}).values()):
        raise BadFile(f"{what} is damaged: it was answered right, and no entry has scores")
    for name, found in line.get("entries", {}).items():
        if "seconds" in found and not found.keys() >= {"forwards", "backwards"}:
            raise BadFile(f"{what} is damaged: {name!r} has seconds without passes")
    alike = line.get("agreement")
    if alike is not None and {len(alike["values"]), *map(len, alike["values"])} - {len(alike["names"])}:
        raise BadFile(f"{what} is damaged: its agreement is not of {len(alike['names'])} entries with each other")


def _floats(plain: Any) -> Iterator[float]:
    if isinstance(plain, Mapping):
        plain = list(plain.values())
    if isinstance(plain, list):
        for each in plain:
            yield from _floats(each)
    elif isinstance(plain, float | int):
        yield plain
