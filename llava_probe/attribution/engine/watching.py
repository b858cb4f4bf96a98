"""Attention as a backward pass sees it: one layer at a time, recomputed in blocks of queries, and dropped.

The forward pass stays on the fast kernel. Behind each of its outputs stands a function that does nothing forward; when
the gradient comes back to it, ∂y/∂A = (∂y/∂output)·vᵀ is at hand, A = softmax(q·kᵀ·scaling + mask) is computed again
for a block of queries, and both are used and let go. Backward visits the layers from the last to the first, which is
the order in which a relevance row is pulled through them. Nothing of the size layers × tokens × tokens is ever held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from llava_probe.errors import BadModel
from llava_probe.inside.anatomy import Anatomy, Stack
from llava_probe.inside.passes import Visitor
from llava_probe.inside.rows import Call

#: What is told of each call when its gradient is there: the call, and blocks of (queries, A, ∂y/∂A) on request.
Slopes = Callable[[Tensor], Iterator[tuple[Tensor, Tensor, Tensor]]]
See = Callable[[Call, Slopes], None]


@dataclass(eq=False)
class Watch(Visitor):
    """Tells ``see`` of each attention call of a stack when a backward pass comes by.

    Attributes:
        stack: whose blocks are watched.
        see: called from the last block to the first.
        windowed: whether a layer may attend in windows of the sequence, a call each, one behind the other.
        shared: how many positions the sequences of a batch begin with in common: one thing with one gradient, which the
            first sequence has.
    """

    stack: Stack
    see: See
    windowed: bool = False
    shared: int = 0
    _starts: dict[int, int] = field(default_factory=dict)

    changes = True

    def stacks(self, anatomy: Anatomy) -> tuple[Stack | None, ...]:
        """The one that is watched."""
        return (self.stack,)

    def unfused(self, anatomy: Anatomy) -> tuple[Stack, ...]:
        """The one that is watched."""
        return (self.stack,)

    def hears(self, method: str) -> bool:
        """Of states only to know where the windows begin again."""
        return super().hears(method) and (method != "state" or self.windowed)

    def state(self, stack: Stack, layer: int, hidden: Tensor) -> None:
        """The stack begins to read."""
        if layer == 0:
            self._starts.clear()

    def attended(self, call: Call, output: Tensor | None) -> Tensor | None:
        """``output``, with the call told when its gradient comes back.

        Raises:
            BadModel: a module that neither goes through transformers' table nor gives its weights.
        """
        if call.unread:
            if torch.is_grad_enabled():
                raise BadModel(
                    f"{type(call.module).__name__} neither goes through transformers' attention interface nor gives "
                    "its weights, so relevance cannot be followed through it"
                )
            return None
        if self.windowed:
            first = self._starts.get(call.layer, 0)
            self._starts[call.layer] = first + call.queries
            call = replace(call, start=first)
        if call.weights is not None:
            if call.weights.requires_grad:
                self._weighed(call)
            return None
        if output is None or not output.requires_grad:
            return None
        return _Seen.apply(output, call.query, call.key, call.value, call.mask, call, self)  # type: ignore[no-any-return, no-untyped-call]

    def _weighed(self, call: Call) -> None:
        """Whole weights in the graph, as an eager kernel gives them."""
        assert call.weights is not None
        nothing = call.weights.new_empty(0)
        held = replace(call, query=nothing, key=nothing, value=nothing, mask=None, weights=call.weights.detach())

        def see(grad: Tensor) -> None:
            def slopes(wanted: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
                yield wanted, held.rows(wanted), _together(grad[:, :, wanted], wanted, self.shared)

            self.see(held, slopes)

        call.weights.register_hook(see)


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
        nothing = query.new_empty(0)
        ctx.told = replace(call, query=nothing, key=nothing, value=nothing, mask=None)
        ctx.watch = watch
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        grad = grads[0]
        query, key, value, mask = ctx.saved_tensors
        call = replace(ctx.told, query=query, key=key, value=value, mask=mask)
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
