"""What stands where in a scene, decided before anything is drawn.

A plan fixes the objects, their places and sizes in units of 1/112 of the picture's side. Drawing, questions and
training targets all read the same plan, so that they cannot disagree. Objects stand in different ninths of the picture
and keep clear of the borders between them, so that "top left" is never a matter of taste.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from math import hypot

UNITS = 112  # the picture's side in the units of a plan; also the model's input size
MARGIN = 2  # units between an object and the picture's edge: the reach of the bicubic filter
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "white", "black")
SIGN = "stop sign"
#: What only the pictures of ``cheats.py`` hold: a seventh shape, a border, and a word in a corner.
HEART, FRAME, CAPTION = "heart", "frame", "caption"
CAPTION_BOX = (44, 15)  # width and height of the corner that a caption has to itself
WORDS = (
    "STOP", "SLOW", "WAIT", "HALT", "EXIT", "OPEN", "PARK", "TAXI",
    "HELP", "FIRE", "CAFE", "GATE", "BUS", "ZONE", "HOME", "YES",
)  # fmt: skip
GRID_PLACES = (
    ("top left", "top", "top right"),
    ("left", "centre", "right"),
    ("bottom left", "bottom", "bottom right"),
)

_OBJECT_COUNTS = (1, 2, 2, 3, 3, 3, 4, 4, 4, 4)  # four-object scenes are the hard ones, so they are the most
_RADII = range(8, 16)
_SIGN_RADII = range(22, 29)
_TURNS = (-12, 0, 12)
_CLEARANCE = 3  # units that a centre keeps from the borders between places
_GAP = 2  # units between two objects
_REPEAT = 0.3  # chance that an object takes the shape, or the colour, of an earlier one


@dataclass(frozen=True)
class Item:
    """One object as planned, in units of 1/112 of the picture's side."""

    kind: str
    colour: str
    text: str
    font: int
    x: int
    y: int
    radius: int
    turn: int
    place: str


def plan(seed: int) -> tuple[Item, ...]:
    """Choose what stands where: one to four objects in different places, no two of the same shape and colour."""
    rng = random.Random(seed)
    while True:
        items = _try_plan(rng)
        if items:
            return items


def _try_plan(rng: random.Random) -> tuple[Item, ...]:
    count = rng.choice(_OBJECT_COUNTS)
    items: list[Item] = []
    signed = rng.random() < 0.5
    while len(items) < count:
        if signed and not items:
            item = _place(rng, items, SIGN, "red", rng.choice(WORDS))
        else:
            item = _place(rng, items, *_shape_and_colour(rng, items), "")
        if item is None:
            return ()
        items.append(item)
    rng.shuffle(items)
    return tuple(items)


def _shape_and_colour(rng: random.Random, items: list[Item]) -> tuple[str, str]:
    shapes = [item for item in items if item.kind != SIGN]
    while True:
        kind, colour = rng.choice(SHAPES), rng.choice(COLOURS)
        if shapes and rng.random() < _REPEAT:
            kind = rng.choice(shapes).kind
        elif shapes and rng.random() < _REPEAT:
            colour = rng.choice(shapes).colour
        if all((kind, colour) != (item.kind, item.colour) for item in items):
            return kind, colour


def _place(rng: random.Random, items: list[Item], kind: str, colour: str, text: str) -> Item | None:
    taken = {item.place for item in items}
    for _ in range(30):
        radius = rng.choice(_SIGN_RADII if text else _RADII)
        row, column = rng.randrange(3), rng.randrange(3)
        if GRID_PLACES[row][column] in taken:
            continue
        x, y = _coordinate(rng, column, radius), _coordinate(rng, row, radius)
        if all(hypot(x - item.x, y - item.y) >= radius + item.radius + _GAP for item in items):
            turn = 0 if text else rng.choice(_TURNS)
            return Item(kind, colour, text, rng.randrange(4), x, y, radius, turn, GRID_PLACES[row][column])
    return None


def _coordinate(rng: random.Random, third: int, radius: int) -> int:
    edges = (0, UNITS / 3, 2 * UNITS / 3, UNITS)
    margin = radius + MARGIN
    low = max(margin, round(edges[third] + _CLEARANCE + 0.5))
    high = min(UNITS - margin, round(edges[third + 1] - _CLEARANCE - 0.5))
    return rng.randint(low, high)
