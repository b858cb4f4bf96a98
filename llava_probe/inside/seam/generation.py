"""Private parts of transformers' ``generate``: its settings, the inputs of its next step, its caches."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import LogitsProcessor


def generation_config(model: Any, given: Any, settings: Mapping[str, Any]) -> Any:
    """The config that ``generate`` would follow, of one that is given (or the model's own) and of single settings."""
    config, _ = model._prepare_generation_config(given, **settings)
    return config


def generate_names(model: Any) -> set[str]:
    """What ``generate`` takes by name besides settings: its own arguments, and those of the model's passes."""
    takers = (model.generate, model.forward, model.prepare_inputs_for_generation)
    return {name for taker in takers for name in inspect.signature(taker).parameters} - {"self", "kwargs", "args"}


def is_own_processor(processor: Any) -> bool:
    """Whether it is a logits processor of transformers itself, which keeps no scores."""
    return type(processor).__module__ == LogitsProcessor.__module__


def next_inputs(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What ``generate`` would give the model for one token more, where the pass before left nothing to take over."""
    made: dict[str, Any] = model._update_model_kwargs_for_generation(_Nothing(), dict(inputs), is_encoder_decoder=False)
    return made


class _Nothing(dict[str, Any]):
    """The output of a pass that was not run: whatever a model would take over from one is not there."""

    def __getattr__(self, name: str) -> None:
        return None


def encodes_first(model: Any) -> bool:
    """Whether ``generate`` encodes the pictures before its first pass; else that pass does, for each beam again."""
    return "mm_encoder_outputs" in inspect.signature(model.forward).parameters


def keys_and_values(cache: Any) -> list[tuple[Tensor, Tensor]]:
    """Keys and values [B, H, K, d] of each layer of a cache."""
    return [(layer.keys, layer.values) for layer in cache.layers]


def hold(cache: Any, number: int, keys: Tensor, values: Tensor) -> None:
    """Let one layer of a cache hold these keys and values [B, H, K, d]; nothing is copied."""
    layer = cache.layers[number]
    layer.dtype, layer.device, layer.is_initialized = keys.dtype, keys.device, True
    layer.keys, layer.values = keys, values


def is_whole(cache: Any) -> bool:
    """Whether each layer of a cache holds the keys and values of all tokens and nothing else: no window, no state."""
    layers: Sequence[Any] = cache.layers
    return all(type(layer).__name__ == "DynamicLayer" for layer in layers)
