"""Private parts of transformers' attention: where a kernel's name stands, its tables, and how masks are made."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llava_probe.errors import BadModel


def implementation(config: Any) -> Any:
    """The name of the kernel that modules of this config look up; None where it says none."""
    return getattr(config, "_attn_implementation", None)


def set_implementation(config: Any, name: str) -> None:
    """Let modules of this config look up another kernel from now on, without transformers' checks and downloads.

    Raises:
        BadModel: it does not change, so what is measured or compared would be another kernel than we say.
    """
    config._attn_implementation_internal = name
    if implementation(config) != name:
        raise BadModel(
            f"this version of transformers does not take {name!r} as the attention of {type(config).__name__}; "
            "it keeps its kernel's name elsewhere"
        )


# --- the tables of kernels ---


def reads_interface(module: nn.Module) -> bool:
    """Whether an attention module looks up its kernel in transformers' ``AttentionInterface`` at each call."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def shared_kernels() -> Mapping[str, Any]:
    """The kernels by name that all models share: a table without entries of its own shows those."""
    from transformers import AttentionInterface

    return AttentionInterface()


def register_kernel(name: str, kernel: Any) -> None:
    """Let a kernel stand under a name in the table that all models share."""
    from transformers import AttentionInterface

    AttentionInterface.register(name, kernel)


def kernel_tables(model: nn.Module) -> list[MutableMapping[str, Any]]:
    """The table of kernels of transformers, and those that a modeling file keeps for itself."""
    from transformers import AttentionInterface

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


# --- the table of masks ---


@dataclass(frozen=True)
class MaskAsked:
    """What a mask function is asked for.

    Attributes:
        sizes: batch rows, queries, keys.
        rule: whether a query may see a key: of (row, head, query, key), indices that broadcast.
        config: of the model that asks.
        dtype: of a mask of numbers; None where none is asked for.
    """

    sizes: tuple[int, int, int]
    rule: Callable[..., Any]
    config: Any
    dtype: Any


def mask_table() -> Mapping[str, Any]:
    """The functions that make masks, by the name of the kernel that they are for."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    return ALL_MASK_ATTENTION_FUNCTIONS


def register_mask(name: str, function: Any) -> None:
    """Let a function make the masks of a kernel."""
    from transformers.masking_utils import AttentionMaskInterface

    AttentionMaskInterface.register(name, function)


def mask_asked(arguments: Mapping[str, Any]) -> MaskAsked | None:
    """What a mask function was called for, of its named arguments; None where they are not the ones we know."""
    names = ("batch_size", "q_length", "kv_length", "mask_function")
    if any(name not in arguments for name in names):
        return None
    batch, queries, keys, rule = (arguments[name] for name in names)
    return MaskAsked((batch, queries, keys), rule, arguments.get("config"), arguments.get("dtype"))


def mask_of(rule: Callable[..., Any], arguments: Mapping[str, Any], device: torch.device) -> Tensor:
    """[B, 1, Q, K] of truth values: another rule at the sizes that a mask function was called for."""
    from transformers.masking_utils import sdpa_mask

    mask: Any = sdpa_mask(
        batch_size=arguments["batch_size"],
        q_length=arguments["q_length"],
        kv_length=arguments["kv_length"],
        mask_function=rule,
        allow_is_causal_skip=False,
        use_vmap=arguments.get("use_vmap", False),
        device=device,
    )
    return mask  # type: ignore[no-any-return]
