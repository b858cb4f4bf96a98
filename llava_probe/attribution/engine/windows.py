"""Parts of a picture to take away: sliding windows over the grids of its visual tokens, or over the photograph."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from llava_probe.errors import BadInput
from llava_probe.layout import ImageLayout
from llava_probe.layout.geometry import boxes_between, cell_edges, tile_grids


def token_windows(layout: ImageLayout, window: int, stride: int) -> Tensor:
    """[W, N] bool, the visual tokens in each window: squares of ``window`` tokens that move by ``stride``.

    The last window of a row is cut at the edge, so that every token is in one. Each tile has windows of its own; where
    its tokens form no grid, a window is a run of as many tokens as lie in a square.
    """
    if window == 1 and stride == 1:
        return torch.eye(len(layout), dtype=torch.bool)
    found = []
    for index, grid in tile_grids(layout):
        if grid is None:
            parts = [index[start : start + window**2] for start in _starts(len(index), window**2, stride**2)]
        else:
            places = index.reshape(grid)
            parts = [
                places[top : top + window, left : left + window].flatten()
                for top in _starts(grid[0], window, stride)
                for left in _starts(grid[1], window, stride)
            ]
        for part in parts:
            found.append(torch.zeros(len(layout), dtype=torch.bool))
            found[-1][part] = True
    return torch.stack(found)


def blocks_of(size: tuple[int, int], cells: int) -> ImageLayout:
    """The photograph cut into blocks, about square: ``cells`` along its longer side, at least a pixel each."""
    width, height = size
    side = max(1.0, max(size) / cells)
    columns, rows = max(1, round(width / side)), max(1, round(height / side))
    boxes = boxes_between(cell_edges(0, width, columns), cell_edges(0, height, rows))
    nowhere = np.full(len(boxes), -1)
    return ImageLayout(size, nowhere, boxes, np.zeros(len(boxes), dtype=np.int64), (rows, columns))


def within(layout: ImageLayout, window: int, budget: int | None) -> tuple[int, int]:
    """The window and stride that keep to a budget of passes: a coarser stride, and a window as large at least.

    One pass is for the picture as it is.

    Raises:
        BadInput: a budget too small to cover the picture once.
    """
    stride = 1
    while budget is not None and len(token_windows(layout, max(window, stride), stride)) >= budget:
        if stride > len(layout):
            raise BadInput(f"budget={budget} passes are too few to cover the picture even once; give more")
        stride += 1
    return max(window, stride), stride


def _starts(count: int, window: int, stride: int) -> range:
    """Where windows begin along one side."""
    return range(0, max(1, math.ceil((count - window) / stride) + 1) * stride, stride)
