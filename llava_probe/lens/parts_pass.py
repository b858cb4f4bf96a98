"""One pass in which the residual stream is all that is left of a model: a sum of what its parts wrote into it.

At the row that predicts a token every part's output becomes the leaf of a graph, and what enters a part is a constant.
What stands between the leaves and the logit is then only what the model does to its residual stream: additions, norms
behind a part, multipliers, the final norm, the output embedding. A norm keeps the length that it divided by, so all of
that is linear, and the slope of the logit at a leaf, times the leaf, is what the part gave to it. No family is named
and no weight is read: adapters, quantised layers, post-norms, parallel blocks and scaled logits need nothing more.

That it is linear is proved and not supposed: the slopes themselves depend on no leaf. A model in which they do (several
streams that are mixed by what is in them, say) is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llava_probe.attribution.engine.rules import ModuleRules, is_small
from llava_probe.errors import BadModel
from llava_probe.inside import seam
from llava_probe.inside.anatomy import Anatomy, Stack
from llava_probe.inside.passes import Others, Visitor
from llava_probe.inside.rows import Call

_CUT = "no slope comes back from {}'s {}, so no logit can be split; load the model unquantised"


@dataclass(frozen=True, eq=False)
class Leaf:
    """What one part wrote at the row that predicts.

    Attributes:
        layer: of which block; -1 before the first, L behind the last.
        kind: ``"embedding"``, ``"heads"``, ``"attention"`` (without heads that could be told apart), ``"mlp"``,
            ``"other"`` or ``"bias"``.
        value: [D], [H, d] of heads, or [streams, D].
        module: that gave it.
    """

    layer: int
    kind: str
    value: Tensor
    module: nn.Module | None = None


@dataclass(frozen=True, eq=False)
class HeadsRead:
    """What the heads of one block read at that row.

    Attributes:
        weights: [H, K] attention; ``values``: [H_kv, K, d].
        first: the position of the first key.
    """

    weights: Tensor
    values: Tensor
    first: int


class PartsPass(Visitor):
    """Comes with one pass over one sequence, whose last row predicts the token.

    Attributes:
        leaves: in the order in which they were written.
        readings: beside each leaf, what was read for it where it is of heads.
        scores: [V] what the output embedding gave at the last row, in the graph; ``logits``: [V] the model's own.
        states: [places, D] hidden states by layer.

    Args:
        anatomy: of the model.
        layers, places: which hidden states to keep besides.
    """

    changes = True

    def __init__(self, anatomy: Anatomy, layers: Sequence[int] = (), places: Sequence[int] = ()) -> None:
        self._anatomy, self._rules = anatomy, ModuleRules()
        self._kept, self._places = frozenset(layers), list(places)
        self._parts = dict(writers_of(anatomy.decoder))
        self._blocks = {
            module: layer for layer, block in enumerate(anatomy.decoder.blocks) for module in block.modules()
        }
        self.leaves: list[Leaf] = []
        self.readings: list[HeadsRead | None] = []
        self.states: dict[int, Tensor] = {}
        self.scores: Tensor | None = None
        self.logits: Tensor | None = None

    def unfused(self, anatomy: Anatomy) -> tuple[Stack, ...]:
        """The decoder, where its modules have a kernel of their own: their weights are needed."""
        return (anatomy.decoder,)

    def modules(self, anatomy: Anatomy) -> Iterator[nn.Module]:
        """The parts, norms, whatever adds a bias, and the output embedding."""
        inside = anatomy.decoder.owner.modules()
        yield from (module for module in inside if module in self._parts or _biased(module) or _may_be_a_norm(module))
        yield self._head

    @property
    def _head(self) -> nn.Module:
        head = self._anatomy.output_embedding
        if head is None:
            raise BadModel(f"{type(self._anatomy.model).__name__} has no output embedding, so no logit can be split")
        return head  # type: ignore[no-any-return]

    # --- what happens ---

    def state(self, stack: Stack, layer: int, hidden: Tensor) -> Tensor | None:
        """The graph begins with what enters the first block; and some states are kept."""
        if layer in self._kept and hidden.ndim == 3:  # of several streams none is the state
            self.states[layer] = hidden[0, self._places].detach()
        if layer:
            return None
        if any(seam.recomputes(block) for block in stack.blocks):
            raise BadModel(
                "gradient checkpointing computes blocks again when nobody splits them any more; call "
                "model.gradient_checkpointing_disable(), or model.eval()"
            )
        torch.set_grad_enabled(True)  # until the context of the pass ends
        return self._leaf(hidden, -1, "embedding")

    def before(self, module: nn.Module, args: Any, kwargs: Others) -> tuple[Any, Others] | None:
        """What enters a part is a constant."""
        return _constant((args, kwargs)) if module in self._parts else None  # type: ignore[no-any-return]

    def attended(self, call: Call, output: Tensor | None) -> Tensor | None:
        """What each head gives is a leaf; what it read is kept."""
        if output is None or call.unread or not torch.is_grad_enabled():
            return None
        last = torch.tensor([call.queries - 1], device=call.device)
        read = HeadsRead(call.rows(last)[0, :, 0].detach(), call.value[0].detach(), call.first_key)
        return self._leaf(output, call.layer, "heads", call.module, read)

    def after(self, module: nn.Module, args: Any, output: Any) -> Any:
        """What a part gives is a leaf; a norm keeps its length; a bias is a leaf of its own."""
        if not torch.is_grad_enabled():
            return None
        if module in self._parts:
            output = self._written(module, output)
        elif isinstance(output, Tensor) and output.requires_grad:
            output = self._beside(module, args, output)
        if module is self._head:
            if seam.is_cut(output):
                raise BadModel(_CUT.format(type(module).__module__.split(".")[0], type(module).__name__))
            self.scores = output[0, -1]
        return output

    def _written(self, module: nn.Module, output: Any) -> Any:
        given = output if isinstance(output, Tensor) else output[0]
        if given.requires_grad or given.shape[-1] != self._anatomy.width:  # its heads are in the graph; a gate
            return output
        layer, kind = self._parts[module]
        made = self._leaf(given, layer, kind, module)
        return made if isinstance(output, Tensor) else (made, *output[1:])

    def _beside(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        rule = self._rules.of(module, args, output)
        layer = self._blocks.get(module, self._anatomy.layers)
        if rule is not None and rule.norm:
            bias, given = rule.rest, args[0]
            given = given - given.mean(-1, keepdim=True) if rule.centred else given
            output = _Scaled.apply(given, output.detach(), bias)  # type: ignore[no-untyped-call]
        else:
            bias = getattr(module, "bias", None)
        if not isinstance(bias, Tensor):
            return output
        leaf = bias.detach().clone().requires_grad_()
        self._note(Leaf(layer, "bias", leaf, module))
        return _Row.apply(output, leaf)  # type: ignore[no-any-return, no-untyped-call]

    def _leaf(
        self, value: Tensor, layer: int, kind: str, module: nn.Module | None = None, read: HeadsRead | None = None
    ) -> Tensor:
        """``value`` with its last row as a leaf of the graph, and the rest outside it."""
        value = value.detach()
        leaf = _last(value).clone().requires_grad_()
        self._note(Leaf(layer, kind, leaf, module), read)
        return _Row.apply(value, leaf)  # type: ignore[no-any-return, no-untyped-call]

    def _note(self, leaf: Leaf, read: HeadsRead | None = None) -> None:
        self.leaves.append(leaf)
        self.readings.append(read)

    def end(self, span: Any, logits: Tensor) -> None:
        """The model's own logits, whatever it did to them at last."""
        self.logits = logits[0, -1]


# --- which modules are parts ---


def writers_of(stack: Stack) -> Iterator[tuple[nn.Module, tuple[int, str]]]:
    """Each module of the blocks that writes into the residual stream, its block and its kind."""
    for layer, block in enumerate(stack.blocks):
        for module in _within(block, stack):
            if module in stack.attentions:
                yield module, (layer, "attention")
            else:  # the matrices of a block without an MLP of its own are one
                feeds = module in stack.feeds or (layer not in stack.feeds.values() and isinstance(module, nn.Linear))
                yield module, (layer, "mlp" if feeds else "other")


def _within(parent: nn.Module, stack: Stack) -> Iterator[nn.Module]:
    for child in parent.children():
        if child in stack.attentions:
            yield child
        elif isinstance(child, nn.ModuleList | nn.ModuleDict) or any(
            one in stack.attentions for one in child.modules()
        ):
            yield from _within(child, stack)
        elif not is_small(child):
            yield child


def _may_be_a_norm(module: nn.Module) -> bool:
    return is_small(module) and not isinstance(module, nn.Dropout | nn.Identity)


def _biased(module: nn.Module) -> bool:
    return any(name == "bias" for name, _ in module.named_parameters(recurse=False))


def _constant(given: Any) -> Any:
    """The same outside any graph."""
    if isinstance(given, Tensor):
        return given.detach() if given.requires_grad else given
    if type(given) in (list, tuple):
        return type(given)(_constant(one) for one in given)
    if isinstance(given, dict):
        return {name: _constant(one) for name, one in given.items()}
    return given


# --- operations of ours ---


def _last(value: Tensor) -> Tensor:
    """What belongs to the last position of [1, P, ...], or of [P, D]."""
    return value[0, -1] if value.ndim > 2 else value[-1]


class _Row(torch.autograd.Function):
    """A value whose last row came from a leaf, or is a sum with one, and the rest from wherever it did."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, leaf: Tensor) -> Tensor:
        ctx.shape = leaf.shape
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], _last(grads[0]).sum_to_size(ctx.shape)


class _Scaled(torch.autograd.Function):
    """What a norm gave, as x ⊙ c + rest with c a constant, at the last row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, rest: Tensor | None) -> Tensor:
        exact = torch.promote_types(x.dtype, torch.float32)
        given, kept = (_last(one).to(exact) for one in (x, value))
        kept = kept if rest is None else kept - rest.to(exact)
        ctx.save_for_backward(torch.where(given == 0, 0, kept / given))
        ctx.dtype = x.dtype
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (factor,) = ctx.saved_tensors
        slope = torch.zeros_like(grads[0], dtype=ctx.dtype)
        _last(slope).copy_(_last(grads[0]) * factor)
        return slope, None, None
