"""Parts of a picture to take away: sliding windows over the grids of its visual tokens, or over the photograph."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from llava_probe.errors import BadInput
from llava_probe.layout import ImageLayout
from llava_probe.layout.geometry import boxes_between, edges, grid_of


def token_windows(layout: ImageLayout, window: int, stride: int) -> Tensor:
    """[W, N] bool, the visual tokens in each window: squares of ``window`` tokens that move by ``stride``.

    The last window of a row is cut at the edge, so that every token is in one. Each tile has windows of its own.

    Raises:
        BadInput: the tokens of a tile form no grid, so only single ones can be taken away.
    """
    if window == 1 and stride == 1:
        return torch.eye(len(layout), dtype=torch.bool)
    found = []
    for tile in np.unique(layout.tiles):
        index = np.flatnonzero(layout.tiles == tile)
        grid = grid_of(layout.boxes[index])
        if grid is None:
            raise BadInput(f"visual tokens of tile {tile} form no grid to move a window over; pass window=1")
        rows, columns = grid
        places = index.reshape(rows, columns)
        for top in _starts(rows, window, stride):
            for left in _starts(columns, window, stride):
                mask = torch.zeros(len(layout), dtype=torch.bool)
                mask[places[top : top + window, left : left + window].flatten()] = True
                found.append(mask)
    return torch.stack(found)


def window_count(layout: ImageLayout, window: int, stride: int) -> int:
    """How many windows there are."""
    if window == 1 and stride == 1:
        return len(layout)
    count = 0
    for tile in np.unique(layout.tiles):
        rows, columns = grid_of(layout.boxes[layout.tiles == tile]) or (0, 0)
        count += len(_starts(rows, window, stride)) * len(_starts(columns, window, stride))
    return count or len(layout)


def blocks_of(size: tuple[int, int], cells: int) -> ImageLayout:
    """The photograph cut into blocks, about square: ``cells`` along its longer side, at least a pixel each."""
    width, height = size
    side = max(1.0, max(size) / cells)
    columns, rows = max(1, round(width / side)), max(1, round(height / side))
    boxes = boxes_between(edges(0, width, columns), edges(0, height, rows))
    nowhere = np.full(len(boxes), -1)
    return ImageLayout(size, nowhere, boxes, np.zeros(len(boxes), dtype=np.int64), (rows, columns))


def within(layout: ImageLayout, window: int, budget: int | None) -> tuple[int, int]:
    """The window and stride that keep to a budget of passes: a coarser stride, and a window as large at least."""
    stride = 1
    longest = math.isqrt(len(layout)) + 1
    while budget is not None and stride <= longest and window_count(layout, max(window, stride), stride) > budget:
        stride += 1
    if budget is not None and window_count(layout, max(window, stride), stride) > budget:
        raise BadInput(f"budget={budget} passes are too few to cover the picture even once; give more")
    return max(window, stride), stride


def _starts(count: int, window: int, stride: int) -> range:
    """Where windows begin along one side."""
    return range(0, max(1, math.ceil((count - window) / stride) + 1) * stride, stride)
