"""Merging is tried on a row, and what is tried on is as before to the bit."""

from __future__ import annotations

import pytest
import torch

import llava_probe as lp
from llava_probe.inside.weights import weights_digest
from llava_probe.loading.check_row import write_check_row
from llava_probe.loading.last_logits import last_logits, logits_apart
from llava_probe.loading.merging import merged_as_unmerged
from tests.loading.adapted import PROJECTOR, lora, row, trained


@pytest.fixture(scope="module")
def inputs():
    return row()


KINDS = {
    "lora": lora(),
    "lora and projector": lora(modules_to_save=[PROJECTOR]),
    "dora": lora(use_dora=True),
    "tokens": lora(trainable_token_indices=[5, 6]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_merged_is_as_unmerged_and_the_weights_are_as_before(kind, inputs):
    model = trained(KINDS[kind])
    before, logits = weights_digest(model, anew=True), last_logits(model, inputs)
    assert merged_as_unmerged(model, inputs) < 1e-5
    assert weights_digest(model, anew=True) == before and torch.equal(last_logits(model, inputs), logits)
    merged = model.merge_and_unload()
    assert (last_logits(merged, inputs) - logits).abs().max() < 1e-4 * logits.abs().max()


def test_peft_itself_would_leave_rounding(inputs):
    """Why the weights are kept: without that, to have tried is to have changed."""
    model = trained()
    before = weights_digest(model, anew=True)
    model.merge_adapter()
    model.unmerge_adapter()
    assert weights_digest(model, anew=True) != before


def test_an_update_that_is_merged_otherwise_is_told(inputs, monkeypatch):
    model = trained()
    layer = model.base_model.model.model.language_model.layers[1].self_attn.q_proj
    right = layer.get_delta_weight
    monkeypatch.setattr(layer, "get_delta_weight", lambda adapter: -8 * right(adapter))
    before = weights_digest(model, anew=True)
    with pytest.raises(lp.BadModel, match="merged, the adapter gives other logits"):
        merged_as_unmerged(model, inputs)
    assert weights_digest(model, anew=True) == before


@pytest.mark.filterwarnings("ignore:Model (has|with) .tie_word:UserWarning")
def test_one_of_two_tied_weights_is_merged_otherwise(inputs):
    """Merged into the embedding, an update is in the words' scores too, where no pass had it before."""
    model = trained(lora(target_modules=["embed_tokens"]))
    logits = last_logits(model, inputs)
    with pytest.raises(lp.BadModel, match="of two tied weights one was trained"):
        merged_as_unmerged(model, inputs)
    assert torch.equal(last_logits(model, inputs), logits)


def test_an_adapter_that_merging_loses_is_told(inputs, monkeypatch):
    """In bfloat16, whose rounding hides that the logits are the base's again."""
    model = trained(base=lp.load(dtype="bfloat16").model, size=0.02)
    assert merged_as_unmerged(model, inputs) < 0.02
    for layer in model.modules():
        if hasattr(layer, "get_delta_weight"):
            monkeypatch.setattr(layer, "get_delta_weight", lambda adapter, layer=layer: 0 * layer.weight)
    with pytest.raises(lp.BadModel, match="merged, the adapter is lost"):
        merged_as_unmerged(model, inputs)


def test_what_cannot_be_merged_is_told(inputs, monkeypatch):
    with pytest.raises(lp.BadInput, match="expected a PEFT wrapper with an adapter, got LlavaFor"):
        merged_as_unmerged(lp.load().model, inputs)
    model = trained()
    monkeypatch.setattr(model.base_model.model.config, "quantization_config", {}, raising=False)
    with pytest.raises(lp.BadModel, match="quantised weights round an update"):
        merged_as_unmerged(model, inputs)
    monkeypatch.undo()
    model.merge_adapter()
    with pytest.raises(lp.BadInput, match="the adapter is merged into the weights"):
        merged_as_unmerged(model, inputs)


def test_it_can_be_loaded_merged_and_answers_as_before(inputs, tmp_path):
    """A plain model, held to the row beside the adapter; without one, nothing says that it is the same."""
    model = trained()
    model.save_pretrained(tmp_path)
    with pytest.raises(lp.BadInput, match="lies no check_row"):
        lp.load("tiny", adapter=tmp_path, merge=True)
    write_check_row(model, inputs, tmp_path)
    merged = lp.load("tiny", adapter=tmp_path, merge=True)
    assert not hasattr(merged.model, "disable_adapter")
    assert logits_apart(last_logits(merged.model, inputs), last_logits(model, inputs)) < 1e-5
    assert logits_apart(last_logits(merged.model, inputs), last_logits(lp.load().model, inputs)) > 1e-2


def test_one_that_merges_into_another_is_refused(inputs, tmp_path, monkeypatch):
    model = trained()
    model.save_pretrained(tmp_path)
    write_check_row(model, inputs, tmp_path)
    monkeypatch.setattr(type(model.base_model), "merge_and_unload", lambda tuner, **_: tuner.unload())
    with pytest.raises(lp.BadModel, match="was not loaded as it was trained"):
        lp.load("tiny", adapter=tmp_path, merge=True)


def test_without_an_adapter_there_is_nothing_to_merge():
    with pytest.raises(lp.BadInput, match="nothing to merge"):
        lp.load("tiny", merge=True)
