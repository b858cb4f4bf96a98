"""A decoder's inputs for several sequences side by side, or without their first positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from llava_probe.attribution.engine.target import Task, visual_positions
from llava_probe.errors import BadModel

#: Features of visual tokens [visual tokens, D] that enter deeper layers beside the sequence, as families call them:
#: Qwen3-VL and its kind, Granite-Docling, Cohere's; Granite Vision 4.
DEEP = ("deepstack_visual_embeds", "deepstack_features")


@dataclass(frozen=True)
class _Batch:
    """What one sequence's inputs are made inputs of.

    Attributes:
        count: how many sequences; ``length``: how many tokens each has.
        tokens: how many visual tokens; ``rows``: which of these are of the explained picture.
        weight: [count, rows, 1] how much of each stays; None for all of it.
    """

    count: int
    length: int
    tokens: int
    rows: Sequence[int]
    weight: Tensor | None


def widened(
    others: dict[str, Any], count: int, task: Task, length: int, weight: Tensor | None = None
) -> dict[str, Any]:
    """The decoder's inputs beside the embeddings for a batch of ``count``.

    Args:
        others: by name, for one sequence.
        count: how many sequences.
        task: whose visual tokens they hold.
        length: how many tokens the sequence has.
        weight: [count, N, 1] how much of each visual token of the explained picture stays. Features that enter deeper
            layers beside the sequence (``DEEP``) are blended like the tokens themselves, towards their mean.

    Raises:
        BadModel: an input that is neither known by its name nor one of the sequence's tokens by its shape.
    """
    visual = visual_positions(task.trace)
    rows = [] if weight is None else [visual.index(place) for place in task.places.tolist()]
    batch = _Batch(count, length, len(visual), rows, weight)
    return {name: _widened(name, value, batch) for name, value in others.items()}


def repeated(others: dict[str, Any], count: int, visual: int, length: int) -> dict[str, Any]:
    """The same for a prompt of ``length`` tokens, ``visual`` of them visual, none of which is weighed.

    Raises:
        BadModel: an input that is neither known by its name nor one of the sequence's tokens by its shape.
    """
    return {name: _widened(name, value, _Batch(count, length, visual, (), None)) for name, value in others.items()}


def _widened(name: str, value: Any, batch: _Batch) -> Any:
    """One input, or a part of it."""
    if isinstance(value, dict):
        return {key: _widened(name, part, batch) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_widened(name, part, batch) for part in value)
    if not isinstance(value, Tensor) or value.ndim < 2:
        return value
    if name == "position_ids" and value.ndim == 3 and value.shape[1] == 1:  # axes of a rotary embedding first
        return value.expand(-1, batch.count, -1)
    if name in DEEP and value.ndim == 2 and len(value) == batch.tokens:
        return _blended(value, batch)
    of_the_sequence = name in ("attention_mask", "position_ids") or value.shape[1] == batch.length
    if len(value) == 1 and of_the_sequence:
        return value.expand(batch.count, *value.shape[1:])
    if name in DEEP or len(value) in (1, batch.tokens):
        raise BadModel(
            f"the decoder is given {name} {list(value.shape)} beside its tokens, and whether that is of the sequence, "
            "of its pictures or of neither is not known, so it cannot be changed with them; use a method that runs one "
            "sequence as it is: attention, rollout, tam, gradient, relevance"
        )
    return value


def _blended(features: Tensor, batch: _Batch) -> Tensor:
    """[count · visual tokens, D] the features of each sequence, one behind the other."""
    wide = features.expand(batch.count, -1, -1).clone()
    if batch.weight is not None:
        own = batch.weight.to(features)
        wide[:, batch.rows] = own * wide[:, batch.rows] + (1 - own) * features[list(batch.rows)].mean(0)
    return wide.flatten(0, 1)


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
