"""What an explanation is scored on: a picture, a question, a word of the answer and where the right place is.

    for case in read_cases("mine/cases.jsonl"):
        case.image, case.question, case.word, case.mask()

Each line of the file is an object. Relative paths start at the file's folder:

    {"image": "street.jpg", "question": "What is on the left?", "word": "dog", "mask": "dog.png"}

``mask`` is whatever ``pictures/regions.py`` reads: a lossless picture that is black outside the object, a COCO
run-length mask, polygons; without one the ``box`` is the right place, with a ``box_format`` such as "xyxy" in the line
or for all. The rest may be left out: ``id``, ``kind``, ``answer`` (the right one: others are not scored),
``occurrence`` (which time the answer says the word, from 0), ``token`` (a number of a generated token from 0, in place
of a word) and ``function_words``. Without word and token the whole answer is meant.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from llava_probe.arrays import BoolArray
from llava_probe.border import checked
from llava_probe.errors import BadFile, BadInput, ProbeError, shortened
from llava_probe.features.samples import Sample, Samples, read_samples
from llava_probe.features.text_files import lines_of
from llava_probe.features.values import is_address
from llava_probe.pictures.boxes import Box, unstated
from llava_probe.pictures.images import fingerprint, open_image
from llava_probe.pictures.regions import inside, needs_size, read_mask
from llava_probe.stored import whole, write_text

_SUFFIXES = (".jsonl", ".ndjson")


@checked
@dataclass(frozen=True, eq=False)
class Case:
    """One question whose answer has a right place.

    Attributes:
        id: its name in reports.
        image: what ``open_image`` takes; paths are absolute.
        question: as it is asked. ``whole``: it is the whole text as it is, with the place for the picture.
        where: the right place, as ``regions.read_mask`` takes it; None where the boxes are.
        word: of the answer, which is explained; None for the whole answer. ``occurrence``: which time it is said, from
            0, from the end if negative; the first when None.
        token: number of the generated token that is explained, from 0, in place of a word.
        answer: the right one; other answers are not scored. None: any that says the word.
        kind: of question, to report scores by.
        boxes: four numbers each, which ``box_format`` gives their meaning: by default (x0, y0, x1, y1) in pixels.
        function_words: words of the answer that name nothing on the picture.
        system: a system prompt before the question.
    """

    id: str
    image: Any
    question: str
    where: Any = None
    word: str | None = None
    occurrence: int | None = None
    token: int | None = None
    answer: str | None = None
    kind: str = ""
    boxes: tuple[Box, ...] = ()
    function_words: tuple[str, ...] = ()
    box_format: str = "xyxy"
    whole: bool = False
    system: str | None = None

    @property
    def asking(self) -> dict[str, Any]:
        """How ``generate`` is asked, besides the picture."""
        told: dict[str, Any] = {"prompt" if self.whole else "question": self.question}
        return told if self.system is None else {**told, "system": self.system}

    @cached_property
    def picture(self) -> str:
        """A key, equal for cases of the same picture: what intervals draw again."""
        return Sample(0, self.id, self.image, self.question).picture

    def mask(self) -> BoolArray:
        """[height, width] bool, the right place; read or drawn anew at each call.

        Raises:
            BadInput: the mask or, where a box has to be drawn, the picture cannot be read.
        """
        size = open_image(self.image).size if needs_size(self.where) else None
        if self.where is not None:
            return read_mask(self.where, size)
        assert size is not None
        return inside(None, self.boxes, self.box_format, size)


@checked
def read_cases(
    path: str | os.PathLike[str],
    *,
    question: str | None = None,
    prompt: str | None = None,
    columns: Mapping[str, Any] | None = None,
    images: str | os.PathLike[str] | None = None,
    box_format: str | None = None,
    answers: Any = None,
) -> Iterator[Case]:
    """The cases of a data set, one at a time; masks are opened when they are asked for.

    Args:
        path: a file as ``lp.extract`` takes it: JSON lines, JSON, COCO's annotations, a table.
        question, prompt, columns, images, box_format, answers: as for ``lp.extract``. ``columns`` also names
            ``word``: of COCO's annotations it is the category.

    Raises:
        BadInput: there is no such file or it holds no cases; at a row that is no case, naming file and line.
    """
    source = Path(path).expanduser().absolute()
    assigned = dict(columns or {})
    word = assigned.pop("word", "word")
    samples = read_samples(
        source,
        question=question,
        prompt=prompt,
        columns=assigned,
        images=images,
        box_format=box_format,
        answers=answers,
    )
    return _cases(source, samples, word)


@checked
def write_cases(cases: Iterable[Case], folder: str | os.PathLike[str]) -> Path:
    """Write cases with their pictures and masks, as PNG, into a folder that can be sent on.

    Returns:
        The ``cases.jsonl`` in it, for ``read_cases``.

    Raises:
        BadFile: the folder cannot be written to.
        BadInput: a picture or a mask cannot be read.
    """
    target = Path(folder).expanduser()
    pictures: dict[str, str] = {}
    lines = []
    try:
        for name in ("images", "masks"):
            (target / name).mkdir(parents=True, exist_ok=True)
        for case in cases:
            if case.picture not in pictures:
                pictures[case.picture] = _kept(open_image(case.image), target, "images")
            mask = _kept(Image.fromarray(case.mask()), target, "masks")
            lines.append(json.dumps(_line(case, pictures[case.picture], mask), ensure_ascii=False) + "\n")
    except ProbeError:  # a picture that cannot be read is an OSError too
        raise
    except OSError as error:
        raise BadFile(f"the cases could not be written to {target}: {error}") from error
    return write_text("file of cases", target / "cases.jsonl", "".join(lines))


def _kept(picture: Image.Image, folder: Path, inside: str) -> str:
    """Where a picture is from now on, by what it shows: files that earlier cases name stay as they are."""
    name = f"{inside}/{fingerprint(picture.convert('RGB'))[:16]}.png"
    with whole("picture", folder / name) as part:
        picture.save(part, "PNG")
    return name


def _line(case: Case, image: str, mask: str) -> dict[str, Any]:
    told = {name: getattr(case, name) for name in ("id", "word", "occurrence", "token", "answer", "kind")}
    told |= case.asking
    told |= {"image": image, "mask": mask, "boxes": case.boxes, "function_words": case.function_words}
    told |= {"box_format": case.box_format if case.boxes else None}
    return {name: value for name, value in told.items() if value not in (None, "", ())}


def _cases(source: Path, samples: Samples, word: str) -> Iterator[Case]:
    lines: list[int] = []
    if source.suffix.lower() in _SUFFIXES:
        with source.open("rb") as file:
            lines = [number for number, line in enumerate(lines_of(file), start=1) if line is None or line.strip()]
    for sample in samples:
        place = f"line {lines[sample.row]}" if sample.row < len(lines) else f"row {sample.row}"
        try:
            yield _case(sample, word)
        except (ValueError, OSError) as error:  # a BadInput, or a path that the system refuses
            why = str(error).removeprefix(f"{place} ")
            raise BadInput(f"{shortened(source.name)}, {place}: {why}") from None


def _case(sample: Sample, word_column: str) -> Case:
    if sample.fault is not None:
        raise BadInput(sample.fault)
    asked = sample.question if sample.question is not None else sample.prompt
    if asked is None:
        raise BadInput("a case asks a question or a prompt; a chat cannot be scored")
    if len(sample.images) != 1:
        raise BadInput(f"a case has one picture; this row has {len(sample.images)}")
    image = sample.images[0]
    if isinstance(image, str) and not is_address(image) and not Path(image).is_file():
        raise BadInput(f"there is no picture {shortened(image)!r}")
    if sample.mask is None and not sample.boxes:
        if sample.unstated is not None:
            raise unstated(sample.unstated)
        has = shortened(", ".join(sample.columns)) or "none"
        raise BadInput(
            f"the row has neither a mask nor a box: no place is right and nothing can be scored; other columns: {has}"
        )
    _check_mask(sample.mask)
    given = sample.columns if word_column == "word" else {**sample.columns, "word": sample.columns.get(word_column)}
    word, token = _word(given)
    return Case(
        id=sample.id,
        image=image,
        question=asked,
        where=sample.mask,
        word=word,
        occurrence=_whole(sample.columns, "occurrence"),
        token=token,
        answer=sample.answer,
        kind=str(sample.columns.get("kind") or ""),
        boxes=sample.boxes,
        function_words=_words(sample.columns.get("function_words")),
        box_format=sample.box_format or "xyxy",
        whole=sample.prompt is not None,
        system=sample.system,
    )


def _check_mask(mask: Any) -> None:
    """What is wrong with a mask is better said where the line is known; pictures wait until they are asked for."""
    is_path = isinstance(mask, str) and not is_address(mask) and mask.lstrip()[:1] not in ("{", "[")
    if is_path and not Path(mask).is_file():
        raise BadInput(f"there is no mask {shortened(mask)!r}")
    if not needs_size(mask) and not isinstance(mask, str):
        read_mask(mask)


def _word(columns: Mapping[str, Any]) -> tuple[str | None, int | None]:
    """What is explained; a ``token`` that is a text is a word."""
    word, token = columns.get("word"), columns.get("token")
    if isinstance(token, str):
        word, token = word or token, None
    if word is not None and not (isinstance(word, str) and word.strip()):
        raise BadInput(f"word is {shortened(repr(word))}, not a word of the answer")
    number = _whole({"token": token}, "token")
    if word is not None and number is not None:
        raise BadInput("the row has both a word and a token; one of them is explained")
    if number is not None and number < 0:
        raise BadInput(f"token is {number}; generated tokens count from 0")
    return word, number


def _whole(columns: Mapping[str, Any], name: str) -> int | None:
    value = columns.get(name)
    if value is not None and type(value) is not int:
        raise BadInput(f"{name} is {shortened(repr(value))}, not a whole number")
    return value


def _words(listed: Any) -> tuple[str, ...]:
    if listed is None:
        return ()
    if not isinstance(listed, list) or not all(isinstance(word, str) and word.strip() for word in listed):
        raise BadInput(f"function_words is {shortened(repr(listed))}, not a list of words")
    return tuple(listed)
