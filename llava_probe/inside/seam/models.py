"""Private parts of what a transformers model says of itself: its blocks, its checkpoint, what hangs on it."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

# --- its parts ---


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


def layer_kinds(config: Any) -> Sequence[str]:
    """What kind each block is (``"full_attention"``, ``"conv"`` ...); nothing where all are of one kind."""
    return getattr(config, "layer_types", None) or ()


def shares_keys(config: Any) -> bool:
    """Whether the last layers use the keys of earlier ones: they run for the prompt's last token alone."""
    return bool(getattr(config, "num_kv_shared_layers", 0))


def adds_features_later(owner: nn.Module) -> bool:
    """Whether a decoder adds features of the picture between its blocks, besides those that enter it (deepstack)."""
    return any("deepstack" in name for name in inspect.signature(type(owner).forward).parameters)


def reads_earlier_states(block: nn.Module) -> bool:
    """Whether a block reads hidden states of blocks before the last one (attention over depth)."""
    return "block_states" in inspect.signature(type(block).forward).parameters


def reads_pictures(part: Any) -> bool:
    """Whether a model takes pictures, as far as it says."""
    return "image" in part.input_modalities


def takes_sdpa(part: Any) -> bool:
    """Whether a model's modules may call torch's fused attention."""
    return bool(part._supports_sdpa)


# --- where it is from ---


def built(kind: type, config: Any, **settings: Any) -> Any:
    """A model of a class and a config with the weights that training begins with, where torch makes tensors now."""
    return kind._from_config(config, **settings)  # type: ignore[attr-defined]


def checkpoint(config: Any) -> str:
    """The repository or folder that a model was loaded from; empty where from none."""
    return getattr(config, "_name_or_path", None) or ""


def rename(config: Any, name: str) -> None:
    """Let a model say that it is from elsewhere."""
    config._name_or_path = name


def revision(config: Any) -> str | None:
    """The commit of the repository that it was loaded from, where transformers says it there or we noted it."""
    return getattr(config, "_commit_hash", None)


def note_revision(config: Any, commit: str) -> None:
    """Let a model say which commit it is from; it is not saved with it."""
    config._commit_hash = commit


# --- what hangs on it ---


def offload_device(module: nn.Module) -> torch.device | None:
    """Where accelerate runs a module whose weights lie elsewhere; None where it does not."""
    device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return None if device is None else torch.device(device)


def without_recorders(state: dict[str, Any]) -> dict[str, Any]:
    """A module's state without the hooks that transformers hangs on a model in its first pass.

    They are closures over variables of one process, and are hung on anew by the next first pass.
    """
    if "_forward_hooks" not in state:
        return state
    hooks = state["_forward_hooks"]
    own = {key: hook for key, hook in hooks.items() if getattr(hook, "__module__", None) != _RECORDING}
    kept = {**state, "_forward_hooks": type(hooks)(own)}
    kept.pop("_output_capturing_hooks_installed", None)
    return kept


_RECORDING = "transformers.utils.output_capturing"


def recomputes(block: nn.Module) -> bool:
    """Whether a block is computed again in the backward pass (gradient checkpointing)."""
    return bool(getattr(block, "gradient_checkpointing", False)) and block.training


def recompute(model: Any, on: bool) -> None:
    """Let blocks compute their activations again in the backward pass instead of keeping them, or no longer.

    The methods have another name since transformers 5.23, which warns of the old one.
    """
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if on:
        settings = {f"{name}_checkpointing_kwargs": {"use_reentrant": False}}
        getattr(model, f"{name}_checkpointing_enable")(**settings)
    else:
        getattr(model, f"{name}_checkpointing_disable")()
        model.disable_input_require_grads()  # what the first may have switched on


def virtual_tokens(model: Any) -> int:
    """How many tokens that are in no prompt a PEFT adapter puts ahead of it (prefix and prompt tuning)."""
    configs = getattr(model, "peft_config", None)
    active = getattr(model, "active_adapters", ())
    if not isinstance(configs, dict) or callable(active):  # transformers' own way of holding adapters, all of layers
        return 0
    named = [configs[name] for name in active if name in configs]
    return max((getattr(one, "num_virtual_tokens", None) or 0 for one in named), default=0)


def no_targets() -> str:
    """What PEFT takes for the targets of an adapter that holds whole modules and nothing else."""
    from peft.utils import constants

    return str(constants.DUMMY_TARGET_MODULES)


def is_adapter(module: nn.Module) -> bool:
    """Whether a module is a layer that PEFT put in another one's place. Asked of the class: wrappers pass names on."""
    return hasattr(type(module), "merged_adapters")


def adapter_configs(model: Any) -> dict[str, str]:
    """The adapters that a model has by name, each with its kind and rank."""
    configs = getattr(model, "peft_config", None)
    told = {}
    for name, config in configs.items() if isinstance(configs, dict) else ():
        kind, rank = getattr(config, "peft_type", None), getattr(config, "r", None)
        told[name] = str(getattr(kind, "value", kind)) + (f", rank {rank}" if rank is not None else "")
    return told


def adapter_state(layer: Any) -> dict[str, Any]:
    """In what state an adapter's layer is: which of its adapters are active and merged, and their settings."""
    settings = {name: getattr(layer, name, None) for name in (*layer.other_param_names, "scaling")}
    plain = {
        name: {str(one): number for one, number in held.items() if isinstance(number, bool | int | float | str)}
        for name, held in settings.items()
        if isinstance(held, Mapping)
    }
    off = bool(getattr(layer, "disable_adapters", False))
    known = {*(key for held in plain.values() for key in held), *getattr(layer, "_adapters", ())}
    active = [name for name in layer.active_adapters if not known or name in known]
    return {"scaling": {}, **plain, "active": [] if off else active, "merged": list(layer.merged_adapters)}


def active_prompts(model: Any) -> list[str]:
    """The active adapter of a kind that has no layers of its own (prompt and prefix tuning)."""
    off, active = getattr(model, "_adapters_disabled", False), getattr(model, "active_adapters", ())
    return [] if off or callable(active) else list(active)


def hooks_of_others(module: nn.Module) -> list[Any]:
    """The hooks on a module's forward that are neither ours nor transformers' own."""
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    return [hook for hook in hooks if not str(getattr(hook, "__module__", None)).startswith((_OURS, _RECORDING))]


def forward_in_place(module: nn.Module) -> Any:
    """What somebody put in the place of one module's forward; accelerate's is that of the class, run elsewhere."""
    forward = None if hasattr(module, "_hf_hook") else vars(module).get("forward")
    return None if getattr(forward, "__func__", None) is type(module).forward else forward


_OURS = "llava_probe."


@contextmanager
def under_old_names() -> Iterator[None]:
    """PEFT may ask a model for what transformers calls otherwise by now; a user can do nothing about the warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield
