"""Every private name of transformers and torch that we rely on, one function each.

What others call private may change without a word. Each is named here and nowhere else, says what it is for, and has a
test of its own (``tests/inside/test_seam.py``) that fails, with a sentence, on the day it changes.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, PreTrainedModel

from llava_probe.errors import BadModel

# --- which modules are blocks, and which attention ---


def recorded_classes(owner: nn.Module) -> Mapping[str, Any]:
    """What a transformers model says its blocks and attention modules are, by the kind of record."""
    return getattr(type(owner), "_can_record_outputs", None) or {}


def is_one_of(specs: Any, name: str, module: nn.Module) -> bool:
    """Whether one entry of ``recorded_classes`` means this module: a class, a recorder, or a list of them."""
    for spec in specs if isinstance(specs, list | tuple) else [specs]:
        kind = spec if isinstance(spec, type) else getattr(spec, "target_class", None)
        place = (getattr(spec, "layer_name", None) or "").strip(".")
        if kind is not None and isinstance(module, kind) and (not place or f".{place}." in f".{name}."):
            return True
    return False


# --- attention kernels ---


def implementation(config: Any) -> Any:
    """The name of the kernel that modules of this config look up."""
    return config._attn_implementation


def set_implementation(config: Any, name: str) -> None:
    """Let modules of this config look up another kernel from now on, without transformers' checks and downloads.

    Raises:
        BadModel: it does not change, so what is measured or compared would be another kernel than we say.
    """
    config._attn_implementation_internal = name
    if config._attn_implementation != name:
        raise BadModel(
            f"this version of transformers does not take {name!r} as the attention of {type(config).__name__}; "
            "it keeps its kernel's name elsewhere"
        )


def reads_interface(module: nn.Module) -> bool:
    """Whether an attention module looks up its kernel in transformers' ``AttentionInterface`` at each call."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def kernel_tables(model: nn.Module) -> list[AttentionInterface]:
    """The table of kernels of transformers, and those that a modeling file keeps for itself."""
    files = {base.__module__ for kind in {type(module) for module in model.modules()} for base in kind.__mro__}
    tables = [getattr(sys.modules.get(file), "ALL_ATTENTION_FUNCTIONS", None) for file in files]
    return list({id(table): table for table in tables if isinstance(table, AttentionInterface)}.values())


def eager_kernels(model: nn.Module) -> Iterator[tuple[dict[str, Any], str]]:
    """Where the eager kernels stand that the attention modules of a model fall back to: a file's globals, a name."""
    seen = set()
    for module in model.modules():
        forward = inspect.unwrap(type(module).forward)
        if type(module) in seen or not reads_interface(module):
            continue
        seen.add(type(module))
        for name in forward.__code__.co_names:
            if name.endswith("eager_attention_forward") and name in forward.__globals__:
                yield forward.__globals__, name


# --- hooks ---


def strip_hooks(module: nn.Module, ours: type) -> None:
    """Take off hooks of one class whose handles were lost, as when an interrupt came while they were put on."""
    for table in (module._forward_hooks, module._forward_pre_hooks):
        for key in [key for key, hook in list(table.items()) if isinstance(hook, ours)]:
            table.pop(key, None)
            for flags in (
                module._forward_hooks_with_kwargs,
                module._forward_hooks_always_called,
                module._forward_pre_hooks_with_kwargs,
            ):
                flags.pop(key, None)


# --- modes of torch ---


def modes_as_now() -> Callable[[], None]:
    """How to make torch's modes what they are now: an interrupt can come between a mode's start and its end."""
    gradients, functions = torch.is_grad_enabled(), torch._C._len_torch_function_stack()

    def restore() -> None:
        torch._C._set_grad_enabled(gradients)
        while torch._C._len_torch_function_stack() > functions:
            torch._C._pop_torch_function_stack()

    return restore


def takes_sdpa(part: PreTrainedModel) -> bool:
    """Whether a model's modules may call torch's fused attention."""
    return bool(part._supports_sdpa)


def is_cut(output: torch.Tensor) -> bool:
    """Whether the graph ends at a tensor that was made of something in it: a quantised product, say."""
    return output.grad_fn is None or "NotImplemented" in output.grad_fn.name()
