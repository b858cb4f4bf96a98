"""The photograph at the best of several resolutions, padded and tiled, behind a thumbnail of the whole.

LLaVA-NeXT and LLaVA-OneVision cut the padding off again after encoding and put a newline token after each row;
OneVision shrinks what is too large, so that a token is a blend of up to four patches. How is not written here: the
model's own packing is given features that name their places, and what comes out tells where each token is from.
"""

from __future__ import annotations

import numpy as np
import torch

from llava_probe.arrays import FloatArray, IntArray
from llava_probe.inside import seam
from llava_probe.layout.geometry import LEAST, Placement, Share, boxes_between, cell_edges
from llava_probe.layout.prepared import Prepared

#: Stands for a newline token among the features.
_NEWLINE = -9.0


def place_anyres(prepared: Prepared) -> list[Share]:
    """Thumbnail first, then the rows of all tiles together, newlines left out.

    LLaVA-OneVision takes of each of several pictures only the thumbnail, padded to a square.
    """
    tiled = "batch_num_images" not in prepared.inputs or len(prepared.sizes) == 1
    return [_one(prepared, size, tiled) for size in prepared.sizes]


def _one(prepared: Prepared, size: tuple[int, int], tiled: bool) -> Share:
    width, height = size
    margin_x, margin_y = (0, 0) if tiled else ((max(size) - width) // 2, (max(size) - height) // 2)
    vision = prepared.config.vision_config
    crop, side = vision.image_size, vision.image_size // vision.patch_size
    points = prepared.config.image_grid_pinpoints
    canvas = seam.best_canvas((height, width), points)
    rows, columns = (canvas[0] // crop, canvas[1] // crop) if tiled else (0, 0)
    packed = _packed(prepared, size, rows, columns, side)
    index = np.flatnonzero(packed[:, 0] != _NEWLINE)
    kind, row, column = packed[index].T
    boxes = np.empty((len(index), 4))
    thumb = kind == 0
    x, y = cell_edges(-margin_x, width + margin_x, side), cell_edges(-margin_y, height + margin_y, side)
    thumbnail = boxes_between(x, y).reshape(side, side, 4)
    boxes[thumb] = thumbnail[row[thumb].astype(int), column[thumb].astype(int)]
    tiles = np.zeros(len(index), dtype=np.int64)
    if not thumb.all():
        new_height, new_width = seam.size_on_canvas((height, width), canvas)
        x = _on_original(columns * side, vision.patch_size, canvas[1], new_width, width)
        y = _on_original(rows * side, vision.patch_size, canvas[0], new_height, height)
        left, right = blended(column[~thumb], columns * side)
        top, bottom = blended(row[~thumb], rows * side)
        boxes[~thumb] = np.stack([x[left], y[top], x[right + 1], y[bottom + 1]], axis=-1)
        tiles[~thumb] = 1 + top // side * columns + left // side
    return Share(len(packed), Placement(index, boxes, tiles, (side, side) if thumb.all() else None))


def _packed(prepared: Prepared, size: tuple[int, int], rows: int, columns: int, side: int) -> FloatArray:
    """[tokens, 3] of (0 thumbnail or 1 tile, row, column) as the model packs the features of one picture."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    views = [torch.stack([torch.zeros_like(y), y, x], dim=-1)]
    for row in range(rows):
        views += [torch.stack([torch.ones_like(y), y + row * side, x + column * side], -1) for column in range(columns)]
    features = torch.stack(views).flatten(1, 2).float()
    newline, aspect = torch.full((3,), _NEWLINE), getattr(prepared.config, "vision_aspect_ratio", None)
    packed = seam.packed_features(prepared.model, features, (size[1], size[0]), newline, aspect)
    return np.asarray(packed, dtype=float)


def _on_original(count: int, patch: int, canvas: int, resized: int, size: int) -> FloatArray:
    """Edges of the patches along one side of the canvas, in pixels of the original."""
    return (np.arange(count + 1) * patch - (canvas - resized) // 2) * (size / resized)


def blended(place: FloatArray, count: int) -> tuple[IntArray, IntArray]:
    """The first and the last of ``count`` patches that a token is made of; a place between two blends both."""
    places, which = np.unique(place, return_inverse=True)
    weight = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(count)))
    kept = (weight >= LEAST * weight.max(axis=0)) & (weight > 0)
    return kept.argmax(axis=1)[which], (count - 1 - kept[:, ::-1].argmax(axis=1))[which]
