"""Whatever breaks off a method, the model and torch are as they were; and bad options are a sentence."""

from __future__ import annotations

import pytest
import torch

import llava_probe as lp
from tests.models import llava_processor, photo, random_llava

RUNS = {
    "attention_gradient": {},
    "gradient": {},
    "gradient of pixels": {"on": "pixels"},
    "integrated_gradients": {"steps": 2},
    "integrated_gradients of pixels": {"on": "pixels", "steps": 2},
    "llava_cam": {},
    "relevance": {},
    "relevance through the tower": {"through": "tower"},
    "relevance checkpointed": {"checkpoint": True},
    "attnlrp": {},
    "occlusion": {},
    "occlusion of pixels": {"on": "pixels", "budget": 9},
    "rise": {"budget": 3},
    "rollout": {},
    "tam": {},
    "relative_attention": {},
}


@pytest.fixture(scope="module")
def random_vlm() -> lp.VLM:
    return lp.VLM(random_llava(), llava_processor())


@pytest.fixture(scope="module")
def trace(random_vlm) -> lp.Trace:
    return random_vlm.generate(photo(), "What is this?", max_new_tokens=2, min_new_tokens=2)


def state(vlm: lp.VLM):
    model = vlm.model
    hooks = [
        (len(each._forward_hooks), len(each._forward_pre_hooks), "forward" in vars(each)) for each in model.modules()
    ]
    flags = [(each.requires_grad, each.grad is None) for each in model.parameters()]
    saving = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return hooks, flags, model.training, saving, torch.is_grad_enabled(), model.config._attn_implementation


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("place", [0, -1])
def test_a_pass_that_breaks_off_inside_a_block(run, error, place, random_vlm, trace, monkeypatch):
    block = random_vlm.anatomy.decoder.blocks[place]
    before = state(random_vlm)

    def breaks(*_args, **_kwargs):
        raise error("stop")

    with monkeypatch.context() as patch:
        patch.setattr(block.mlp, "forward", breaks)
        with pytest.raises((error, lp.BadInput), match="stop"):  # generate says it in a sentence
            lp.attribute(random_vlm, trace, run.split()[0], tokens=trace.prompt_length, **RUNS[run])
    vars(block.mlp).pop("forward", None)  # monkeypatch puts the bound method back as an attribute
    assert state(random_vlm) == before
    x = torch.ones(2, requires_grad=True).exp()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        x.mul_(2).sum().backward()


@pytest.mark.parametrize("run", RUNS)
def test_inside_inference_mode_it_is_the_same(run, random_vlm, trace):
    name, options = run.split()[0], RUNS[run]
    plain = lp.attribute(random_vlm, trace, name, tokens=trace.prompt_length, **options)
    with torch.inference_mode():
        inside = lp.attribute(random_vlm, trace, name, tokens=trace.prompt_length, **options)
    torch.testing.assert_close(inside.values, plain.values, rtol=1e-5, atol=1e-6 * float(plain.values.abs().max()))


def test_measures_run_inside_inference_mode(random_vlm, trace):
    m = lp.attribute(random_vlm, trace, "gradient", tokens=trace.prompt_length)
    plain = lp.evaluate.deletion_insertion(random_vlm, trace, m, steps=3)
    with torch.inference_mode():
        inside = lp.evaluate.deletion_insertion(random_vlm, trace, m, steps=3)
    assert inside.deletion_auc == pytest.approx(plain.deletion_auc)


WRONG = [
    ("integrated_gradients", {"steps": 1}, "steps=.* takes a whole number from 2"),
    ("integrated_gradients", {"batch": 0}, "batch=.* takes"),
    ("occlusion", {"batch": 0}, "batch=.* takes"),
    ("occlusion", {"window": 1.5}, "window=.* takes"),
    ("occlusion", {"budget": 0}, "budget=.* takes"),
    ("occlusion", {"on": "pixels", "cells": 0}, "cells=.* takes"),
    ("rise", {"budget": 2.5}, "budget=.* takes"),
    ("rise", {"cells": -3}, "cells=.* takes"),
    ("rise", {"seed": -1}, "seed=.* takes"),
    ("rise", {"keep": 1e-9, "budget": 4}, "shows nothing"),
    ("rise", {"keep": "half"}, "keep=.* takes"),
    ("llava_cam", {"layer": 1.5}, "layer=.* takes"),
    ("localisation_heads", {"heads": 5}, "heads=.* takes"),
    ("relative_attention", {"neutral": 5}, "neutral=.* takes"),
    ("relevance", {"image": "0"}, "image=.* takes"),
    ("relevance", {"image": 0.0}, "image=.* takes"),
    ("relevance", {"contrast": 5}, "contrast=.* takes"),
    (["relevance"], {}, "method=.* takes text"),
]


@pytest.mark.parametrize(("method", "options", "told"), WRONG, ids=str)
def test_a_bad_option_is_a_sentence(method, options, told, random_vlm, trace):
    with pytest.raises(lp.BadInput, match=told):
        lp.attribute(random_vlm, trace, method, tokens=trace.prompt_length, **options)


def test_a_position_may_be_a_tensor_and_counts_once(random_vlm, trace):
    first = trace.prompt_length
    plain = lp.attribute(random_vlm, trace, "gradient", tokens=first)
    tensor = lp.attribute(random_vlm, trace, "gradient", tokens=torch.tensor(first))
    twice = lp.attribute(random_vlm, trace, "gradient", tokens=[[first, first]])
    assert torch.equal(plain.values, tensor.values) and torch.equal(plain.values, twice.values)
    turned = lp.attribute(random_vlm, trace, "gradient", tokens=[[first + 1, first]])
    assert turned.about["positions"] == [[first, first + 1]]
