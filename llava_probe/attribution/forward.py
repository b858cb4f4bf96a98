"""One teacher-forced pass with a graph that starts where the picture enters the language model.

    with forward(task, 0) as run:
        gradient, = run.gradients(target, [run.entry])

The vision tower runs without a graph unless a method asks for it (``pixels=True``). Weights need no gradients, so no
activations are kept for them. Many targets share the pass; each has a backward pass of its own, and nothing of one is
left when the next begins.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint as checkpointed
from torch.utils.hooks import RemovableHandle

from llava_probe.attribution.target import Continuation, Target, Task
from llava_probe.attribution.watching import Watch, watching
from llava_probe.capture import in_units
from llava_probe.errors import BadModel, NotANumber
from llava_probe.generation import TELL_ABOVE
from llava_probe.recorder import alone_with

_GRADIENTLESS = "a method without gradients: attention, rollout, tam, occlusion, rise"


@dataclass(eq=False)
class Forward:
    """A pass that has run, and its graph.

    Attributes:
        task, number: whose continuation this is.
        logits: [steps, V] that predict each of its tokens.
        entry: [1, P, D] what entered the decoder: text embeddings and visual tokens.
        pixels: the pictures' tensors as the tower read them, where the graph starts there.
        states: hidden states in the graph, by number, where they were asked for.
    """

    task: Task
    number: int
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    entry: Tensor = field(default_factory=lambda: torch.empty(0))
    pixels: dict[str, Tensor] = field(default_factory=dict)
    states: dict[int, Tensor] = field(default_factory=dict)

    @property
    def continuation(self) -> Continuation:
        """What was read."""
        return self.task.continuations[self.number]

    def mine(self) -> list[tuple[int, Target]]:
        """The targets that rest on this continuation, with their rows."""
        return [(row, target) for row, target in enumerate(self.task.targets) if target.of(self.number)]

    def gradients(self, target: Target, wrt: Sequence[Tensor], *, last: bool = False) -> list[Tensor]:
        """Gradients of this continuation's part of one target; zero where it does not depend on a tensor.

        Args:
            target: one of ``mine()``.
            wrt: tensors of the graph.
            last: whether the graph may be let go.

        Raises:
            BadModel: no gradient comes back from the logits.
            NotANumber: a gradient is NaN or infinite.
        """
        value = target.value(self.number, self.logits, self.task.quantity)
        if not value.requires_grad:
            raise BadModel(_no_gradient(self.task))
        found = torch.autograd.grad(value, list(wrt), retain_graph=not last, allow_unused=True)
        return [torch.zeros_like(tensor) if one is None else one for one, tensor in zip(found, wrt, strict=True)]

    def __iter__(self) -> Iterator[tuple[int, Target, bool]]:
        """Rows and targets of this continuation, and whether each is the last."""
        mine = self.mine()
        for place, (row, target) in enumerate(mine):
            yield row, target, place == len(mine) - 1


@contextmanager
def forward(
    task: Task,
    number: int,
    *,
    pixels: bool = False,
    states: Sequence[int] = (),
    watches: Sequence[Watch] = (),
    around: Callable[[], Any] | None = None,
    checkpoint: bool = False,
) -> Iterator[Forward]:
    """Run one continuation and keep its graph while the context lasts.

    Args:
        task: what is explained; ``number``: which continuation.
        pixels: let the graph start at the tower's pixels.
        states: hidden states of the decoder to keep in the graph.
        watches: attention to watch in the backward passes.
        around: makes one more context for the pass (rules of propagation, say).
        checkpoint: compute each block of the decoder again in the backward pass instead of keeping what is inside.

    Raises:
        BadModel: pictures that do not enter the decoder as embeddings, or weights that let no gradient through.
    """
    anatomy = task.vlm.anatomy
    model: Any = anatomy.model
    run = Forward(task, number)
    inputs = dict(run.continuation.inputs)
    with ExitStack() as stack:
        stack.enter_context(alone_with(model))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(frozen(model))
        stack.enter_context(watching(anatomy, watches))
        if around is not None:
            stack.enter_context(around())
        if pixels:
            run.pixels = {
                name: value.detach().clone().requires_grad_()
                for name, value in inputs.items()
                if isinstance(value, Tensor) and value.is_floating_point() and name.startswith("pixel_values")
            }
            inputs |= run.pixels
        hooks = [_entering(run, pixels), *_keeping(run, states), *_guarding(anatomy.decoder.owner)]
        if checkpoint:
            stack.enter_context(_checkpointed(run))
        else:
            hooks += _measured(run)
        for hook in hooks:
            stack.callback(hook.remove)
        with torch.set_grad_enabled(pixels):
            logits = task.vlm.model(**inputs).logits
        run.logits = logits[0, -len(run.continuation.answer) :]
        if not bool(torch.isfinite(run.logits).all()):
            raise NotANumber(_forward_broke(task, number))
        yield run


def _entering(run: Forward, pixels: bool) -> RemovableHandle:
    """Start the graph at the decoder's entry, or note where it passes by."""
    owner = run.task.vlm.anatomy.decoder.owner

    def enter(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        entry = kwargs.get("inputs_embeds")
        if entry is None or entry.shape[1] != run.continuation.inputs["input_ids"].shape[1]:
            name = type(run.task.vlm.anatomy.model).__name__
            raise BadModel(f"the pictures of {name} do not enter its decoder as embeddings of the sequence's tokens")
        torch.set_grad_enabled(True)
        run.entry = entry if pixels and entry.requires_grad else entry.detach().clone().requires_grad_()
        return args, kwargs | {"inputs_embeds": run.entry}

    return owner.register_forward_pre_hook(enter, with_kwargs=True)


def _keeping(run: Forward, states: Sequence[int]) -> list[RemovableHandle]:
    """Keep hidden states of the decoder that the graph passes through."""
    anatomy = run.task.vlm.anatomy

    def keep(layer: int) -> Callable[..., None]:
        def after(_module: Any, _args: Any, output: Any) -> None:
            run.states[layer] = output if isinstance(output, Tensor) else output[0]

        return after

    return [anatomy.decoder.blocks[layer - 1].register_forward_hook(keep(layer)) for layer in states if layer]


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No weight needs a gradient meanwhile."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def _guarding(owner: nn.Module) -> list[RemovableHandle]:
    """Refuse projections that let no gradient through: the rest of the graph would go on and be wrong in silence."""

    def check(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        given = args[0] if args else None
        if not torch.is_grad_enabled():  # an indexer that only chooses keys
            return
        if not isinstance(given, Tensor) or not given.requires_grad or not isinstance(output, Tensor):
            return
        if output.grad_fn is None or "NotImplemented" in output.grad_fn.name():
            raise BadModel(
                f"{type(module).__module__.split('.')[0]}'s {type(module).__name__} lets no gradient through; "
                f"load the model unquantised, or use {_GRADIENTLESS}"
            )

    return [module.register_forward_hook(check) for module in owner.modules() if "Linear" in type(module).__name__]


def _measured(run: Forward) -> list[RemovableHandle]:
    """Tell what the graph will take, where it is much, as soon as its first block is there."""
    decoder = run.task.vlm.anatomy.decoder
    weights = {each.untyped_storage().data_ptr() for each in decoder.blocks[0].parameters()}
    held: dict[int, int] = {}
    counting: list[saved_tensors_hooks] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    def before(_module: Any, _args: Any) -> None:
        if not counting and torch.is_grad_enabled():
            counting.append(saved_tensors_hooks(pack, lambda tensor: tensor))
            counting[0].__enter__()

    def after(_module: Any, _args: Any, _output: Any) -> None:
        if not counting or first_done:
            return
        first_done.append(True)
        counting[0].__exit__()
        total = sum(held.values()) * len(decoder.blocks)
        if total > TELL_ABOVE:
            warnings.warn(
                f"the graph of this pass takes about {in_units(total)}; checkpoint=True keeps one block's at a time",
                stacklevel=2,
            )

    first_done: list[bool] = []
    first = decoder.blocks[0]
    return [first.register_forward_pre_hook(before), first.register_forward_hook(after, always_call=True)]


@contextmanager
def _checkpointed(run: Forward) -> Iterator[None]:
    """Blocks whose insides are computed again in the backward pass."""
    before = [(block, block.__dict__.get("forward")) for block in run.task.vlm.anatomy.decoder.blocks]
    try:
        for block, _ in before:
            block.forward = _again(block.forward)
        yield
    finally:
        for block, own in before:  # accelerate may have put its own there
            if own is None:
                block.__dict__.pop("forward", None)
            else:
                block.forward = own


def _again(inside: Callable[..., Any]) -> Callable[..., Any]:
    def block(*args: Any, **kwargs: Any) -> Any:
        context = copy_context()  # on a GPU, backward runs in a thread that knows none of our contexts
        return checkpointed(
            lambda *given, **named: context.copy().run(inside, *given, **named), *args, use_reentrant=False, **kwargs
        )

    return block


def _no_gradient(task: Task) -> str:
    kind = task.trace.provenance.get("quantization") or task.trace.provenance.get("dtype")
    return (
        f"no gradient comes back from the logits of {type(task.vlm.anatomy.model).__name__} ({kind}); "
        f"use {_GRADIENTLESS}"
    )


def _forward_broke(task: Task, number: int) -> str:
    """Which block first gave what is no number."""
    anatomy = task.vlm.anatomy
    broken: list[int] = []

    def check(layer: int) -> Callable[..., None]:
        def after(_module: Any, _args: Any, output: Any) -> None:
            state = output if isinstance(output, Tensor) else output[0]
            if not bool(torch.isfinite(state).all()):
                broken.append(layer)

        return after

    handles = [block.register_forward_hook(check(layer)) for layer, block in enumerate(anatomy.decoder.blocks)]
    try:
        with torch.no_grad():
            task.vlm.model(**task.continuations[number].inputs)
    finally:
        for handle in handles:
            handle.remove()
    where = f"block {broken[0]} of the language model" if broken else "the pictures' embeddings or the final norm"
    return f"NaN or infinity comes from {where}; load the model in bfloat16 or float32"


def spread(task: Task, number: int, found: Tensor) -> Tensor:
    """[fed] values of the trace's own positions from those of a continuation: what it does not share is left out."""
    out = torch.zeros(task.fed, dtype=torch.float64)
    shared = min(task.continuations[number].shared, task.fed)
    out[:shared] = found.detach()[:shared].double().cpu()
    return out
