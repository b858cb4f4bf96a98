"""What the graph of a pass keeps of each block: told when it is much, or computed again in the backward pass."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint as recomputed

from llava_probe.anatomy import Stack
from llava_probe.announce import TELL_ABOVE
from llava_probe.capture import in_units


@contextmanager
def measured(decoder: Stack) -> Iterator[None]:
    """Tell what the graph of a pass will take, where it is much, as soon as its first block is there."""
    weights = {each.untyped_storage().data_ptr() for each in decoder.blocks[0].parameters()}
    held: dict[int, int] = {}
    counting = ExitStack()

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    def before(_module: Any, _args: Any) -> None:
        if torch.is_grad_enabled():
            counting.enter_context(saved_tensors_hooks(pack, lambda tensor: tensor))

    def after(_module: Any, _args: Any, _output: Any) -> None:
        counting.close()
        first.remove()
        total = sum(held.values()) * len(decoder.blocks)
        if total > TELL_ABOVE:
            warnings.warn(
                f"the graph of this pass takes about {in_units(total)}; checkpoint=True keeps one block's at a time",
                stacklevel=2,
            )

    first = decoder.blocks[0].register_forward_pre_hook(before)
    done = decoder.blocks[0].register_forward_hook(after)
    try:
        yield
    finally:  # a pass that was broken off inside the block has not come by after it
        counting.close()
        for handle in (first, done):
            handle.remove()


@contextmanager
def checkpointed(decoder: Stack) -> Iterator[None]:
    """Blocks whose insides are computed again in the backward pass."""
    before = [(block, block.__dict__.get("forward")) for block in decoder.blocks]
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
        return recomputed(
            lambda *given, **named: context.copy().run(inside, *given, **named), *args, use_reentrant=False, **kwargs
        )

    return block
