"""Processors saved before they had to say how large a patch is: what they lack, their model's config says.

Without ``patch_size`` they divide by None; without ``num_additional_image_tokens`` they leave one place too few for a
tower with a class token. Both are set on a copy, with a word; the processor that was given stays as it is.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

from llava_probe.inside.anatomy import Anatomy

#: What marks a tower that reads one token more than its patches.
_CLASS_TOKENS = ("class_embedding", "cls_token")


def completed(processor: Any, anatomy: Anatomy) -> Any:
    """The processor, or a copy of it with what the model's config says and it does not."""
    found = dict(_missing(processor, anatomy))
    if not found:
        return processor
    whole = copy.copy(processor)
    for name, (value, _) in found.items():
        setattr(whole, name, value)
    told = ", ".join(f"{name}={value!r} (from {source})" for name, (value, source) in found.items())
    warnings.warn(
        f"this {type(processor).__name__} was saved by an older transformers and does not say how its pictures become "
        f"tokens; used here: {told}. Set these on the processor and save it to be rid of this warning",
        stacklevel=3,
    )
    return whole


def _missing(processor: Any, anatomy: Anatomy) -> Iterator[tuple[str, tuple[Any, str]]]:
    """Name, value and source of each setting that the processor has a place for and the model knows."""
    config = anatomy.model.config
    tower = getattr(config, "vision_config", None)
    strategy = getattr(config, "vision_feature_select_strategy", None)
    if (size := getattr(tower, "patch_size", None)) and getattr(processor, "patch_size", size) is None:
        yield "patch_size", (size, "config.vision_config")
    if strategy and getattr(processor, "vision_feature_select_strategy", strategy) is None:
        yield "vision_feature_select_strategy", (strategy, "config")
    if strategy and getattr(processor, "num_additional_image_tokens", None) in (None, 0) and anatomy.vision is not None:
        owned = anatomy.vision.owner.named_parameters()
        if hasattr(processor, "num_additional_image_tokens") and any(
            name.rpartition(".")[2] in _CLASS_TOKENS for name, _ in owned
        ):
            yield "num_additional_image_tokens", (1, "the class token of the vision tower")
