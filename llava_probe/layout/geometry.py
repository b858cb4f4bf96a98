"""Where each visual token of one picture lies on the original photograph, both ways.

A processor resizes, crops, pads or tiles the photograph before the model sees it; stretching the token grid over
the whole photograph puts a map in the wrong place wherever it did. An ``ImageLayout`` holds each token's true box:

    layout.to_pixels(values)      # one value per token  ->  one per pixel, NaN where the model saw nothing
    layout.to_tokens(mask)        # a mask on the photograph  ->  the share of each token's box that it covers

A pixel belongs to a box when its centre lies in it. A box narrower than a pixel owns the pixel under its centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from llava_probe.arrays import FloatArray, IntArray
from llava_probe.border import CountFromZero, Numeric, WholeNumeric, checked
from llava_probe.errors import BadInput, OutOfRange, shortened

#: A patch is in the box of each token that it weighs at least this much in, as a share of where it weighs most.
LEAST = 0.25


@dataclass(frozen=True, eq=False)
class Placement:
    """The places of one picture's visual tokens, whatever prompt they stand in.

    Attributes:
        index: [N] which of the visual tokens carry a patch of the picture.
        boxes, tiles, grid, frames: as in ``ImageLayout``.
    """

    index: IntArray
    boxes: FloatArray
    tiles: IntArray
    grid: tuple[int, int] | None = None
    frames: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Share:
    """What one picture takes of a prompt's visual tokens.

    Attributes:
        count: how many, with those that have no place (a newline, a class token).
        placement: its ``index`` counts from the first of them.
    """

    count: int
    placement: Placement

    @classmethod
    def of(
        cls,
        boxes: FloatArray,
        before: int = 0,
        tiles: IntArray | None = None,
        grid: tuple[int, int] | None = None,
        frames: tuple[int, ...] = (),
    ) -> Share:
        """Tokens one after the other, behind ``before`` that have no place; all in tile 0 where no tiles are given."""
        count = len(boxes)
        tiles = np.zeros(count, dtype=np.int64) if tiles is None else np.asarray(tiles, dtype=np.int64)
        return cls(before + count, Placement(before + np.arange(count), boxes, tiles, grid, frames))


def in_a_row(shares: Sequence[Share]) -> list[Placement]:
    """The placements of pictures that stand one after the other, counted from the first token of the first."""
    placements, start = [], 0
    for share in shares:
        placements.append(replace(share.placement, index=start + share.placement.index))
        start += share.count
    return placements


@checked
@dataclass(frozen=True, eq=False)
class ImageLayout:
    """One picture's visual tokens and their places.

    Attributes:
        size: (width, height) of the upright original, in pixels.
        positions: [N] sequence position of each visual token that carries a patch.
        boxes: [N, 4] each token's (x0, y0, x1, y1) in pixels of the original, origin at the top left; a box
            reaches beyond the photograph where the processor padded.
        tiles: [N] which view of the photograph a token belongs to: 0 the whole (a thumbnail where there are tiles),
            1 and on its tiles or crops, in reading order.
        grid: (rows, columns) where the tokens form one grid in reading order, else None.
        frames: for a frame of a video, every frame of it that the tokens cover, counted from 0: this one, and those
            that the model merged with it, whose layouts have the same tokens. Empty for a still picture.
    """

    size: tuple[int, int]
    positions: IntArray
    boxes: FloatArray
    tiles: IntArray
    grid: tuple[int, int] | None = None
    frames: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.positions)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ImageLayout):
            return NotImplemented
        return (self.size, self.grid, self.frames) == (other.size, other.grid, other.frames) and all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in ("positions", "boxes", "tiles")
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"ImageLayout({len(self)} tokens on {self.size[0]}×{self.size[1]} px, {self.seen.mean():.0%} seen)"

    @cached_property
    def seen(self) -> npt.NDArray[np.bool_]:
        """[height, width], False where a crop hid the pixel from the model."""
        return self._owner >= 0

    @cached_property
    def _owner(self) -> IntArray:
        """[height, width] index of the finest token that covers each pixel, -1 where none does."""
        return self._owners(np.arange(len(self)))

    def _owners(self, tokens: IntArray) -> IntArray:
        """The same among some of the tokens."""
        width, height = self.size
        owner = np.full((height, width), -1, dtype=np.int32)
        area = (self.boxes[:, 2] - self.boxes[:, 0]) * (self.boxes[:, 3] - self.boxes[:, 1])
        spans = self._spans
        for token in tokens[np.argsort(-area[tokens], kind="stable")]:
            x0, y0, x1, y1 = spans[token]
            owner[y0:y1, x0:x1] = token
        return owner

    @cached_property
    def _spans(self) -> IntArray:
        """[N, 4] the pixels that each box owns, as half-open ranges on the photograph."""
        spans = np.ceil(self.boxes - 0.5).astype(np.int64)
        for low, high, side in ((0, 2, self.size[0]), (1, 3, self.size[1])):
            thin = spans[:, high] <= spans[:, low]
            under = np.floor(self.boxes[thin][:, [low, high]].mean(axis=1)).astype(np.int64)
            spans[thin, low], spans[thin, high] = under, under + 1
            spans[:, [low, high]] = spans[:, [low, high]].clip(0, side)
        return spans

    def to_pixels(self, values: Numeric, tiles: int | Sequence[int] | None = None) -> FloatArray:
        """One value per token painted over its pixels.

        Args:
            values: [..., N], array or tensor.
            tiles: paint the tokens of these views only, 0 the thumbnail; all of them when None.

        Returns:
            [..., height, width] float32 on the original; each pixel takes the finest token that covers it (of equal
            ones the last), NaN where none does.

        Raises:
            BadInput: the last axis does not have one value per token.
            OutOfRange: there is no such tile.
        """
        painted = np.asarray(values, dtype=np.float32)
        if painted.ndim == 0 or painted.shape[-1] != len(self):
            raise BadInput(f"to_pixels takes values [..., {len(self)}], one for each token; got shape {painted.shape}")
        nothing = np.full((*painted.shape[:-1], 1), np.nan, dtype=np.float32)
        owner = self._owner if tiles is None else self._owners(self._in_tiles(tiles))
        return np.concatenate([painted, nothing], axis=-1)[..., owner]

    def _in_tiles(self, tiles: int | Sequence[int]) -> IntArray:
        there = np.unique(self.tiles)
        missing = np.setdiff1d(tiles, there)
        if len(missing):
            raise OutOfRange(f"tile {missing[0]} is not there: this picture has tiles {there.tolist()}")
        return np.flatnonzero(np.isin(self.tiles, tiles))

    def to_tokens(self, mask: Numeric) -> FloatArray:
        """The share of each token's box (of its part on the photograph) that ``mask`` covers.

        Args:
            mask: [height, width] on the original, bool or weights; NaN counts as not there.

        Returns:
            [N]; with weights, their mean over the box. 0 for a box wholly outside the photograph.

        Raises:
            BadInput: the mask has another size than the photograph.
        """
        covered = np.asarray(mask, dtype=np.float64)
        width, height = self.size
        if covered.shape != (height, width):
            raise BadInput(
                f"to_tokens takes a mask [height, width] = {(height, width)} like the original picture; "
                f"got {covered.shape}"
            )
        there = ~np.isnan(covered)
        total = _box_sums(np.where(there, covered, 0.0), self._spans)
        count = _box_sums(there.astype(np.float64), self._spans)
        return np.divide(total, count, out=np.zeros(len(self)), where=count > 0)

    def tokens_in(self, mask: Numeric) -> IntArray:
        """Sequence positions of the tokens whose box ``mask`` [height, width] covers by half or more."""
        return self.positions[self.to_tokens(mask) >= 0.5]

    def around(self, tokens: WholeNumeric, ring: CountFromZero) -> IntArray:
        """Some tokens and those up to ``ring`` steps from them in the same view, by index, diagonals too.

        A step is a place of the grid; where a view's tokens form none, the size of a token.

        Raises:
            OutOfRange: a token that this layout does not have.
        """
        given = np.asarray(tokens).reshape(-1)
        if given.size and (given.dtype.kind not in "iu" or given.min() < 0 or given.max() >= len(self)):
            raise OutOfRange(f"tokens= takes numbers of tokens, 0 to {len(self) - 1}; got {shortened(repr(tokens))}")
        chosen = np.zeros(len(self), dtype=bool)
        chosen[given.astype(np.int64)] = True
        for own, grid in tile_grids(self):
            marked = own[chosen[own]]
            if grid is not None:
                places = np.stack(np.divmod(np.arange(len(own)), grid[1]), axis=-1)
                steps = np.abs(places[:, None] - places[chosen[own]]).max(-1)
            else:
                boxes = self.boxes[own]
                middles, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
                apart = np.abs(middles[:, None] - (self.boxes[marked, :2] + self.boxes[marked, 2:]) / 2)
                steps = (apart / sides[:, None]).round().max(-1)
            if len(marked):
                chosen[own] |= steps.min(1) <= ring
        return np.flatnonzero(chosen)


def cell_edges(low: float, high: float, count: int) -> FloatArray:
    """[count + 1] edges of equal cells from ``low`` to ``high``."""
    return np.linspace(low, high, count + 1)


def boxes_between(x: FloatArray, y: FloatArray) -> FloatArray:
    """[rows * columns, 4] boxes between these edges, in reading order."""
    x0, y0 = np.meshgrid(x[:-1], y[:-1])
    x1, y1 = np.meshgrid(x[1:], y[1:])
    return np.stack([x0, y0, x1, y1], axis=-1).reshape(-1, 4)


def grid_of(boxes: FloatArray) -> tuple[int, int] | None:
    """(rows, columns) where boxes form one grid in reading order, else None."""
    rows = len(np.unique(boxes[:, 1].round(3)))
    columns = len(boxes) // rows if rows else 0
    if not rows or rows * columns != len(boxes):
        return None
    x0, y0, x1, y1 = boxes.reshape(rows, columns, 4).transpose(2, 0, 1)
    one = np.ptp(x0, axis=0).max() + np.ptp(x1, axis=0).max() + np.ptp(y0, axis=1).max() + np.ptp(y1, axis=1).max()
    ordered = (np.diff(x0, axis=1) > 0).all() and (np.diff(y0, axis=0) > 0).all()
    return (rows, columns) if ordered and one < 1e-2 * max(x1.max() - x0.min(), y1.max() - y0.min()) else None


def tile_grids(layout: ImageLayout) -> list[tuple[IntArray, tuple[int, int] | None]]:
    """The tokens of each grid in reading order, and its (rows, columns), None where they form none."""
    if layout.grid is not None:
        return [(np.arange(len(layout)), layout.grid)]
    tiles = [np.flatnonzero(layout.tiles == tile) for tile in np.unique(layout.tiles)]
    return [(tile, grid_of(layout.boxes[tile])) for tile in tiles]


def _box_sums(image: FloatArray, spans: IntArray) -> FloatArray:
    integral = np.zeros((image.shape[0] + 1, image.shape[1] + 1))
    integral[1:, 1:] = image.cumsum(0).cumsum(1)
    x0, y0, x1, y1 = spans.T
    return integral[y1, x1] - integral[y0, x1] - integral[y1, x0] + integral[y0, x0]
