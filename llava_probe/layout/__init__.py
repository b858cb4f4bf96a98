"""From a prompt's visual tokens to their places on the photographs: one file a way of tiling.

``lay_out`` looks up which way the model's family has and hands it the processor's own settings. A new way is one
file with a ``boxes`` function and one line in ``WAYS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from llava_probe.errors import BadInput
from llava_probe.layout import crop
from llava_probe.layout.geometry import ImageLayout

__all__ = ["WAYS", "ImageLayout", "lay_out"]

#: How each family (``config.model_type``) brings a photograph to its vision tower.
WAYS: dict[str, Callable[..., Any]] = {"llava": crop.boxes, "vipllava": crop.boxes}

_SETTINGS = ("do_resize", "size", "do_center_crop", "crop_size", "do_pad")


def lay_out(
    config: Any,
    image_processor: Any,
    sizes: Sequence[tuple[int, int]],
    image_positions: Sequence[int],
    overrides: Mapping[str, Any] | None = None,
) -> tuple[ImageLayout, ...]:
    """The layout of each picture of one prompt; empty for a family whose way is not known yet.

    Args:
        config: the model's config.
        image_processor: the processor's image half.
        sizes: (width, height) of each original, in order.
        image_positions: sequence positions of all visual tokens of the prompt, in order.
        overrides: settings of the image processor that the call changed.

    Raises:
        BadInput: the prompt has another number of visual tokens than these pictures give.
    """
    way = WAYS.get(config.model_type)
    if way is None or not sizes:
        return ()
    overrides = dict(overrides or {})
    overrides |= overrides.pop("images_kwargs", {})
    settings = {name: getattr(image_processor, name, None) for name in _SETTINGS} | overrides
    keeps_class_token = getattr(config, "vision_feature_select_strategy", "default") == "full"
    layouts = []
    start = 0
    for size in sizes:
        boxes, grid = way(settings, image_processor, size, config.vision_config.patch_size)
        first = start + int(keeps_class_token)  # the class token is a visual token without a place
        start = first + len(boxes)
        positions = np.asarray(image_positions[first:start], dtype=np.int64)
        layouts.append(ImageLayout(size, positions, boxes, np.zeros(len(boxes), dtype=np.int64), grid))
    if start != len(image_positions):
        raise BadInput(
            f"the prompt has {len(image_positions)} visual tokens where its {len(sizes)} picture(s) give {start}; "
            "does this processor belong to this model?"
        )
    return tuple(layouts)
