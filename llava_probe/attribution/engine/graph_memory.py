"""What the graph of a pass keeps of each block: told when it is much, or computed again in the backward pass."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint as recomputed

from llava_probe.asking.announce import TELL_ABOVE
from llava_probe.inside import seam
from llava_probe.inside.anatomy import Anatomy, Stack
from llava_probe.inside.passes import Others, Visitor, instead
from llava_probe.inside.undo import undoing
from llava_probe.trace.capture import in_units


@contextmanager
def measured(decoder: Stack) -> Iterator[tuple[Visitor, ...]]:
    """Tells what the graph of a pass will take, where it is much, as soon as its first block is there."""
    graph = _Graph(decoder)
    with undoing() as undo:
        undo(seam.modes_as_now())
        undo(graph.counting.close)
        yield (graph,)


class _Graph(Visitor):
    """Counts what the graph keeps of the first block."""

    def __init__(self, decoder: Stack) -> None:
        self._blocks = decoder.blocks
        self._weights = {each.untyped_storage().data_ptr() for each in decoder.blocks[0].parameters()}
        self._held: dict[int, int] = {}
        self._done = False
        self.counting = ExitStack()

    def modules(self, anatomy: Anatomy) -> tuple[nn.Module, ...]:
        """The first block."""
        return (self._blocks[0],)

    def before(self, module: nn.Module, args: Any, kwargs: Others) -> None:
        """Count from here."""
        if torch.is_grad_enabled() and not self._done:
            self.counting.enter_context(saved_tensors_hooks(self._pack, lambda tensor: tensor))

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        """Tell, once."""
        self.counting.close()
        total = sum(self._held.values()) * len(self._blocks)
        if total > TELL_ABOVE and not self._done:
            warnings.warn(
                f"the graph of this pass takes about {in_units(total)}; checkpoint=True keeps one block's at a time",
                stacklevel=2,
            )
        self._done = True

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._weights:
            self._held[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()


@contextmanager
def checkpointed(decoder: Stack) -> Iterator[tuple[Visitor, ...]]:
    """Blocks whose insides are computed again in the backward pass."""
    with ExitStack() as stack:
        for block in decoder.blocks:
            stack.enter_context(instead(block, _again))
        yield ()


def _again(inside: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    context = copy_context()  # on a GPU, backward runs in a thread that knows none of our contexts
    return recomputed(
        lambda *given, **named: context.copy().run(inside, *given, **named), *args, use_reentrant=False, **kwargs
    )
