"""A part of a photograph as a place of the sequence: its visual tokens, wherever places are asked for.

    sign = lp.Region((120, 40, 180, 100))             # a box (x0, y0, x1, y1) in pixels of the original
    sign = lp.Region("sign.png", ring=1)              # a mask, and one ring of tokens around it
    trace.hidden(layer=12, at=sign)
    with lp.ablate(vlm, tokens=sign): ...             # found anew on each sample's own photograph

A token belongs to a region that covers half of its box or more. Where a view of the photograph (a thumbnail, say) shows
the region so small that it covers half of none, those that it covers most stand for it there, or it would still be
seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llava_probe.arrays import BoolArray, IntArray
from llava_probe.border import CountFromZero, checked
from llava_probe.errors import BadInput, OutOfRange
from llava_probe.layout import ImageLayout
from llava_probe.pictures.boxes import checked_format
from llava_probe.pictures.regions import inside, needs_size, read_mask

#: A region covers a token from this share of its box on.
COVERED = 0.5
#: Where it covers none so far: those with this share of what the best one has.
_OF_THE_BEST = 0.5


@checked
@dataclass(frozen=True, eq=False)
class Region:
    """A part of one photograph of a prompt.

    Args:
        where: a box of four numbers, a mask in any form that ``llava_probe.pictures.regions`` reads, or something that
            has a ``mask`` (an object of a tiny scene).
        image: on which picture of the prompt.
        ring: how many tokens around it belong to it as well.
        box_format: what the numbers of a box are; by default pixels of the original, origin at the top left.

    Raises:
        BadInput: it is neither a mask nor a box.
    """

    where: Any
    image: int = 0
    ring: CountFromZero = 0
    box_format: str = "xyxy"

    def __post_init__(self) -> None:
        checked_format(self.box_format)
        where = getattr(self.where, "mask", self.where)
        box = _box(where)
        object.__setattr__(self, "_box", box)
        if box is None and not needs_size(where):  # read now: a file may be another one later
            where = read_mask(where)
        object.__setattr__(self, "_mask", None if box is not None else where)

    def __repr__(self) -> str:
        told = self.told()
        given = told.get("box") or f"mask of {told['mask']}"
        return f"lp.Region({given}, image={self.image}, ring={self.ring})"

    def told(self) -> Mapping[str, Any]:
        """As plain data: the same for the same region."""
        box, mask = self._given
        place = {"box": list(box), "box_format": self.box_format} if box is not None else {"mask": _digest(mask)}
        return {**place, "image": self.image, "ring": self.ring}

    def mask(self, size: tuple[int, int]) -> BoolArray:
        """[height, width] bool on a photograph of ``size`` (width, height).

        Raises:
            BadInput: a box outside of it, or a mask of another size.
        """
        box, mask = self._given
        return inside(mask, () if box is None else (box,), self.box_format, size)

    def tokens(self, layout: ImageLayout) -> IntArray:
        """[n] the tokens of a layout that belong to it, by index.

        Raises:
            BadInput: a box outside of the photograph, a mask of another size or without any pixel.
            OutOfRange: a part that the model was not shown.
        """
        mask = self.mask(layout.size)
        if not mask.any():
            raise BadInput(f"{self!r} has no pixel")
        share = layout.to_tokens(mask)
        chosen = share >= COVERED
        for tile in np.unique(layout.tiles):
            own = layout.tiles == tile
            if not chosen[own].any() and _shows(layout, own, mask):
                chosen |= own & (share >= _OF_THE_BEST * share[own].max())
        if not chosen.any():
            raise OutOfRange(f"{self!r} lies where the model was not shown the photograph: a crop left it out")
        found = np.flatnonzero(chosen)
        return layout.around(found, self.ring) if self.ring else found

    @property
    def _given(self) -> tuple[tuple[float, ...] | None, Any]:
        return self.__dict__["_box"], self.__dict__["_mask"]


def _box(where: Any) -> tuple[float, ...] | None:
    """Four numbers; None where it is something else."""
    try:
        numbers = np.asarray(where, dtype=np.float64) if not isinstance(where, str | bytes | Mapping) else None
    except (TypeError, ValueError, OverflowError):
        return None
    return None if numbers is None or numbers.shape != (4,) else tuple(numbers.tolist())


def _shows(layout: ImageLayout, own: BoolArray, mask: BoolArray) -> bool:
    """Whether a view of the photograph shows at least half of what is meant."""
    seen = layout.to_pixels(own.astype(np.float32), tiles=np.unique(layout.tiles[own]).tolist()) > 0
    return bool((seen & mask).sum() * 2 >= mask.sum())


def _digest(mask: Any) -> str:
    if isinstance(mask, np.ndarray):
        return f"{mask.shape[1]}x{mask.shape[0]}:{hashlib.sha256(np.packbits(mask).tobytes()).hexdigest()[:16]}"
    return hashlib.sha256(repr(mask).encode()).hexdigest()[:16]
