"""What a processor hands to the model, cut into the patches that the vision tower starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llava_probe.arrays import BoolArray, FloatArray, IntArray
from llava_probe.layout.ramps import Origin

#: A picture is cut into so many patches a side where no config tells the side of a patch.
_CUTS = 32
#: Patches whose centres lie closer than this share of their side are in one column or row.
_SAME = 0.3
#: Patches whose sides differ by more than this share are of different crops.
_SCALE = 0.15


@dataclass(frozen=True, eq=False)
class Patches:
    """All patches of the pictures of one prompt.

    Attributes:
        sources: the model inputs that they were cut from.
        owners: of each input's shape, the patch that each number belongs to; -1 for padding.
        sides: of each input, the side of its patches in processed pixels; None where a patch is a row of numbers.
        pictures: [M, pictures] which pictures a patch is made of: several frames of a video may share their patches.
        input: [M] the model input that a patch was cut from.
        tile: [M] the crop of its (first) picture that a patch lies in.
        view, row, column: [M] its place among the patches of its view. Tiles that continue each other are one view: a
            token may blend patches across their seam.
        boxes: [M, 4] its part on the photograph, in pixels of the original.
    """

    sources: tuple[Origin, ...]
    owners: tuple[Tensor, ...]
    sides: tuple[int | None, ...]
    pictures: BoolArray
    input: IntArray
    tile: IntArray
    view: IntArray
    row: IntArray
    column: IntArray
    boxes: FloatArray

    def __len__(self) -> int:
        return len(self.boxes)


def patches(sources: Sequence[Origin], config: Any, side: int | None = None) -> Patches | None:
    """The patches of ``sources``, those that are padding throughout left out; None where there are none.

    Args:
        sources: as ``ramps.sources`` found them.
        config: the model's config, for the side of a patch.
        side: another side, in processed pixels.
    """
    owners: list[Tensor] = []
    sides: list[int | None] = []
    told: list[list[Any]] = []
    count = 1 + max((int(source.picture.max()) for source in sources), default=0)
    for source in sources:
        owner, own, *parts = _cut(source, side or patch_side(config), count)
        sides.append(own)
        owners.append(torch.where(owner < 0, owner, owner + sum(len(part[0]) for part in told)))
        told.append(parts)
    if not told:
        return None
    keys, pictures, row, column, boxes = (np.concatenate(part) for part in zip(*told, strict=True))
    picture = pictures.argmax(axis=1)
    number = np.concatenate([np.full(len(part[0]), index) for index, part in enumerate(told)])
    tile = np.unique(np.column_stack([picture, number, keys]), axis=0, return_inverse=True)[1].reshape(-1)
    numbers = _joined(picture, tile, row, column, boxes)
    return Patches(tuple(sources), tuple(owners), tuple(sides), pictures, number, tile, *numbers, boxes)


def _joined(
    picture: IntArray, tile: IntArray, row: IntArray, column: IntArray, boxes: FloatArray
) -> tuple[IntArray, IntArray, IntArray]:
    """(view, row, column): tiles of one scale, side by side or overlapping by whole patches, are counted through."""
    view, row, column = tile.copy(), row.copy(), column.copy()
    sides = boxes[:, 2:] - boxes[:, :2]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    scale = np.array([np.median(sides[tile == number], axis=0) for number in range(tile.max() + 1)])
    extent = np.array([[*boxes[tile == n, :2].min(0), *boxes[tile == n, 2:].max(0)] for n in range(tile.max() + 1)])
    owner = np.array([picture[tile == number][0] for number in range(tile.max() + 1)])
    for first in range(tile.max() + 1):
        alike = (owner == owner[first]) & (np.abs(np.log(scale / scale[first])) < _SCALE).all(axis=1)
        alike = np.flatnonzero(alike)
        members = np.isin(tile, alike)
        apart = not _overlap(extent[alike], _SAME * scale[first])
        if len(alike) < 2 or alike[0] != first or not (apart or _aligned(centres[members] / scale[first])):
            continue
        view[members] = first
        column[members] = _ranks(centres[members, 0], _SAME * scale[first, 0])
        row[members] = _ranks(centres[members, 1], _SAME * scale[first, 1])
    return np.unique(view, return_inverse=True)[1].reshape(-1), row, column


def _overlap(extents: FloatArray, slack: FloatArray) -> bool:
    """Whether any two of these boxes share more than an edge of this width."""
    low = np.maximum(extents[:, None, :2], extents[None, :, :2])
    high = np.minimum(extents[:, None, 2:], extents[None, :, 2:])
    shared: BoolArray = np.all(high - low > slack, axis=-1)
    return bool(shared[~np.eye(len(extents), dtype=bool)].any())


def _aligned(centres: FloatArray) -> bool:
    """Whether these centres, in patches, lie a whole number of patches from each other."""
    steps = centres - centres[0]
    return bool((np.abs(steps - np.round(steps)) < _SAME).all())


def patch_side(config: Any) -> int | None:
    """Side of a patch in processed pixels, where the vision tower's config tells it."""
    vision = getattr(config, "vision_config", None)
    side = getattr(vision, "patch_size", None)
    side = side[-1] if isinstance(side, list | tuple) else side
    return int(side) if side else None


def _cut(source: Origin, told: int | None, pictures: int) -> tuple[Any, ...]:
    """(owner, side, crop, pictures, row, column, boxes) of one input's patches, numbered from 0.

    ``told`` is the side of a patch by the config; ``side`` is None where a patch is a row of numbers.
    """
    last, source = _colours_last(source.x.shape), channels_first(source)
    shape = source.x.shape
    is_image = len(shape) >= 4 and shape[-3] in (1, 3) and not shape[-2] == shape[-1] == told
    side = (told or max(1, shape[-2] // _CUTS)) if is_image else None
    told = told or round((shape[-1] / 3) ** 0.5)
    cells = _row_cells(shape, told) if side is None else _grid_cells(shape, side)
    inside = (source.picture >= 0) & (cells >= 0).expand(shape)
    at = cells.expand(shape)[inside]
    count = int(cells.max()) + 1
    x, y, picture = source.x[inside], source.y[inside], source.picture[inside]
    lows = [torch.full((count,), torch.inf).scatter_reduce(0, at, value, "amin") for value in (x, y)]
    highs = [torch.full((count,), -torch.inf).scatter_reduce(0, at, value, "amax") for value in (x, y)]
    belongs = torch.zeros(count, pictures, dtype=torch.bool)
    belongs[at, picture] = True
    kept = belongs.any(dim=1)
    numbers = torch.where(kept, kept.cumsum(0) - 1, -1)
    owner = torch.where(inside, numbers[cells.clamp(min=0)].expand(shape), -1)
    low, high = (torch.stack(ends, dim=1)[kept].double().numpy() for ends in (lows, highs))
    member, index = belongs[kept].numpy(), kept.nonzero().flatten().numpy()
    rows, columns = (shape[-2] // side, shape[-1] // side) if side else (1, shape[-2] if len(shape) == 3 else count)
    crop, row, column = index // (rows * columns), index // columns % rows, index % columns
    if side is None or rows == 1 < columns:  # a strip of patches tells nothing of where they are
        crop, row, column, pixel = _placed_in_strip(crop, told, member.argmax(axis=1), low, high)
    else:
        pixel = _pixels_of_crops(source, crop)
    if is_image or (cells.ndim == len(shape) and cells.shape[-3:] == (1, 1, 1)):
        hidden = _hidden(shape, side or shape[-1], at, inside, kept)
        low, high = low - hidden[:, :2] * pixel, high + hidden[:, 2:] * pixel
    boxes = np.concatenate([low - pixel / 2, high + pixel / 2], axis=1)
    return (owner.movedim(-3, -1) if last else owner), side, crop, member, row, column, boxes


def _hidden(shape: torch.Size, side: int, at: Tensor, inside: Tensor, kept: Tensor) -> FloatArray:
    """[M, 4] how many of a patch's columns and rows are padding: left, top, right, bottom."""
    count = len(kept)
    ends = []
    for axis in (-1, -2):
        along = torch.arange(shape[axis]) % side
        along = (along if axis == -1 else along[:, None]).expand(shape)[inside]
        ends.append(torch.full((count,), side).scatter_reduce(0, at, along, "amin"))
        ends.append(side - 1 - torch.full((count,), -1).scatter_reduce(0, at, along, "amax"))
    left, right, top, bottom = ends
    return torch.stack([left, top, right, bottom], dim=1)[kept].double().numpy()


def channels_first(source: Origin) -> Origin:
    """A picture whose colours come last, with its colours where most processors put them."""
    if not _colours_last(source.x.shape):
        return source
    moved = {name: getattr(source, name).movedim(-1, -3) for name in ("dark", "gain", "x", "y", "picture")}
    return replace(source, **moved)


def _colours_last(shape: torch.Size) -> bool:
    return len(shape) >= 4 and shape[-1] == 3 and shape[-3] != 3


def _placed_in_strip(
    crop: IntArray, side: int | None, picture: IntArray, low: FloatArray, high: FloatArray
) -> tuple[IntArray, IntArray, IntArray, FloatArray]:
    """(crop, row, column, pixel) of patches that stand in a strip, by their places on the photograph alone."""
    pixel = _pixels_of_rows(low, high, side, picture, crop)
    sides = np.log((high - low + pixel).clip(min=1e-9)).max(axis=1)
    lone = np.bincount(_ranks(sides, _SCALE))[_ranks(sides, _SCALE)] == 1  # a corner cut short is no crop of its own
    sides = np.where(lone, np.median(sides), sides)
    crop = crop * len(crop) + _ranks(sides, _SCALE)
    row, column = np.zeros(len(crop), dtype=np.int64), np.zeros(len(crop), dtype=np.int64)
    for key in {*zip(picture, crop, strict=True)}:
        one = (picture == key[0]) & (crop == key[1])
        centre, size = (low + high)[one] / 2, np.median((high - low + pixel)[one], axis=0)
        column[one], row[one] = _ranks(centre[:, 0], _SAME * size[0]), _ranks(centre[:, 1], _SAME * size[1])
    return crop, row, column, pixel


def _grid_cells(shape: torch.Size, side: int) -> Tensor:
    """[..., 1, H, W] number of the square that a pixel lies in; -1 beyond the last whole one."""
    rows, columns = shape[-2] // side, shape[-1] // side
    row, column = torch.arange(shape[-2]) // side, torch.arange(shape[-1]) // side
    cells = row[:, None] * columns + column
    beyond = (row[:, None] >= rows) | (column >= columns)
    crops = torch.arange(shape[:-3].numel()).view(*shape[:-3], 1, 1, 1)
    return torch.where(beyond, -1, crops * rows * columns + cells)


def _row_cells(shape: torch.Size, side: int | None) -> Tensor:
    """Number of the patch where each stands in a row of its own: [..., n, numbers], or [n, 3, side, side]."""
    inner = 3 if len(shape) >= 4 and shape[-1] == shape[-2] == side else 1
    outer = shape[: len(shape) - inner]
    return torch.arange(outer.numel()).view(*outer, *[1] * inner)


def _pixels_of_crops(source: Origin, crop: IntArray) -> FloatArray:
    """[M, 2] size of a processed pixel on the original, of the crop that each patch lies in."""
    there = (
        (source.picture >= 0).flatten(0, -4).any(1) if source.picture.ndim > 3 else (source.picture >= 0).any(0)[None]
    )
    sizes = np.ones((len(there), 2))
    for number, seen in enumerate(there):
        for axis, (values, across) in enumerate(((source.x, 0), (source.y, 1))):
            steps = int(seen.any(across).sum())
            if steps == 0:
                continue
            inside = values.flatten(0, -4)[number, 0][seen]
            extent = float(inside.max() - inside.min())
            sizes[number, axis] = extent / (steps - 1) if steps > 1 else 2 * float(inside.mean())
    return sizes[crop]


def _pixels_of_rows(
    low: FloatArray, high: FloatArray, side: int | None, picture: IntArray, crop: IntArray
) -> FloatArray:
    """The same where each patch is a row of numbers: a patch of n pixels spans n - 1 of them."""
    sizes = np.ones_like(low)
    for key in {*zip(picture, crop, strict=True)}:
        one = (picture == key[0]) & (crop == key[1])
        sizes[one] = np.median((high - low)[one], axis=0) / max(1, (side or 2) - 1)
    return sizes


def _ranks(values: FloatArray, gap: float) -> IntArray:
    """The rank of each value among the clusters that gaps wider than ``gap`` part."""
    order = np.argsort(values, kind="stable")
    ranks = np.zeros(len(values), dtype=np.int64)
    ranks[order[1:]] = np.cumsum(np.diff(values[order]) > gap)
    return ranks
