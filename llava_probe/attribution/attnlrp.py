"""AttnLRP: the target's value, handed back through each operation to what it was made of; signed.

Achtibat et al. 2024, "AttnLRP" (arXiv 2402.05602): layer-wise relevance propagation with a rule for each operation of a
transformer. Every rule is a change of that operation's gradient, so relevance at the decoder's entry is x ⊙ ∂'y/∂x:

    linear layers, residuals, rotation      as they are (ε-rule, with ε → 0)
    softmax inside attention                as it is (first Taylor term, proposition 3.1)
    q·k and A·v, gate·up                    half to each factor (section 3.3.2): a half to v, a quarter to q and to k
    RMSNorm, LayerNorm                      the length is a constant (identity rule, proposition 3.4)
    activations of one number               x·c with c = f(x)/x a constant (identity rule, eq. 9)

No family is named here. Hooks give their rule to modules that are recognised by how they behave, and the graph is read
as it grows: an operation that is left without a rule (a router, a state space, a capped logit, a picture's features
added inside the decoder) is refused. What a bias gives to the target is the bias's own and reaches no position; nor
does what a softmax keeps of its logits' relevance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from llava_probe.attribution.engine.forward import forward
from llava_probe.attribution.engine.found import Found
from llava_probe.attribution.engine.rules import ModuleRules
from llava_probe.attribution.engine.target import Task
from llava_probe.border import checked
from llava_probe.errors import BadModel
from llava_probe.inside import seam
from llava_probe.inside.anatomy import Anatomy, Stack
from llava_probe.inside.passes import Others, Visitor
from llava_probe.inside.rows import Call

#: Operations of ours, with a gradient of their own.
RULED = {"_Held", "_Shared"}


@checked
def attnlrp(task: Task, *, checkpoint: bool = False) -> Found:
    """Layer-wise relevance of every position, signed: one forward pass and a backward pass a target.

    Args:
        task: what is explained; the positions sum to a logit (``of="logit"``), less what biases and softmax keep.
        checkpoint: keep one block's activations at a time.

    Raises:
        BadModel: something in the decoder has no rule; the message names it and the module that computes it.
    """
    rows = torch.zeros(len(task.targets), task.fed, dtype=torch.float64)
    for number in task.passes:
        with forward(task, number, Propagating(), checkpoint=checkpoint) as run:
            for row, target, last in run:
                (slope,) = run.gradients(target, [run.entry], last=last)
                rows[row] = (run.entry[0, : task.fed].detach().double() * run.merged(slope).double()).sum(-1)
    return Found(
        rows, unit="relevance", forwards=task.forwards, backwards=task.backwards, about={"checkpoint": checkpoint}
    )


class Propagating(Visitor):
    """Lets gradients be relevances, by the rules above, in a pass.

    Raises:
        BadModel: in the pass, at the first operation without a rule.
    """

    changes = True

    def __init__(self) -> None:
        self._graph, self._rules = _Graph(), _Ruled()

    def stacks(self, anatomy: Anatomy) -> tuple[Stack | None, ...]:
        """All attention, in a stack or not."""
        return anatomy.decoder, anatomy.vision, None

    def modules(self, anatomy: Anatomy) -> Iterator[nn.Module]:
        """Every one."""
        return anatomy.model.modules()

    def before(self, module: nn.Module, args: Any, kwargs: Others) -> tuple[Any, Others]:
        """Products that enter a module are halved."""
        args = tuple(_halved(given) for given in args)
        self._graph.read((args, kwargs))
        self._graph.inside.append(module)
        return args, kwargs

    def after(self, module: nn.Module, args: Any, output: Any) -> Any:
        """A module's own rule, where it has one."""
        output = _halved(self._rules.applied(module, args, output))
        if isinstance(module, nn.Linear):  # quantised ones compute it in operations of their own
            self._graph.trust(output)
        self._graph.read(output)
        self._graph.inside.pop()
        return output

    def attention(self, call: Call) -> Call | None:
        """A half to v, a quarter to q and to k."""
        if not call.query.requires_grad and not call.key.requires_grad:
            return None
        if call.kernel == "eager":
            raise BadModel(_unruled("a softmax", [call.module]))
        if call.kwargs.get("softcap") is not None:
            raise BadModel(_unruled("softcap", [call.module]))
        if any(tensor.requires_grad for tensor in _tensors((call.mask, call.kwargs))):
            raise BadModel(_unruled("a mask or bias that depends on the sequence", [call.module]))
        query, key, value = (
            _Shared.apply(_halved(given), share)  # type: ignore[no-untyped-call]
            for given, share in ((call.query, 0.25), (call.key, 0.25), (call.value, 0.5))
        )
        self._graph.read((query, key, value))
        return replace(call, query=query, key=key, value=value)

    def attended(self, call: Call, output: Tensor | None) -> None:
        """What the kernel did is known."""
        self._graph.trust(output)


# --- rules ---


class _Held(torch.autograd.Function):
    """``value`` as x ⊙ c + rest, with c a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, rest: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, value, rest)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, value, rest = ctx.saved_tensors
        exact = torch.promote_types(x.dtype, torch.float32)
        kept = value.to(exact) if rest is None else value.to(exact) - rest.to(exact)
        factor = torch.where(x == 0, 0, kept / x.to(exact))
        return (grads[0] * factor).to(x.dtype), None, None


class _Shared(torch.autograd.Function):
    """The identity, with a share of the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float) -> Tensor:
        ctx.share = share
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * ctx.share, None


def _halved(given: Any) -> Any:
    """A product of two parts of the graph as it enters or leaves a module; anything else as it is."""
    if isinstance(given, Tensor) and given.grad_fn is not None and _multiplies(given.grad_fn):
        return _Shared.apply(given, 0.5)  # type: ignore[no-untyped-call]
    return given


class _Ruled:
    """Gives modules that no graph can tell their own rule."""

    def __init__(self) -> None:
        self._rules = ModuleRules()

    def applied(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """``output`` with the gradient that the module's rule gives it, where it has one."""
        rule = self._rules.of(module, args, output)
        if rule is None:
            return output
        x = args[0] - args[0].mean(-1, keepdim=True) if rule.centred else args[0]
        return _Held.apply(x, output.detach(), rule.rest)  # type: ignore[no-untyped-call]


# --- what has a rule ---


class _Graph:
    """Reads autograd's graph as it grows, and refuses what has no rule.

    Attributes:
        inside: modules that are running, outermost first.
    """

    def __init__(self) -> None:
        self.inside: list[nn.Module] = []
        self._known: set[Node] = set()

    def read(self, values: Any) -> None:
        """Look at everything that was made since the last time, up to ``values``.

        Raises:
            BadModel: an operation without a rule.
        """
        ends = [tensor.grad_fn for tensor in _tensors(values) if tensor.grad_fn is not None]
        for node in self._new(ends):
            name = seam.operation(node)
            onward = _following(node)
            if name not in RULED and not seam.is_linear(node) and not seam.is_product(node):
                raise BadModel(_unruled(name, self.inside))
            if name in ("Add", "Sub") and len(onward) < 2:
                raise BadModel(_unruled("the addition of something that did not enter as a token", self.inside))
            ends += [] if name == "_Shared" else onward
        if products := [node for node in ends if _multiplies(node)]:
            raise BadModel(_unruled(f"a product ({seam.operation(products[0])})", self.inside))

    def trust(self, values: Any) -> None:
        """Take what was made since the last time as it is."""
        for _ in self._new([tensor.grad_fn for tensor in _tensors(values) if tensor.grad_fn is not None]):
            pass

    def _new(self, ends: Sequence[Node]) -> Iterator[Node]:
        waiting = list(ends)
        while waiting:
            node = waiting.pop()
            if node not in self._known:
                self._known.add(node)
                yield node
                waiting += _following(node)


def _following(node: Node) -> list[Node]:
    return [following for following in seam.made_of(node) if following is not None]


def _multiplies(node: Node) -> bool:
    """Whether both sides of a product are in the graph, or what is divided by."""
    return seam.divides(node) or (seam.is_product(node) and len(_following(node)) > 1)


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        yield from _tensors(tuple(values.values()))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)


def _unruled(what: str, inside: Sequence[nn.Module]) -> str:
    where = type(inside[-1]).__name__ if inside else "the model"
    config = getattr(inside[-1], "config", None) if inside else None
    if seam.implementation(config) == "eager":
        where += " (attention is eager, which cannot be told apart: try set_attn_implementation('sdpa'))"
    return (
        f"AttnLRP has no rule for {what} in {where}; it knows linear layers, RMSNorm and LayerNorm, elementwise "
        "activations, gated products and uncapped attention; use relevance or input_x_gradient"
    )
