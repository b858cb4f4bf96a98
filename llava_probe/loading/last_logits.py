"""What a model predicts at the end of one row, with its adapter and without: what adapters are held to.

The model is run as it will answer, dropout off, and is afterwards as it was: modes, gradients, adapters.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from llava_probe.asking.preparation import input_device
from llava_probe.errors import BadInput
from llava_probe.faults import refusals
from llava_probe.inside import seam
from llava_probe.inside.anatomy import anatomy
from llava_probe.inside.passes import alone_with, visiting
from llava_probe.inside.undo import undoing

#: Positions at the row's end that are looked at: each is a whole vocabulary.
LAST_POSITIONS = 4

#: Logits nearer to each other are the same: another order of sums moves float32 by 3e-6 at most (14 families), one
#: rounding by 6e-8, and one step of 16 bits is 5e-4.
SAME_LOGITS = 1e-6


def last_logits(model: Any, inputs: Mapping[str, Any], count: int = LAST_POSITIONS) -> Tensor:
    """What a model predicts at the last positions of one row; the model is left as it was.

    Args:
        model: of transformers, or a PEFT wrapper around one.
        inputs: of one row: ``input_ids`` [1, P] and what else the model takes; ``labels`` are left out.
        count: positions, of those that the mask keeps.

    Returns:
        [count, V] in float32 on the CPU; of a shorter row, all of it. Words that the model rules out are 0.

    Raises:
        BadInput: the model refuses these inputs.
    """
    inside = anatomy(model)
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    kept = torch.ones_like(ids[0]) if mask is None or mask.shape != ids.shape else mask[0]
    places = kept.nonzero().flatten()[-count:].cpu()
    ahead = ids.shape[1] - int(places[0])
    fed = {name: _placed(value, inside.model) for name, value in inputs.items() if name != "labels"}
    fed["use_cache"] = False
    if "logits_to_keep" in inspect.signature(inside.model.forward).parameters:
        fed["logits_to_keep"] = ahead
    doing = f"one row through {type(inside.model).__name__}"
    with refusals(doing), _answering(model), visiting(inside, apart=True), torch.no_grad():
        logits = model(**fed).logits
    ruled_out = logits <= torch.finfo(logits.dtype).min / 2  # Chameleon's picture tokens: beside them nothing differs
    return logits.masked_fill(ruled_out, 0)[0, -ahead:].to(torch.float32).cpu()[places - places[0]].contiguous()


@contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """The base of a PEFT wrapper; all gradients that PEFT then wants when it switches on again are as before.

    Raises:
        BadInput: the adapter is merged: to switch it off is to subtract it from the weights, which rounds them.
    """
    refuse_merged(model)
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def restore() -> None:
        for parameter, wants in wanted:
            parameter.requires_grad_(wants)

    with alone_with(anatomy(model).model), undoing() as undo:
        undo(restore)
        with model.disable_adapter():
            yield


def refuse_merged(model: Any) -> None:
    """The adapter is beside the weights and not in them.

    Raises:
        BadInput: it is merged.
    """
    if any(seam.is_adapter(module) and seam.adapter_state(module)["merged"] for module in model.modules()):
        raise BadInput("the adapter is merged into the weights; call model.unmerge_adapter() first, or load it again")


def logits_apart(one: Tensor, other: Tensor) -> float:
    """The largest difference over the largest logit."""
    return float((one - other).abs().max() / torch.maximum(one.abs().max(), other.abs().max()))


def nearer_than_none(found: Tensor, expected: Tensor) -> bool:
    """Whether a change of logits is nearer to the one expected than to none at all, all words together."""
    return float((found - expected).norm()) < float(found.norm())


def _placed(value: Any, model: Any) -> Any:
    """An input where the model takes it, in its dtype."""
    if not isinstance(value, Tensor):
        return value
    return value.to(input_device(model), model.dtype if value.is_floating_point() else None)


@contextmanager
def _answering(model: Any) -> Iterator[None]:
    """The model as it answers; each module is in its own mode again afterwards."""
    modes = [(module, module.training) for module in model.modules()]

    def restore() -> None:
        for module, training in modes:
            module.training = training

    with undoing() as undo:
        undo(restore)
        model.eval()
        yield
