"""A decoder's inputs for several sequences side by side, or without their first positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llava_probe.attribution.engine.target import Task, visual_positions

#: How far a value may be off for another way of computing it, in its own unit, relative to its size.
AGREEMENT = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


def widened(others: dict[str, Any], count: int, task: Task, weight: Tensor | None = None) -> dict[str, Any]:
    """The decoder's inputs beside the embeddings for a batch of ``count``.

    Args:
        others: by name, for one sequence.
        count: how many sequences.
        task: whose visual tokens they hold.
        weight: [count, N, 1] how much of each visual token of the explained picture stays. Features that enter deeper
            layers beside the sequence ([visual tokens, D], as in Qwen3-VL) are blended like the tokens themselves,
            towards their mean.
    """
    visual = visual_positions(task.trace)
    rows = [] if weight is None else [visual.index(place) for place in task.places.tolist()]
    wide: dict[str, Any] = _widened(others, count, weight, visual, rows)
    return wide


def _widened(value: Any, count: int, weight: Tensor | None, visual: Sequence[int], rows: Sequence[int]) -> Any:
    if isinstance(value, dict):
        wide = {name: _widened(part, count, weight, visual, rows) for name, part in value.items()}
        places = wide.get("position_ids")
        if isinstance(places, Tensor) and places.ndim == 3 and places.shape[1] == 1:  # axes of a rotary embedding first
            wide["position_ids"] = places.expand(-1, count, -1)
        return wide
    if isinstance(value, list | tuple):
        return type(value)(_widened(part, count, weight, visual, rows) for part in value)
    if not isinstance(value, Tensor) or value.ndim < 2:
        return value
    if value.ndim == 2 and value.shape[0] == len(visual) and value.is_floating_point():
        batch = value.expand(count, -1, -1).clone()
        if weight is None:
            return batch.flatten(0, 1)
        own = weight.to(value)
        batch[:, rows] = own * batch[:, rows] + (1 - own) * value[list(rows)].mean(0)
        return batch.flatten(0, 1)
    return value.expand(count, *value.shape[1:]) if value.shape[0] == 1 else value


def sliceable(kwargs: dict[str, Any]) -> bool:
    """Whether every input of the decoder is one that ``cut`` understands."""
    known = ("inputs_embeds", "attention_mask", "position_ids", "cache_position")
    return all(name in known or not _holds_tensor(value) for name, value in kwargs.items())


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_holds_tensor(part) for part in value.values())
    if isinstance(value, list | tuple):
        return any(_holds_tensor(part) for part in value)
    return isinstance(value, Tensor)


def cut(name: str, value: Any, prefix: int) -> Any:
    """An input of the decoder without the first ``prefix`` queries."""
    if name == "attention_mask" and isinstance(value, dict):
        return {kind: cut(name, part, prefix) for kind, part in value.items()}
    if not isinstance(value, Tensor):
        return value
    if name == "attention_mask":
        return value[:, :, prefix:] if value.ndim == 4 else value
    return value[..., prefix:] if name in ("position_ids", "cache_position") else value
