"""Each method runs on each family whose visual tokens have places, or says in a sentence why it cannot."""

from __future__ import annotations

import copy
import warnings
from functools import cache

import pytest
import torch

import llava_probe as lp
from tests import zoo
from tests.models import photo

#: Families whose visual tokens have no place on a picture, so that no map can be drawn.
PLACELESS = (
    *("aria", "granite4_vision", "deepseek_ocr2", "chameleon", "emu3", "mllama", "blip-2", "instructblip", "idefics2"),
    *("git", "blip", "idefics", "kosmos-2", "kosmos-2.5"),
)
FAMILIES = [name for name in zoo.NAMES if name not in PLACELESS]

#: Layers without attention over the sequence: rollout cannot be followed through them, relevance passes over them.
MIXED = (
    *("qwen3_5", "qwen3_5_moe", "lfm2_vl", "lfm3_vl", "minicpmv4_6", "minicpmv4_7", "minicpm_ocr"),
    *("qwen4_exp", "glm5_next", "nemotron_h_omni"),
)

#: Why relevance stops at the visual tokens.
NO_TOWER = {
    "has no vision tower": ("llama4", "gemma4_unified", "fast_vlm", "fuyu", "inkling_mm_model"),
    "goes into several visual tokens": ("got_ocr2", "got_ocr2 crop", "pp_chart2table", "step3p7"),
    "neither goes through transformers' attention interface": ("deepseek_vl_hybrid", "unlimited_ocr"),
    "sequences of different lengths": ("minicpmv4_6", "minicpmv4_7"),
    "could be watched": ("cosmos3_edge",),
    "depends on its vision tower": ("video_llava",),
}

#: Families whose pixels have no one place: convolutions or overlapping views, or pixels that are no tensor of pictures.
NO_PIXELS = (
    *("got_ocr2", "got_ocr2 crop", "fast_vlm", "pp_chart2table", "unlimited_ocr", "step3p7", "lfm3_vl", "fuyu"),
)

#: Families whose deeper layers look tokens up by their ids, beside the embeddings of the sequence.
ONE_SEQUENCE = ("gemma4", "qwen4_exp")

#: Families without an eager path to compare with, or whose sparse layers choose other keys there.
NO_EAGER: tuple[str, ...] = ()

RUNS = {
    "attention": {},
    "rollout": {},
    "relative_attention": {"neutral": "Describe it."},
    "attention_gradient": {},
    "gradient": {},
    "input_x_gradient": {"on": "pixels"},
    "llava_cam": {},
    "integrated_gradients": {"steps": 2},
    "relevance": {},
    "relevance through the tower": {"through": "tower"},
    "relevance against several tokens": {"contrast": "green tree"},
    "occlusion": {"budget": 20},
    "occlusion of pixels": {"on": "pixels", "budget": 9},
    "rise": {"budget": 3},
    "tam": {},
    "localisation_heads": {"heads": [(0, 0)]},
}


@cache
def asked(name: str) -> lp.Trace:
    return zoo.vlm(name).generate(
        photo(96, 64), "What is this?", max_new_tokens=2, capture=lp.Capture(hidden_states=False)
    )


def refusal(name: str, run: str) -> str | None:
    """What a family says to a method that it cannot run."""
    if run == "rollout" and name in MIXED:
        return "without attention"
    if run == "input_x_gradient" and name in NO_PIXELS:
        return 'pass on="tokens"'
    if run == "relevance against several tokens" and name in ONE_SEQUENCE:
        return "two sequences side by side"
    if run == "relevance through the tower":
        return next((why for why, names in NO_TOWER.items() if name in names), None)
    return None


@pytest.mark.parametrize("name", FAMILIES)
def test_each_method_runs(name):
    vlm, trace = zoo.vlm(name), asked(name)
    if name in MIXED and trace.attention_layers == ():
        pytest.skip("no attention at all")
    for run, options in RUNS.items():
        method = run.split()[0]
        if method == "localisation_heads":
            options = {"heads": [(trace.attention_layers[0], 0)]}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if (why := refusal(name, run)) is not None:
                with pytest.raises(lp.BadModel) as told:
                    lp.attribute(vlm, trace, method, tokens=trace.prompt_length, **options)
                assert why in str(told.value), run
                continue
            m = lp.attribute(vlm, trace, method, tokens=trace.prompt_length, **options)
        assert len(m) == 1, run
        assert torch.isfinite(m.values).all(), run
        if method not in ("llava_cam", "tam", "localisation_heads"):  # whose values are cut off below zero
            assert m.values.abs().max() > 0, run


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in NO_EAGER])
def test_relevance_beside_the_fast_kernel_equals_autograd_through_eager(name):
    """Eager keeps each layer's weights in the graph and differentiates them; we compute both again in blocks."""
    vlm, trace = zoo.vlm(name), asked(name)
    model = copy.deepcopy(vlm.model)
    model.set_attn_implementation("eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fast, slow = (
            lp.attribute(one, trace, "relevance", tokens=trace.prompt_length, of="logit").values
            for one in (vlm, lp.VLM(model, vlm.processor))
        )
    assert (fast - slow).abs().max() < 1e-4 * slow.abs().max()
