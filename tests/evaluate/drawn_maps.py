"""Maps and masks drawn at random on layouts of every kind: cropped, padded, tiled, finer than a pixel."""

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image

from llava_probe import ImageLayout, ImageMap, Token
from llava_probe.layout.geometry import boxes_between, cell_edges


def map_on(layout, values, texts=None) -> ImageMap:
    values = torch.as_tensor(np.asarray(values), dtype=torch.float32)
    texts = texts or [f" word{row}" for row in range(len(values))]
    tokens = tuple(Token(row, text, "generated", 100 + row) for row, text in enumerate(texts))
    return ImageMap(values, layout, Image.new("RGB", layout.size, "grey"), tokens, "drawn")


def grid_layout(size, rows, columns, box=None) -> ImageLayout:
    """One grid over ``box``, the whole photograph by default."""
    x0, y0, x1, y1 = box or (0, 0, *size)
    boxes = boxes_between(cell_edges(x0, x1, columns), cell_edges(y0, y1, rows))
    count = len(boxes)
    return ImageLayout(size, np.arange(count) + 5, boxes, np.zeros(count, dtype=np.int64), (rows, columns))


def tiled_layout(size=(40, 24)) -> ImageLayout:
    """A thumbnail of 2 × 2, and over its left half a tile of 3 × 3."""
    width, height = size
    whole = boxes_between(cell_edges(0, width, 2), cell_edges(0, height, 2))
    tile = boxes_between(cell_edges(0, width / 2, 3), cell_edges(0, height, 3))
    boxes = np.concatenate([whole, tile])
    return ImageLayout(size, np.arange(13) + 5, boxes, np.repeat([0, 1], [4, 9]))


LAYOUTS = (
    grid_layout((40, 24), 3, 4),
    grid_layout((40, 24), 3, 4, (8, 0, 32, 24)),  # cropped
    grid_layout((40, 24), 5, 5, (0, -8, 40, 32)),  # padded
    grid_layout((37, 23), 3, 4),  # boxes of different numbers of pixels
    grid_layout((6, 5), 8, 9),  # finer than a pixel: some tokens own none
    tiled_layout(),
)


@st.composite
def laid(draw):
    """A map of one row with many ties, and a mask of which something was seen."""
    layout = draw(st.sampled_from(LAYOUTS))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.integers(1, 12))
    values = generator.integers(-3, levels, (1, len(layout))) / draw(st.sampled_from([1, 7, 1000]))
    width, height = layout.size
    x, y = generator.integers(0, width), generator.integers(0, height)
    mask = np.zeros((height, width), dtype=bool)
    mask[y : y + generator.integers(1, height), x : x + generator.integers(1, width)] = True
    mask &= generator.random(mask.shape) < draw(st.sampled_from([0.3, 1.0]))
    seen = np.argwhere(layout.seen)
    mask[tuple(seen[generator.integers(len(seen))])] = True
    return map_on(layout, values), mask


def seen_pixels(m, mask, row=0):
    """Values and truth of every seen pixel, [S] each: what the definitions speak of."""
    pixels = m.pixels(row)
    seen = ~np.isnan(pixels)
    return pixels[seen].astype(np.float64), mask[seen]
