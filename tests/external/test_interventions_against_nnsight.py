"""Each intervention is what nnsight's edits make of the same model by hand; nothing of the package runs there."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import llava_probe as lp
from tests.external import by_hand
from tests.external.by_hand import Change
from tests.models import llava_processor, random_llava

nnsight = pytest.importorskip("nnsight")


class Traced:
    """A copy of a model in nnsight, with eager attention too: only its scores and weights can be reached."""

    def __init__(self, model: Any) -> None:
        eager = copy.deepcopy(model)
        eager.set_attn_implementation("eager")
        self.plain, self.eager = nnsight.NNsight(copy.deepcopy(model)), nnsight.NNsight(eager)

    def read(self, inputs: Mapping[str, Any], part: str, layers: Sequence[int]) -> Mapping[int, Tensor]:
        with torch.no_grad(), self.plain.trace(**inputs):
            found = nnsight.save({layer: _read(self.plain.model.language_model, part, layer) for layer in layers})
        return found

    def edited(self, inputs: Mapping[str, Any], part: str, layers: Sequence[int], change: Change) -> Tensor:
        seen = self.eager if part in ("scores", "weights") else self.plain
        with torch.no_grad(), seen.trace(**inputs):
            decoder = seen.model.language_model
            for layer in layers:
                entered = decoder.layers[layer].input if part == "block" else 0
                _write(decoder, part, layer, entered + change(_read(decoder, part, layer) - entered, layer))
            logits = seen.output.logits.save()
        return logits[0]


def _softmax(block: Any) -> Any:
    """That of eager attention."""
    return block.self_attn.source.attention_interface_1.source.nn_functional_softmax_0


def _read(decoder: Any, part: str, layer: int) -> Tensor:
    if part == "residual" and layer == len(decoder.layers):
        return decoder.norm.output
    block = decoder.layers[layer]
    match part:
        case "residual":
            return block.input
        case "attention":
            return block.self_attn.output[0]
        case "mlp":
            return block.mlp.output
        case "head":
            return block.self_attn.o_proj.input.unflatten(-1, (4, 16))
        case "block":
            return block.output
        case "scores":
            return _softmax(block).input
        case _:
            return _softmax(block).output


def _write(decoder: Any, part: str, layer: int, values: Tensor) -> None:
    if part == "residual" and layer == len(decoder.layers):
        decoder.norm.output = values
        return
    block = decoder.layers[layer]
    match part:
        case "residual":
            block.input = values
        case "attention":
            block.self_attn.output = (values, *block.self_attn.output[1:])
        case "mlp":
            block.mlp.output = values
        case "head":
            block.self_attn.o_proj.input = values.flatten(2)
        case "block":
            block.output = values
        case "scores":
            _softmax(block).input = values
        case _:
            _softmax(block).output = values


@pytest.fixture(scope="module")
def vlm() -> lp.VLM:
    return lp.VLM(random_llava().double(), llava_processor())


@pytest.fixture(scope="module")
def traced(vlm) -> Traced:
    return Traced(vlm.model)


def test_parts_of_a_logit_are_what_is_read_there(vlm, traced):
    by_hand.check_parts(vlm, traced)


@pytest.mark.parametrize("name", by_hand.TOKENS)
def test_tokens_taken_away_are_replaced_where_they_enter(vlm, traced, name):
    by_hand.check(by_hand.TOKENS[name], vlm, traced)


@pytest.mark.parametrize("name", by_hand.PARTS)
def test_heads_mlps_and_blocks_taken_away_give_what_stands_for_them(vlm, traced, name):
    by_hand.check(by_hand.PARTS[name], vlm, traced)


@pytest.mark.parametrize("name", by_hand.PATCHES)
def test_a_patch_is_what_another_run_had_there(vlm, traced, name):
    by_hand.check(by_hand.PATCHES[name], vlm, traced)


@pytest.mark.parametrize("name", by_hand.CUTS)
def test_a_knock_out_is_scores_of_minus_infinity_or_weights_spread(vlm, traced, name):
    by_hand.check(by_hand.CUTS[name], vlm, traced)


@pytest.mark.parametrize("name", by_hand.WEIGHTS)
def test_attention_is_reweighted_before_the_softmax_or_behind_it(vlm, traced, name):
    by_hand.check(by_hand.WEIGHTS[name], vlm, traced)


@pytest.mark.parametrize("name", by_hand.PUSHES)
def test_steering_adds_typical_norms_of_a_direction_or_takes_it_off(vlm, traced, name):
    by_hand.check(by_hand.PUSHES[name], vlm, traced)


STEPS = {"prompt": [0], "answer": [1, 2, 3], "both": [0, 1, 2, 3]}


@pytest.mark.parametrize("with_", ["zero", "mean"])
@pytest.mark.parametrize("phase", STEPS)
def test_the_steps_of_an_answer_are_changed_in_their_phase(vlm, phase, with_):
    new = {"max_new_tokens": 4, "min_new_tokens": 4, "suppress_tokens": [3]}
    with lp.ablate(vlm, mlp=1, with_=with_, phase=phase), lp.steer(vlm, by_hand.DIRECTION, layers=3, project_out=True):
        trace = vlm.generate(by_hand.photo(), prompt=by_hand.PROMPT, **new)
    unit = by_hand.DIRECTION.double() / by_hand.DIRECTION.double().norm()
    seen = nnsight.TransformersModel(
        copy.deepcopy(vlm.model), tokenizer=vlm.processor.tokenizer, task="text-generation"
    )
    logits, means = [], []
    with seen.generate(by_hand.inputs_of(), do_sample=False, **new) as tracer:
        for step in tracer.iter[0:4]:
            blocks = seen.model.language_model.layers
            given = blocks[1].mlp.output
            means.append(given.mean(1, keepdim=True))  # the prompt's is the first
            if step in STEPS[phase]:
                blocks[1].mlp.output = (0 if with_ == "zero" else means[0]) + torch.zeros_like(given)
            blocks[3].input = blocks[3].input - (blocks[3].input @ unit)[..., None] * unit
            logits.append(seen.lm_head.output[0, -1])
        ids = tracer.result.save()
    truth = torch.stack(logits)
    assert ids[0, trace.prompt_length :].tolist() == trace.generated_ids.tolist()
    torch.testing.assert_close(trace.logits.double() / truth.std(), truth / truth.std(), atol=by_hand.CLOSE, rtol=0)
