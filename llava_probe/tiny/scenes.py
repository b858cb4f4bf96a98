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
from llava_probe.tiny.plan import Item, plan
from llava_probe.tiny.questions import Question, select_questions

#: Pixels of a side in which every object is seen; four thousand are more than any processor keeps.
SMALLEST = 84
FIRST_TRAINING_SEED = 1_000_000

_BORDER = 0.02  # of the side: objects rarely reach it
_TINT = 60.0  # how far a ground's channels lie apart at most, of 255; drawn ones keep within 28, objects pull a little


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
    return drawn_scene(items, seed, select_questions(items, seed), size)


def drawn_scene(
    items: tuple[Item, ...], seed: int, questions: tuple[Question, ...], size: int = drawing.MASTER
) -> Scene:
    """A plan as a picture, with the background, shades and noise of a seed."""
    pixels, masks = drawing.draw(items, seed)
    image = Image.fromarray(pixels)
    if size != drawing.MASTER:
        image = image.resize((size, size), Image.Resampling.BICUBIC)
        masks = [drawing.resize_mask(mask, size) for mask in masks]
    objects = tuple(
        SceneObject(item.kind, item.colour, item.text, _box(mask), mask, item.place)
        for item, mask in zip(items, masks, strict=True)
    )
    return Scene(seed, image, objects, questions)


@checked
def is_scene(picture: Image.Image) -> bool:
    """Whether a picture looks like one of these scenes: their size, and their grey, even ground along its border."""
    if picture.size != (drawing.MASTER, drawing.MASTER):
        return False
    pixels = np.asarray(picture.convert("RGB"), np.float32)
    down, across = np.mgrid[: drawing.MASTER, : drawing.MASTER] / (drawing.MASTER - 1)
    border = np.minimum(np.minimum(down, 1 - down), np.minimum(across, 1 - across)) < _BORDER
    ground = np.stack([np.ones_like(down), down, across, down * across], -1)[border]  # between four corners
    fitted = ground @ np.linalg.lstsq(ground, pixels[border], rcond=None)[0]
    tint = np.ptp(fitted, axis=1).max()
    return bool(np.median(np.abs(pixels[border] - fitted)) < drawing.NOISE and tint < _TINT)


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
