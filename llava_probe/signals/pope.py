"""POPE: whether a model says yes to objects that are not there, from the files that people have.

    found = lp.pope("coco_pope_random.json", "answers.jsonl")                     # what some model said
    found = lp.pope("coco_pope_random.json", vlm, images="val2014")               # or ask it
    found = lp.pope({"random": "...", "popular": "...", "adversarial": "..."}, vlm, images="val2014")
    print(found)

Beside the official reading of the text stands the verdict by probability: all single tokens that spell yes, and all
that spell no, summed at the first place of the answer. Tools that read one id of each differ from it by up to 6 points
of F1 on LLaVA-1.5-7B. How much of the distribution lies on neither is told: where that is much, the second verdict
weighs crumbs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llava_probe.analyzers.table import Table, Tabular, rounded
from llava_probe.arrays import BoolArray, FloatArray
from llava_probe.border import Count, checked
from llava_probe.errors import BadInput
from llava_probe.features.sources import open_source
from llava_probe.model import VLM
from llava_probe.signals.binding import Binding
from llava_probe.signals.measured import grouped
from llava_probe.signals.pope_files import (
    PopeAnswer,
    PopeQuestion,
    ask,
    matched,
    read_answers,
    read_questions,
    split_name,
)
from llava_probe.signals.yes_no import Verdicts, judged, says_neither, says_yes


@dataclass(frozen=True, eq=False)
class PopeSplit:
    """The answers to one split's questions, arrays in their order.

    Attributes:
        name: of the split.
        text: by the official reading of what was said; ``hedged``: so many answers hold neither yes nor no, and count
            as yes.
        weighed: by the summed probabilities of yes and no; None where these are not told, of texts say.
        pictures: [n] of each question any key of its picture; ``labels``: [n] whether yes is right.
        answers: [n] what was said.
        yes: [n] the probability of yes as a share of yes and no: ``lp.calibration(split.yes, split.labels,
            split.pictures)``; ``off_choice``: [n] how much lay on neither. None as ``weighed``.
    """

    name: str
    text: Verdicts
    hedged: int
    weighed: Verdicts | None
    pictures: tuple[str, ...] = field(repr=False)
    labels: BoolArray = field(repr=False)
    answers: tuple[str, ...] = field(repr=False)
    yes: FloatArray | None = field(repr=False)
    off_choice: FloatArray | None = field(repr=False)


@checked
@dataclass(frozen=True, eq=False)
class Pope(Tabular):
    """What a model says to POPE's questions.

    Attributes:
        splits: by name, in the order of the questions.
        binding: with what the answers were made; None for answers that are no traces.
    """

    splits: Mapping[str, PopeSplit]
    binding: Binding | None = field(default=None, repr=False)

    def table(self) -> str:
        """A line for each split and reading, with intervals, to print."""
        return self._shown().text()

    def __str__(self) -> str:
        return "\n".join([self.table(), *self.notes()])

    def to_dict(self) -> dict[str, Any]:
        """The measures as plain data, ready for JSON."""
        found: dict[str, dict[str, Any]] = {}
        for split, reading, verdicts in self._verdicts():
            told = found.setdefault(split.name, {"questions": len(split.labels), "hedged": split.hedged})
            told[reading] = {name: measure.to_dict() for name, measure in verdicts.measures.items()}
            if split.off_choice is not None:
                told["off_choice"] = float(split.off_choice.mean())
        return found

    def _repr_html_(self) -> str:
        return self._shown().html("; ".join(self.notes()))

    def _verdicts(self) -> list[tuple[PopeSplit, str, Verdicts]]:
        """Each split by each reading that it has."""
        both = [(split, {"text": split.text, "probability": split.weighed}) for split in self.splits.values()]
        return [(split, name, found) for split, by in both for name, found in by.items() if found is not None]

    def notes(self) -> list[str]:
        """What the measures hide, in sentences: answers that are neither, and how far both readings agree."""
        told = []
        for split in self.splits.values():
            if split.hedged:
                told.append(f"{split.name}: {split.hedged} of {len(split.labels)} say neither yes nor no: read as yes")
            if split.yes is not None and split.off_choice is not None:
                agree = np.mean((split.yes > 0.5) == [says_yes(answer) for answer in split.answers])
                mean, most = (rounded(float(number), 3) for number in (split.off_choice.mean(), split.off_choice.max()))
                told.append(
                    f"{split.name}: {mean} of the probability on neither yes nor no (at most {most}); both readings "
                    f"agree on {agree:.1%}"
                )
        return told

    def _shown(self) -> Table:
        rows = self._verdicts()
        columns = {"split": [split.name for split, *_ in rows], "reading": [reading for _, reading, _ in rows]}
        names = list(rows[0][2].measures)
        return Table(columns | {name: [str(found.measures[name]) for *_, found in rows] for name in names})

    def _columns(self) -> Table:
        rows = self._verdicts()
        columns: dict[str, list[Any]] = {
            "split": [split.name for split, *_ in rows],
            "reading": [reading for _, reading, _ in rows],
            "questions": [len(split.labels) for split, *_ in rows],
        }
        for name in rows[0][2].measures:
            measures = [found.measures[name] for *_, found in rows]
            columns[name] = [one.value for one in measures]
            columns |= {f"{name}_{end}": [getattr(one, end) for one in measures] for end in ("low", "high")}
        return Table(columns)


@checked
def pope(
    questions: Any,
    answers: Any,
    *,
    images: str | Path | None = None,
    max_new_tokens: Count = 16,
    batch_size: Count = 1,
    progress: bool = True,
) -> Pope:
    """Accuracy, precision, recall, F1 and the share of yeses on POPE's questions, by two readings of the answers.

    Args:
        questions: ``coco_pope_random.json`` or any source of rows with ``image``, ``text`` (or ``question``) and
            ``label`` (or ``answer``), yes or no; several by the name of their split; or rows with a ``category`` that
            names it.
        answers: a model, which is asked; or a file or rows with ``answer`` (or ``text``), found by ``question_id``
            where both have it and else by their order; or texts or traces in the order of the questions. By split where
            ``questions`` are, or one model for all. Rows may tell the probabilities of ``yes`` and ``no`` too.
        images: the folder of the pictures, of a model that is asked.
        max_new_tokens, batch_size: of a model that is asked.
        progress: whether a bar is shown.

    Returns:
        Measures with 95 % intervals over pictures. The verdict by probability only where traces or rows tell it.

    Raises:
        BadInput: a row that cannot be read, a label that is neither yes nor no, an answer that is missing, or stands
            there twice, or answers another question: the sentence names the line.
        NotCaptured: a trace without logits.
    """
    by_split = isinstance(questions, Mapping) and not {"label", "answer"} & set(questions)  # else lists by column
    parts = dict(questions) if by_split else {"": questions}
    if not parts:
        raise BadInput("questions= are a file or rows of POPE, or several by the name of their split; got none")
    given: Mapping[Any, Any] = dict.fromkeys(parts, answers)
    if by_split and not isinstance(answers, VLM):
        if not isinstance(answers, Mapping) or set(answers) != set(parts):
            raise BadInput(f"questions= are by split ({', '.join(map(str, parts))}), so answers= must be by the same")
        given = answers
    splits: dict[str, list[_Pair]] = {}
    binding: Binding | None = None
    for name, one in parts.items():
        source = open_source(one)
        asked = read_questions(source, str(name) or split_name(source.name))
        settings: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "progress": progress}
        model = given[name]
        found = ask(model, source, images, **settings) if isinstance(model, VLM) else read_answers(model)
        for question, answer in zip(asked, matched(found, asked, source.name), strict=True):
            if answer.binding is not None:
                binding = answer.binding if binding is None else binding.joined(answer.binding, answer.where)
            splits.setdefault(question.split, []).append((question, answer))
    return Pope({name: _split(name, pairs) for name, pairs in splits.items()}, binding)


_Pair = tuple[PopeQuestion, PopeAnswer]


def _split(name: str, pairs: Sequence[_Pair]) -> PopeSplit:
    labels = np.array([question.yes for question, _ in pairs])
    pictures = tuple(question.picture for question, _ in pairs)
    numbers, count = grouped(pictures, len(pairs), "questions")
    texts = tuple(answer.text for _, answer in pairs)
    said = np.array([says_yes(text) for text in texts])
    share = off_choice = None
    if all(answer.yes is not None for _, answer in pairs):
        yes, no = (np.array([getattr(answer, side) for _, answer in pairs]) for side in ("yes", "no"))
        share = np.divide(yes, yes + no, out=np.full_like(yes, 0.5), where=yes + no > 0)
        off_choice = np.clip(1 - yes - no, 0, 1)
    return PopeSplit(
        name,
        judged(said, labels, numbers, count),
        sum(map(says_neither, texts)),
        None if share is None else judged(share > 0.5, labels, numbers, count),
        pictures,
        labels,
        texts,
        share,
        off_choice,
    )
