"""Attention rows beside the fast kernel: softmax(q·kᵀ·scaling + mask) of a few queries.

A fused kernel (sdpa, flash) gives the output of attention and never its weights; eager gives all P×P of them. This
module registers, for each implementation a model may have, a twin that calls it unchanged and then computes only the
rows that the recorder of the current context asks for. The twin gets the very mask the kernel got.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from llava_probe.errors import BadModel

#: Queries whose rows are computed at once: bounds the float32 softmax when whole matrices are asked for.
QUERY_BLOCK = 256

_PREFIX = "llava_probe_"

Sink = Callable[[torch.nn.Module, Tensor, Tensor, Tensor | None, dict[str, Any]], None]

_sink: ContextVar[Sink | None] = ContextVar("llava_probe_sink", default=None)


@contextmanager
def routed(model: PreTrainedModel, sink: Sink) -> Iterator[None]:
    """Tell ``sink`` of every attention call of ``model`` while this context lasts; the model is then as before.

    Raises:
        BadModel: flex attention, whose block mask cannot be read row by row.
    """
    configs = {id(part.config): part.config for part in model.modules() if isinstance(part, PreTrainedModel)}
    before = [(config, config._attn_implementation) for config in configs.values()]
    token = _sink.set(sink)
    try:
        for config, implementation in before:
            if implementation in ALL_ATTENTION_FUNCTIONS.valid_keys():
                config._attn_implementation_internal = _twin(implementation)
        yield
    finally:
        _sink.reset(token)
        for config, implementation in before:
            config._attn_implementation_internal = implementation


@torch.compiler.disable
def _tell(module: torch.nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, kwargs: dict[str, Any]) -> None:
    sink = _sink.get()
    if sink is not None:
        sink(module, query, key, mask, kwargs)


def _twin(implementation: str) -> str:
    if implementation.startswith(_PREFIX):
        return implementation
    if implementation == "flex_attention":
        raise BadModel("attention rows cannot be read beside flex_attention; set_attn_implementation('sdpa') first")
    name = _PREFIX + implementation.replace("/", "_")
    if name in ALL_ATTENTION_FUNCTIONS.valid_keys():
        return name

    def attention(
        module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:  # some towers pass the mask by this name
        # A modeling file may override an implementation for itself with a table of its own.
        table = getattr(sys.modules[type(module).__module__], "ALL_ATTENTION_FUNCTIONS", ALL_ATTENTION_FUNCTIONS)
        output = table[implementation](module, query, key, value, attention_mask, **kwargs)
        _tell(module, query, key, attention_mask, kwargs)
        return output

    AttentionInterface.register(name, attention)
    if implementation in ALL_MASK_ATTENTION_FUNCTIONS.valid_keys():
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[implementation])
    return name


def attention_rows(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    kwargs: dict[str, Any],
    *,
    index: Tensor | None,
    start: int,
    heads: Tensor | None = None,
) -> Tensor:
    """The attention weights of some queries of one call.

    Args:
        module: the attention module that called.
        query: [B, H, Q, d]; ``key``: [B, H_kv, K, d]; both after rotary embedding.
        mask: what the kernel got: [B, 1, Q, K] bool or additive, [B, K] (flash), or None.
        kwargs: the call's other arguments (``scaling``, ``softcap``, ``sliding_window``, ``s_aux`` ...).
        index: which of the Q queries; all when None (every step but the first has one).
        start: how many tokens were seen before this call.
        heads: which query heads; all when None.

    Returns:
        [B, heads, len(index), K] in the query's dtype; the softmax itself in float32.
    """
    if index is None and query.shape[2] > QUERY_BLOCK:
        index = torch.arange(query.shape[2], device=query.device)
    if index is None or len(index) <= QUERY_BLOCK:
        return _rows_of_block(module, query, key, mask, kwargs, index, start, heads)
    blocks = [
        _rows_of_block(module, query, key, mask, kwargs, block, start, heads) for block in index.split(QUERY_BLOCK)
    ]
    return torch.cat(blocks, dim=2)


def _rows_of_block(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    kwargs: dict[str, Any],
    index: Tensor | None,
    start: int,
    heads: Tensor | None,
) -> Tensor:
    batch, n_heads, n_queries, _ = query.shape
    groups = n_heads // key.shape[1]
    chosen = query if index is None else query[:, :, index]
    if heads is not None:
        chosen, key = chosen[:, heads], key[:, heads // groups]
        groups = 1
    packed = chosen.reshape(batch, key.shape[1], groups * chosen.shape[2], -1)
    logits = torch.matmul(packed, key.transpose(2, 3)).view(batch, -1, chosen.shape[2], key.shape[2])
    scaling = kwargs.get("scaling")
    logits = logits * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if (cap := kwargs.get("softcap")) is not None:
        logits = torch.tanh(logits / cap) * cap
    logits = _masked(module, logits, mask, kwargs, index, start, n_queries, heads)
    if (sinks := kwargs.get("s_aux")) is not None:
        sinks = sinks if heads is None else sinks[heads]
        logits = torch.cat([logits, sinks.view(1, -1, 1, 1).expand(*logits.shape[:3], 1).to(logits.dtype)], dim=-1)
    weights = torch.softmax(logits, dim=-1, dtype=torch.float32).to(query.dtype)
    return weights[..., :-1] if sinks is not None else weights


def _masked(
    module: torch.nn.Module,
    logits: Tensor,
    mask: Tensor | None,
    kwargs: dict[str, Any],
    index: Tensor | None,
    start: int,
    n_queries: int,
    heads: Tensor | None,
) -> Tensor:
    keys = logits.shape[-1]
    if mask is not None and mask.ndim == 4:
        part = mask[..., :keys] if index is None else mask[:, :, index.to(mask.device), :keys]
        if heads is not None and part.shape[1] > 1:
            part = part[:, heads]
        if part.dtype != torch.bool:
            return logits + part
        return logits.masked_fill(~part, torch.finfo(logits.dtype).min)
    window = kwargs.get("sliding_window")
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if mask is None and (not causal or (n_queries == 1 and keys <= start + 1 and window is None)):
        return logits
    allowed = torch.ones(1, 1, logits.shape[2], keys, dtype=torch.bool, device=logits.device)
    if causal:
        # A sliding cache hands over only its last keys: place them where they are in the sequence.
        key_at = torch.arange(keys, device=logits.device) + max(0, start + n_queries - keys)
        queries = torch.arange(n_queries, device=logits.device) if index is None else index
        query_at = (start + queries).unsqueeze(-1)
        allowed = allowed & (key_at <= query_at)
        if window is not None:
            allowed = allowed & (key_at > query_at - window)
    if mask is not None:
        allowed = allowed & mask[:, None, None, -keys:].bool()
    return logits.masked_fill(~allowed, torch.finfo(logits.dtype).min)
