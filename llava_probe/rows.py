"""Attention rows beside the fast kernel: softmax(q·kᵀ·scaling + mask) of a few queries.

A fused kernel (sdpa, flash) gives the output of attention and never its weights; eager gives all P×P of them. While a
run is recorded, the entries of transformers' table of kernels are twins: each calls its kernel unchanged and then
shows the call to the recorder of the current context, if there is one. A model's config keeps the name that it had,
so a model that asks for that name (to build its mask, to skip work) goes the way that it goes without us. What has to
touch the call itself (gradients that are watched or changed) stands around the kernel instead (``wrapped``).
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from llava_probe.anatomy import reads_interface
from llava_probe.errors import BadModel

#: Queries whose rows are computed at once: bounds the float32 softmax when whole matrices are asked for.
QUERY_BLOCK = 256

Sink = Callable[[torch.nn.Module, Tensor, Tensor, Tensor | None, dict[str, Any]], None]

#: A kernel with its module, queries, keys, values, mask and other arguments; returns what the kernel would.
Around = Callable[..., tuple[Tensor, Tensor | None]]

_sink: ContextVar[Sink | None] = ContextVar("llava_probe_sink", default=None)
_around: ContextVar[Around | None] = ContextVar("llava_probe_around", default=None)
_wrapping = 0  # runs with something around their kernels; a compiled graph without any is not broken up for them
_switching = threading.Lock()
_users: Counter[tuple[int, str]] = Counter()
_kernels: dict[tuple[int, str], Any] = {}


@contextmanager
def routed(model: PreTrainedModel, sink: Sink) -> Iterator[None]:
    """Tell ``sink`` of every attention call of ``model`` while this context lasts; the tables are then as before.

    Raises:
        BadModel: flex attention, whose block mask cannot be read row by row.
    """
    token = _sink.set(sink)
    try:
        with _twins(model):
            yield
    finally:
        _sink.reset(token)


@contextmanager
def wrapped(model: PreTrainedModel, around: Around) -> Iterator[None]:
    """Let ``around`` call the kernels of ``model`` while this context lasts; the tables are then as before.

    Raises:
        BadModel: flex attention, as for ``routed``.
    """
    global _wrapping
    token = _around.set(around)
    with _switching:
        _wrapping += 1
    try:
        with _twins(model):
            yield
    finally:
        _around.reset(token)
        with _switching:
            _wrapping -= 1


@contextmanager
def _twins(model: PreTrainedModel) -> Iterator[None]:
    """The twins of the kernels that ``model`` uses, in whatever table it looks them up."""
    names = {part.config._attn_implementation for part in model.modules() if isinstance(part, PreTrainedModel)}
    if "flex_attention" in names:
        raise BadModel("attention rows cannot be read beside flex_attention; set_attn_implementation('sdpa') first")
    shared = AttentionInterface()  # a table without entries of its own shows those that all share
    with ExitStack() as stack:
        for name in names & set(shared):
            stack.enter_context(twinned(AttentionInterface.register, (0, name), shared[name], _twin))
        for table in _tables(model):
            for name in names & set(table):
                if table[name] is not shared.get(name):
                    stack.enter_context(twinned(table.__setitem__, (id(table), name), table[name], _twin))
        yield


@contextmanager
def eager_where_unread(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Let attention modules that call a kernel of their own, past the tables, compute whole matrices meanwhile."""
    own = [module for module in modules if not reads_interface(module)]
    configs = {id(config): config for module in own if (config := getattr(module, "config", None)) is not None}
    before = [(config, config._attn_implementation) for config in configs.values()]
    before = [(config, name) for config, name in before if name not in (None, "eager")]
    if before:
        warnings.warn(
            f"{type(own[0]).__name__} does not go through transformers' attention interface, so its layers run in "
            "eager attention while their rows are recorded: time and memory grow with the square of the prompt; "
            "Capture(attention=False) avoids it",
            stacklevel=2,
        )
    try:
        for config, _ in before:
            config._attn_implementation_internal = "eager"
        yield
    finally:
        for config, name in before:
            config._attn_implementation_internal = name


def _tables(model: torch.nn.Module) -> list[AttentionInterface]:
    """The table of kernels of transformers, and those that a modeling file keeps for itself."""
    files = {base.__module__ for kind in {type(module) for module in model.modules()} for base in kind.__mro__}
    tables = [getattr(sys.modules.get(file), "ALL_ATTENTION_FUNCTIONS", None) for file in files]
    return list({id(table): table for table in tables if isinstance(table, AttentionInterface)}.values())


@contextmanager
def twinned(
    put: Callable[[str, Any], None], place: tuple[int, str], kernel: Any, twin: Callable[[Any], Any]
) -> Iterator[None]:
    """Let ``twin(kernel)`` stand in a table of transformers while this lasts.

    Runs of several models share the tables: the first puts the twin there, the last puts the kernel back.

    Args:
        put: writes an entry.
        place: the table (a number of its own) and the entry's name.
        kernel: what stands there, where nobody has a twin yet.
        twin: makes what does the same and more.
    """
    with _switching:
        _users[place] += 1
        if _users[place] == 1:
            _kernels[place] = kernel
            put(place[1], twin(kernel))
    try:
        yield
    finally:
        with _switching:
            _users[place] -= 1
            if not _users[place]:
                put(place[1], _kernels.pop(place))


@torch.compiler.disable
def _tell(module: torch.nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, kwargs: dict[str, Any]) -> None:
    sink = _sink.get()
    if sink is not None:
        sink(module, query, key, mask, kwargs)


@cache
def _twin(kernel: Callable[..., Any]) -> Callable[..., Any]:
    def attention(
        module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:  # some towers pass the mask by this name
        if _wrapping:
            return _call(kernel, module, query, key, value, attention_mask, kwargs)
        output = kernel(module, query, key, value, attention_mask, **kwargs)
        _tell(module, query, key, attention_mask, kwargs)
        return output

    return attention


@torch.compiler.disable
def _call(
    kernel: Callable[..., Any],
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor | None]:
    around = _around.get()
    if around is not None:
        output = around(kernel, module, query, key, value, mask, kwargs)
    else:
        output = kernel(module, query, key, value, mask, **kwargs)
    _tell(module, query, key, mask, kwargs)
    return output


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
        kwargs: the call's other arguments (``scaling``, ``softcap``, ``position_bias``, ``s_aux`` ...).
        index: which of the Q queries; all when None (every step but the first has one).
        start: how many tokens were seen before this call.
        heads: which query heads; all when None.

    Returns:
        [B, heads, len(index), K] in the query's dtype; the softmax itself in float32 at least.
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
    if (bias := kwargs.get("position_bias")) is not None:
        logits = logits + _part(bias[..., : key.shape[2]], index, heads)
    logits = _masked(module, logits, mask, kwargs, index, start, n_queries, heads)
    if (sinks := kwargs.get("s_aux")) is not None:
        sinks = sinks if heads is None else sinks[heads]
        logits = torch.cat([logits, sinks.view(1, -1, 1, 1).expand(*logits.shape[:3], 1).to(logits.dtype)], dim=-1)
    exact = torch.promote_types(query.dtype, torch.float32)
    weights = torch.softmax(logits, dim=-1, dtype=exact).to(query.dtype)
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
        part = _part(mask[..., :keys], index, heads)
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


def _part(whole: Tensor, index: Tensor | None, heads: Tensor | None) -> Tensor:
    """The chosen queries and heads of [B, H or 1, Q, K]."""
    part = whole if index is None else whole[:, :, index.to(whole.device)]
    return part if heads is None or part.shape[1] == 1 else part[:, heads]
