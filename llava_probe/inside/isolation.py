"""The vision path with each patch alone: what a visual token is made of when no patch looks at another.

While ``isolated`` lasts, self-attention hands each position its own value: fused kernels through torch's one function
for them, kernels written out in Python through their softmax. Attention of one query over a few patches (pooling)
weighs them alike, as does a resampler's over all of them. The run ends where the decoder would begin.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from llava_probe.inside import seam
from llava_probe.inside.anatomy import Anatomy
from llava_probe.inside.passes import ENTRY, DecoderInput, entered, visiting
from llava_probe.inside.undo import undoing


class _Alone(TorchFunctionMode):
    """Self-attention as the identity."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (attention := seam.fused_attention_of(func, args, kwargs)) is not None:
            query, key, value = attention
            if query.shape[-2] == key.shape[-2] > 1:
                return value.repeat_interleave(query.shape[-3] // value.shape[-3], dim=-3)
            return func(torch.zeros_like(query), *args[1:], **kwargs)
        if seam.is_softmax(func) and args[0].ndim > 2 and args[0].shape[-1] == args[0].shape[-2] > 1:
            weights = func(*args, **kwargs)
            return torch.eye(weights.shape[-1], dtype=weights.dtype, device=weights.device).expand_as(weights)
        return func(*args, **kwargs)


@contextmanager
def isolated(model: PreTrainedModel) -> Iterator[None]:
    """Each patch alone while this context lasts; the model is then as before."""
    parts = {id(part.config): part for part in model.modules() if isinstance(part, PreTrainedModel)}
    with undoing() as undo:
        for part in parts.values():
            config, before = part.config, seam.implementation(part.config)
            undo(lambda config=config, before=before: seam.set_implementation(config, before))  # type: ignore[misc]
            seam.set_implementation(config, "sdpa" if seam.takes_sdpa(part) else "eager")
        undo(seam.modes_as_now())
        with _Alone():
            yield


def entering(anatomy: Anatomy, inputs: Mapping[str, Tensor]) -> Tensor:
    """[B, P, D] what enters the decoder of the model as it is: text and visual tokens. The decoder itself is not run.

    Raises:
        BadModel: its pictures do not enter it as embeddings in the sequence.
    """
    entry, model = DecoderInput(), cast(Any, anatomy.model)
    with visiting(anatomy, entry, until=ENTRY, apart=True), torch.no_grad():
        model(**inputs, use_cache=False)
    return entered(anatomy, entry.embeddings)
