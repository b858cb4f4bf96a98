"""Masks as COCO writes them: the lengths of runs of 0 and 1 in turn, down the columns, beginning with 0.

    decode({"size": [height, width], "counts": [5, 2, 9]})
    decode({"size": [height, width], "counts": "52N..."})

Counts are a list, or pycocotools' text: each number in groups of five bits, lowest first, a sixth bit telling that
more follow, each group a character from "0" on; from the fourth number on it is the difference to the one two before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llava_probe.arrays import BoolArray
from llava_probe.errors import BadInput, shortened
from llava_probe.pictures.images import MAX_PIXELS

_FIRST = ord("0")
_BITS, _SIGN, _MORE = 0x1F, 0x10, 0x20
_LONGEST = 7  # characters of one number: five bits each hold any count of pixels


def decode(rle: Mapping[str, Any]) -> BoolArray:
    """[height, width] bool.

    Args:
        rle: ``size`` [height, width] and ``counts``, a list or a text.

    Raises:
        BadInput: it has another form, or its runs do not fill the picture.
    """
    height, width = checked_size(rle)
    lengths = _counts(rle.get("counts"))
    if sum(lengths) != height * width:
        raise BadInput(
            f"the counts of a {height} × {width} run-length mask sum to its {height * width} pixels; "
            f"these sum to {sum(lengths)}"
        )
    runs = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return runs.reshape(width, height).T


def _counts(given: Any) -> list[int]:
    text = given.decode("latin-1") if isinstance(given, bytes) else given
    counts = _lengths(text) if isinstance(text, str) else text
    if isinstance(counts, list | tuple) and all(type(count) is int and count >= 0 for count in counts):
        return list(counts)
    raise BadInput(
        f"the counts of a run-length mask are whole numbers or pycocotools' text; got {shortened(repr(given))}"
    )


def checked_size(rle: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of a mask that states them.

    Raises:
        BadInput: it does not.
    """
    size: Any = rle.get("size")
    two = isinstance(size, list | tuple) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)
    if two and size[0] * size[1] <= MAX_PIXELS:
        return size[0], size[1]
    raise BadInput(f"a run-length mask has a size [height, width] and counts; got the size {shortened(repr(size))}")


def _lengths(text: str) -> list[int]:
    lengths: list[int] = []
    number = shift = 0
    for character in text:
        group = ord(character) - _FIRST
        if not 0 <= group < 2 * _MORE or shift >= 5 * _LONGEST:
            raise BadInput(f"{shortened(repr(text))} is no compressed run-length text: {character!r} cannot be there")
        number |= (group & _BITS) << shift
        shift += 5
        if group & _MORE:
            continue
        if group & _SIGN:
            number -= 1 << shift
        lengths.append(number + (lengths[-2] if len(lengths) > 2 else 0))
        number = shift = 0
    if shift:
        raise BadInput(f"{shortened(repr(text))} is a compressed run-length text cut short")
    return lengths
