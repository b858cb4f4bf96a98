"""The same scene with one object otherwise: what a causal trace should corrupt a picture with.

    pair = counterfactual(7, change="shape")
    pair.clean.image, pair.corrupt.image       # the same to the pixel but for one object
    pair.question, pair.answer, pair.other     # "What shape is the black object?", "square", "star"

Background, shades and noise are drawn from the scene's seed in both, so nothing else differs.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from llava_probe.border import Seed, checked
from llava_probe.errors import OutOfRange
from llava_probe.tiny.plan import COLOURS, SHAPES, SIGN, WORDS, Item, plan
from llava_probe.tiny.questions import Question
from llava_probe.tiny.scenes import Scene, drawn_scene, scene

Change = Literal["shape", "colour", "text"]


@checked
@dataclass(frozen=True, eq=False)
class Counterfactual:
    """Two scenes that differ in one object, and the question whose answer that changes.

    Attributes:
        clean: the scene of the seed; ``corrupt``: the changed one.
        changed: which of its objects.
        question: as asked; ``answer``: in the clean scene; ``other``: in the corrupt one.
        mask: [height, width] bool, the pixels that differ.
    """

    clean: Scene
    corrupt: Scene
    changed: int
    question: str
    answer: str
    other: str
    mask: np.ndarray


@checked
def counterfactual(seed: Seed, change: Change = "shape") -> Counterfactual:
    """A scene and its twin in which an object that is asked about has another shape, colour or text.

    Args:
        seed: of the scene.
        change: what of the object.

    Raises:
        OutOfRange: the scene asks no question of that kind about one object.
    """
    items, clean = plan(seed), scene(seed)
    asked = next(
        (
            each
            for each in clean.questions
            if each.kind == change
            and len(each.objects) == 1
            and (change == "text" or items[each.objects[0]].kind != SIGN)
        ),
        None,
    )
    if asked is None:
        raise OutOfRange(f"scene {seed} asks nothing about the {change} of one object; take another seed")
    (number,) = asked.objects
    other = _changed(items, number, change, random.Random(f"counterfactual {change} {seed}"))
    answer = {"shape": other.kind, "colour": other.colour, "text": other.text}[change]
    changed = (*items[:number], other, *items[number + 1 :])
    corrupt = drawn_scene(changed, seed, (Question(change, asked.question, answer, (number,)),))
    pixels = [np.asarray(each.image).astype(np.int16) for each in (clean, corrupt)]
    mask = (pixels[0] != pixels[1]).any(-1)
    return Counterfactual(clean, corrupt, number, asked.question, asked.answer, answer, mask)


def _changed(items: tuple[Item, ...], number: int, change: str, rng: random.Random) -> Item:
    """One object otherwise, so that no two are the same."""
    item = items[number]
    taken = {(each.kind, each.colour) for each in items if each is not item}
    if change == "text":
        return replace(item, text=rng.choice([word for word in WORDS if word != item.text]))
    if change == "shape":
        open_to = [kind for kind in SHAPES if kind != item.kind and (kind, item.colour) not in taken]
        return replace(item, kind=rng.choice(open_to))
    open_to = [colour for colour in COLOURS if colour != item.colour and (item.kind, colour) not in taken]
    return replace(item, colour=rng.choice(open_to))
