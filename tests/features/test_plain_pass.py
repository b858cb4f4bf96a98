"""In every family features are a plain forward pass's hidden states, whatever was shared, batched or left out.

The oracle is transformers alone: one question, one pass, ``output_hidden_states=True``.
"""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from llava_probe.features.extractor import Extractor, Recipe
from llava_probe.features.samples import Sample
from tests import zoo

QUESTIONS = ("What is red?", "How many dogs are there in the park?", "Is it a cat or a dog?")

#: Families whose questions share a prefix nowhere, with what the run says of it.
UNPACKED = {
    "without attention": (
        *("qwen3_5", "qwen3_5_moe", "lfm2_vl", "lfm3_vl", "minicpmv4_6", "minicpmv4_7", "minicpm_ocr"),
        *("qwen4_exp", "glm5_next", "nemotron_h_omni", "mllama"),
    ),
    "more into a prompt": ("paligemma", "paligemma gemma2", "chameleon", "fuyu", "idefics"),
    "differ from those alone": (
        "llama4",
        "minimax_m3_vl",
        "inkling2",
        "inkling_mm_model",
        "kosmos-2.5",
        "instructblip",
    ),
    "way of its own": ("git", "kosmos-2"),
}
_WHY = {name: why for why, names in UNPACKED.items() for name in names}

#: Where transformers' own forward is no oracle.
NO_ORACLE = {"blip": "its hidden_states are the vision tower's"}


def pictures():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)) for _ in range(2)]


@pytest.mark.parametrize("name", [name for name in zoo.NAMES if name not in NO_ORACLE])
def test_features_are_a_plain_forward_pass(name):
    vlm = zoo.vlm(name)
    layers = (vlm.anatomy.layers // 2, vlm.anatomy.layers)
    asked = [(picture, question) for picture in pictures() for question in QUESTIONS]
    samples = [Sample(row, str(row), *both) for row, both in enumerate(asked)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        extractor = Extractor(vlm, Recipe(layers, ("last_prompt",)))
        (shard,) = extractor.shards([(0, samples)])
    assert not shard.errors
    if name in _WHY:
        assert _WHY[name] in extractor.sharing.unpacked
    else:
        assert extractor.sharing.unpacked == ""
    for row, (picture, question) in enumerate(asked):
        inputs, _ = vlm.model_inputs(picture, question)
        with torch.inference_mode():
            out = vlm.model(**inputs, output_hidden_states=True, use_cache=False)
        out = getattr(out, "language_model_outputs", out)
        for layer in layers:
            expected = out.hidden_states[layer][0, -1]
            found = shard.tensors[f"layer_{layer}/last_prompt"][row]
            assert (found - expected).norm() < 1e-5 * expected.norm(), (row, layer)


def test_a_picture_that_gets_other_positions_in_a_batch_is_read_alone():
    vlm = zoo.vlm("hunyuan_vl")  # it counts its pictures across the batch
    samples = [Sample(row, str(row), picture, "?") for row, picture in enumerate(pictures())]
    extractor = Extractor(vlm, Recipe((1,), ("last_prompt",)))
    with pytest.warns(UserWarning, match="other positions than alone"):
        list(extractor.shards([(0, samples)]))
    assert [len(batch) for batch in extractor.batches(samples)] == [1, 1]
