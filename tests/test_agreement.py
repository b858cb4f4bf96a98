"""A check leaves the model as it was, also when it is broken off."""

from __future__ import annotations

import pytest
import torch

import llava_probe as lp
from llava_probe import tiny
from llava_probe.inside import seam
from tests.models import llava_processor, random_llava


def test_a_check_that_is_interrupted_under_eager_attention_leaves_the_kernel(monkeypatch):
    vlm = lp.VLM(random_llava(), llava_processor())
    config = vlm.anatomy.decoder.owner.config

    def interrupted(*_args, **_kwargs):
        assert seam.implementation(config) == "eager"
        raise KeyboardInterrupt

    monkeypatch.setattr(vlm, "rerun", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lp.check(vlm, max_new_tokens=2)
    assert seam.implementation(config) == "sdpa"


def test_a_model_without_a_chat_template_is_checked_with_a_bare_prompt(monkeypatch):
    vlm = lp.load()
    monkeypatch.setattr(vlm.processor, "chat_template", None)
    monkeypatch.setattr(vlm.processor.tokenizer, "chat_template", None)
    assert lp.check(vlm, max_new_tokens=2).ok
    assert lp.check(vlm, prompt="USER: <image>\nWhat is red?\nASSISTANT:", max_new_tokens=2).ok
    with pytest.raises(lp.BadInput, match="prompt=, with <image> where each picture goes"):
        vlm.generate(tiny.scene(34).image, "What is red?")


def test_relative_attention_asks_a_model_without_a_template(monkeypatch):
    vlm = lp.load()
    monkeypatch.setattr(vlm.processor, "chat_template", None)
    monkeypatch.setattr(vlm.processor.tokenizer, "chat_template", None)
    scene = tiny.scene(34).image
    trace = vlm.generate(scene, prompt="USER: <image>\nWhat is the text?\nASSISTANT:", max_new_tokens=1)
    neutral = "USER: <image>\nDescribe the image.\nASSISTANT:"
    asked = lp.attribute(vlm, trace, "relative_attention", neutral=neutral)
    given = lp.attribute(
        vlm, trace, "relative_attention", neutral=vlm.generate(scene, prompt=neutral, max_new_tokens=1)
    )
    assert torch.equal(asked.values, given.values)
    assert len(lp.attribute(vlm, trace, "relative_attention")) == len(asked)
