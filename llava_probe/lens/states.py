"""Hidden states of a trace's tokens: those that it kept, else those of one more pass over its prompt and answer."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from llava_probe.asking.generation import teacher_forced
from llava_probe.asking.identity import model_of, other_model
from llava_probe.asking.prompts import asked_again
from llava_probe.errors import BadInput, BadModel, NotANumber
from llava_probe.faults import refusals
from llava_probe.inside.anatomy import Anatomy, Stack
from llava_probe.inside.passes import Prompt, Visitor, alone_with, in_force, visiting
from llava_probe.layout import PromptLayouts
from llava_probe.model import VLM
from llava_probe.trace.trace import Trace


def states_at(vlm: VLM, trace: Trace, layers: Sequence[int], positions: Sequence[int]) -> dict[int, Tensor]:
    """[N, D] by hidden state, or [N, streams, D] where layers carry several, as the model computed them.

    Args:
        vlm: whose trace it is; asked again only where the trace has not kept everything.
        trace: with its answer.
        layers: from 0, the embedding, to L, behind the final norm.
        positions: that were fed to the model.

    Raises:
        BadInput: the trace is of another model or processor.
        NotANumber: a state is NaN.
    """
    _check_same(vlm, trace)
    if set(layers) <= {*trace.hidden_layers} and set(positions) <= {*trace.hidden_positions}:
        found = {layer: trace.hidden(layer=layer, at=list(positions)) for layer in layers}
    else:
        found = _of_a_pass(vlm, trace, layers, positions)
    for layer, states in found.items():
        if bool(torch.isnan(states).any()):
            raise NotANumber(f"hidden state {layer} holds NaN; float16 overflows in many of these models")
    return found


class StatesAt(Visitor):
    """Rows of some hidden states of one sequence, at some of its positions.

    Attributes:
        found: [N, D] or [N, streams, D] by layer.
    """

    def __init__(self, anatomy: Anatomy, layers: Sequence[int], positions: Sequence[int], length: int) -> None:
        self._anatomy, self._layers, self._positions, self._length = anatomy, layers, positions, length
        self.found: dict[int, Tensor] = {}

    def state(self, stack: Stack, layer: int, hidden: Tensor) -> None:
        """Those that are wanted; a model may put its picture ahead of the prompt."""
        if layer not in self._layers:
            return
        if hidden.ndim == 4 and hidden.shape[1] == 1:
            hidden = hidden.movedim(0, 2)  # [streams, 1, tokens, D]
        before = hidden.shape[1] - self._length
        if before < 0:
            name = type(self._anatomy.decoder.owner).__name__
            raise BadModel(f"layer {layer} of {name} runs for the end of the prompt only")
        at = torch.tensor(self._positions, device=hidden.device) + before
        self.found[layer] = hidden[0, at]


def _of_a_pass(vlm: VLM, trace: Trace, layers: Sequence[int], positions: Sequence[int]) -> dict[int, Tensor]:
    inside, length = vlm.anatomy, trace.prompt_length
    if (now := in_force(inside)) != trace.interventions:
        told = "under other interventions than are in force now" if now else "under interventions, none is in force now"
        warnings.warn(f"this trace was made {told}: its states are computed anew, under what is in force", stacklevel=4)
    tensors, prompts = vlm.prepare([asked_again(trace.images, trace.request)], trace.request.processor)
    ids = [token.id for token in trace.tokens]
    if tensors["input_ids"][0, prompts[0].padding :].tolist() != ids[:length]:
        raise BadInput("this trace is of another model or processor: its prompt comes out in other tokens here")
    visual = tuple(token.position for token in trace.tokens if token.role == "image")
    layouts, question = PromptLayouts(trace.layouts), trace.request.question
    prompt = Prompt(length, 0, visual, tuple(ids[:-1]), question, lay_out=lambda: layouts)
    reader = StatesAt(inside, layers, positions, len(ids) - 1)
    inputs = {**teacher_forced(inside.model, tensors, ids[length:]), **inside.everywhere}
    doing = f"one pass of {type(inside.model).__name__} over a prompt and its answer"
    with refusals(doing), torch.no_grad(), visiting(inside, reader, prompts=[prompt], until=max(layers)):
        vlm.model(**inputs)
    if missing := [layer for layer in layers if layer not in reader.found]:
        raise BadModel(f"layers {missing} of {type(inside.decoder.owner).__name__} gave no hidden states")
    return reader.found


def _check_same(vlm: VLM, trace: Trace) -> None:
    """The trace is of this model, as far as its sizes tell; a warning where its weights are others.

    Raises:
        BadInput: it is of another.
    """
    inside, sizes = vlm.anatomy, trace.sizes
    here = {"layers": inside.layers, "vocabulary": inside.vocabulary, "width": inside.width}
    there = {"layers": sizes.layers, "vocabulary": sizes.vocabulary, "width": sizes.width or inside.width}
    if here != there:
        told = ", ".join(f"{there[name]} {name} and not {here[name]}" for name in here if here[name] != there[name])
        raise BadInput(f"this trace is of another model ({told}): read it with its own")
    with alone_with(inside.model):
        other = other_model(trace.provenance, model_of(inside, vlm.model))
    if other:
        warnings.warn(f"another model made this trace ({'; '.join(other)}): this one reads its states", stacklevel=5)
