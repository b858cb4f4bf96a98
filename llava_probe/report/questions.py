"""Yes-or-no questions of a data set: how they are asked, and what is measured of the answers.

A line of ``answers.jsonl`` is a question and its answer at once, so ``lp.pope("answers.jsonl", "answers.jsonl")`` reads
the numbers of the page again, in Python.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NotRequired, TypedDict

import numpy as np

from llava_probe.asking.decoding import GREEDILY
from llava_probe.errors import BadInput
from llava_probe.features.rows import Source
from llava_probe.features.samples import Sample, read_samples
from llava_probe.model import VLM
from llava_probe.report.asking import RowTask
from llava_probe.signals.calibration import Calibration, calibration
from llava_probe.signals.pope import Pope, PopeSplit, pope
from llava_probe.signals.pope_files import LITTLE, PopeQuestion, answer_of, read_questions, split_name

#: Tokens of an answer, as ``lp.pope`` allows.
QUESTION_TOKENS = 16


class AnswerLine(TypedDict):
    """One answered question; ``yes`` and ``no`` are the summed probabilities of all tokens that spell them."""

    row: int
    question_id: NotRequired[str | None]
    image: str
    question: str
    label: str
    category: str
    answer: str
    yes: float
    no: float


@dataclass(frozen=True, eq=False)
class AskedQuestions:
    """What came of them, by split.

    Attributes:
        pope: accuracy, F1 and the rest, by both readings.
        present: whether the share of yes is the chance that the object is there.
        right: whether the share of the answer that is likelier is the chance that it is right.
        lines: of the answers.
    """

    pope: Pope
    present: Mapping[str, Calibration]
    right: Mapping[str, Calibration]
    lines: Sequence[Mapping[str, Any]]

    def __str__(self) -> str:
        return str(self.pope)

    def to_dict(self) -> dict[str, Any]:
        """The measures by split as plain data, ready for JSON."""
        told: dict[str, Any] = {name: dict(split) for name, split in self.pope.to_dict().items()}
        for name, split in told.items():
            split["calibration of yes"] = self.present[name].to_dict()
            split["calibration of the answer"] = self.right[name].to_dict()
        return told


def questions_task(sources: Sequence[Source], images: str | None, max_new_tokens: int | None) -> RowTask:
    """Files of POPE as a task; each is a split by its name, or its rows name theirs.

    Raises:
        BadInput: a row that cannot be read, a label that is neither yes nor no, or two files of one name.
    """
    names = [split_name(source.name) for source in sources]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BadInput(f"two files are the split {twice!r}; give each split once")
    asked = [read_questions(source, name) for source, name in zip(sources, names, strict=True)]
    tokens = max_new_tokens or QUESTION_TOKENS

    def rows() -> Iterator[tuple[dict[str, Any], Sample]]:
        number = 0
        for source, questions in zip(sources, asked, strict=True):
            samples = read_samples(source, images=images, columns={"answer": None})
            for question, sample in zip(questions, samples, strict=True):
                yield _begun(number, question), sample
                number += 1

    settings = {"asked": "yes or no", "max_new_tokens": tokens}
    return RowTask("answers.jsonl", AnswerLine, settings, sum(map(len, asked)), rows, partial(_asked, tokens=tokens))


def _begun(number: int, question: PopeQuestion) -> dict[str, Any]:
    told = {"row": number, "question_id": question.id, "image": question.picture, "question": question.text}
    return {**told, "label": "yes" if question.yes else "no", "category": question.split}


def _asked(vlm: VLM, samples: Sequence[Sample], tokens: int) -> list[dict[str, Any]]:
    posed = [{"image": sample.image, **sample.asking} for sample in samples]
    traces = vlm.generate_batch(posed, max_new_tokens=tokens, capture=LITTLE, **GREEDILY)
    found = [answer_of(trace, "") for trace in traces]
    return [{"answer": each.text, "yes": each.yes, "no": each.no} for each in found]


def measured_answers(lines: Sequence[Mapping[str, Any]]) -> AskedQuestions:
    """Everything that is told of answers.

    Raises:
        BadInput: there are none.
    """
    found = pope(lines, lines)
    present = {name: calibration(yes, split.labels, split.pictures) for name, split, yes in _weighed(found)}
    right = {
        name: calibration(np.maximum(yes, 1 - yes), (yes > 0.5) == split.labels, split.pictures)
        for name, split, yes in _weighed(found)
    }
    return AskedQuestions(found, present, right, lines)


def _weighed(found: Pope) -> Iterator[tuple[str, PopeSplit, Any]]:
    for name, split in found.splits.items():
        yield name, split, split.yes
