"""One square canvas: pad to a square if told, resize the short side (or to a fixed size), crop the centre.

LLaVA-1.5, BakLLaVA and VipLLaVA do this, with CLIP's image processor or LLaVA's own. Each step is linear along each
axis, so a token's box is one scale and one offset away from its patch on the canvas. Sizes come from the processor's
own functions; where its crop begins is read off by cropping coordinates.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llava_probe.arrays import FloatArray
from llava_probe.inside import seam
from llava_probe.layout.geometry import Share, boxes_between
from llava_probe.layout.prepared import Prepared


def place_center_crop(prepared: Prepared) -> list[Share]:
    """The patches of each picture in reading order; a class token that was kept has no place."""
    class_token = int(getattr(prepared.config, "vision_feature_select_strategy", "default") == "full")
    class_token *= _has_class_token(prepared.config.vision_config)
    shares = []
    for size in prepared.sizes:
        x, y = lines(prepared, size)
        shares.append(Share.of(boxes_between(x, y), before=class_token, grid=(len(y) - 1, len(x) - 1)))
    return shares


def lines(prepared: Prepared, size: tuple[int, int]) -> tuple[FloatArray, FloatArray]:
    """Edges of the columns and of the rows of patches, in pixels of the original."""
    patch = prepared.config.vision_config.patch_size
    width, height = size
    pad_x = pad_y = 0
    padded = size
    if prepared.setting("do_pad") and hasattr(prepared.processor, "pad_to_square"):
        side = max(width, height)
        pad_x, pad_y = (side - width) // 2, (side - height) // 2
        padded = (side, side)
    resized = _resized(prepared, padded)
    left, top, canvas = _crop(prepared, resized)
    columns, rows = canvas[0] // patch, canvas[1] // patch
    x = (np.arange(columns + 1) * patch + left) * (padded[0] / resized[0]) - pad_x
    y = (np.arange(rows + 1) * patch + top) * (padded[1] / resized[1]) - pad_y
    return x, y


def _has_class_token(vision: Any) -> bool:
    """CLIP's tower puts a class token before the patches, SigLIP's does not."""
    return "siglip" not in vision.model_type


def _resized(prepared: Prepared, size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) after the processor's resize."""
    if not prepared.setting("do_resize"):
        return size
    target = seam.size_limits(prepared.setting("size"), square=False)
    if target.get("height") and target.get("width"):
        return target["width"], target["height"]
    height, width = seam.size_to_fit((size[1], size[0]), target["shortest_edge"])
    return width, height


def _crop(prepared: Prepared, size: tuple[int, int]) -> tuple[int, int, tuple[int, int]]:
    """(left, top) of the crop on the resized picture, negative where it pads, and the canvas's (width, height)."""
    if not prepared.setting("do_center_crop"):
        return 0, 0, size
    target = seam.size_limits(prepared.setting("crop_size"), square=True)
    canvas_width, canvas_height = int(target["width"]), int(target["height"])
    canvas = seam.size_of(canvas_height, canvas_width)
    middle_x, middle_y = canvas_width // 2, canvas_height // 2
    starts = []
    for coordinates, middle in zip(prepared.coordinates(size), (middle_x, middle_y), strict=True):
        cropped = np.asarray(prepared.processor.center_crop(coordinates, canvas))
        starts.append(round(float(cropped[0, middle_y, middle_x])) - middle)
    return starts[0], starts[1], (canvas_width, canvas_height)
