"""From a data set to samples: a picture, a question and whatever else its row carries.

Data sets name their columns as they like and some of their lines are broken. Both are settled here, one row at a time:

    samples = read_samples("coco_pope_random.jsonl", images="val2014")
    for sample in samples:
        sample.image, sample.question, sample.columns["label"]

A row that cannot be used becomes a sample with a ``fault``, in its place; it does not end the loop.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

from PIL import Image

from llava_probe.errors import BadImage, BadInput, refusing, shortened
from llava_probe.features.sources import Broken, Row, Source, open_source
from llava_probe.pictures.images import fingerprint, open_image

OURS = {  # what we read of a row, by the names that it goes by, the first that is there and not empty
    "id": ("id", "question_id"),
    "image": ("image", "image_path", "file_name", "images"),
    "question": ("question", "text", "prompt"),
    "answer": ("answer",),
    "mask": ("mask",),
    "boxes": ("boxes", "box", "bbox"),
}
LOOK_ROWS = 100  # how far a column that was asked for may be from the start: it may be missing in some rows
KEY_DIGITS = 32  # 128 bits of sha256: no two pictures of any data set meet

_ADDRESS = re.compile(r"(data):|[a-z][a-z0-9+.-]+://", re.IGNORECASE)  # as ``open_image`` tells them from paths
_MASK_FORMATS = ("PNG", "BMP", "GIF", "TIFF", "WEBP", "JPEG")  # none that PIL hands to another program

Box = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Sample:
    """One row of a data set.

    Attributes:
        row: its place in the source, from 0.
        id: the column id, else the row's number.
        image: what ``open_image`` takes: an absolute path, a URL, bytes, a PIL picture or an array; a list of
            several; None where the row has no picture.
        question: None only with a ``fault``.
        answer: what the model is made to say, teacher-forced; None: it says what it likes.
        mask: an absolute path, a PIL picture or a bool array [H, W]; None where there is none.
        boxes: (x0, y0, x1, y1) in pixels of the original picture.
        columns: every other column of the row, as plain values.
        fault: why the row cannot be used, in a sentence.
    """

    row: int
    id: str
    image: Any
    question: str | None
    answer: str | None = None
    mask: Any = None
    boxes: tuple[Box, ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)
    fault: str | None = None

    @property
    def images(self) -> list[Any]:
        """Its pictures: none, one or several."""
        if self.image is None:
            return []
        return list(self.image) if isinstance(self.image, list | tuple) else [self.image]

    @cached_property
    def picture(self) -> str:
        """A key, equal for samples of the same picture and in every process: its path, its URL or a sha256."""
        return _picture_key(self.image)


class Samples:
    """The samples of one source; each loop reads them anew, unless the source is an iterator.

    Attributes:
        name: the file, folder, data set or type that they come from.
    """

    def __init__(self, source: Source, question: str | None, assigned: Mapping[str, str | None], folder: Path):
        self.name = source.name
        self._source = source
        self._question = question
        self._names = _names(assigned)
        self._folder = folder
        looked_at = _look(source, question, self._names["question"], {*assigned.values()} - {None})
        self._rest = looked_at if source.once else None

    @cached_property
    def count(self) -> int | None:
        """How many there are, faults included; None where only reading everything would tell."""
        return self._source.count()

    def __iter__(self) -> Iterator[Sample]:
        for place, row in enumerate(self._rows()):
            yield _sample(place, row, self._question, self._names, self._folder)

    def _rows(self) -> Iterator[Row]:
        if not self._source.once:
            return self._source.rows()
        if self._rest is None:
            raise BadInput(f"the {self.name} was read before and cannot be read twice; pass a list or a file")
        rest, self._rest = self._rest, None
        return rest


def read_samples(
    source: Any,
    *,
    question: str | None = None,
    columns: Mapping[str, str | None] | None = None,
    images: str | os.PathLike[str] | None = None,
    split: str | None = None,
) -> Samples:
    """The samples of a data set, read as they are asked for and never held all at once.

    Args:
        source: a .jsonl, .ndjson, .csv, .tsv or .parquet file; a .json file with a list of objects, which alone is
            read whole; a folder of pictures, with the metadata file of Hugging Face's imagefolder if it has one; a
            folder or an object of Hugging Face's ``datasets``, or a data set's name; or an iterable of dicts.
        question: for the rows that have none. A ``text`` or ``prompt`` counts as one: where it is a caption, say
            ``columns={"question": None}``.
        columns: which of their columns is ours, as in ``{"question": "caption"}``, where it goes by none of the
            names in ``OURS``. None, as in ``{"answer": None}``, carries theirs along in ``Sample.columns`` instead.
        images: the folder where relative paths of pictures and masks start; by default the file's own folder.
        split: of a Hugging Face data set.

    Raises:
        BadInput: nothing is there, it is of no known kind or empty, a column that was asked for is in none of the
            first ``LOOK_ROWS`` rows, or none of them has a question and none was given.
    """
    opened = open_source(source, split)
    assigned = {**opened.columns, **(columns or {})}
    folder = Path.cwd() if opened.folder is None else opened.folder
    if images is not None:
        folder = Path(images).expanduser().absolute()
        if not folder.is_dir():
            raise BadInput(f"images={shortened(str(images))!r} is no folder; pass the one where relative paths start")
    return Samples(opened, question, assigned, folder)


def digest(samples: Iterable[Sample]) -> str:
    """Sha256 in hex of what the samples ask for, the same in every process: another digest is another data set.

    Pictures and masks in files count by their paths, not by what the files hold.
    """
    hashed = hashlib.sha256()
    for sample in samples:
        asked = [sample.id, sample.picture, sample.question, sample.answer, sample.boxes, _picture_key(sample.mask)]
        hashed.update(json.dumps([*asked, dict(sample.columns)], sort_keys=True).encode() + b"\n")
    return hashed.hexdigest()


def _names(assigned: Mapping[str, str | None]) -> dict[str, tuple[str, ...]]:
    """By which names each of ours goes in the rows: those of ``OURS`` that were not assigned to another."""
    unknown = ", ".join(sorted(map(repr, assigned.keys() - OURS.keys())))
    if unknown:
        raise BadInput(f"columns= assigns {', '.join(OURS)} and not {unknown}; other columns are carried as they are")
    taken = set(assigned.values())
    names = {ours: tuple(name for name in theirs if name == ours or name not in taken) for ours, theirs in OURS.items()}
    return names | {ours: () if theirs is None else (theirs,) for ours, theirs in assigned.items()}


def _look(source: Source, question: str | None, questions: tuple[str, ...], asked: Set[str | None]) -> Iterator[Row]:
    """All rows, after as many as it took to see that they have what was asked for."""
    rows = source.rows()
    seen: list[Row] = []
    found: dict[str, None] = {}  # columns in the order of their appearance
    has_question = question is not None
    for row in islice(rows, LOOK_ROWS):
        seen.append(row)
        if not isinstance(row, Broken):
            found |= dict.fromkeys(row)
            has_question = has_question or _taken(row, questions) is not None
            if has_question and asked <= found.keys():
                return chain(seen, rows)
    broken = [row.why for row in seen if isinstance(row, Broken)]
    if not seen:
        raise BadInput(f"{source.name} is empty: it has no rows")
    if len(broken) == len(seen):
        raise BadInput(f"{source.name} has no row that can be read: {broken[0]}")
    has = f"the columns are {shortened(', '.join(map(str, found)))}"
    missing = ", ".join(sorted(map(repr, asked - found.keys())))
    if missing:
        raise BadInput(f"{source.name} has no column {missing}; {has}")
    instead = "pass question='...' for all rows or columns={'question': 'their name'}"
    raise BadInput(f"{source.name} has no question; {has}; {instead}")


def _taken(row: Mapping[str, Any], names: Iterable[str]) -> str | None:
    """The first of the names under which the row holds something."""
    return next((name for name in names if not _is_empty(row.get(name))), None)


def _is_empty(value: Any) -> bool:
    """Also NaN, which is how pandas writes that there is nothing."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, (str, list, tuple)) and not value)


def _sample(place: int, row: Row, question: str | None, names: Mapping[str, tuple[str, ...]], folder: Path) -> Sample:
    if isinstance(row, Broken):
        return Sample(place, str(place), None, None, fault=row.why)
    taken = {ours: _taken(row, theirs) for ours, theirs in names.items()}
    # an empty column of ours is not carried either, unless it was the user who said that it is not ours
    ours = {*taken.values(), *(theirs[0] for theirs in names.values() if theirs)}
    columns = {str(name): _plain(value) for name, value in row.items() if name not in ours}
    readers = {
        "id": _text,
        "image": lambda value: _image(value, folder),
        "question": _text,
        "answer": _text,
        "mask": lambda value: _mask(value, folder),
        "boxes": _boxes,
    }
    read: dict[str, Any] = {"id": str(place), "image": None, "question": question}
    faults = []
    for name, theirs in taken.items():
        if theirs is not None:
            try:
                read[name] = readers[name](row[theirs])
            except BadInput as error:
                faults.append(f"{theirs} {error}")
    if taken["question"] is None and question is None:
        faults.append("the row has no question")
    return Sample(place, **read, columns=columns, fault=faults[0] if faults else None)


def _text(value: Any) -> str:
    value = _plain(value)
    if isinstance(value, (str, int, float)):
        return str(value)
    raise BadInput(f"is a {type(value).__name__}, not a text")


def _image(value: Any, folder: Path) -> Any:
    if not isinstance(value, (list, tuple)):
        return _one_image(value, folder)
    return [_one_image(one, folder) for one in value]


def _one_image(value: Any, folder: Path) -> Any:
    if isinstance(value, Mapping):  # as Hugging Face keeps pictures
        value = value.get("bytes") or value.get("path")
    if isinstance(value, (str, os.PathLike)):
        return _located(os.fspath(value), folder)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, Image.Image) or _is_array(value):
        return value
    raise BadInput(f"is of type {type(value).__name__}, not a path, URL, bytes, PIL picture or array")


def _located(text: str, folder: Path) -> str:
    if _ADDRESS.match(text):
        return text
    if text.startswith("~/"):
        return str(Path(text).expanduser())
    return os.path.join(folder, text)  # noqa: PTH118  # pathlib interns every name that it sees: memory that grows


def _is_array(value: Any) -> bool:
    """Also of a tensor; not of a numpy scalar."""
    return hasattr(value, "__array__") and getattr(value, "ndim", 0) > 0


def _mask(value: Any, folder: Path) -> Any:
    import numpy as np

    if not (_is_array(value) or isinstance(value, (list, tuple))):
        value = _one_image(value, folder)
        if not isinstance(value, bytes):
            return value
        try:
            return Image.open(io.BytesIO(value), formats=_MASK_FORMATS)
        except Exception:  # PIL's alarm about size is no OSError
            raise BadInput(f"is no picture of {', '.join(_MASK_FORMATS)}") from None
    with refusing("is no array"):
        array = np.asarray(value.cpu() if hasattr(value, "cpu") else value)
    if array.ndim != 2 or array.dtype.kind not in "bui":
        raise BadInput(f"is an array of shape {array.shape} and dtype {array.dtype}; pass [H, W] of bool")
    return array != 0


def _boxes(value: Any) -> tuple[Box, ...]:
    expected = "pass (x0, y0, x1, y1) or a list of them, in pixels, or carry it with columns={'boxes': None}"
    try:
        value = json.loads(value) if isinstance(value, str) else _plain(value)  # a text in a .csv
        rows = value if not value or isinstance(value[0], (list, tuple)) else [value]
        boxes = tuple((float(x0), float(y0), float(x1), float(y1)) for x0, y0, x1, y1 in rows)
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
        raise BadInput(f"cannot be read as boxes: {shortened(repr(value))}; {expected}") from None
    for box in boxes:
        x0, y0, x1, y1 = box
        if not (all(map(math.isfinite, box)) and x0 < x1 and y0 < y1):
            raise BadInput(f"holds {box}, which is no box (or x, y, width, height?); {expected}")
    return boxes


def _plain(value: Any) -> Any:
    """The value as str, int, float, bool, None or lists and dicts of those; a picture as its key."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(_plain, value), key=str)  # a set's own order differs between processes
    if isinstance(value, (bytes, Image.Image)):
        return _picture_key(value)
    if hasattr(value, "tolist"):  # numpy and torch, scalars among them
        listed = value.tolist()
        return _plain(listed) if type(listed) is not type(value) else str(value)
    return str(value)


def _picture_key(image: Any) -> str:
    if image is None:
        return ""
    if isinstance(image, (list, tuple)):
        return "|".join(map(_picture_key, image))
    if isinstance(image, (str, os.PathLike)):
        text = os.fspath(image)
        address = _ADDRESS.match(text)
        return _short_hash(text.encode("utf-8", "surrogatepass")) if address and address[1] else text
    if isinstance(image, bytes):
        return _short_hash(image)
    try:
        return f"sha256:{fingerprint(open_image(image))[:KEY_DIGITS]}"
    except BadImage as error:  # such samples fail alike, when their picture is opened
        return f"unreadable: {error}"


def _short_hash(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()[:KEY_DIGITS]}"
