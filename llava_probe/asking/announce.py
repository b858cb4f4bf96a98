"""How much memory a capture will take, told before it starts where it is much."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from llava_probe.asking.recorder import Prompt
from llava_probe.inside.anatomy import Anatomy
from llava_probe.trace.capture import Extent, Plan, in_units, nbytes

#: Above this a capture's size is told before it starts.
TELL_ABOVE = 1_000_000_000


def announce(
    plan: Plan,
    anatomy: Anatomy,
    prompts: Sequence[Prompt],
    tensors: Mapping[str, Tensor],
    *,
    new_tokens: int,
    sequences: int,
) -> None:
    """Tell the size of what will be kept, where it is large, before it is made."""
    vision_bytes = _vision_bytes(anatomy, tensors) // len(prompts)
    total = sequences * sum(
        nbytes(
            plan,
            Extent(
                prompt=prompt.length,
                image=len(prompt.image_positions),
                generated=new_tokens,
                width=anatomy.width,
                vocabulary=anatomy.vocabulary,
                itemsize=anatomy.model.dtype.itemsize,
                vision_bytes=vision_bytes,
            ),
        )
        for prompt in prompts
    )
    if total > TELL_ABOVE:
        warnings.warn(
            f"this capture keeps up to {in_units(total)} in memory; Capture(layers=..., attention_layers=..., "
            "positions=..., logits=10) keeps less",
            stacklevel=4,
        )


def _vision_bytes(anatomy: Anatomy, tensors: Mapping[str, Tensor]) -> int:
    """About how much the vision tower's records take; 0 where its config does not tell its sizes."""
    pixels = tensors.get("pixel_values", tensors.get("pixel_values_videos"))
    if anatomy.vision is None or pixels is None:
        return 0
    config = anatomy.vision.owner.config
    width, heads = (getattr(config, name, None) for name in ("hidden_size", "num_attention_heads"))
    patch = getattr(config, "patch_size", None)
    if not (width and heads and patch):
        return 0
    patch = patch if isinstance(patch, int) else patch[0]
    crops = int(np.prod(pixels.shape[:-3]))
    patches = pixels.shape[0] if pixels.ndim == 2 else int(np.prod(pixels.shape[-2:])) // patch**2 + 1
    a_layer = patches * width + heads * patches**2
    return crops * (len(anatomy.vision.blocks) + 1) * a_layer * anatomy.model.dtype.itemsize
