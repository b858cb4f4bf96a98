"""Boxes as people write them, and as everything here takes them: (x0, y0, x1, y1) in pixels, origin at the top left.

Four numbers do not say what they are: (60, 80, 130, 160) is 70 wide as corners and 130 wide in COCO. So the format is
stated, never guessed:

    corners([(60, 80, 130, 160)], "xywh", (640, 480))    # ((60, 80, 190, 240),)
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from llava_probe.errors import BadInput, shortened

Box = tuple[float, float, float, float]

_SHARES = "in shares of the picture, 0 to 1"
#: What four numbers may mean, in words.
BOX_FORMATS = {
    "xyxy": "left, top, right, bottom in pixels",
    "xywh": "left, top, width, height in pixels, as COCO has them",
    "cxcywh": "middle, width, height in pixels",
    "relative_xyxy": f"left, top, right, bottom {_SHARES}",
    "relative_xywh": f"left, top, width, height {_SHARES}",
    "yolo": f"middle, width, height {_SHARES}",
}
#: How far a share may be beyond 0 and 1: what rounding leaves, as tools round to six digits and draw to the edge.
SHARE_SLACK = 0.01
#: The same of numbers in pixels, in sides of the picture: people also mark what its edge cuts off.
SIDE_SLACK = 0.25

_CORNERS: dict[str, Callable[[float, float, float, float], Box]] = {
    "xyxy": lambda x0, y0, x1, y1: (x0, y0, x1, y1),
    "xywh": lambda x, y, width, height: (x, y, x + width, y + height),
    "cxcywh": lambda x, y, width, height: (x - width / 2, y - height / 2, x + width / 2, y + height / 2),
}


def checked_format(box_format: Any) -> str:
    """The format's name.

    Raises:
        BadInput: there is none by that name.
    """
    if isinstance(box_format, str) and box_format in BOX_FORMATS:
        return box_format
    known = "; ".join(f"{name}: {meaning}" for name, meaning in BOX_FORMATS.items())
    raise BadInput(f"box_format={shortened(repr(box_format))} is none; there are {known}")


def unstated(column: str) -> BadInput:
    """What is said of boxes whose format nobody told."""
    known = "; ".join(f"{name}: {meaning}" for name, meaning in BOX_FORMATS.items())
    return BadInput(f"what four numbers in {column} mean is not stated; pass box_format=, of {known}")


def read_boxes(value: Any) -> tuple[Box, ...]:
    """One box or several as tuples of four numbers, whatever these mean.

    Args:
        value: four numbers or a list of such fours; also as JSON text, as in a table.

    Raises:
        BadInput: it is none.
    """
    try:
        value = json.loads(value) if isinstance(value, str) else value
        rows = value if not value or isinstance(value[0], (list, tuple)) else [value]
        return tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in rows)
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
        raise BadInput(
            f"cannot be read as boxes: {shortened(repr(value))}; pass four numbers or a list of fours, with "
            "box_format= for what they mean, or carry it with columns={'boxes': None}"
        ) from None


def corners(boxes: Iterable[Sequence[float]], box_format: str, size: tuple[int, int]) -> tuple[Box, ...]:
    """The boxes as (x0, y0, x1, y1) in pixels of a picture.

    Args:
        boxes: four numbers each.
        box_format: one of ``BOX_FORMATS``.
        size: (width, height) of the upright picture.

    Raises:
        BadInput: a box that is empty, thinner than a pixel, outside the picture or far beyond it, or no finite numbers.
    """
    name = checked_format(box_format)
    return tuple(_cornered(tuple(map(float, box)), name, size) for box in boxes)


def _cornered(box: tuple[float, ...], name: str, size: tuple[int, int]) -> Box:
    told = f"the box ({', '.join(f'{number:g}' for number in box)}) as {name}"
    if len(box) != 4 or not all(map(math.isfinite, box)):
        raise BadInput(f"{told} is not four finite numbers")
    width, height = size
    form = {"yolo": "cxcywh"}.get(name, name.removeprefix("relative_"))
    x0, y0, x1, y1 = _CORNERS[form](*box)
    if form != name:
        if min(x0, y0) < -SHARE_SLACK or max(x1, y1) > 1 + SHARE_SLACK:
            raise BadInput(f"{told} reaches beyond the picture, whose shares are 0 to 1{_hint(box, name)}")
        x0, y0, x1, y1 = x0 * width, y0 * height, x1 * width, y1 * height
    if not (x0 < x1 and y0 < y1):
        raise BadInput(f"{told} is empty{_hint(box, name)}")
    if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
        raise BadInput(f"{told} lies outside its picture of {width} × {height} pixels{_hint(box, name)}")
    if max(-x0 / width, -y0 / height, x1 / width - 1, y1 / height - 1) > SIDE_SLACK:
        share = "yolo" if form == "cxcywh" else f"relative_{form}"
        raise BadInput(
            f"{told} reaches far beyond its picture of {width} × {height} pixels; numbers of another scale, 0 to 1000 "
            f"say, are to be divided by it and given as box_format={share!r}"
        )
    if min(x1 - x0, y1 - y0) < 1 or (form == name and max(x1, y1) <= 1):
        raise BadInput(f"{told} is thinner than a pixel of its picture, {width} × {height}{_hint(box, name)}")
    return x0, y0, x1, y1


def _hint(box: Sequence[float], name: str) -> str:
    """Which other format it may be in."""
    if name in _CORNERS and all(0 <= number <= 1 for number in box):
        return "; shares of the picture are relative_xyxy, relative_xywh or yolo"
    if name == "xyxy":
        return "; x, y, width, height are box_format='xywh'"
    return "; numbers in pixels are xyxy, xywh or cxcywh" if name not in _CORNERS else ""
