"""Attention as a backward pass sees it: one layer at a time, recomputed in blocks of queries, and dropped.

The forward pass stays on the fast kernel. Behind each of its outputs stands a function that does nothing forward; when
the gradient comes back to it, ∂y/∂A = (∂y/∂output)·vᵀ is at hand, A = softmax(q·kᵀ·scaling + mask) is computed again
for a block of queries, and both are used and let go. Backward visits the layers from the last to the first, which is
the order in which a relevance row is pulled through them. Nothing of the size layers × tokens × tokens is ever held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from llava_probe.anatomy import Anatomy, Stack
from llava_probe.errors import BadModel
from llava_probe.rows import attention_rows, eager_where_unread, wrapped

#: Weights of one block of queries, over all heads and keys: as many as stay near the processor (32 MB in float32).
BLOCK_WEIGHTS = 2**23


@dataclass(frozen=True, eq=False)
class Call:
    """One attention call of a block: what its kernel got.

    Attributes:
        layer: which block.
        module, query, key, value, mask, kwargs: as in ``rows.attention_rows``; values [B, H_kv, K, d].
        first: where its first query stands in the sequence, for towers that attend in windows one after the other.
        weights: whole weights [B, H, Q, K], where an eager module gave them of itself.
    """

    layer: int
    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    kwargs: Mapping[str, Any]
    first: int = 0
    weights: Tensor | None = None

    def blocks(self, wanted: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Some queries, a block at a time: their index, and their weights [B, H, block, keys up to the last seen]."""
        batch, heads, _, keys = self._sizes
        if self.weights is not None:
            yield wanted, self.weights[:, :, wanted]
            return
        reach = _reach(self)
        for block in wanted.split(max(16, BLOCK_WEIGHTS // (batch * heads * keys))):
            end = keys if reach is None else max(int(reach[block].max()), int(block.max()) + 1)
            key, query = self.key[:, :, :end], self.query if reach is None else self.query[:, :, :end]
            yield (
                block,
                attention_rows(self.module, query, key, self.mask, dict(self.kwargs), index=block, start=0),
            )

    @property
    def queries(self) -> int:
        """How many queries it has."""
        return self._sizes[2]

    @property
    def keys(self) -> int:
        """How many keys it has."""
        return self._sizes[3]

    @property
    def device(self) -> torch.device:
        """Where its weights are computed."""
        return self.query.device if self.weights is None else self.weights.device

    @property
    def _sizes(self) -> tuple[int, int, int, int]:
        if self.weights is not None:
            return tuple(self.weights.shape)  # type: ignore[return-value]
        return (*self.query.shape[:3], self.key.shape[2])


#: What is told of each call when its gradient is there: the call, and blocks of (queries, A, ∂y/∂A) on request.
Slopes = Callable[[Tensor], Iterator[tuple[Tensor, Tensor, Tensor]]]
See = Callable[[Call, Slopes], None]


@dataclass
class Watch:
    """Tells ``see`` of each attention call of a stack when a backward pass comes by.

    Attributes:
        stack: whose blocks are watched.
        see: called from the last block to the first.
        length: how many tokens the stack reads at once, all windows together; 0 where each call reads all.
        shared: how many positions the sequences of a batch begin with in common: one thing with one gradient, which the
            first sequence has.
    """

    stack: Stack
    see: See
    length: int = 0
    shared: int = 0
    _starts: dict[int, int] = field(default_factory=dict)
    _routed: set[int] = field(default_factory=set)

    def holds(self, module: nn.Module) -> bool:
        """Whether an attention module is one of the stack's."""
        return id(module) in self.stack.attentions

    def behind(self, output: Tensor, call: Call) -> Tensor:
        """``output`` of a kernel, with its call told when its gradient comes back."""
        return _Seen.apply(output, call.query, call.key, call.value, call.mask, call, self)  # type: ignore[no-any-return, no-untyped-call]

    def call(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, kwargs: dict[str, Any]
    ) -> Call:
        """What a kernel of the stack is about to get."""
        layer = self.stack.attentions[id(module)]
        self._routed.add(id(module))
        first = self._starts.get(layer, 0) if self.length else 0
        if self.length:
            self._starts[layer] = (first + query.shape[2]) % self.length
        return Call(layer, module, query, key, value, mask, kwargs, first)

    def weighed(self, module: nn.Module, weights: Tensor) -> None:
        """Whole weights in the graph, from a module whose kernel is in no table: an eager one, or one of its own."""
        nothing = weights.new_empty(0)
        call = Call(
            self.stack.attentions[id(module)], module, nothing, nothing, nothing, None, {}, weights=weights.detach()
        )

        def see(grad: Tensor) -> None:
            def slopes(wanted: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
                yield wanted, call.weights[:, :, wanted], _together(grad[:, :, wanted], wanted, self.shared)  # type: ignore[index]

            self.see(call, slopes)

        weights.register_hook(see)


@contextmanager
def watching(anatomy: Anatomy, watches: Sequence[Watch]) -> Iterator[None]:
    """Watch the attention of some stacks in the passes that run while this context lasts.

    Raises:
        BadModel: flex attention.
    """

    def around(
        kernel: Any, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        output, weights = kernel(module, query, key, value, mask, **kwargs)
        for watch in watches:
            if watch.holds(module) and output.requires_grad:
                output = watch.behind(output, watch.call(module, query, key, value, mask, kwargs))
        return output, weights

    modules = [module for watch in watches for module in watch.stack.attention_modules()]
    with ExitStack() as stack:
        stack.enter_context(eager_where_unread(modules))
        stack.enter_context(wrapped(anatomy.model, around))
        for watch in watches:
            for module in watch.stack.attention_modules():
                stack.callback(module.register_forward_hook(_unrouted(watch)).remove)
        yield


def _unrouted(watch: Watch) -> Callable[..., None]:
    def weighed(module: nn.Module, _args: Any, output: Any) -> None:
        if id(module) in watch._routed or not torch.is_grad_enabled():
            return
        found = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if not isinstance(found, Tensor):
            raise BadModel(
                f"{type(module).__name__} neither goes through transformers' attention interface nor gives its "
                "weights, so relevance cannot be followed through it"
            )
        if found.requires_grad:
            watch.weighed(module, found)

    return weighed


class _Seen(torch.autograd.Function):
    """The identity; backward tells the call. Its tensors are saved as autograd saves them, so checkpoints drop them."""

    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        call: Call,
        watch: Watch,
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, mask)
        ctx.told = call.layer, call.module, call.kwargs, call.first
        ctx.watch = watch
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad = grads[0]
        query, key, value, mask = ctx.saved_tensors
        layer, module, kwargs, first = ctx.told
        call = Call(layer, module, query, key, value, mask, kwargs, first)
        with torch.no_grad():
            ctx.watch.see(call, lambda wanted: _slopes(call, grad, wanted, ctx.watch.shared))
        return grad, None, None, None, None, None, None


def _slopes(call: Call, grad: Tensor, wanted: Tensor, shared: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Blocks of some queries: their index, A and ∂y/∂A, both [B, H, block, keys]; ``grad`` is [B, Q, H, d]."""
    batch, kv_heads = call.value.shape[:2]
    grad = grad.transpose(1, 2)
    heads = grad.shape[1]
    for block, weights in call.blocks(wanted):
        value = call.value[:, :, : weights.shape[-1]]
        packed = grad[:, :, block].reshape(batch, kv_heads, heads // kv_heads * len(block), -1)
        slope = torch.matmul(packed, value.transpose(2, 3)).view(weights.shape)
        yield block, weights, _together(slope, block, shared)


def _together(slope: Tensor, block: Tensor, shared: int) -> Tensor:
    """∂y/∂A [B, H, block, keys] with that of queries in common added up in the first sequence."""
    if not shared or len(slope) == 1:
        return slope
    others = slope[1:].sum(0, keepdim=True) * (block < shared).to(slope)[:, None]
    return torch.cat([slope[:1] + others, slope[1:]])


def _reach(call: Call) -> Tensor | None:
    """[Q] how many keys each query may see at most, where they are not all; None where every one is seen."""
    queries, keys = call.query.shape[2], call.key.shape[2]
    if queries != keys:
        return None
    mask = call.mask
    if mask is None or mask.ndim == 2:
        causal = call.kwargs.get("is_causal")
        causal = getattr(call.module, "is_causal", True) if causal is None else causal
        return torch.arange(1, queries + 1, device=call.query.device) if causal else None
    seen = mask[..., :keys] if mask.dtype == torch.bool else mask[..., :keys] > torch.finfo(mask.dtype).min
    columns = torch.arange(1, keys + 1, device=mask.device)
    last = (seen.any(1).any(0) * columns).amax(-1)
    return last.clamp(min=1) if last.numel() == queries and int(last[0]) < keys else None
