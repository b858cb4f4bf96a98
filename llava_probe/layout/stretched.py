"""The whole photograph stretched over one grid of tokens, whatever its shape.

Qwen-VL, GLM-V and Pixtral resize it to the nearest whole number of patches, so the grid has nearly the photograph's
own shape; PaliGemma and Gemma 3 squash it into a square. Neighbouring patches may be merged into one token. Gemma 3
may add crops of wide and tall photographs (pan and scan), each squashed likewise.
"""

from __future__ import annotations

import numpy as np

from llava_probe.layout.geometry import Share, boxes_between, cell_edges
from llava_probe.layout.prepared import Prepared


def place_by_grid(prepared: Prepared) -> list[Share]:
    """Qwen-VL and its kind: the processor tells the model each picture's grid of patches."""
    merged = prepared.setting("merge_size") or prepared.config.vision_config.spatial_merge_size
    grids = [prepared.told("image_grid_thw", picture)[1:] for picture in range(len(prepared.sizes))]
    return [_stretched(size, h // merged, w // merged) for size, (h, w) in zip(prepared.sizes, grids, strict=True)]


def place_by_size(prepared: Prepared) -> list[Share]:
    """Pixtral and its kind: the processor tells the model each picture's size after resizing."""
    side = prepared.config.vision_config.patch_size * getattr(prepared.config, "spatial_merge_size", 1)
    resized = [prepared.told("image_sizes", picture) for picture in range(len(prepared.sizes))]
    return [_stretched(size, h // side, w // side) for size, (h, w) in zip(prepared.sizes, resized, strict=True)]


def place_squashed(prepared: Prepared) -> list[Share]:
    """PaliGemma and Gemma 3: a fixed number of tokens for each square, crops after the whole."""
    vision = prepared.config.vision_config
    side = vision.image_size // vision.patch_size
    tokens = getattr(prepared.config, "mm_tokens_per_image", side * side)
    side = round(tokens**0.5)
    shares = []
    for width, height in prepared.sizes:
        views = np.array([[0, 0, width, height], *_crops(prepared, width, height)], dtype=float)
        boxes = [boxes_between(cell_edges(x0, x1, side), cell_edges(y0, y1, side)) for x0, y0, x1, y1 in views]
        tiles = np.repeat(np.arange(len(views)), tokens)
        grid = (side, side) if len(views) == 1 else None
        shares.append(Share.of(np.concatenate(boxes), tiles=tiles, grid=grid))
    return shares


def _stretched(size: tuple[int, int], rows: int, columns: int) -> Share:
    return Share.of(boxes_between(cell_edges(0, size[0], columns), cell_edges(0, size[1], rows)), grid=(rows, columns))


def _crops(prepared: Prepared, width: int, height: int) -> list[list[float]]:
    """What pan and scan cuts out of a photograph, by letting it cut coordinates."""
    if not prepared.setting("do_pan_and_scan"):
        return []
    names = ("pan_and_scan_min_crop_size", "pan_and_scan_max_num_crops", "pan_and_scan_min_ratio_to_activate")
    limits = {name: prepared.setting(name) for name in names}
    cut = getattr(prepared.processor, "pan_and_scan_batched", None) or prepared.processor.pan_and_scan
    columns, rows = (cut(coordinates, **limits) for coordinates in prepared.coordinates((width, height)))
    return [
        [float(x[0, 0, 0]), float(y[0, 0, 0]), float(x[0, -1, -1]) + 1, float(y[0, -1, -1]) + 1]
        for x, y in zip(columns, rows, strict=True)
    ]
