"""What an explanation is scored on: a picture, a question, a word of the answer and where the right place is.

    for case in read_cases("mine/cases.jsonl"):
        case.image, case.question, case.word, case.mask()

Each line of the file is an object. Relative paths start at the file's folder:

    {"image": "street.jpg", "question": "What is on the left?", "word": "dog", "mask": "dog.png"}

``mask`` is the path of a lossless picture that is black outside the object, or a COCO run-length mask; without one the
``box`` (x0, y0, x1, y1) in pixels is the right place. The rest may be left out: ``id``, ``kind``, ``answer`` (the right
one: others are not scored), ``occurrence`` (which time the answer says the word, from 0), ``token`` (a number of a
generated token from 0, in place of a word) and ``function_words``. Without word and token the whole answer is meant.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from llava_probe.arrays import BoolArray
from llava_probe.border import checked
from llava_probe.errors import BadFile, BadInput, refusing, shortened
from llava_probe.evaluate import run_length
from llava_probe.features.samples import Box, Sample, read_samples
from llava_probe.pictures.images import fingerprint, open_image

_LOSSLESS = ("PNG", "BMP", "GIF", "TIFF")
_SUFFIXES = (".jsonl", ".ndjson")


@checked
@dataclass(frozen=True, eq=False)
class Case:
    """One question whose answer has a right place.

    Attributes:
        id: its name in reports.
        image: what ``open_image`` takes; paths are absolute.
        question: as it is asked.
        where: the right place: an absolute path, a COCO run-length mask or a bool array [height, width]; None where
            the boxes are.
        word: of the answer, which is explained; None for the whole answer. ``occurrence``: which time it is said, from
            0, from the end if negative; the first when None.
        token: number of the generated token that is explained, from 0, in place of a word.
        answer: the right one; other answers are not scored. None: any that says the word.
        kind: of question, to report scores by.
        boxes: (x0, y0, x1, y1) in pixels of the picture.
        function_words: words of the answer that name nothing on the picture.
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

    @cached_property
    def picture(self) -> str:
        """A key, equal for cases of the same picture: what intervals draw again."""
        return Sample(0, self.id, self.image, self.question).picture

    def mask(self) -> BoolArray:
        """[height, width] bool, the right place; read or drawn anew at each call.

        Raises:
            BadInput: the mask or, where a box has to be drawn, the picture cannot be read.
        """
        if isinstance(self.where, Mapping):
            return run_length.decode(self.where)
        if isinstance(self.where, str | os.PathLike):
            return _from_picture(Path(self.where))
        if self.where is not None:
            return np.asarray(self.where) != 0
        return _from_boxes(self.boxes, open_image(self.image).size)


@checked
def read_cases(path: str | os.PathLike[str]) -> Iterator[Case]:
    """The cases of a file of JSON lines, one at a time; masks are opened when they are asked for.

    Columns go by the names that ``lp.extract`` knows too: ``image_path``, ``question_id``, ``bbox``.

    Raises:
        BadInput: there is no such file or it holds no cases; at a line that is no case, naming file and line.
    """
    source = Path(path).expanduser().absolute()
    if source.suffix.lower() not in _SUFFIXES:
        raise BadInput(f"{shortened(source.name)!r} is no file of JSON lines; pass one that ends in .jsonl")
    samples = read_samples(source, columns={"mask": None})
    return _cases(source, samples)


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
        for number, case in enumerate(cases):
            if case.picture not in pictures:
                image = open_image(case.image)
                pictures[case.picture] = f"images/{fingerprint(image)[:16]}.png"
                image.save(target / pictures[case.picture])
            mask = f"masks/{number:05d}.png"
            Image.fromarray(case.mask()).save(target / mask)
            lines.append(json.dumps(_line(case, pictures[case.picture], mask), ensure_ascii=False) + "\n")
        written = target / "cases.jsonl"
        written.write_text("".join(lines), encoding="utf-8")
    except BadInput:  # a picture that cannot be read is an OSError too
        raise
    except OSError as error:
        raise BadFile(f"the cases could not be written to {target}: {error}") from error
    return written


def _line(case: Case, image: str, mask: str) -> dict[str, Any]:
    told = {name: getattr(case, name) for name in ("id", "question", "word", "occurrence", "token", "answer", "kind")}
    told |= {"image": image, "mask": mask, "boxes": case.boxes, "function_words": case.function_words}
    return {name: value for name, value in told.items() if value not in (None, "", ())}


def _cases(source: Path, samples: Iterable[Sample]) -> Iterator[Case]:
    with source.open("rb") as file:
        numbers = [number for number, line in enumerate(file, start=1) if line.strip()]
    for number, sample in zip(numbers, samples, strict=False):
        try:
            yield _case(sample, source.parent)
        except (ValueError, OSError) as error:  # a BadInput, or a path that the system refuses
            why = str(error).removeprefix(f"line {number} ")
            raise BadInput(f"{shortened(source.name)}, line {number}: {why}") from None


def _case(sample: Sample, folder: Path) -> Case:
    if sample.fault is not None or sample.question is None:
        raise BadInput(sample.fault or "the row has no question")
    if len(sample.images) != 1:
        raise BadInput(f"a case has one picture; this row has {len(sample.images)}")
    image = sample.images[0]
    is_path = isinstance(image, str) and "://" not in image and not image.lower().startswith("data:")
    if is_path and not Path(image).is_file():
        raise BadInput(f"there is no picture {shortened(image)!r}")
    where = _where(sample.columns.get("mask"), folder)
    if where is None and not sample.boxes:
        raise BadInput("the row has neither a mask nor a box, so nothing can be right or wrong")
    word, token = _word(sample.columns)
    return Case(
        id=sample.id,
        image=image,
        question=sample.question,
        where=where,
        word=word,
        occurrence=_whole(sample.columns, "occurrence"),
        token=token,
        answer=sample.answer,
        kind=str(sample.columns.get("kind") or ""),
        boxes=sample.boxes,
        function_words=_words(sample.columns.get("function_words")),
    )


def _where(mask: Any, folder: Path) -> Any:
    if mask is None or mask == "":
        return None
    if isinstance(mask, Mapping):
        run_length.decode(mask)  # what is wrong with it is better said here, where the line is known
        return mask
    if not isinstance(mask, str):
        raise BadInput(f"mask is a {type(mask).__name__}; pass a path or a run-length mask with size and counts")
    path = folder / Path(mask).expanduser()
    if not path.is_file():
        raise BadInput(f"there is no mask {shortened(str(path))!r}")
    return str(path)


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


def _from_picture(path: Path) -> BoolArray:
    """Whatever is neither black nor see-through; as it is stored, since 16-bit labels are small numbers."""
    with refusing(f"the mask {shortened(str(path))!r} cannot be read as {', '.join(_LOSSLESS)}"):
        with Image.open(path, formats=_LOSSLESS) as opened:
            clear = opened.has_transparency_data
            picture = opened.convert("RGBA" if clear else "RGB") if clear or opened.mode == "P" else opened
            pixels = np.asarray(picture)
        inside = pixels != 0
        if clear:
            return inside[..., :3].any(-1) & inside[..., 3]
        return inside if inside.ndim == 2 else inside.any(-1)


def _from_boxes(boxes: Iterable[Box], size: tuple[int, int]) -> BoolArray:
    """Pixels whose centre is in one of the boxes."""
    width, height = size
    drawn = np.zeros((height, width), dtype=bool)
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    for x0, y0, x1, y1 in boxes:
        drawn |= ((y >= y0) & (y < y1))[:, None] & ((x >= x0) & (x < x1))
    return drawn
