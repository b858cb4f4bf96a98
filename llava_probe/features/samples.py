"""From a data set to samples: a picture, a question and whatever else its row carries.

Data sets name their columns as they like and some of their lines are broken. Both are settled here, one row at a time:

    samples = read_samples("coco_pope_random.json", images="val2014")
    for sample in samples:
        sample.image, sample.question, sample.columns["label"]

A row that cannot be used becomes a sample with a ``fault``, in its place; it does not end the loop.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from llava_probe.errors import BadInput, shortened
from llava_probe.features import values
from llava_probe.features.columns import ASKING, OURS, Columns, ColumnSettings, check_assigned, settle
from llava_probe.features.rows import Broken, Row, Source, blamed, line_of
from llava_probe.features.sources import joined_with, open_source
from llava_probe.pictures.boxes import Box, checked_format, read_boxes, unstated


@dataclass(frozen=True, eq=False)
class Sample:
    """One row of a data set.

    Attributes:
        row: its place in the source, from 0.
        id: the column id, else the row's number.
        image: what ``open_image`` takes: an absolute path, a URL, bytes, a PIL picture or an array; a list of
            several; None where the row has no picture.
        question: words for the model's template; None where ``prompt`` or ``messages`` asks, or with a ``fault``.
        answer: what the model is made to say, teacher-forced; None: it says what it likes.
        mask: as ``regions.read_mask`` takes it, paths absolute; None where there is none.
        boxes: four numbers each, as the row has them; their meaning is ``box_format``.
        columns: every other column of the row, as plain values.
        fault: why the row cannot be used, in a sentence.
        prompt: the whole text as it is, with the places for pictures.
        messages: a whole chat.
        box_format: one of ``BOX_FORMATS``; None only without boxes.
        system: a system prompt of its own.
        line: of a text file, the one that it ends on, from 1; None where it stands on none.
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
    prompt: str | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    box_format: str | None = None
    system: str | None = None
    line: int | None = None

    @property
    def images(self) -> list[Any]:
        """Its pictures: none, one or several; those inside ``messages`` are not among them."""
        if self.image is None:
            return []
        return list(self.image) if isinstance(self.image, list | tuple) else [self.image]

    @cached_property
    def picture(self) -> str:
        """A key, equal for samples of the same picture and in every process: its path, its URL or a sha256."""
        if self.image is None and self.messages is not None:
            return values.chat_key(self.messages)
        return values.picture_key(self.image)

    @property
    def asking(self) -> dict[str, Any]:
        """How ``generate`` is asked, besides the picture."""
        ways = ("question", "prompt", "messages", "system")
        return {way: told for way in ways if (told := getattr(self, way)) is not None}

    @property
    def group(self) -> str:
        """A key, equal for samples about one picture, which belong together; of a row without one its own."""
        return self.picture or f"row {self.row}"

    @property
    def words(self) -> str | None:
        """What was asked, to be read: the question, the prompt, or the last that the user says in the chat."""
        if self.question is not None or self.messages is None:
            return self.question if self.question is not None else self.prompt
        said = [message for message in self.messages if message.get("role") == "user"]
        whole = [message["content"] for message in said if isinstance(message.get("content"), str)]
        texts = [str(part["text"]) for part in values.parts_of(said) if part.get("text")]
        return (texts or whole or [None])[-1]

    @property
    def unstated(self) -> str | None:
        """The column of its boxes, where nobody said what their numbers mean: they are carried along, not read."""
        return next((name for name in OURS["boxes"] if self.columns.get(name)), None) if not self.boxes else None

    def placed(self, size: tuple[int, int]) -> Any:
        """[height, width] bool: where its mask, or its boxes, lie on a picture of that (width, height).

        Raises:
            BadInput: it has neither, or they cannot be read.
        """
        from llava_probe.pictures.regions import inside  # numpy, which reading a data set does not need

        if self.mask is None and not self.boxes:
            if self.unstated is not None:
                raise unstated(self.unstated)
            has = shortened(", ".join(self.columns)) or "none"
            raise BadInput(
                f"the sample has neither a mask nor boxes; it has other columns ({has}), one of which may be named by "
                "columns={'mask': ...} or columns={'boxes': ...}"
            )
        return inside(self.mask, self.boxes, self.box_format or "", size)


class Samples:
    """The samples of one source; each loop reads them anew, unless the source is an iterator.

    Attributes:
        name: the file, folder, data set or type that they come from.
        told: what was settled by looking into it, in sentences.
        box_format: of its boxes, where rows do not say; None where nothing is stated.
    """

    def __init__(self, source: Source, asked: ColumnSettings, folder: Path) -> None:
        self.name = source.name
        self._source = source
        self._folder = folder
        self._columns, looked_at, self.told = settle(source, asked, folder)
        self.box_format = self._columns.box_format
        self._rest = looked_at if source.once else None

    @cached_property
    def count(self) -> int | None:
        """How many there are, faults included; None where only reading everything would tell."""
        return self._source.count()

    def __iter__(self) -> Iterator[Sample]:
        total = blind = 0
        unasked = self._columns.question is not None
        sought = {*self._columns.sought}
        for place, row in enumerate(self._rows()):
            sample = _sample(place, row, self._columns, self._folder)
            if sample.fault is None:
                total += 1
                inside = sample.messages is not None and values.shows_pictures(sample.messages)
                blind += sample.image is None and not inside
                unasked = unasked and _asks(row, self._columns)
            sought -= set() if isinstance(row, Broken) else row.keys()
            yield sample
        if sought:
            raise BadInput(
                f"no row of {self.name} that can be read has a column {', '.join(sorted(map(repr, sought)))}"
            )
        if blind and self._columns.pictured:
            warnings.warn(f"{blind:,} of {total:,} rows of {self.name} have no picture: words alone ask", stacklevel=2)
        if unasked and total:
            own = "question='...' was not asked: every row of"
            warnings.warn(f"{own} {self.name} has its own; columns={{'question': None}} carries those", stacklevel=2)

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
    prompt: str | None = None,
    columns: Mapping[str, Any] | None = None,
    images: str | os.PathLike[str] | None = None,
    split: str | None = None,
    box_format: str | None = None,
    answers: Any = None,
    words_alone: bool = False,
) -> Samples:
    r"""The samples of a data set, read as they are asked for and never held all at once.

    Args:
        source: a .jsonl, .ndjson, .csv, .tsv or .parquet file; a .json file with JSON lines, a list of objects or an
            object with one inside, such as COCO's annotations, which alone is read whole; a folder of pictures, with
            the metadata file of Hugging Face's imagefolder if it has one; a folder or an object of Hugging Face's
            ``datasets``, or a data set's name; or an iterable of dicts.
        question: for the rows that ask nothing; columns in braces are put in: ``"Where is the {category}?"``.
        prompt: the whole text of every row as it is, places for pictures included; columns in braces are put in:
            ``"USER: <image>\n{question} ASSISTANT:"``.
        columns: which of their columns is ours, as in ``{"question": "caption"}``, where it goes by none of the
            names in ``OURS``; several for ``image``: ``["image_1", "image_2"]``. None, as in ``{"answer": None}``,
            carries theirs along in ``Sample.columns`` instead; ``{"image": None}``: the rows have no picture.
        images: the folder where relative paths of pictures and masks start, by default the file's own; or what the
            path of a row's picture is made of: ``"val2014/COCO_val2014_{image_id:012}.jpg"``.
        split: of a Hugging Face data set.
        box_format: what four numbers mean, one of ``BOX_FORMATS``; boxes in no stated format are carried along.
        answers: another source with a row for each ``question_id`` (or ``id``), whose columns are put beside.
        words_alone: rows may be without pictures: the first as well, or all of them. Each is looked at for a picture
            by itself, and a column that was asked for and is in none is missed at the end of a loop.

    Raises:
        BadInput: nothing is there, it is of no known kind or empty, a column that was asked for is in none of the
            first ``LOOK_ROWS`` rows, or none of them has a picture, or asks anything and no question was given.
    """
    for way, text in (("question", question), ("prompt", prompt)):
        if text is not None and (not isinstance(text, str) or not text.strip()):
            raise BadInput(f"{way}= is what rows are asked, in words; got {text!r:.80}")
    if question is not None and prompt is not None:
        raise BadInput("question= and prompt= both ask; give one of them")
    check_assigned({} if columns is None else columns)
    opened = open_source(source, split)
    if answers is not None:
        opened = joined_with(opened, answers)
    folder = Path.cwd() if opened.folder is None else opened.folder
    pattern = None
    if images is not None:
        given = os.fspath(images) if isinstance(images, (str, os.PathLike)) else repr(images)
        if "{" in given:
            pattern = values.located(os.path.expanduser(given), Path.cwd())  # noqa: PTH111  # braces, not a path yet
        else:
            folder = _folder(given)
    return Samples(opened, ColumnSettings(columns or {}, question, prompt, pattern, box_format, words_alone), folder)


def _folder(images: str) -> Path:
    refused = f"images={shortened(repr(images))} is no folder; pass the one where relative paths start"
    try:
        folder = Path(images).expanduser().absolute()
        is_folder = folder.is_dir()
    except (OSError, ValueError, RuntimeError):
        raise BadInput(refused) from None
    if not is_folder:
        raise BadInput(f"{refused}, or the form of a file's path, as in 'val2014/{{image_id:012}}.jpg'")
    return folder


def digest(samples: Iterable[Sample]) -> str:
    """Sha256 in hex of what the samples ask for, the same in every process: another digest is another data set.

    Pictures and masks in files count by their paths, not by what the files hold.
    """
    hashed = hashlib.sha256()
    for sample in samples:
        asked = [sample.id, sample.picture, sample.question, sample.answer, sample.boxes, values.mask_key(sample.mask)]
        asked += [sample.prompt, values.plain_value(sample.messages), sample.box_format, sample.system]
        hashed.update(json.dumps([*asked, dict(sample.columns)], sort_keys=True).encode() + b"\n")
    return hashed.hexdigest()


def _asks(row: Row, columns: Columns) -> bool:
    return not isinstance(row, Broken) and any(columns.taken(row, ours) for ours in ASKING)


def _sample(place: int, row: Row, columns: Columns, folder: Path) -> Sample:
    if isinstance(row, Broken):
        return Sample(place, str(place), None, None, fault=row.why, line=row.line)
    taken = {ours: columns.taken(row, ours) for ours in columns.names}
    if columns.patterned(row) or columns.together:
        taken["image"] = None
    read: dict[str, Any] = {"id": str(place), "image": None, "question": None}
    faults: list[str] = []
    stated = taken["box_format"] or columns.box_format
    if stated is None:
        taken["boxes"] = None
    for name, theirs in taken.items():
        if theirs is not None and name in _READERS:
            with _faulting(faults, theirs):
                read[name] = _READERS[name](row[theirs], folder)
    read["box_format"] = read.get("box_format") or (columns.box_format if read.get("boxes") else None)
    with _faulting(faults, "the picture"):
        read["image"] = _picture(row, columns, folder, read["image"])
    if columns.unseen and read["image"] is None:
        others = [name for name in row if name not in taken.values() and values.looks_like_a_picture(row[name])]
        faults += [f"{name} looks like a picture; say columns={{'image': {name!r}}} if it is one" for name in others]
    if taken["messages"] is not None:
        with _faulting(faults, taken["messages"]):
            read["messages"] = values.chat(row[taken["messages"]], folder, _count(read["image"]))
    asking = [taken[ours] for ours in ASKING if taken[ours] is not None]
    if len(asking) > 1:
        faults.append(f"{asking[0]} and {asking[1]} both ask; carry one along, as in columns={{'prompt': None}}")
    elif not asking and columns.question is None:
        faults.append("the row has no question")
    elif not asking and columns.question is not None:
        with _faulting(faults, "question"):
            read["prompt" if columns.whole else "question"] = columns.question.of(row)
    if "messages" in read:
        read["messages"], said = read["messages"]
        read.setdefault("answer", said)
    # an empty column of ours is not carried either, unless it was the user who said that it is not ours
    ours = {*taken.values(), *(theirs[0] for theirs in columns.names.values() if theirs), *columns.together}
    ours -= set() if stated is not None else set(columns.names["boxes"])
    carried = {}
    for name, value in row.items():
        if name not in ours:
            with _faulting(faults, name):
                carried[str(name)] = values.plain_value(value)
    return Sample(place, **read, columns=carried, fault=faults[0] if faults else None, line=line_of(row))


_READERS: dict[str, Callable[[Any, Path], Any]] = {
    "id": lambda value, folder: values.text(value),
    "image": values.picture,
    "question": lambda value, folder: values.text(value),
    "prompt": lambda value, folder: values.text(value),
    "system": lambda value, folder: values.text(value),
    "answer": lambda value, folder: values.text(value),
    "mask": values.mask,
    "boxes": lambda value, folder: read_boxes(values.plain_value(value)),
    "box_format": lambda value, folder: checked_format(value),
}


@contextmanager
def _faulting(faults: list[str], column: str) -> Iterator[None]:
    """What is wrong with a cell is its row's fault."""
    try:
        yield
    except BadInput as error:
        faults.append(blamed(column, error))


def _picture(row: Mapping[str, Any], columns: Columns, folder: Path, read: Any) -> Any:
    if columns.pattern is not None and columns.patterned(row):
        return columns.pattern.of(row)
    if not columns.together:
        return read
    found = [values.picture(row[name], folder) for name in columns.together if not values.is_empty(row.get(name))]
    flat = [one for given in found for one in (given if isinstance(given, list) else [given])]
    return flat or None


def _count(image: Any) -> int:
    return len(image) if isinstance(image, list) else int(image is not None)
