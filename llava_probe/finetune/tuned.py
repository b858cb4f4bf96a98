"""A model made ready to be trained, and given back as it was: what is trained wants gradients, the rest does not.

An adapter to start from keeps its place: what it trained is in the new one, trained further where that is asked for.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from llava_probe.errors import BadInput, BadModel
from llava_probe.finetune.parts import adapter_config, as_floats, part_of
from llava_probe.inside import seam
from llava_probe.inside.passes import in_force
from llava_probe.inside.undo import Undo, draws_as_now, undoing
from llava_probe.loading.adapters import fill
from llava_probe.loading.check_row import CHECK_ROW, verify_row
from llava_probe.loading.folder import adapter_told
from llava_probe.model import VLM
from llava_probe.smol import shipped_name

#: Settings of a LoRA that make it another kind.
_OTHER_KINDS = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "bias", "layer_replication")


#: Of a LoRA that starts from nothing.
RANK = 16


@contextmanager
def made_trainable(
    vlm: VLM,
    parts: Sequence[str],
    *,
    start: str | Path | None,
    rank: int | None,
    seed: int,
    checkpointing: bool = False,
) -> Iterator[Any]:
    """The model as it is trained; given back as it was.

    Args:
        vlm: the model.
        parts: of ``TRAINABLE``.
        start: an adapter whose weights it starts from.
        rank: of the LoRA; None: that of ``start``, or ``RANK``.
        seed: of the LoRA's first weights.
        checkpointing: whether a block's activations are computed again instead of kept.

    Raises:
        BadModel: there is no such part, or the adapter to start from does not fit.
        BadInput: an intervention is in force, everything is to start from an adapter, or that has another rank.
    """
    model: Any = vlm.anatomy.model
    if hasattr(vlm.model, "peft_config"):
        raise BadModel("the model has an adapter on it; load it without, and give the adapter's folder as adapter=")
    if in_force(vlm.anatomy):
        raise BadInput("an intervention is in force, so another model would be trained than the one that is kept")
    if "everything" in parts and start is not None:
        raise BadInput(f"train='everything' starts from a whole model; merge {start} into one first")
    with undoing() as undo:
        wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        undo(lambda: [parameter.requires_grad_(was) for parameter, was in wanted])
        modes = [(module, module.training) for module in model.modules()]
        undo(lambda: _in_modes(modes))
        configs = [(config, dict(vars(config))) for config in (model.config, model.config.get_text_config())]
        undo(lambda: _with_caches(configs))
        _keep_draws(undo)
        torch.manual_seed(seed)
        if "everything" in parts:
            before = {name: value.to("cpu", copy=True) for name, value in model.state_dict().items()}
            undo(lambda: model.load_state_dict(before))
            model.requires_grad_(True)
            runner = model
        else:
            runner = _adapted(vlm, parts, start, rank, undo)
        if checkpointing:
            undo(lambda: seam.recompute(model, False))
            seam.recompute(model, True)
        yield runner


def _with_caches(configs: Sequence[tuple[Any, Mapping[str, Any]]]) -> None:
    """Whether keys are kept, as each config said before the Trainer told it not to."""
    for config, was in configs:
        if "use_cache" in was:
            config.use_cache = was["use_cache"]
        else:
            vars(config).pop("use_cache", None)


def _keep_draws(undo: Undo) -> None:
    """Draws of torch, numpy and Python go on as before: the Trainer sets all of their seeds."""
    plain, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002 - the one that others draw from
    undo(lambda: random.setstate(plain))
    undo(lambda: np.random.set_state(arrays))  # noqa: NPY002
    undo(draws_as_now())


def _in_modes(modes: Sequence[tuple[nn.Module, bool]]) -> None:
    for module, was in modes:
        module.training = was


def frozen_counters(runner: nn.Module) -> list[nn.Module]:
    """Frozen parts that count what they see while they train: a batch norm's means would move unseen.

    Nothing of them is in the adapter, so the model that is loaded would be another; they are to stay in evaluation.
    """
    counting = [module for module in runner.modules() if getattr(module, "running_mean", None) is not None]
    return [module for module in counting if not any(each.requires_grad for each in module.parameters())]


def rank_of(runner: Any) -> int | None:
    """Of the LoRA that is trained; None where all of the model is."""
    return runner.peft_config[runner.active_adapter].r if hasattr(runner, "peft_config") else None


def _adapted(vlm: VLM, parts: Sequence[str], start: str | Path | None, rank: int | None, undo: Undo) -> Any:
    """The model with an adapter on it that trains these parts."""
    from peft import get_peft_model, load_peft_weights

    kept: set[str] = set()
    own_rank, alpha = rank or RANK, 2 * (rank or RANK)
    if start is not None:
        told = adapter_told(str(start), {})
        folder = str(Path(start).expanduser()) if Path(start).expanduser().is_dir() else str(start)
        kept = {_part(vlm, name, folder) for name in load_peft_weights(folder, device="cpu")}
        if kept - {"projector"}:
            own_rank, alpha = _scaling(told, folder)
            if rank not in (None, own_rank):
                raise BadInput(f"the LoRA of {folder} has rank {own_rank} and keeps it; leave out rank={rank}")
    config = adapter_config(vlm.anatomy, {*parts, *kept}, rank=own_rank, alpha=alpha)
    model: Any = vlm.anatomy.model
    own = {name: model.get_submodule(name) for name in config.modules_to_save or ()}
    undo(lambda: [model.set_submodule(name, module) for name, module in own.items()])  # unload leaves the trained ones
    with seam.under_old_names():
        runner: Any = get_peft_model(model, config)
    undo(runner.unload)
    if start is not None:
        fill(runner, folder)
        if Path(folder, CHECK_ROW).is_file():
            verify_row(runner.eval(), folder)  # of another model it would fit, and mean nothing
    for name, parameter in runner.named_parameters():
        if parameter.requires_grad:
            parameter.requires_grad_(part_of(vlm.anatomy, name) in parts)
    as_floats(runner)
    return runner


def _scaling(told: Mapping[str, Any], adapter: str) -> tuple[int, int]:
    """Rank and α of the LoRA that a run starts from: under others its weights would mean something else.

    Raises:
        BadModel: it is another kind than the one that is trained here.
    """
    if others := [name for name in _OTHER_KINDS if told.get(name) not in (None, False, {}, "none")]:
        raise BadModel(
            f"the adapter {adapter} has {', '.join(others)}, which is not trained further here; merge it first"
        )
    return int(told["r"]), int(told["lora_alpha"])


def keep(vlm: VLM, runner: Any, folder: Path) -> None:
    """Write what was trained: an adapter that knows its model's name, or the whole model with its processor.

    Afterwards the model is as it will be when that is loaded: a projector in the dtype of what is around it.
    """
    if not hasattr(runner, "peft_config"):
        runner.save_pretrained(folder)
        vlm.processor.save_pretrained(folder)
        return
    base = seam.checkpoint(vlm.anatomy.model.config)
    runner.peft_config[runner.active_adapter].base_model_name_or_path = shipped_name(base) or base
    runner.save_pretrained(str(folder), save_embedding_layers=False)  # else PEFT asks the hub about them
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's form to fill in
    for name, parameter in runner.named_parameters():
        if ".modules_to_save." in name:
            parameter.data = parameter.data.to(vlm.model.dtype)


def _part(vlm: VLM, name: str, adapter: str) -> str:
    """Which part a weight of an adapter belongs to.

    Raises:
        BadModel: none that is trained here.
    """
    if (part := part_of(vlm.anatomy, name)) is None:
        kind = type(vlm.anatomy.model).__name__
        raise BadModel(
            f"the adapter {adapter} trains {name}, which is no projector, tower or decoder's block of {kind}"
        )
    return part
