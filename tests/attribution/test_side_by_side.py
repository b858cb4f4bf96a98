"""What enters the decoder beside its tokens is changed where it is known what it is, and refused where it is not."""

from __future__ import annotations

import pytest
import torch

import llava_probe as lp
from llava_probe.attribution import prepared
from llava_probe.attribution.engine.side_by_side import widened
from llava_probe.inside.passes import Visitor, visiting
from tests import zoo
from tests.models import llava_processor, photo, random_llava

VISUAL, COUNT = 36, 3


@pytest.fixture(scope="module")
def task():
    vlm = lp.VLM(random_llava(), llava_processor())
    trace = vlm.generate(photo(), "What is this?", max_new_tokens=2, min_new_tokens=2)
    return prepared(vlm, trace, "occlusion", tokens=trace.prompt_length)


def wide(task, length=50, weight=None, **others):
    return widened(others, COUNT, task, length, weight)


def test_features_of_visual_tokens_are_known_by_name_and_blended(task):
    features, weight = torch.randn(VISUAL, 5), torch.rand(COUNT, VISUAL, 1)
    expected = weight * features + (1 - weight) * features.mean(0)
    for given in ([features], {7: features}):  # as Qwen3-VL and Granite Vision hand them over
        name = "deepstack_visual_embeds" if isinstance(given, list) else "deepstack_features"
        made = wide(task, weight=weight, **{name: given})[name]
        (blended,) = made if isinstance(made, list) else made.values()
        torch.testing.assert_close(blended, expected.flatten(0, 1))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("per_layer_scale", (VISUAL, 5)),  # a row a layer, say, where there are as many layers as visual tokens
        ("prompt_state", (1, 7)),
        ("deepstack_visual_embeds", (VISUAL + 1, 5)),
    ],
)
def test_what_only_happens_to_fit_is_refused(task, name, shape):
    with pytest.raises(lp.BadModel, match=rf"{name} \[{shape[0]}, {shape[1]}\]"):
        wide(task, **{name: torch.randn(shape)})


def test_what_is_of_the_sequence_is_given_to_each(task):
    length = 50
    given = {
        "attention_mask": {"full_attention": torch.ones(1, 1, length, length)},
        "position_ids": torch.arange(length)[None, None].expand(3, 1, -1),
        "per_layer_inputs": torch.randn(1, length, 4, 16),
        "position_embeddings": (torch.randn(1, length, 8), torch.randn(1, length, 8)),
        "cache_position": torch.arange(length),
    }
    made = wide(task, length, **given)
    assert made["attention_mask"]["full_attention"].shape == (COUNT, 1, length, length)
    assert made["position_ids"].shape == (3, COUNT, length)
    assert made["per_layer_inputs"].shape == (COUNT, length, 4, 16)
    assert [part.shape for part in made["position_embeddings"]] == [(COUNT, length, 8)] * 2
    assert made["cache_position"].shape == (length,)


def test_occlusion_refuses_a_model_with_an_unknown_input():
    class Extra(Visitor):
        changes = True

        def entry(self, embeddings, others):
            return embeddings, {**others, "layer_table": torch.zeros(VISUAL, 5)}

    vlm = lp.VLM(random_llava(), llava_processor())
    trace = vlm.generate(photo(), "What is this?", max_new_tokens=2, min_new_tokens=2)
    with visiting(vlm.anatomy, Extra()), pytest.raises(lp.BadModel, match=r"layer_table \[36, 5\]"):
        lp.attribute(vlm, trace, "occlusion", tokens=trace.prompt_length)


@pytest.mark.parametrize("family", ["qwen3_vl", "gemma4", "granite_docling"])
def test_families_with_inputs_beside_the_tokens_are_run_side_by_side(family):
    vlm = zoo.vlm(family)
    trace = vlm.generate(photo(), "What is this?", max_new_tokens=2, min_new_tokens=2)
    alone = lp.attribute(vlm, trace, "occlusion", tokens=trace.prompt_length, batch=1, window=2)
    beside = lp.attribute(vlm, trace, "occlusion", tokens=trace.prompt_length, batch=5, window=2)
    torch.testing.assert_close(beside.values, alone.values, atol=1e-4, rtol=1e-4)
