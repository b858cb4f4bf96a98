"""What an older processor does not say, its model's config does: answered as by a whole one, with a word."""

from __future__ import annotations

import pytest
import torch

import llava_probe as lp
from tests.models import photo


@pytest.mark.parametrize("missing", ["patch_size", "num_additional_image_tokens", "vision_feature_select_strategy"])
def test_a_missing_setting_is_taken_from_the_model(missing, monkeypatch):
    vlm = lp.load()
    right = vlm.generate(photo(), "what", max_new_tokens=1)
    old = vlm.processor
    monkeypatch.setattr(old, missing, 0 if missing.startswith("num") else None)
    with pytest.warns(UserWarning, match=rf"older transformers.*{missing}=.*from"):
        completed = lp.VLM(vlm.model, old)
    assert torch.equal(completed.generate(photo(), "what", max_new_tokens=1).logits, right.logits)
    assert not getattr(old, missing)  # what was given stays as it is
