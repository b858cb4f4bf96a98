"""The vision path with each patch alone: what a visual token is made of when no patch looks at another.

While ``isolated`` lasts, self-attention hands each position its own value: fused kernels through torch's one function
for them, kernels written out in Python through their softmax. Attention of one query over a few patches (pooling)
weighs them alike, as does a resampler's over all of them. The run ends where the decoder would begin.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from llava_probe.errors import BadModel

_SOFTMAX = (torch.softmax, functional.softmax, Tensor.softmax)


class _Alone(TorchFunctionMode):
    """Self-attention as the identity."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            query, key, value = (args[i] if i < len(args) else kwargs[name] for i, name in enumerate(_QKV))
            if query.shape[-2] == key.shape[-2] > 1:
                return value.repeat_interleave(query.shape[-3] // value.shape[-3], dim=-3)
            return func(torch.zeros_like(query), *args[1:], **kwargs)
        if func in _SOFTMAX and args[0].ndim > 2 and args[0].shape[-1] == args[0].shape[-2] > 1:
            weights = func(*args, **kwargs)
            return torch.eye(weights.shape[-1], dtype=weights.dtype, device=weights.device).expand_as(weights)
        return func(*args, **kwargs)


_QKV = ("query", "key", "value")


@contextmanager
def isolated(model: PreTrainedModel) -> Iterator[None]:
    """Each patch alone while this context lasts; the model is then as before."""
    parts = {id(part.config): part for part in model.modules() if isinstance(part, PreTrainedModel)}
    before = [(part.config, part.config._attn_implementation) for part in parts.values()]
    try:
        for part in parts.values():
            part.config._attn_implementation_internal = "sdpa" if part._supports_sdpa else "eager"
        with _Alone():
            yield
    finally:
        for config, implementation in before:
            config._attn_implementation_internal = implementation


class _Reached(Exception):
    """The decoder was reached, with these embeddings."""

    def __init__(self, embeddings: Tensor) -> None:
        super().__init__()
        self.embeddings = embeddings


def entering(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
    """[B, P, D] what enters the decoder: embedded text and visual tokens. The decoder itself is not run.

    Raises:
        BadModel: its pictures do not enter it as embeddings in the sequence.
    """

    def stop(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        embeddings = kwargs.get("inputs_embeds")
        if embeddings is not None:
            raise _Reached(embeddings)

    handle = model.get_decoder().register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with torch.no_grad():
            model(**inputs, use_cache=False)
    except _Reached as reached:
        return reached.embeddings
    finally:
        handle.remove()
    raise BadModel(f"the pictures of {type(model).__name__} do not enter its decoder as embeddings")
