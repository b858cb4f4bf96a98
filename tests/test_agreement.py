"""A check leaves the model as it was, also when it is broken off."""

from __future__ import annotations

import pytest

import llava_probe as lp
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
