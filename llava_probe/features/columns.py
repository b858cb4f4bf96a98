"""Which column of a data set is the picture, which the question: by name, by type or as somebody said.

A data set without a single picture is refused with its columns, and a column that looks like a picture and is not
taken for one is named in a warning. What asks is ``question`` (words for the model's template), ``prompt`` (the whole
text as it is, places for pictures and all), ``messages`` or LLaVA's ``conversations``; or else a ``text``.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from llava_probe.errors import BadInput, shortened
from llava_probe.features.rows import PICTURES, Broken, Row, Source, listed_names
from llava_probe.features.values import (
    Pattern,
    is_address,
    is_empty,
    is_stored,
    looks_like_a_picture,
    plain_value,
    shows_pictures,
)
from llava_probe.pictures.boxes import checked_format

OURS = {  # what we read of a row, by the names that it goes by, the first that is there and not empty
    "id": ("id", "question_id"),
    "image": (
        *("image", "img", "image_path", "img_path", "image_file", "file_name", "filename", "image_name"),
        *("image_url", "img_url", "picture", "photo", "images"),
    ),
    "question": ("question",),
    "prompt": ("prompt",),
    "messages": ("messages", "conversations"),
    "system": ("system", "system_prompt"),
    "answer": ("answer",),
    "mask": ("mask", "segmentation"),
    "boxes": ("boxes", "box", "bbox"),
    "box_format": ("box_format",),
}
ASKING = ("question", "prompt", "messages")
#: A question in many data sets, a caption in as many more: asked only where nothing else is.
WEAK_QUESTION = "text"
#: Numbers of pictures whose file has to be found.
IMAGE_IDS = ("image_id", "imageId", "img_id")
LOOK_ROWS = 100  # how far a column that was asked for may be from the start: it may be missing in some rows


_TAKES = "columns={'image': 'its name'}"
_WITHOUT = "columns={'image': None} for rows without pictures"


@dataclass(frozen=True)
class Columns:
    """What the rows of one source mean.

    Attributes:
        names: ours, and the names that each goes by in the rows.
        together: columns whose pictures a row has one after the other, in place of ``names["image"]``.
        pattern: where the picture of a row lies, in place of both.
        question: for rows that ask nothing; with the columns that it names put in.
        whole: whether that is the whole text of every row, as it is.
        box_format: of boxes whose row does not say.
        pictured: whether rows have pictures.
        alone: whether a row may have none though others do, and the first rows settle nothing.
        alike: letters of what a picture goes by in rows that come later.
        unseen: whether none of the first rows has one, and nobody said where it would be.
        sought: what was asked for and is in none of the first rows.
    """

    names: Mapping[str, tuple[str, ...]]
    together: tuple[str, ...] = ()
    pattern: Pattern | None = None
    question: Pattern | None = None
    whole: bool = False
    box_format: str | None = None
    pictured: bool = True
    alone: bool = False
    alike: frozenset[str] = frozenset()
    unseen: bool = False
    sought: frozenset[str] = frozenset()

    def taken(self, row: Mapping[str, Any], ours: str) -> str | None:
        """Their name of one of ours in this row; None where it holds nothing."""
        exact = next((name for name in self.names[ours] if not is_empty(row.get(name))), None)
        if exact is not None or ours != "image" or not self.alike:
            return exact
        return next((name for name in row if letters(name) in self.alike and not is_empty(row[name])), None)

    def patterned(self, row: Mapping[str, Any]) -> bool:
        """Whether the row's picture lies where ``pattern`` says."""
        named = self.pattern.fields if self.pattern is not None else ()
        return self.pattern is not None and not (self.alone and all(is_empty(row.get(name)) for name in named))

    def shows(self, row: Mapping[str, Any]) -> bool:
        """Whether the row has a picture, beside its chat or inside."""
        return self.taken(row, "image") is not None or _in_chat(self, row)


@dataclass(frozen=True)
class ColumnSettings:
    """What the user says of the columns, as ``read_samples`` takes it."""

    columns: Mapping[str, Any]
    question: str | None = None
    prompt: str | None = None
    images: str | None = None
    box_format: str | None = None
    words_alone: bool = False


def settle(source: Source, asked: ColumnSettings, folder: Path) -> tuple[Columns, Iterator[Row], tuple[str, ...]]:
    """What the columns mean, all rows after a look at the first, and what was settled by looking.

    Args:
        source: whose rows.
        asked: what the user said.
        folder: where pictures lie.

    Raises:
        BadInput: no rows, no pictures, nothing asked, or a column that nobody has.
    """
    names, together = _names({**source.columns, **asked.columns})
    pattern = Pattern(asked.images, "images") if asked.images and "{" in asked.images else None
    ways = {"question": asked.question, "prompt": asked.prompt}
    question = next((Pattern(text, way) for way, text in ways.items() if text is not None), None)
    if asked.prompt is not None:
        names |= dict.fromkeys(ASKING, ())  # it is every row's, and puts in what it names
        names["system"] = tuple(name for name in names["system"] if question is None or name not in question.fields)
    box_format = None if asked.box_format is None else checked_format(asked.box_format)
    said = {name for given in asked.columns.values() for name in as_tuple(given)}
    needed = (
        said | set(source.columns.values()) | {field for each in (pattern, question) if each for field in each.fields}
    )
    told = list(source.told)
    if "image" not in {**source.columns, **asked.columns} and not pattern:
        names["image"] = _typed(source, names, said) or names["image"]
    whole = asked.prompt is not None
    columns = Columns(names, together, pattern, question, whole, box_format or source.box_format)
    seen, rest = _seen(source, columns, needed)
    rows = [row for row in seen if not isinstance(row, Broken)]
    found = dict.fromkeys(name for row in rows for name in row)
    late = needed - found.keys() if asked.words_alone and len(seen) == LOOK_ROWS else set()
    _refuse_missing(source, seen, rows, found, needed - late)
    assigned = {**source.columns, **asked.columns}.keys()
    columns = replace(columns, names=_spelled(names, found, {*assigned}, said), sought=frozenset(late))
    if asked.words_alone:
        alike = set() if "image" in assigned else {*map(letters, names["image"])} - {*map(letters, said)}
        columns = replace(columns, alone=True, alike=frozenset(alike))
    columns = _asking(source, columns, rows, found)
    if columns.pattern is None and not together and names["image"]:
        columns = _picturing(source, columns, rows, found, folder, told, explicit="image" in asked.columns)
    pictured = bool(columns.pattern or columns.together or columns.names["image"])
    columns = replace(columns, pictured=pictured)
    if columns.alone and pictured and columns.pattern is None and not any(map(columns.shows, rows)):
        told.append(f"{source.name}: none of its first rows has a picture")
        columns = replace(columns, unseen="image" not in asked.columns)
    _warn_of_others(source, columns, rows, said)
    return columns, chain(seen, rest), tuple(told)


def as_tuple(given: Any) -> tuple[str, ...]:
    """The names of columns that are assigned to one of ours."""
    if given is None:
        return ()
    return (given,) if isinstance(given, str) else tuple(given)


def _names(assigned: Mapping[str, Any]) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """By which names each of ours goes, those of ``OURS`` that were not assigned to another; several for pictures."""
    taken = {name for given in assigned.values() for name in as_tuple(given)}
    names = {ours: tuple(name for name in theirs if name == ours or name not in taken) for ours, theirs in OURS.items()}
    together = assigned.get("image")
    return names | {ours: as_tuple(theirs) for ours, theirs in assigned.items()}, (
        tuple(together) if isinstance(together, (list, tuple)) else ()
    )


def check_assigned(assigned: Mapping[str, Any]) -> None:
    """Refuse what assigns no column of ours, or assigns it no name.

    Raises:
        BadInput: with what can be assigned.
    """
    if not isinstance(assigned, Mapping):
        raise BadInput(f"columns= takes a dict of our names to theirs, as in {{'image': 'img'}}; got {assigned!r:.80}")
    unknown = ", ".join(sorted(map(repr, assigned.keys() - OURS.keys())))
    if unknown:
        raise BadInput(f"columns= assigns {', '.join(OURS)} and not {unknown}; other columns are carried as they are")
    for ours, theirs in assigned.items():
        one = theirs is None or isinstance(theirs, str)
        several = isinstance(theirs, (list, tuple)) and theirs and all(isinstance(name, str) for name in theirs)
        if not one and not (several and ours == "image"):
            raise BadInput(f"columns= wants the name of a column for {ours!r}, or None; got {shortened(repr(theirs))}")


def _spelled(
    names: Mapping[str, tuple[str, ...]], found: Iterable[str], assigned: set[str], said: set[str]
) -> dict[str, tuple[str, ...]]:
    """With the columns that are ours in another spelling: Image, imagePath, BBox."""
    known = said | {name for theirs in names.values() for name in theirs}
    others = {name: letters(name) for name in found if name not in known}
    return {
        ours: theirs
        if ours in assigned
        else (*theirs, *(other for name in theirs for other in others if others[other] == letters(name)))
        for ours, theirs in names.items()
    }


def letters(name: Any) -> str:
    """Equal for the spellings of a name: ``imagePath``, ``image_path``, ``Image-Path``."""
    return re.sub(r"[ _-]", "", str(name)).casefold()


def _typed(source: Source, names: Mapping[str, tuple[str, ...]], said: set[str]) -> tuple[str, ...]:
    """The column that is a picture by its type; none where no column is."""
    others = said | set(OURS["mask"])
    free = [name for name in source.pictures if name not in others]
    known = [name for name in names["image"] if name in free]
    if len(free) > 1 and not known:
        raise BadInput(
            f"{source.name} has several columns of pictures: {listed_names(free)}; say "
            f"columns={{'image': {free[0]!r}}}, or columns={{'image': {free!r}}} for all of them in a row"
        )
    return tuple(known[:1] or free)


def _seen(source: Source, columns: Columns, needed: set[str]) -> tuple[list[Row], Iterator[Row]]:
    """As many rows as it takes to see that they have what is wanted, and the rest."""
    rows = source.rows()
    seen: list[Row] = []
    found: set[str] = set()
    asks, pictured = columns.question is not None, bool(columns.pattern) or not columns.names["image"]
    for row in islice(rows, LOOK_ROWS):
        seen.append(row)
        if isinstance(row, Broken):
            continue
        found |= row.keys()
        asks = asks or not is_empty(row.get(WEAK_QUESTION)) or any(columns.taken(row, ours) for ours in ASKING)
        pictured = pictured or columns.shows(row)
        if asks and pictured and needed <= found:
            break
    return seen, rows


def _in_chat(columns: Columns, row: Mapping[str, Any]) -> bool:
    chat = row.get(columns.taken(row, "messages") or "")
    return isinstance(chat, Sequence) and all(isinstance(one, Mapping) for one in chat) and shows_pictures(chat)


def _refuse_missing(
    source: Source, seen: list[Row], rows: list[Mapping[str, Any]], found: Mapping[str, None], needed: set[str]
) -> None:
    if not seen:
        raise BadInput(f"{source.name} is empty: it has no rows")
    if not rows:
        broken = next(row.why for row in seen if isinstance(row, Broken))
        raise BadInput(f"{source.name} has no row that can be read: {broken}")
    if missing := ", ".join(sorted(map(repr, needed - found.keys()))):
        raise BadInput(f"{source.name} has no column {missing}; {_has(found)}")


def _has(found: Iterable[str]) -> str:
    return f"the columns are {listed_names(found)}"


def _asking(source: Source, columns: Columns, rows: list[Mapping[str, Any]], found: Iterable[str]) -> Columns:
    """With ``text`` as the question where nothing else asks.

    Raises:
        BadInput: nothing asks, or two columns do.
    """
    ways = {ours: name for row in reversed(rows) for ours in ASKING if (name := columns.taken(row, ours))}
    both = [ours for ours in ASKING if columns.taken(rows[0], ours)]
    if len(both) > 1:
        raise BadInput(
            f"{source.name} asks in two columns, {ways[both[0]]} and {ways[both[1]]}; carry one of them along, as in "
            f"columns={{{both[1]!r}: None}}"
        )
    if ways or columns.question is not None:
        return columns
    free = WEAK_QUESTION not in {name for names in columns.names.values() for name in names}
    if free and columns.names["question"] and any(not is_empty(row.get(WEAK_QUESTION)) for row in rows):
        return replace(columns, names={**columns.names, "question": (*OURS["question"], WEAK_QUESTION)})
    raise BadInput(
        f"{source.name} has no question; {_has(found)}; pass question='...' for all rows or "
        "columns={'question': 'their name'}"
    )


def _picturing(
    source: Source,
    columns: Columns,
    rows: list[Mapping[str, Any]],
    found: Mapping[str, None],
    folder: Path,
    told: list[str],
    *,
    explicit: bool,
) -> Columns:
    """With a column or a pattern for the picture, where none goes by a name of ours.

    Raises:
        BadInput: no row has a picture.
    """
    numbered = _numbered(columns, rows, found, explicit)
    if numbered is not None:
        row = next(row for row in rows if not is_empty(row.get(numbered)))
        pattern = _file_of_number(folder, numbered, plain_value(row[numbered]))
        if pattern is None:
            raise BadInput(
                f"{source.name} names its pictures by {numbered}={shortened(repr(row[numbered]))} and no file in "
                f"{shortened(str(folder))!r} goes by it; pass images= with the folder, or with what a file's name is "
                f"made of, as in images='val2014/COCO_val2014_{{{numbered}:012}}.jpg'; or {_WITHOUT}"
            )
        told.append(f"pictures are {pattern}")
        return replace(columns, pattern=Pattern(pattern, "images"))
    if explicit or any(map(columns.shows, rows)):
        return columns
    others = {name for names in columns.names.values() for name in names}
    sure = [name for name in found if name not in others and any(is_stored(row.get(name)) for row in rows)]
    if len(sure) == 1:
        return replace(columns, names={**columns.names, "image": (*columns.names["image"], sure[0])})
    like = [name for name in found if name not in others and any(looks_like_a_picture(row.get(name)) for row in rows)]
    if columns.alone and not like:
        return columns
    named = f"; {like[0]} looks like one: columns={{'image': {like[0]!r}}}" if like else f"; name it with {_TAKES}"
    reach = f" in its first {LOOK_ROWS} rows" if len(rows) >= LOOK_ROWS else ""
    raise BadInput(f"{source.name} has no picture{reach}; {_has(found)}{named}, or say {_WITHOUT}")


def _numbered(columns: Columns, rows: list[Mapping[str, Any]], found: Mapping[str, None], explicit: bool) -> str | None:
    """The column that holds a picture's number, where no column holds the picture."""
    names = columns.names["image"] if explicit else IMAGE_IDS
    if not explicit and any(columns.taken(row, "image") for row in rows):
        return None
    for name in names:
        values = [row[name] for row in rows if not is_empty(row.get(name))]
        if values and all(_is_bare(value) or type(plain_value(value)) is int for value in values):
            return name
    return None


def _is_bare(value: Any) -> bool:
    """A name without a suffix or a folder, such as an id."""
    return isinstance(value, str) and not Path(value).suffix and not is_address(value) and "/" not in value


def _file_of_number(folder: Path, name: str, number: Any) -> str | None:
    """The pattern by which the first picture's file is found: its number, with twelve digits, or as COCO's splits."""
    digits = str(number)
    whole = digits.isdecimal()
    if (folder / digits).is_file():
        return f"{_braced(folder)}/{{{name}}}"
    for suffix in sorted(PICTURES, key=[".jpg", ".png"].__contains__, reverse=True):
        if (folder / f"{digits}{suffix}").is_file():
            return f"{_braced(folder)}/{{{name}}}{suffix}"
        if whole and (folder / f"{int(digits):012}{suffix}").is_file():
            return f"{_braced(folder)}/{{{name}:012}}{suffix}"
    found = sorted(folder.glob(f"COCO_*_{int(digits):012}.jpg")) if whole and folder.is_dir() else []
    if len(found) == 1:
        return f"{_braced(folder)}/{found[0].name.rpartition('_')[0]}_{{{name}:012}}.jpg"
    return None


def _braced(folder: Path) -> str:
    return str(folder).replace("{", "{{").replace("}", "}}")


def _warn_of_others(source: Source, columns: Columns, rows: list[Mapping[str, Any]], said: set[str]) -> None:
    """Name the columns that look like pictures and are none of what is read."""
    read = {name for ours, names in columns.names.items() if ours != "image" for name in names} | said
    read |= {*columns.together, *(columns.pattern.fields if columns.pattern else ())}
    others: dict[str, None] = {}
    for row in rows[:1]:
        taken = None if columns.pattern or columns.together else columns.taken(row, "image")
        same = _file_name(row.get(taken)) if taken else None
        for name, value in row.items():
            named_alike = isinstance(value, str) and (name in OURS["image"] or _file_name(value) == same)
            if name != taken and name not in read and not named_alike and looks_like_a_picture(value):
                others[name] = None
    if others and columns.names["image"]:
        one = next(iter(others))
        warnings.warn(
            f"{listed_names(others)} of {source.name} look{'s' * (len(others) == 1)} like a picture and "
            f"{'is' if len(others) == 1 else 'are'} only carried along; take it with columns={{'image': {one!r}}} or "
            f"columns={{'mask': {one!r}}}, several pictures with columns={{'image': [...]}}",
            stacklevel=5,
        )


def _file_name(value: Any) -> str | None:
    return Path(value).name if isinstance(value, str) and len(value) < 4096 else None
