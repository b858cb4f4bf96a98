"""One square canvas: pad to a square if told, resize the short side (or to a fixed size), crop the centre.

LLaVA-1.5, BakLLaVA and VipLLaVA do this, with CLIP's image processor or LLaVA's own. Each step is linear along each
axis, so a token's box is one scale and one offset away from its patch on the canvas. Sizes come from the processor's
own functions; where its crop begins is read off by cropping coordinates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers.image_processing_utils import get_size_dict
from transformers.image_transforms import get_resize_output_image_size
from transformers.image_utils import SizeDict

from llava_probe.layout.geometry import FloatArray


def boxes(
    settings: Mapping[str, Any], image_processor: Any, size: tuple[int, int], patch: int
) -> tuple[FloatArray, tuple[int, int]]:
    """Boxes of the patches of one picture, in reading order, and their grid.

    Args:
        settings: the image processor's settings, with what the call overrode.
        image_processor: the processor itself, for its ``center_crop``.
        size: (width, height) of the original.
        patch: side of a patch on the canvas, in pixels.

    Returns:
        ([N, 4] boxes in pixels of the original, (rows, columns)).
    """
    width, height = size
    pad_x = pad_y = 0
    if settings.get("do_pad") and hasattr(image_processor, "pad_to_square"):
        side = max(width, height)
        pad_x, pad_y = (side - width) // 2, (side - height) // 2
        width = height = side
    resized = _resized(settings, (width, height))
    left, top, canvas = _crop(settings, image_processor, resized)
    rows, columns = canvas[1] // patch, canvas[0] // patch
    x = (np.arange(columns + 1) * patch + left) * (width / resized[0]) - pad_x
    y = (np.arange(rows + 1) * patch + top) * (height / resized[1]) - pad_y
    x0, y0 = np.meshgrid(x[:-1], y[:-1])
    x1, y1 = np.meshgrid(x[1:], y[1:])
    return np.stack([x0, y0, x1, y1], axis=-1).reshape(-1, 4), (rows, columns)


def _resized(settings: Mapping[str, Any], size: tuple[int, int]) -> tuple[int, int]:
    """(width, height) after the processor's resize."""
    if not settings.get("do_resize"):
        return size
    target = dict(get_size_dict(settings["size"], default_to_square=False))
    if target.get("height") and target.get("width"):
        return target["width"], target["height"]
    stand_in = np.broadcast_to(np.uint8(0), (3, size[1], size[0]))
    height, width = get_resize_output_image_size(
        stand_in, size=target["shortest_edge"], default_to_square=False, input_data_format="channels_first"
    )
    return width, height


def _crop(settings: Mapping[str, Any], image_processor: Any, size: tuple[int, int]) -> tuple[int, int, tuple[int, int]]:
    """(left, top) of the crop on the resized picture, negative where it pads, and the canvas's (width, height)."""
    if not settings.get("do_center_crop"):
        return 0, 0, size
    width, height = size
    target = get_size_dict(settings["crop_size"], default_to_square=True)
    canvas_width, canvas_height = int(target["width"]), int(target["height"])
    canvas = SizeDict(height=canvas_height, width=canvas_width)
    middle_x, middle_y = canvas_width // 2, canvas_height // 2
    starts = []
    for side, middle in ((np.arange(width)[None, :], middle_x), (np.arange(height)[:, None], middle_y)):
        coordinates: Any = np.broadcast_to(side.astype(np.float32), (1, height, width))  # takes no memory
        if image_processor.backend == "torchvision":
            coordinates = torch.from_numpy(coordinates)
        cropped = np.asarray(image_processor.center_crop(coordinates, canvas))
        starts.append(round(float(cropped[0, middle_y, middle_x])) - middle)
    return starts[0], starts[1], (canvas_width, canvas_height)
