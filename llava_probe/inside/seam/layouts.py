"""Functions of families' own files that say how they cut, pad and pack pictures.

No copy of one is kept: a written layout asks these, and where one is gone the layout is measured on the model instead.
Each is looked up when it is called, so a name that moved costs one way of tiling, not the package.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def call_settings(processor: Any, call: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The settings of one part of a processor (``"images_kwargs"``) under a call: its defaults, and what overrides."""
    try:  # transformers 5.17 has to be told what the processor takes; later ones would ask it themselves
        settings: dict[str, Any] = processor._merge_kwargs(processor.valid_processor_kwargs, **call)[kind]
    except (TypeError, AttributeError, KeyError):  # a processor of somebody's own
        return {**call, **call.get(kind, {})}
    return settings


# --- sizes ---


def best_tiles(processor: Any, size: tuple[int, int], tile: tuple[int, int], limits: Sequence[int]) -> tuple[int, int]:
    """InternVL's (columns, rows) of tiles (height, width) for a picture (height, width), between two numbers."""
    columns, rows = sys.modules[type(processor).__module__].get_optimal_tiled_canvas(size, tile, *limits)
    return columns, rows


def best_canvas(size: tuple[int, int], canvases: list[Any]) -> tuple[int, int]:
    """LLaVA-NeXT's (height, width) among several for a picture (height, width)."""
    from transformers.image_processing_utils import select_best_resolution

    height, width = select_best_resolution(size, canvases)
    return height, width


def size_on_canvas(size: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int]:
    """LLaVA-NeXT's (height, width) of a picture (height, width) on a canvas, without its padding."""
    from transformers.image_processing_utils import get_patch_output_size

    height, width = get_patch_output_size(np.empty((*size, 0)), canvas, "channels_last")
    return height, width


def size_limits(setting: Any, *, square: bool) -> dict[str, Any]:
    """A processor's ``size`` or ``crop_size`` in names; ``square``: what one number stands for."""
    from transformers.image_processing_utils import get_size_dict

    return dict(get_size_dict(setting, default_to_square=square))


def size_to_fit(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """(height, width) of a picture (height, width) when its short side is made so long."""
    from transformers.image_transforms import get_resize_output_image_size

    stand_in = np.broadcast_to(np.uint8(0), (3, *size))
    height, width = get_resize_output_image_size(
        stand_in, size=short_side, default_to_square=False, input_data_format="channels_first"
    )
    return height, width


def size_of(height: int, width: int) -> Any:
    """A size as the methods of image processors take it."""
    from transformers.image_utils import SizeDict

    return SizeDict(height=height, width=width)


# --- features ---


def packed_features(model: Any, features: Tensor, size: tuple[int, int], newline: Tensor, aspect: Any) -> Tensor:
    """[tokens, D] as LLaVA-NeXT and LLaVA-OneVision put the features of one picture in a row.

    Args:
        model: the whole model.
        features: [views, patches, D], the thumbnail's first.
        size: (height, width) of the picture.
        newline: [D] what stands behind each row.
        aspect: the config's ``vision_aspect_ratio``, where it has one.
    """
    pack = model.model.pack_image_features
    told = {
        "image_features": [features],
        "image_sizes": torch.tensor([size]),
        "vision_feature_select_strategy": "default",
        "image_newline": newline,
        "vision_aspect_ratio": aspect,
    }
    wanted = inspect.signature(pack).parameters
    packed, _ = pack(**{name: told[name] for name in wanted if name in told})
    return packed[0]  # type: ignore[no-any-return]


def pooled_features(model: Any, features: Tensor) -> Tensor:
    """[frames, tokens, D] as LLaVA-OneVision shrinks the features [frames, patches, D] of a video."""
    return model.model.apply_pooling(features)  # type: ignore[no-any-return]
