"""The whole photograph stretched over a canvas of square tiles, each encoded alone, the whole again as a thumbnail.

InternVL chooses the canvas by aspect ratio, Idefics 3, SmolVLM and Granite-Docling by size. The tokens of the tiles
come tile by tile, the thumbnail's last; where one tile is enough, it is the whole. Pixel shuffle merges patches.
"""

from __future__ import annotations

import numpy as np

from llava_probe.inside import seam
from llava_probe.layout.geometry import Share, boxes_between, cell_edges
from llava_probe.layout.prepared import Prepared


def place_by_ratio(prepared: Prepared) -> list[Share]:
    """InternVL: the canvas nearest to the photograph's aspect ratio."""
    side = round(prepared.model.config.image_seq_length**0.5)
    size = prepared.setting("size")
    shares = []
    for width, height in prepared.sizes:
        rows = columns = 1
        if prepared.setting("crop_to_patches"):
            limits = prepared.setting("min_patches"), prepared.setting("max_patches")
            tile = size["height"], size["width"]
            columns, rows = seam.best_tiles(prepared.processor, (height, width), tile, limits)
        shares.append(_tiled((width, height), rows, columns, side))
    return shares


def place_by_split(prepared: Prepared) -> list[Share]:
    """Idefics 3, SmolVLM, Granite-Docling: rows and columns as the processor counts them.

    Idefics 3 counts none for a photograph that fits one tile; Granite-Docling may shuffle pixels half as far.
    """
    vision = prepared.config.vision_config
    shuffled = getattr(vision, "scale_factor", None) or prepared.config.scale_factor
    side = vision.image_size // vision.patch_size // shuffled
    side *= 2 if "tile_fine_mask" in prepared.inputs else 1
    shares = []
    for width, height in prepared.sizes:
        if hasattr(prepared.processor, "get_tile_grid"):
            rows, columns = prepared.processor.get_tile_grid(height, width, dict(prepared.settings))
        else:
            _, rows, columns = prepared.processor.get_number_of_image_patches(height, width, dict(prepared.settings))
        shares.append(_tiled((width, height), max(1, rows), max(1, columns), side))
    return shares


def _tiled(size: tuple[int, int], rows: int, columns: int, side: int) -> Share:
    width, height = size
    x, y = cell_edges(0, width, columns * side), cell_edges(0, height, rows * side)
    tiles = [
        boxes_between(x[column * side : (column + 1) * side + 1], y[row * side : (row + 1) * side + 1])
        for row in range(rows)
        for column in range(columns)
    ]
    whole = boxes_between(cell_edges(0, width, side), cell_edges(0, height, side))
    if len(tiles) == 1:
        return Share.of(whole, grid=(side, side))
    numbers = [*range(1, len(tiles) + 1), 0]
    return Share.of(np.concatenate([*tiles, whole]), tiles=np.repeat(numbers, side * side))
