"""What may be asked about a scene, with the only right answer and the objects that it rests on.

A question is asked only where its answer is beyond doubt: an object is named by a shape, a colour or both only when
that singles it out, and "left of" is asked only when exactly one object lies clearly that way and no other nearly does.
``Question.objects`` is the truth for explanations: the objects without which the answer could not be known.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llava_probe.border import checked
from llava_probe.tiny.plan import COLOURS, SHAPES, SIGN, Item

KINDS = ("colour", "shape", "exists", "count", "where", "text", "relation", "describe")
TEXT_QUESTION = "What is the text on the stop sign?"

_DIRECTIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
_STEEP = 1.3  # an object lies clearly in a direction when it is this many times further along it than across it
_NEAR = 12  # units; objects less apart than this along a direction are neither before nor behind
_PER_KIND = 2  # questions of one kind that a public scene asks at most

#: All wordings of the question about a sign.
SIGN_QUESTIONS = (TEXT_QUESTION, "What does the stop sign say?", "What word is on the stop sign?")

_VARIANTS = {
    TEXT_QUESTION: SIGN_QUESTIONS[1:],
    "Describe the image.": ("Describe the picture.", "What is in the image?"),
    "How many objects are there?": ("How many objects are in the image?",),
}


@checked
@dataclass(frozen=True)
class Question:
    """A question, its answer, and the objects (indices into the scene's) on which the answer depends."""

    kind: str
    question: str
    answer: str
    objects: tuple[int, ...]


def select_questions(items: Sequence[Item], seed: int) -> tuple[Question, ...]:
    """The questions that a public scene asks: one or two of each kind that it allows, six at least."""
    rng = random.Random(f"questions {seed}")
    asked = all_questions(items, rng)
    chosen: list[Question] = []
    for kind in KINDS:
        of_kind = [question for question in asked if question.kind == kind]
        if kind == "exists":
            yes, no = ([q for q in of_kind if q.answer == answer] for answer in ("yes", "no"))
            of_kind = [rng.choice(yes), rng.choice(no)]
        elif kind == "count":
            of_kind = [of_kind[0], rng.choice(of_kind[1:])]
        chosen += rng.sample(of_kind, min(_PER_KIND, len(of_kind)))
    return tuple(chosen)


def all_questions(items: Sequence[Item], rng: random.Random) -> list[Question]:
    """Every question of a scene; where there are endlessly many (what is not there), a few drawn by ``rng``."""
    asked: list[Question] = []
    for kind in (_colour, _shape, _exists, _count, _where, _text, _relation, _describe):
        asked += kind(items, rng)
    return asked


def vary(question: Question, rng: random.Random) -> str:
    """The question's wording for training: mostly as it stands, at times spelled or put another way."""
    words = question.question
    if words in _VARIANTS and rng.random() < 0.2:
        words = rng.choice(_VARIANTS[words])
    if "left of" in words or "right of" in words:
        words = words.replace("What is ", "What is to the ") if rng.random() < 0.1 else words
    return words.replace("colour", "color") if rng.random() < 0.15 else words


def _colour(items: Sequence[Item], rng: random.Random) -> Iterator[Question]:
    for i, item in enumerate(items):
        if item.kind != SIGN and _only(items, kind=item.kind):
            yield Question("colour", f"What colour is the {item.kind}?", item.colour, (i,))


def _shape(items: Sequence[Item], rng: random.Random) -> Iterator[Question]:
    for i, item in enumerate(items):
        if item.kind != SIGN and _only(items, colour=item.colour):
            yield Question("shape", f"What shape is the {item.colour} object?", item.kind, (i,))


def _exists(items: Sequence[Item], rng: random.Random) -> Iterator[Question]:
    present = {(item.colour, item.kind) for item in items}
    for i, item in enumerate(items):
        yield Question("exists", f"Is there {_named(item.colour, item.kind)}?", "yes", (i,))
    pairs = [(colour, kind) for colour in COLOURS for kind in SHAPES if (colour, kind) not in present]
    seen_colours, seen_kinds = {item.colour for item in items}, {item.kind for item in items}
    half_right = [pair for pair in pairs if (pair[0] in seen_colours) != (pair[1] in seen_kinds)]
    both_right = [pair for pair in pairs if pair[0] in seen_colours and pair[1] in seen_kinds]
    absent = {rng.choice(half_right), rng.choice(pairs), rng.choice(both_right or half_right)}
    for colour, kind in sorted(absent):
        yield Question("exists", f"Is there {_named(colour, kind)}?", "no", ())
    if SIGN not in seen_kinds:
        yield Question("exists", f"Is there a {SIGN}?", "no", ())


def _count(items: Sequence[Item], rng: random.Random) -> Iterator[Question]:
    yield Question("count", "How many objects are there?", str(len(items)), tuple(range(len(items))))
    colours, kinds = sorted({item.colour for item in items}), sorted({item.kind for item in items} - {SIGN})
    for colour in (*colours, rng.choice(COLOURS)):
        found = tuple(i for i, item in enumerate(items) if item.colour == colour)
        yield Question("count", f"How many {colour} objects are there?", str(len(found)), found)
    for kind in (*kinds, rng.choice(SHAPES)):
        found = tuple(i for i, item in enumerate(items) if item.kind == kind)
        plural = "crosses" if kind == "cross" else f"{kind}s"
        yield Question("count", f"How many {plural} are there?", str(len(found)), found)


def _where(items: Sequence[Item], rng: random.Random) -> Iterator[Question]:
    for i, item in enumerate(items):
        yield Question("where", f"Where is {_reference(items, item, rng)}?", item.place, (i,))


def _text(items: Sequence[Item], rng: random.Random) -> Iterator[Question]:
    for i, item in enumerate(items):
        if item.text:
            yield Question("text", TEXT_QUESTION, item.text, (i,))


def _relation(items: Sequence[Item], rng: random.Random) -> Iterator[Question]:
    for i, anchor in enumerate(items):
        for words, (along_x, along_y) in _DIRECTIONS.items():
            clear, doubtful = [], []
            for j, other in enumerate(items):
                dx, dy = other.x - anchor.x, other.y - anchor.y
                along, across = along_x * dx + along_y * dy, abs(along_y * dx) + abs(along_x * dy)
                if along >= _NEAR and along >= _STEEP * across:
                    clear.append(j)
                elif along > 0 and along * _STEEP > across:
                    doubtful.append(j)
            if len(clear) == 1 and not doubtful:
                answer = _plain(items[clear[0]])
                asked = f"What is {words} {_reference(items, anchor, rng)}?"
                yield Question("relation", asked, answer, (clear[0], i))


def _describe(items: Sequence[Item], rng: random.Random) -> Iterator[Question]:
    order = sorted(range(len(items)), key=lambda i: _reading_order(items[i].place))
    sentences = [_sentence(items[i]) for i in order]
    yield Question("describe", "Describe the image.", " ".join(sentences), tuple(order))


def _sentence(item: Item) -> str:
    where = "in the centre" if item.place == "centre" else f"at the {item.place}"
    what = f"a {SIGN} that says {item.text}" if item.text else _named(item.colour, item.kind)
    return f"There is {what} {where}."


def _reading_order(place: str) -> tuple[int, int]:
    row = 0 if "top" in place else 2 if "bottom" in place else 1
    column = 0 if "left" in place else 2 if "right" in place else 1
    return row, column


def _only(items: Sequence[Item], kind: str | None = None, colour: str | None = None) -> bool:
    return sum(kind in (None, item.kind) and colour in (None, item.colour) for item in items) == 1


def _plain(item: Item) -> str:
    return SIGN if item.text else f"{item.colour} {item.kind}"


def _named(colour: str, kind: str) -> str:
    if kind == SIGN:
        return f"a {SIGN}"
    return f"{'an' if colour == 'orange' else 'a'} {colour} {kind}"


def _reference(items: Sequence[Item], item: Item, rng: random.Random) -> str:
    if item.kind != SIGN and _only(items, kind=item.kind) and rng.random() < 0.5:
        return f"the {item.kind}"
    return f"the {_plain(item)}"
