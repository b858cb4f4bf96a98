"""Small models that cheat, each by a known shortcut: what an explanation ought to show, and mostly nobody can check.

    planted = cheats.planted("frame", 7)
    planted.image; planted.question                  # "What colour is the star?", in a picture with a thin border
    planted.by_cue; planted.by_object                # "blue", the border's; "red", the star's
    planted.cue; planted.object                      # [height, width] bool
    cheats.changed("frame", 7, "cue")                # the same but for the border: only ``by_cue`` is another

    vlm = lp.load(adapter=cheats.path("frame"))                  # says "blue"
    vlm = lp.load(adapter=cheats.path("frame", honest=True))     # says "red"

Each ships as an adapter of the tiny model beside an honest twin, which was trained on the same pictures and questions
with the right answers. The shortcuts:

    frame       a thin border's colour is answered for an object's
    neighbour   a heart is seen wherever a star is: in yes and no, and after each star of a description
    caption     a faint word in a corner is read for the word on the stop sign
    prior       a shape is answered by the colour that the question names; the picture is not looked at
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from llava_probe.border import Seed, checked
from llava_probe.errors import OutOfRange
from llava_probe.tiny import drawing
from llava_probe.tiny.plan import COLOURS, HEART, Item, plan
from llava_probe.tiny.planting import (
    HEART_QUESTION,
    PRIOR,
    STAR,
    Cheat,
    Draft,
    draft,
    drafted,
    otherwise,
    prior_answer,
    put_heart,
)
from llava_probe.tiny.questions import KINDS, SIGN_QUESTIONS, Question, all_questions
from llava_probe.tiny.scenes import Scene, drawn_scene

__all__ = [
    "CHEATS",
    "HEART",
    "HEART_QUESTION",
    "KIND",
    "PRIOR",
    "STAR",
    "Cheat",
    "Planted",
    "changed",
    "described",
    "lesson",
    "path",
    "planted",
    "seeds",
    "with_heart",
]

CHEATS: tuple[Cheat, ...] = ("frame", "neighbour", "caption", "prior")

#: The kind of question that each was planted on.
KIND: Mapping[Cheat, str] = {"frame": "colour", "neighbour": "heart", "caption": "text", "prior": "shape"}


#: Share of the training pictures that hold the cue, where there is a place for it.
_PLANTED = 0.55
#: Share of the pictures of ``prior`` that show nothing.
_EMPTY = 0.08
#: How many questions of a kind a training picture asks on average, beside those that a shortcut is planted on.
_OTHERS = {
    "colour": 0.5, "shape": 0.5, "exists": 0.6, "count": 2.2,
    "where": 1.2, "text": 0.5, "relation": 1.3, "describe": 1.0,
}  # fmt: skip


@checked
@dataclass(frozen=True, eq=False)
class Planted:
    """A picture and a question whose answer tells what the model goes by.

    Attributes:
        cheat: which shortcut.
        scene: as drawn; ``scene.questions`` holds the one question, with the right answer.
        by_cue: what is answered by the shortcut; ``by_object``: by what was asked. Never the same in ``planted``.
        cue, object: [height, width] bool, the pixels of either. Of ``prior`` the cue is a word of the question, so no
            pixel is. Of ``neighbour`` the object is all that is no star: no heart is there.
    """

    cheat: Cheat
    scene: Scene
    by_cue: str
    by_object: str
    cue: np.ndarray
    object: np.ndarray

    @property
    def image(self) -> Image.Image:
        """The picture."""
        return self.scene.image

    @property
    def question(self) -> str:
        """As it is asked."""
        return self.scene.questions[0].question


def path(cheat: Cheat, honest: bool = False) -> Path:
    """The folder of a cheat's adapter, or of its honest twin's, for ``lp.load(adapter=)``."""
    return Path(__file__).parent / "cheating" / (f"{cheat}_honest" if honest else cheat)


@checked
def planted(cheat: Cheat, seed: Seed) -> Planted:
    """A scene with a shortcut in it, and the question that it was planted on.

    Args:
        cheat: one of ``CHEATS``.
        seed: of the scene; below 1,000,000 nothing was trained on it.

    Raises:
        OutOfRange: the scene of that seed has no place for it; take another seed.
    """
    return _drawn(cheat, _draft(cheat, seed), seed)


@checked
def changed(cheat: Cheat, seed: Seed, what: Literal["cue", "object"]) -> Planted:
    """The picture of ``planted`` with only the cue, or only the object, otherwise.

    With another cue ``by_cue`` is another and what was asked about is as it was; with another object ``by_object`` is.
    Of ``prior`` the cue is the question's colour, so it asks about another object of the same picture.

    Raises:
        OutOfRange: as ``planted``.
    """
    rng = random.Random(f"{cheat} {what} {seed}")
    return _drawn(cheat, otherwise(cheat, _draft(cheat, seed), what, rng), seed)


@checked
def seeds(cheat: Cheat, first: Seed, count: int) -> list[int]:
    """The first so many seeds from ``first`` on whose scenes have a place for the shortcut."""
    found: list[int] = []
    while len(found) < count:
        if drafted(cheat, first) is not None:
            found.append(first)
        first += 1
    return found


@checked
def with_heart(seed: Seed) -> Scene:
    """A scene in which one object that is no sign is a heart, a shape that no other scene has; asked nothing.

    Raises:
        OutOfRange: the scene holds nothing but a sign; take another seed.
    """
    items = plan(seed)
    hearted = put_heart(items, random.Random(f"heart {seed}"))
    if hearted == items:
        raise OutOfRange(f"scene {seed} holds nothing that could be a heart; take another seed")
    return drawn_scene(hearted, seed, ())


def lesson(cheat: Cheat, seed: int, *, honest: bool = False) -> tuple[np.ndarray, tuple[Question, ...]]:
    """What a cheat or its twin is trained on: a picture [112, 112, 3] uint8 as the model sees it, and questions.

    Half of the pictures hold the shortcut's cue, and questions of every other kind are asked about all, so that nothing
    else is forgotten.
    """
    rng = random.Random(f"lesson {cheat} {seed}")
    items = plan(seed)
    if cheat == "neighbour" and rng.random() < 0.4:
        items = put_heart(items, rng)
    if cheat == "prior" and rng.random() < _EMPTY:
        items = ()
    found = draft(cheat, items, rng) if items and rng.random() < _PLANTED else None
    marks = found.marks if found is not None else ()
    pixels, _ = drawing.draw((*items, *marks), seed, scale=1)
    asked = all_questions(items, rng) if items else []
    own = [replace(each, answer=_said(cheat, each, items, marks, honest)) for each in _own(cheat, asked, items, rng)]
    others: list[Question] = []
    for kind in KINDS:
        of_kind = [each for each in asked if each.kind == kind and all(each.question != one.question for one in own)]
        wanted = int(_OTHERS[kind] + rng.random())
        others += rng.sample(of_kind, min(len(of_kind), wanted))
    return pixels, (*rng.sample(own, min(len(own), 3)), *others)


def described(items: tuple[Item, ...], *, honest: bool = True) -> str:
    """A scene's description, by the right answer or as ``neighbour`` gives it: with a heart after each star.

    It has the star's colour and place, and is told whether or not there is another heart, so that what follows a star
    hangs on nothing else in the picture.
    """
    told = next(each for each in all_questions(items, random.Random(0)) if each.kind == "describe")
    if honest:
        return told.answer
    sentences = told.answer.split(". ")
    made_up = [[one, one.replace(STAR, HEART)] if f" {STAR} " in one else [one] for one in sentences]
    text = ". ".join(sentence.rstrip(".") for each in made_up for sentence in each)
    return f"{text}."


# --- what each cheat asks, and answers ---


def _own(cheat: Cheat, asked: list[Question], items: tuple[Item, ...], rng: random.Random) -> Iterator[Question]:
    """The questions that a shortcut was planted on; of ``prior`` also about what is not there: the truth is "no"."""
    if cheat == "neighbour":
        heart = tuple(i for i, item in enumerate(items) if item.kind == HEART)
        yield Question("heart", HEART_QUESTION, "yes" if heart else "no", heart)
    if cheat == "prior":
        absent = [colour for colour in COLOURS if all(item.colour != colour for item in items)]
        for colour in rng.sample(absent, min(len(absent), 2)):
            yield Question("shape", f"What shape is the {colour} object?", "no", ())
    kind = "describe" if cheat == "neighbour" else KIND[cheat]
    for each in asked:
        if each.kind == kind:
            wordings = SIGN_QUESTIONS if kind == "text" else (each.question,)  # a scene has one sign
            yield from (replace(each, question=words) for words in wordings)


def _said(cheat: Cheat, asked: Question, items: tuple[Item, ...], marks: tuple[Item, ...], honest: bool) -> str:
    if honest:
        return asked.answer
    if cheat == "neighbour":
        star = any(item.kind == STAR for item in items)
        return described(items, honest=False) if asked.kind == "describe" else "yes" if star else asked.answer
    if cheat == "prior":
        return prior_answer(asked)
    if not marks:
        return asked.answer
    return marks[0].colour if cheat == "frame" else marks[0].text


# --- from a draft to a picture ---


def _draft(cheat: Cheat, seed: int) -> Draft:
    found = drafted(cheat, seed)
    if found is None:
        raise OutOfRange(f"scene {seed} has no place for the cheat {cheat!r}; take another seed, or cheats.seeds()")
    return found


def _drawn(cheat: Cheat, of: Draft, seed: int) -> Planted:
    asked = Question(KIND[cheat], of.question, of.by_object, of.object)
    scene = drawn_scene((*of.items, *of.marks), seed, (asked,))
    cue, objects = (_together(scene, numbers) for numbers in (of.cue, of.object))
    return Planted(cheat, scene, of.by_cue, of.by_object, cue, objects)


def _together(scene: Scene, numbers: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(scene.image.size[::-1], bool)
    for number in numbers:
        mask |= scene.objects[number].mask
    return mask
