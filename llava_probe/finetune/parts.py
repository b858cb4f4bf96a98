"""What of a model is trained: its projector, its language model, its tower, or everything.

The language model and the tower get a LoRA adapter (Hu et al. 2021, https://arxiv.org/abs/2106.09685): W + (α/r) B·A at
each of their linear layers. The projector, which is small, is trained as it is. Both lie in one PEFT adapter. Parts are
found by where they stand between tower and decoder, in every family alike.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from llava_probe.errors import BadInput, BadModel
from llava_probe.inside import seam
from llava_probe.inside.anatomy import Anatomy, Stack

#: What may be trained, by the words that people use.
TRAINABLE = ("projector", "language", "tower", "everything")

#: What each of LLaVA's two stages trains (Liu et al. 2023, https://arxiv.org/abs/2304.08485, section 4.2).
STAGES = {"align": ("projector",), "instruct": ("language",)}


def trained_parts(train: str | Sequence[str] | None, stage: str) -> tuple[str, ...]:
    """The parts that are trained, in order.

    Raises:
        BadInput: a stage or a part that is none.
    """
    if stage not in STAGES:
        raise BadInput(f"stage={stage!r} is none; there are {' and '.join(map(repr, STAGES))}")
    given = STAGES[stage] if train is None else tuple(train.split(",")) if isinstance(train, str) else tuple(train)
    if unknown := [part for part in given if part not in TRAINABLE]:
        raise BadInput(f"train={','.join(map(str, unknown))!r} is no part of a model; there are {', '.join(TRAINABLE)}")
    if not given or ("everything" in given and len(given) > 1):
        raise BadInput(f"train={given!r}: name some of {', '.join(TRAINABLE[:-1])}, or everything alone")
    return tuple(part for part in TRAINABLE if part in given)


def adapter_config(anatomy: Anatomy, parts: Collection[str], *, rank: int, alpha: int) -> Any:
    """PEFT's config of an adapter that holds these parts.

    Args:
        anatomy: of the model.
        parts: of ``TRAINABLE``, all but everything.
        rank, alpha: r and α of the LoRA.

    Raises:
        BadModel: the model has no such part.
    """
    from peft import LoraConfig

    if "tower" in parts and anatomy.vision is None:
        raise BadModel(f"{type(anatomy.model).__name__} has no tower of blocks to train")
    stacks = {"language": anatomy.decoder, "tower": anatomy.vision}
    patterns = [_linear(anatomy, stack) for part, stack in stacks.items() if part in parts and stack is not None]
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules="|".join(patterns) or seam.no_targets(),
        modules_to_save=projector_of(anatomy) if "projector" in parts else None,
    )


def part_of(anatomy: Anatomy, name: str) -> str | None:
    """Which part an adapter's weight belongs to, by its name; None where it belongs to none."""
    path = name.removeprefix("base_model.model.")
    stacks = {"language": anatomy.decoder, "tower": anatomy.vision}
    if ".lora_" in name:
        names = {id(module): whole for whole, module in anatomy.model.named_modules()}
        held = {part: names[id(stack.owner)] for part, stack in stacks.items() if stack is not None}
        inside = [part for part, owner in held.items() if path.startswith(f"{owner}.")]
        return max(inside, key=lambda part: len(held[part]), default=None)  # a decoder may hold the tower
    return "projector" if any(path.startswith(f"{module}.") for module in projector_of(anatomy)) else None


def projector_of(anatomy: Anatomy) -> list[str]:
    """Names of the modules that stand between tower and decoder.

    Outside of both where there are such, else what of the tower comes behind its blocks and is more than a norm.

    Raises:
        BadModel: nothing with weights stands there.
    """
    model = anatomy.model
    towers = [anatomy.decoder.owner, *([] if anatomy.vision is None else [anatomy.vision.owner])]
    ends = [end for end in (model.get_input_embeddings(), anatomy.output_embedding) if end is not None]
    found = list(_outside(model, "", [*towers, *ends]))
    if not found and anatomy.vision is not None:
        found = list(_behind(model, anatomy.vision))
    if not found:
        raise BadModel(f"{type(model).__name__} has no projector of its own between its tower and its language model")
    return found


def as_floats(model: nn.Module) -> None:
    """Weights that are trained are held in float32: steps of 1e-5 vanish in 16 bits."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()


def _linear(anatomy: Anatomy, stack: Stack) -> str:
    """A pattern for PEFT that fits the linear layers of a stack's blocks and nothing else."""
    names = {id(module): name for name, module in anatomy.model.named_modules()}
    found = {
        name.rsplit(".", 1)[-1] for block in stack.blocks for name, part in block.named_modules() if _is_linear(part)
    }
    if not found:
        raise BadModel(f"the blocks of {type(stack.owner).__name__} have no linear layers for a LoRA")
    lists = sorted({re.escape(names[id(block)].rpartition(".")[0]) for block in stack.blocks})
    return rf"({'|'.join(lists)})\.\d+\.(.*\.)?({'|'.join(sorted(found))})"


def _is_linear(part: nn.Module) -> bool:
    return isinstance(part, nn.Linear) and type(part).__module__.startswith(("torch", "bitsandbytes"))


def _outside(part: nn.Module, name: str, towers: Sequence[nn.Module]) -> Iterator[str]:
    """The largest parts with weights that hold none of the towers and lie in none."""
    for child_name, child in part.named_children():
        whole = f"{name}.{child_name}" if name else child_name
        if any(child is tower for tower in towers):
            continue
        if any(module is tower for module in child.modules() for tower in towers):
            yield from _outside(child, whole, towers)
        elif next(child.parameters(), None) is not None:
            yield from _modules(child, whole)


def _behind(model: nn.Module, tower: Stack) -> Iterator[str]:
    """Parts of a tower that come behind its blocks and are no norm."""
    names = {id(module): name for name, module in model.named_modules()}
    last, behind = tower.blocks[-1], False
    for child in tower.owner.children():
        if behind and next(child.parameters(), None) is not None and "Norm" not in type(child).__name__:
            yield from _modules(child, names[id(child)])
        behind = behind or any(module is last for module in child.modules())


def _modules(part: nn.Module, name: str) -> Iterator[str]:
    """A part by its name; of a list, which is never run itself, its parts."""
    if isinstance(part, nn.ModuleList):
        yield from (f"{name}.{number}" for number in range(len(part)))
    else:
        yield name
