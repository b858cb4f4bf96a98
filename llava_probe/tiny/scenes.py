"""Pictures whose whole truth is known: what stands where, down to the pixel, and what may be asked about it.

A method that explains a model can only be judged where the right explanation is known. Each scene is planned from a
seed, drawn, and asked about; the same seed is the same scene in every process. Seeds below ``FIRST_TRAINING_SEED`` are
held out: no training run draws them. Two seeds giving the same picture has a negligible chance, since each scene takes
well over a hundred random bits.

    scene = scene(7)
    scene.image; scene.objects[0].mask; scene.questions[0].answer
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from PIL import Image

from llava_probe.border import Limits, Seed, checked
from llava_probe.tiny import drawing
from llava_probe.tiny.plan import plan
from llava_probe.tiny.questions import Question, select_questions

#: Pixels of a side in which every object is seen; four thousand are more than any processor keeps.
SMALLEST = 84
FIRST_TRAINING_SEED = 1_000_000


@checked
@dataclass(frozen=True, eq=False)
class SceneObject:
    """One object as drawn.

    Attributes:
        kind: one of ``SHAPES``, or ``"stop sign"``.
        text: the word on a stop sign, empty otherwise.
        box: (x0, y0, x1, y1) in pixels, the far edges exclusive.
        mask: [height, width] bool, the pixels that belong to the object.
        place: one of the nine names in ``PLACES``.
    """

    kind: str
    colour: str
    text: str
    box: tuple[int, int, int, int]
    mask: np.ndarray
    place: str


@checked
@dataclass(frozen=True, eq=False)
class Scene:
    """A picture, the objects on it, and at least six questions with their answers."""

    seed: int
    image: Image.Image
    objects: tuple[SceneObject, ...]
    questions: tuple[Question, ...]


@checked
def scene(seed: Seed, size: Annotated[int, Limits(SMALLEST, 4096)] = drawing.MASTER) -> Scene:
    """Draw the scene of a seed as a ``size`` × ``size`` RGB picture, with its truth at that resolution."""
    items = plan(seed)
    pixels, masks = drawing.draw(items, seed)
    image = Image.fromarray(pixels)
    if size != drawing.MASTER:
        image = image.resize((size, size), Image.Resampling.BICUBIC)
        masks = [drawing.resize_mask(mask, size) for mask in masks]
    objects = tuple(
        SceneObject(item.kind, item.colour, item.text, _box(mask), mask, item.place)
        for item, mask in zip(items, masks, strict=True)
    )
    return Scene(seed, image, objects, select_questions(items, seed))


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
