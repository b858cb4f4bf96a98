"""Descriptions of pictures whose objects are known: how they are asked for, and what is measured of them.

A line of ``captions.jsonl`` holds the caption, all that CHAIR's figures depend on, and every signal of every word for
an object, so ``lp.chair("captions.jsonl", ...)`` reads the numbers of the page again, in Python.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NotRequired, TypedDict

import numpy as np

from llava_probe.asking.decoding import GREEDILY
from llava_probe.errors import BadInput, OutOfRange, ProbeError
from llava_probe.features.rows import Source
from llava_probe.features.samples import Sample, read_samples
from llava_probe.model import VLM
from llava_probe.report.asking import RowTask
from llava_probe.signals.chair import Chair, caption_of, chair
from llava_probe.signals.coco import CocoFiles, on_pictures, picture_number
from llava_probe.signals.hallucination import SIGNALS, Hallucination, hallucination
from llava_probe.signals.rows import cell_of, each_row
from llava_probe.signals.signal_table import SignalTable, signal_table
from llava_probe.signals.synonyms import Synonyms
from llava_probe.trace.trace import Trace

#: Tokens of a description; papers that tell theirs have 64 or 512.
CAPTION_TOKENS = 64
#: Of a caption, what CHAIR's figures depend on.
_SETTINGS = ("cut", "prompt", "max_new_tokens", "decoding")
#: By what a column of captions goes.
CAPTION_COLUMNS = ("caption", "text")


class WordLine(TypedDict):
    """A word for an object, as written; beside these every signal by its name, null where it has none."""

    word: str
    object: str


class CaptionLine(TypedDict):
    """One caption; ``refused`` says why its words have no signals."""

    row: int
    image_id: int
    question: str
    caption: str
    cut: bool | None
    prompt: str | None
    max_new_tokens: str | None
    decoding: str | None
    words: list[dict[str, Any]]
    refused: NotRequired[str]


@dataclass(frozen=True)
class Truth:
    """What is on the pictures.

    Attributes:
        instances: COCO's ``instances_*.json``; ``references``: its ``captions_*.json``, or None.
        synonyms: a file of words for objects; None: ours of COCO's.
    """

    instances: CocoFiles
    references: CocoFiles | None = None
    synonyms: str | None = None

    def chair(self, captions: Any, *, drop_cut: bool = False) -> Chair:
        """CHAIR of captions."""
        return chair(captions, self.instances, self.references, synonyms=self.synonyms, drop_cut=drop_cut)

    def check(self, pictures: Sequence[int]) -> None:
        """Refuse pictures that the instances do not have, before a model runs.

        Raises:
            BadInput: as ``lp.chair`` says it.
        """
        words = Synonyms.own() if self.synonyms is None else Synonyms.read(self.synonyms)
        on_pictures(set(pictures), self.instances, self.references, words)


@dataclass(frozen=True, eq=False)
class DescribedPictures:
    """What came of them.

    Attributes:
        whole: CHAIR; ``dropped``: without last sentences that the length limit cut, None where it cut none.
        table: the signals' scores; None where there are none, and ``untold`` says why.
        lines: of the captions.
    """

    whole: Chair
    dropped: Chair | None
    table: SignalTable | None
    untold: str
    lines: Sequence[Mapping[str, Any]]

    def __str__(self) -> str:
        return "\n\n".join(str(each) for each in (self.whole, self.table) if each is not None)

    def to_dict(self) -> dict[str, Any]:
        """The measures as plain data, ready for JSON."""
        told = {"chair": self.whole, "chair without cut sentences": self.dropped, "signals": self.table}
        return {name: each.to_dict() for name, each in told.items() if each is not None}


def captions_task(
    source: Source, truth: Truth, images: str | None, question: str, max_new_tokens: int | None, given: str | None
) -> RowTask:
    """Pictures to be described, or captions to be read by the model, as a task.

    Args:
        source: of the rows; ``given``: their column of captions, None where the model describes the pictures.
        truth: what is on them.
        images: where the pictures are.
        question: that asks for a description.
        max_new_tokens: of a description.

    Raises:
        BadInput: a row that cannot be read or has no number of a picture, or a picture that the truth does not have.
    """
    numbers = [
        picture_number(cell_of(row, ("image_id", "image"), where, "picture"), where) for where, row in each_row(source)
    ]
    truth.check(numbers)
    tokens = max_new_tokens or CAPTION_TOKENS

    def rows() -> Iterator[tuple[dict[str, Any], Sample]]:
        columns = {"question": None, "prompt": None, "messages": None, "system": None, "answer": given}
        samples = read_samples(source, images=images, question=question, columns=columns)
        for number, (picture, sample) in enumerate(zip(numbers, samples, strict=True)):
            begun = {"row": number, "image_id": picture, "question": question}
            yield begun | ({} if given is None else {"caption": sample.answer or ""}), sample

    settings: dict[str, Any] = {
        "asked": "descriptions" if given is None else "captions that were given",
        "question": question,
    }
    settings["synonyms"] = _digest(truth.synonyms)
    ask = partial(_read, truth=truth)
    if given is None:
        settings["max_new_tokens"], ask = tokens, partial(_described, truth=truth, tokens=tokens)
    return RowTask("captions.jsonl", CaptionLine, settings, len(numbers), rows, ask)


def _digest(synonyms: str | None) -> str:
    return (Synonyms.own() if synonyms is None else Synonyms.read(synonyms)).digest


def _described(vlm: VLM, samples: Sequence[Sample], truth: Truth, tokens: int) -> list[dict[str, Any]]:
    posed = [{"image": sample.image, **sample.asking} for sample in samples]
    traces = vlm.generate_batch(posed, max_new_tokens=tokens, **GREEDILY)
    return [_made(trace) | _words(vlm, trace, truth) for trace in traces]


def _read(vlm: VLM, samples: Sequence[Sample], truth: Truth) -> list[dict[str, Any]]:
    """Captions of somebody, read by the model word by word; how they were made is for their rows to tell."""
    lines = []
    for sample in samples:
        trace = vlm.score(sample.image, sample.question, sample.answer or "")
        told = {name: sample.columns.get(name) for name in _SETTINGS}
        lines.append(told | _words(vlm, trace, truth))
    return lines


def _made(trace: Trace) -> dict[str, Any]:
    told = caption_of(0, trace).to_dict()
    return {name: told[name] for name in ("caption", *_SETTINGS)}


def _words(vlm: VLM, trace: Trace, truth: Truth) -> dict[str, Any]:
    """Every signal of every word for an object, or why there are none."""
    try:
        found = hallucination(vlm, trace, synonyms=truth.synonyms)
    except OutOfRange:  # it names nothing
        return {"words": []}
    except ProbeError as error:  # CHAIR needs no signals
        return {"words": [], "refused": str(error)}
    values = {name: [None if math.isnan(one) else one for one in each.tolist()] for name, each in found.values.items()}
    words = [
        {"word": word, "object": thing, **{name: each[place] for name, each in values.items()}}
        for place, (word, thing) in enumerate(zip(found.words, found.objects, strict=True))
    ]
    return {"words": words}


def measured_captions(lines: Sequence[Mapping[str, Any]], truth: Truth) -> DescribedPictures:
    """Everything that is told of captions.

    Raises:
        BadInput: there are none.
    """
    rows = [{name: value for name, value in line.items() if name != "words"} for line in lines]
    whole = truth.chair(rows)
    dropped = truth.chair(rows, drop_cut=True) if any(line.get("cut") for line in lines) else None
    table, untold = _scored(lines, whole)
    return DescribedPictures(whole, dropped, table, untold, lines)


def _scored(lines: Sequence[Mapping[str, Any]], whole: Chair) -> tuple[SignalTable | None, str]:
    """The signals' scores, or why there are none."""
    if refused := next((str(line["refused"]) for line in lines if "refused" in line), None):
        return None, refused
    named = [(line, report) for line, report in zip(lines, whole.captions, strict=True) if line.get("words")]
    if not named:
        return None, "no model was given the pictures, or no caption names an object"
    found = [_held(line) for line, _ in named]
    made_up = [
        [thing not in report.there for thing in each.objects] for each, (_, report) in zip(found, named, strict=True)
    ]
    try:
        return signal_table(found, made_up, [report.picture for _, report in named]), ""
    except BadInput as error:
        return None, str(error)


def _held(line: Mapping[str, Any]) -> Hallucination:
    words = line["words"]
    values = {
        name: np.array([math.nan if word.get(name) is None else word[name] for word in words], dtype=np.float64)
        for name in SIGNALS
    }
    texts, things = (tuple(word[name] for word in words) for name in ("word", "object"))
    return Hallucination(texts, things, tuple(() for _ in words), values, line["caption"])
