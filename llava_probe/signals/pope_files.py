"""POPE's questions and the answers to them, read from files, rows, texts and traces, or asked of a model.

    questions = read_questions(open_source("coco_pope_random.json"), "random")
    said = matched(read_answers("answers.jsonl"), questions)

An answer finds its question by ``question_id`` where each has its own, else by its place; where it tells its id or what
was asked, that is compared. POPE's own evaluator counts any label but "no" as yes and pairs by place alone; here a
label that is neither, an answer too few and one to another question are each refused, with the line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llava_probe.analyzers.choices import weigh
from llava_probe.asking.decoding import GREEDILY
from llava_probe.errors import BadImage, BadInput, shortened
from llava_probe.features.rows import Source
from llava_probe.features.samples import Sample, read_samples
from llava_probe.features.sources import open_source
from llava_probe.features.values import picture_key
from llava_probe.model import VLM
from llava_probe.pictures.images import open_image
from llava_probe.signals.binding import Binding
from llava_probe.signals.rows import cell_of, each_row, is_looped
from llava_probe.trace.capture import Capture
from llava_probe.trace.trace import Trace

#: By what a column goes, in the files of POPE, of LLaVA's evaluation and of the hub.
_LABEL, _QUESTION, _ANSWER, _ASKED = (
    ("label", "answer"),
    ("text", "question"),
    ("answer", "text"),
    ("question", "prompt"),
)
_LABELS = {"yes": True, "no": False}
#: How far beyond 0 and 1 a probability may lie that was rounded when it was written.
_ROUNDED = 1e-4
#: All that is read of an answer.
LITTLE = Capture(attention=False, hidden_states=False, scores=False)


@dataclass(frozen=True)
class PopeQuestion:
    """One question.

    Attributes:
        id: its ``question_id``; ``text``: as it is asked; ``yes``: whether that is the right answer.
        picture: a key, equal for questions about one picture.
        split: that it belongs to; ``where``: it stands.
    """

    id: str | None
    text: str
    yes: bool
    picture: str
    split: str
    where: str


@dataclass(frozen=True)
class PopeAnswer:
    """One answer.

    Attributes:
        text: that was said.
        yes, no: the summed probability of each; None where neither a trace nor a row tells them.
        binding: with what it was made, of a trace.
        id: of the question that it says it answers; ``question``: the words of that; ``where``: it stands.
    """

    text: str
    yes: float | None = None
    no: float | None = None
    binding: Binding | None = None
    id: str | None = None
    question: str | None = None
    where: str = ""


def read_questions(source: Source, split: str) -> list[PopeQuestion]:
    """All questions of a file or of rows; ``split``: of those without a ``category``.

    Raises:
        BadInput: none, a row that cannot be read, or a label that is neither yes nor no.
    """
    found = []
    for where, row in each_row(source):
        label = cell_of(row, _LABEL, where, "label")
        if not isinstance(label, str) or label not in _LABELS:
            raise BadInput(f"the label of {where} is {shortened(repr(label))}; it is 'yes' or 'no'")
        key = row.get("question_id")
        image = row.get("image_source") or row.get("image")
        found.append(
            PopeQuestion(
                None if key is None else str(key),
                str(cell_of(row, _QUESTION, where, "question")),
                _LABELS[label],
                where if image is None else picture_key(image),
                str(row.get("category") or split),
                where,
            )
        )
    if not found:
        raise BadInput(f"{source.name} holds no question")
    return found


def split_name(name: str) -> str:
    """``random`` of ``coco_pope_random.json``; what has another name goes by it."""
    stem = Path(name).stem
    return stem.rpartition("pope_")[2] or stem


def read_answers(given: Any) -> Iterator[PopeAnswer]:
    """Answers of a file, rows, texts or traces, each trace read and let go.

    Raises:
        BadInput: a row that cannot be read, or something that is none of these.
        NotCaptured: a trace without logits.
    """
    if not is_looped(given):
        for where, row in each_row(open_source(given)):
            yield _of_row(row, where)
        return
    for place, one in enumerate(given):
        if isinstance(one, Trace):
            yield answer_of(one, f"trace {place}")
        elif isinstance(one, str):
            yield PopeAnswer(one, where=f"answer {place}")
        elif isinstance(one, Mapping):
            yield _of_row(one, f"answer {place}")
        else:
            raise BadInput(f"answer {place} is a {type(one).__name__}; answers are texts, traces or rows")


def ask(
    vlm: VLM, source: Source, images: str | Path | None, *, max_new_tokens: int, batch_size: int, progress: bool
) -> Iterator[PopeAnswer]:
    """Ask a model each question of a source, greedily.

    Raises:
        BadInput: a question that cannot be asked: a picture that is not there, say.
    """
    samples = iter(read_samples(source, images=images, columns={"answer": None}))
    shown = {"desc": f"POPE, {source.name}", "unit": "question", "delay": 2.0, "disable": None if progress else True}
    with tqdm(total=source.count(), **shown) as bar:
        while some := list(islice(samples, batch_size)):
            _refuse_faults(some, source.name, lambda sample: sample.fault)
            posed = [{"image": sample.image, **sample.asking} for sample in some]
            try:
                traces = vlm.generate_batch(posed, max_new_tokens=max_new_tokens, capture=LITTLE, **GREEDILY)
            except BadImage:
                _refuse_faults(some, source.name, _unreadable)
                raise
            for sample, trace in zip(some, traces, strict=True):
                yield answer_of(trace, f"row {sample.row}")
            bar.update(len(some))


def _refuse_faults(samples: Sequence[Sample], name: str, fault_of: Callable[[Sample], str | None]) -> None:
    """Raise ``BadInput`` that tells the first of these samples with a fault by its line."""
    for sample in samples:
        if (fault := fault_of(sample)) is not None:
            place = f"line {sample.line}" if sample.line is not None else f"row {sample.row}"
            raise BadInput(f"{place} of {name} cannot be asked: {fault}")


def _unreadable(sample: Sample) -> str | None:
    """Why a picture cannot be opened, if it cannot."""
    try:
        for image in sample.images:
            open_image(image)
    except BadImage as error:
        return str(error)
    return None


def matched(answers: Iterable[PopeAnswer], questions: Sequence[PopeQuestion], name: str) -> list[PopeAnswer]:
    """The answer to each question.

    Args:
        answers: in any order where all have an id, else in that of the questions.
        questions: those of the source called ``name``.

    Raises:
        BadInput: a question without an answer, or with two; an answer to another question.
    """
    held = list(answers)
    ids = {question.id for question in questions}
    if None not in ids and len(ids) == len(questions) and held and all(answer.id is not None for answer in held):
        held = _by_id(held, questions)
    if len(held) != len(questions):
        raise BadInput(f"there are {len(held):,} answers to the {len(questions):,} questions of {name}")
    for question, answer in zip(questions, held, strict=True):
        if None not in (question.id, answer.id) and question.id != answer.id:
            raise BadInput(
                f"{answer.where} answers question_id {shortened(str(answer.id))}, where {question.where} is "
                f"{shortened(str(question.id))}; ids that stand twice find no question, so answers come in its order"
            )
        if answer.question is not None and question.text.strip() not in answer.question:
            told, asked = (shortened(repr(text)) for text in (answer.question, question.text))
            raise BadInput(f"{answer.where} answers {told}, where {question.where} asks {asked}")
    return held


def _by_id(answers: Sequence[PopeAnswer], questions: Sequence[PopeQuestion]) -> list[PopeAnswer]:
    found: dict[str | None, PopeAnswer] = {}
    for answer in answers:
        if answer.id in found:
            raise BadInput(f"{answer.where} answers question_id {answer.id} again, as {found[answer.id].where} does")
        found[answer.id] = answer
    for question in questions:
        if question.id not in found:
            raise BadInput(f"no answer has the question_id {shortened(str(question.id))} of {question.where}")
    return [found[question.id] for question in questions]


def _of_row(row: Mapping[str, Any], where: str) -> PopeAnswer:
    key = row.get("question_id")
    asked = next((str(row[name]) for name in _ASKED if row.get(name) is not None), None)
    said = str(cell_of(row, _ANSWER, where, "answer"))
    yes, no = (_probability(row, side, where) for side in _LABELS)
    if yes is None or no is None:  # one alone says nothing of how likely another word was
        yes = no = None
    return PopeAnswer(said, yes, no, id=None if key is None else str(key), question=asked, where=where)


def _probability(row: Mapping[str, Any], side: str, where: str) -> float | None:
    """What a row says of one side; None where it says nothing or a word (``"yes": "the answer"``)."""
    told = row.get(side)
    if isinstance(told, bool) or not isinstance(told, int | float) or math.isnan(told):
        return None
    if not -_ROUNDED <= told <= 1 + _ROUNDED:
        raise BadInput(f"{where} gives {side} the probability {told:g}; it is a number from 0 to 1")
    return min(max(float(told), 0.0), 1.0)


def answer_of(trace: Trace, where: str) -> PopeAnswer:
    """What a trace says, and how likely yes and no were.

    Raises:
        NotCaptured: a trace without logits.
    """
    yes, no = weigh(trace, ["yes", "no"]).probability
    return PopeAnswer(trace.answer, yes, no, Binding.of(trace), question=trace.question, where=where)
