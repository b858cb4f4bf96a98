"""Inputs that somebody made ready, checked and copied: what is done to theirs later changes nothing here."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from llava_probe.errors import BadInput, first_line

#: What a collator adds for a loss.
_TRAINING = ("labels", "loss_mask", "loss_weights", "shift_labels", "assistant_masks", "num_items_in_batch")

#: What goes on with every token that is read; a trace begins with its own prompt.
_MADE = frozenset({"past_key_values", "inputs_embeds", "cache_position", "position_ids", "rope_deltas"})


def ready_inputs(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our own copy of the inputs of one sample.

    Raises:
        BadInput: they are no inputs of a model, or of several samples.
    """
    if not isinstance(inputs, Mapping) or "input_ids" not in inputs:
        told = sorted(inputs) if isinstance(inputs, Mapping) else type(inputs).__name__
        raise BadInput(f"inputs= is a dict of model inputs with input_ids in it; got {told}")
    if made := sorted(set(inputs) & _MADE):
        raise BadInput(f"inputs= holds {', '.join(made)}, which the model makes itself as it reads on; leave it out")
    if trained := [name for name in _TRAINING if inputs.get(name) is not None]:
        what = ", ".join(trained)
        warnings.warn(f"inputs= holds {what}, which is for training; no answer depends on it, left out", stacklevel=4)
        inputs = {name: value for name, value in inputs.items() if name not in _TRAINING}
    try:
        tensors = {name: torch.as_tensor(value).cpu().clone() for name, value in inputs.items() if value is not None}
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadInput(f"inputs= holds something that is no tensor: {first_line(error)}") from error
    if tensors["input_ids"].is_floating_point():
        raise BadInput("inputs= holds input_ids that are no whole numbers")
    mask = tensors.get("attention_mask", tensors["input_ids"])
    if mask.shape != tensors["input_ids"].shape:
        raise BadInput(
            f"inputs= holds an attention_mask of {list(mask.shape)} for ids of {list(tensors['input_ids'].shape)}"
        )
    if tensors["input_ids"].ndim != 2 or tensors["input_ids"].shape[0] != 1:
        raise BadInput(
            f"inputs= holds one sample: input_ids of shape [1, P]; got {list(tensors['input_ids'].shape)}. "
            "Batches go through generate_batch"
        )
    if tensors["input_ids"].shape[1] == 0:
        raise BadInput("inputs= holds an empty prompt: input_ids has no tokens")
    return tensors
