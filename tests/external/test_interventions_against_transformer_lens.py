"""Each intervention is what TransformerLens's hooks make of the same model; nothing of the package runs there."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import llava_probe as lp
from tests.external import by_hand
from tests.external.by_hand import Change
from tests.models import llava_processor, photo, random_llava

pytest.importorskip("transformer_lens")

HOOKS = {
    "residual": "hook_resid_pre",
    "attention": "hook_attn_out",
    "mlp": "hook_mlp_out",
    "block": "hook_resid_post",
    "head": "attn.hook_z",
    "scores": "attn.hook_attn_scores",
    "weights": "attn.hook_pattern",
}
LAYERS = 4


def _hook(part: str, layer: int) -> str:
    last = part == "residual" and layer == LAYERS
    return "ln_final.hook_out" if last else f"blocks.{layer}.{HOOKS[part]}"


class Hooked:
    """A model in a bridge of TransformerLens."""

    def __init__(self, bridge: Any) -> None:
        self.bridge = bridge

    def read(self, inputs: Mapping[str, Any], part: str, layers: Sequence[int]) -> Mapping[int, Tensor]:
        ids, others = _given(inputs)
        with torch.no_grad():
            _, cache = self.bridge.run_with_cache(ids, **others)
        return {layer: cache[_hook(part, layer)] for layer in layers}

    def edited(self, inputs: Mapping[str, Any], part: str, layers: Sequence[int], change: Change) -> Tensor:
        entered: dict[int, Tensor] = {}
        hooks = []
        for layer in layers:
            if part == "block":
                hooks.append((_hook("residual", layer), _keep(entered, layer)))
            hooks.append((_hook(part, layer), _changed(change, layer, entered)))
        ids, others = _given(inputs)
        with torch.no_grad():
            return self.bridge.run_with_hooks(ids, fwd_hooks=hooks, **others)[0]


def _given(inputs: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    others = {name: value for name, value in inputs.items() if name != "input_ids"}
    return inputs["input_ids"], {**others, "return_type": "logits"}


def _keep(entered: dict[int, Tensor], layer: int) -> Any:
    def hook(values: Tensor, hook: Any) -> None:
        entered[layer] = values

    return hook


def _changed(change: Change, layer: int, entered: Mapping[int, Tensor]) -> Any:
    """A hook; what a block adds is told from what entered it."""

    def hook(values: Tensor, hook: Any) -> Tensor:
        before = entered.get(layer, torch.zeros((), dtype=values.dtype))
        return before + change(values - before, layer)

    return hook


@pytest.fixture(scope="module")
def vlm() -> lp.VLM:
    return lp.VLM(random_llava().double(), llava_processor())


@pytest.fixture(scope="module")
def hooked(vlm, tmp_path_factory) -> Hooked:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise RuntimeError("a test installs nothing")

    folder = tmp_path_factory.mktemp("model")
    vlm.model.save_pretrained(folder)
    vlm.processor.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with pytest.MonkeyPatch.context() as patched:
        # Where it finds no processor it runs `pip install torchvision`, which brings another torch (4.3.0).
        patched.setattr(subprocess, "Popen", refuse)
        bridge = TransformerBridge.boot_transformers(
            str(folder), tokenizer=tokenizer, device="cpu", dtype=torch.float64
        )
    return Hooked(bridge)


def test_the_model_is_the_same(vlm, hooked):
    inputs = by_hand.inputs_of()
    truth = hooked.edited(inputs, "residual", (), lambda values, _layer: values)
    with torch.no_grad():
        torch.testing.assert_close(vlm.model(**inputs).logits[0], truth, atol=by_hand.CLOSE, rtol=0)


def test_parts_of_a_logit_are_what_is_read_there(vlm, hooked):
    by_hand.check_parts(vlm, hooked)


@pytest.mark.parametrize("name", by_hand.TOKENS)
def test_tokens_taken_away_are_replaced_where_they_enter(vlm, hooked, name):
    by_hand.check(by_hand.TOKENS[name], vlm, hooked)


@pytest.mark.parametrize("name", by_hand.PARTS)
def test_heads_mlps_and_blocks_taken_away_give_what_stands_for_them(vlm, hooked, name):
    by_hand.check(by_hand.PARTS[name], vlm, hooked)


@pytest.mark.parametrize("name", by_hand.PATCHES)
def test_a_patch_is_what_another_run_had_there(vlm, hooked, name):
    by_hand.check(by_hand.PATCHES[name], vlm, hooked)


@pytest.mark.parametrize("name", by_hand.CUTS)
def test_a_knock_out_is_scores_of_minus_infinity_or_weights_spread(vlm, hooked, name):
    by_hand.check(by_hand.CUTS[name], vlm, hooked)


@pytest.mark.parametrize("name", by_hand.WEIGHTS)
def test_attention_is_reweighted_before_the_softmax_or_behind_it(vlm, hooked, name):
    by_hand.check(by_hand.WEIGHTS[name], vlm, hooked)


@pytest.mark.parametrize("name", by_hand.PUSHES)
def test_steering_adds_typical_norms_of_a_direction_or_takes_it_off(vlm, hooked, name):
    by_hand.check(by_hand.PUSHES[name], vlm, hooked)


def test_what_each_layer_would_say_is_transformer_lenss(vlm, hooked):
    """Its residual stream before each block, through its final norm and unembedding."""
    trace = vlm.generate(photo(), prompt=by_hand.PROMPT, max_new_tokens=1)
    found = lp.lens(vlm, trace, layers=range(LAYERS), at=lp.ALL, top=5)
    stream = hooked.read(by_hand.inputs_of(), "residual", range(LAYERS))
    for row, layer in enumerate(found.layers):
        with torch.no_grad():
            theirs = hooked.bridge.unembed(hooked.bridge.ln_final(stream[layer]))[0].softmax(-1).topk(5)
        torch.testing.assert_close(found.probability[row].double(), theirs.values, atol=1e-6, rtol=1e-5)
        assert torch.equal(found.ids[row], theirs.indices)
