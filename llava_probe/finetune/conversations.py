"""From a data set to conversations whose every answer is trained, whatever format it has.

    for each in read_conversations("llava_instruct.json", images="coco/train2017"):
        each.messages, each.images    # or a Fault, with its line and why

A file has one format, which its columns tell (``formats.py``); rows of another stop the reading, since what is guessed
row by row trains what nobody meant. A row that cannot be trained on is a ``Fault`` in its place. Pictures are found and
not opened: a missing file is a fault, a damaged one shows itself to whoever opens it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from llava_probe.errors import BadInput, shortened
from llava_probe.features import values
from llava_probe.features.columns import check_assigned
from llava_probe.features.rows import Broken, Row, Source, line_of, on_the_line_of
from llava_probe.features.samples import Sample, read_samples
from llava_probe.features.sources import open_source
from llava_probe.finetune.formats import ASKED, KEPT, SpokenColumns, formatted


@dataclass(frozen=True)
class Fault:
    """A row that cannot be trained on.

    Attributes:
        row: its place in the source, from 0.
        line: where to look for it: ``line 7`` of a text file, from 1, or ``row 6``, from 0.
        why: in a sentence.
    """

    row: int
    line: str
    why: str

    def __str__(self) -> str:
        return self.why if self.why.startswith(f"{self.line} ") else f"{self.line}: {self.why}"


@dataclass(frozen=True, eq=False)
class Conversation:
    """What is said about some pictures.

    Attributes:
        row, line: as of ``Fault``.
        id: the column id, else the row's number.
        images: the pictures in the order of their places, each as ``open_image`` takes it, paths absolute.
        messages: a system message at most, then user and assistant in turn, the last the assistant's; their content
            is a list of ``{"type": "text", "text": words}`` and ``{"type": "image"}``, one for each picture.
    """

    row: int
    line: str
    id: str
    images: list[Any]
    messages: list[dict[str, Any]]

    @cached_property
    def picture(self) -> str:
        """A key, equal for the same pictures, as ``Sample.picture`` is; empty where there are none."""
        return values.picture_key(self.images)


class Conversations:
    """The conversations of one source; each loop reads them anew, unless the source is an iterator.

    Attributes:
        name: the file, folder, data set or type that they come from.
        format: which format its rows have, in words.
        told: what was settled by looking into it, in sentences.
    """

    def __init__(self, source: Source, columns: SpokenColumns, images: str | os.PathLike[str] | None) -> None:
        self._source, self._columns = source, columns
        self.name = source.name
        self.format = ""
        self._first = ""
        pictures = {ours: theirs for ours, theirs in columns.assigned.items() if ours in KEPT}
        chats = replace(source, rows=self._rows, columns={})
        self._samples = read_samples(chats, columns=pictures, images=images, words_alone=True)
        self.told: tuple[str, ...] = (*self._samples.told, f"{self.name} holds {self.format}")
        if columns.question is not None and self.format not in ASKED:
            self.told += (f"question= is asked of no row: {self.format} have their own",)

    @property
    def count(self) -> int | None:
        """How many rows there are, faults included; None where only reading everything would tell."""
        return self._samples.count

    def __iter__(self) -> Iterator[Conversation | Fault]:
        for sample in self._samples:
            line = _where(sample.row, sample.line)
            try:
                yield _conversation(sample, line)
            except BadInput as error:
                yield Fault(sample.row, line, str(error))

    def _rows(self) -> Iterator[Row]:
        """Each row's messages beside its pictures.

        Raises:
            BadInput: a row has another format than those before it.
        """
        for place, row in enumerate(self._source.rows()):
            if isinstance(row, Broken):
                yield row
                continue
            try:
                found = formatted(row, self._columns)
            except BadInput as error:
                yield Broken(str(error), line_of(row))
                continue
            where = _where(place, line_of(row))
            if not self.format:
                self.format, self._first = found.format, where
            elif self.format != found.format:
                raise BadInput(
                    f"{self.name} mixes two formats, {self.format} ({self._first}) and {found.format} ({where}); "
                    "make a file of each"
                )
            try:
                chat = {"messages": found.messages()}
            except BadInput as error:
                yield Broken(str(error), line_of(row))
                continue
            yield on_the_line_of(row, self._columns.others(row) | chat)


def read_conversations(
    source: Any,
    *,
    question: str | None = None,
    columns: Mapping[str, Any] | None = None,
    images: str | os.PathLike[str] | None = None,
    split: str | None = None,
) -> Conversations:
    """The conversations of a data set, read as they are asked for and never held all at once.

    Args:
        source: whatever ``read_samples`` takes, in one of the formats that ``formats.py`` lists.
        question: of rows that have an answer or a caption and ask nothing; columns in braces are put in.
        columns: which of their columns is ours, as in ``{"answer": "label"}``, where it goes by no name of a format.
        images: the folder where relative paths of pictures start, or what a picture's path is made of.
        split: of a Hugging Face data set.

    Raises:
        BadInput: as ``read_samples``, but that no row needs a picture; nothing in the first rows can be trained on; or,
            in a loop, two formats, or a column for pictures that no row has.
    """
    assigned = {} if columns is None else columns
    check_assigned(assigned)
    if question is not None and (not isinstance(question, str) or not question.strip()):
        raise BadInput(f"question= is what rows are asked, in words; got {question!r:.80}")
    pattern = None if question is None else values.Pattern(question, "question")
    opened = open_source(source, split)
    return Conversations(opened, SpokenColumns({**opened.columns, **assigned}, pattern), images)


def _where(row: int, line: int | None) -> str:
    return f"row {row}" if line is None else f"line {line}"


def _conversation(sample: Sample, line: str) -> Conversation:
    """What a row of messages and pictures is.

    Raises:
        BadInput: it has a fault, its pictures are not those that it has places for, or one of them is missing.
    """
    if sample.fault is not None:
        raise BadInput(sample.fault)
    messages, images = _placed([dict(each) for each in sample.messages or ()], sample.images)
    if not all(each["content"] for each in messages):
        raise BadInput("the first question is empty, and there is no picture to ask by itself")
    for image in images:
        if isinstance(image, str) and not values.is_address(image) and not os.path.isfile(image):  # noqa: PTH113
            raise BadInput(f"there is no picture {shortened(image)!r}")
    return Conversation(sample.row, line, sample.id, images, messages)


def _placed(messages: list[dict[str, Any]], pictures: Sequence[Any]) -> tuple[list[dict[str, Any]], list[Any]]:
    """Messages with bare places only, and the pictures in their order.

    Those of the row go to the places that show none yet, or before the first words of the user where there is no place.

    Raises:
        BadInput: there are more or fewer.
    """
    places = [part for part in values.parts_of(messages) if part["type"] == "image"]
    free = [part for part in places if "image" not in part]
    if pictures and not places:
        asks = next(each for each in messages if each["role"] == "user")
        asks["content"] = [*({"type": "image"} for _ in pictures), *asks["content"]]
        return messages, list(pictures)
    if len(free) != len(pictures):
        raise BadInput(f"the row has {_counted(len(free), 'place')} (<image>) for {_counted(len(pictures), 'picture')}")
    if any(part.get("index", number) != number for number, part in enumerate(free)):
        raise BadInput("the row shows its pictures in another order than it holds them (index)")
    rest = iter(pictures)
    images = [part["image"] if "image" in part else next(rest) for part in places]
    bare = [{**each, "content": [_bare(part) for part in each["content"]]} for each in messages]
    return bare, images


def _bare(part: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "image"} if part["type"] == "image" else dict(part)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
