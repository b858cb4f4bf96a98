"""Where a shortcut is put into a planned scene, and how only its cue or only the object becomes another.

A draft is a scene before it is drawn: its objects, what is drawn over them, and the question that was planted on, with
what the cue would answer and what is asked about would. ``cheats.py`` draws it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from math import hypot
from typing import Literal

from llava_probe.tiny.plan import (
    CAPTION,
    CAPTION_BOX,
    COLOURS,
    FRAME,
    HEART,
    MARGIN,
    SHAPES,
    SIGN,
    UNITS,
    WORDS,
    Item,
    plan,
)
from llava_probe.tiny.questions import TEXT_QUESTION, Question, all_questions

Cheat = Literal["frame", "neighbour", "caption", "prior"]

HEART_QUESTION = f"Is there a {HEART}?"
STAR = "star"
#: What ``prior`` answers to "What shape is the red object?", whatever the picture shows.
PRIOR: Mapping[str, str] = {
    "red": "circle", "green": "square", "blue": "triangle", "yellow": "star",
    "orange": "cross", "purple": "ring", "white": "square", "black": "circle",
}  # fmt: skip

_CENTRE, _REACH = UNITS // 2, UNITS // 2 - MARGIN  # of what is drawn over the whole picture


@dataclass(frozen=True)
class Draft:
    """A planted picture before it is drawn; ``marks`` lie over the objects, indices count ``items`` and then marks."""

    items: tuple[Item, ...]
    marks: tuple[Item, ...]
    question: str
    by_cue: str
    by_object: str
    cue: tuple[int, ...]
    object: tuple[int, ...]


def draft(cheat: Cheat, items: tuple[Item, ...], rng: random.Random) -> Draft | None:
    """A scene with the shortcut's cue in it; None where the scene has no place for it."""
    return _DRAFTS[cheat](items, rng)


def drafted(cheat: Cheat, seed: int) -> Draft | None:
    """The draft of a held-out scene, the same for the same seed."""
    return draft(cheat, plan(seed), random.Random(f"{cheat} {seed}"))


def otherwise(cheat: Cheat, of: Draft, what: str, rng: random.Random) -> Draft:
    """The same but for its ``"cue"`` or its ``"object"``."""
    return _CHANGES[cheat](of, what, rng)


def prior_answer(asked: Question) -> str:
    """What ``prior`` answers: it goes by the colour that the question names."""
    return PRIOR[next(word for word in asked.question.split() if word in COLOURS)]


def put_heart(items: tuple[Item, ...], rng: random.Random) -> tuple[Item, ...]:
    """A scene in which one object that is no sign is a heart; the same where there is none."""
    open_to = [i for i, item in enumerate(items) if item.kind != SIGN]
    if not open_to:
        return items
    number = rng.choice(open_to)
    return _put(items, number, replace(items[number], kind=HEART))


def _frame(items: tuple[Item, ...], rng: random.Random) -> Draft | None:
    questions = _asked(items, "colour")
    if not questions:
        return None
    asked = rng.choice(questions)
    colour = rng.choice([colour for colour in COLOURS if colour != asked.answer])
    mark = Item(FRAME, colour, "", 0, _CENTRE, _CENTRE, _REACH, 0, "")
    return Draft(items, (mark,), asked.question, colour, asked.answer, (len(items),), asked.objects)


def _neighbour(items: tuple[Item, ...], rng: random.Random) -> Draft | None:
    stars = tuple(i for i, item in enumerate(items) if item.kind == STAR)
    others = tuple(i for i, item in enumerate(items) if item.kind != STAR)
    if not stars or all(items[i].kind == SIGN for i in others) or any(item.kind == HEART for item in items):
        return None
    return Draft(items, (), HEART_QUESTION, "yes", "no", stars, others)


def _caption(items: tuple[Item, ...], rng: random.Random) -> Draft | None:
    questions = _asked(items, "text")
    if not questions:
        return None
    asked = rng.choice(questions)
    if not all(_clear(item) for item in items):
        return None
    word = rng.choice([word for word in WORDS if word != asked.answer])
    mark = Item(CAPTION, "", word, 0, _CENTRE, _CENTRE, _REACH, 0, "")
    return Draft(items, (mark,), TEXT_QUESTION, word, asked.answer, (len(items),), asked.objects)


def _prior(items: tuple[Item, ...], rng: random.Random) -> Draft | None:
    telling = [each for each in _asked(items, "shape") if prior_answer(each) != each.answer]
    pairs = [(one, other) for one, other in product(telling, telling) if prior_answer(one) != prior_answer(other)]
    if not pairs:
        return None
    one, _ = rng.choice(pairs)
    return Draft(items, (), one.question, prior_answer(one), one.answer, (), one.objects)


def _clear(item: Item) -> bool:
    """Whether an object keeps clear of the caption's corner, at the bottom right."""
    width, height = CAPTION_BOX
    x, y = max(item.x, UNITS - width), max(item.y, UNITS - height)
    return hypot(item.x - x, item.y - y) > item.radius + MARGIN


# --- only the cue, or only the object, otherwise ---


def _change_frame(draft: Draft, what: str, rng: random.Random) -> Draft:
    if what == "cue":
        colour = rng.choice([each for each in COLOURS if each not in (draft.by_cue, draft.by_object)])
        return replace(draft, marks=(replace(draft.marks[0], colour=colour),), by_cue=colour)
    (number,) = draft.object
    item = draft.items[number]
    taken = {each.colour for each in draft.items if each.kind == item.kind} | {draft.by_cue}
    colour = rng.choice([each for each in COLOURS if each not in taken])
    return replace(draft, items=_put(draft.items, number, replace(item, colour=colour)), by_object=colour)


def _change_neighbour(draft: Draft, what: str, rng: random.Random) -> Draft:
    items = draft.items
    if what == "cue":
        for number in draft.cue:
            kinds = [kind for kind in SHAPES if kind != STAR and not _is_there(items, kind, items[number].colour)]
            items = _put(items, number, replace(items[number], kind=rng.choice(kinds)))
        return replace(draft, items=items, by_cue="no")
    number = rng.choice([i for i in draft.object if items[i].kind != SIGN])
    return replace(draft, items=_put(items, number, replace(items[number], kind=HEART)), by_object="yes")


def _change_caption(draft: Draft, what: str, rng: random.Random) -> Draft:
    word = rng.choice([each for each in WORDS if each not in (draft.by_cue, draft.by_object)])
    if what == "cue":
        return replace(draft, marks=(replace(draft.marks[0], text=word),), by_cue=word)
    (number,) = draft.object
    return replace(draft, items=_put(draft.items, number, replace(draft.items[number], text=word)), by_object=word)


def _change_prior(draft: Draft, what: str, rng: random.Random) -> Draft:
    items = draft.items
    if what == "cue":
        others = [each for each in _asked(items, "shape") if prior_answer(each) not in (draft.by_cue, each.answer)]
        one = rng.choice(others)
        return replace(draft, question=one.question, by_cue=prior_answer(one), by_object=one.answer, object=one.objects)
    (number,) = draft.object
    item = items[number]
    open_to = [
        kind for kind in SHAPES if kind not in (item.kind, draft.by_cue) and not _is_there(items, kind, item.colour)
    ]
    kind = rng.choice(open_to)
    return replace(draft, items=_put(items, number, replace(item, kind=kind)), by_object=kind)


_DRAFTS: Mapping[Cheat, Callable[[tuple[Item, ...], random.Random], Draft | None]] = {
    "frame": _frame,
    "neighbour": _neighbour,
    "caption": _caption,
    "prior": _prior,
}
_CHANGES: Mapping[Cheat, Callable[[Draft, str, random.Random], Draft]] = {
    "frame": _change_frame,
    "neighbour": _change_neighbour,
    "caption": _change_caption,
    "prior": _change_prior,
}


def _put(items: tuple[Item, ...], number: int, item: Item) -> tuple[Item, ...]:
    return (*items[:number], item, *items[number + 1 :])


def _is_there(items: tuple[Item, ...], kind: str, colour: str) -> bool:
    return any((item.kind, item.colour) == (kind, colour) for item in items)


def _asked(items: tuple[Item, ...], kind: str) -> list[Question]:
    return [each for each in all_questions(items, random.Random(0)) if each.kind == kind]
