"""Cut off from its picture, every family answers as if it were another: to the bit, under each kernel and cache.

Where something of a family passes attention by, the knock-out says so; where its attention cannot be reached, it
refuses. A family in neither list is one that must hold.
"""

from __future__ import annotations

import warnings
from functools import cache

import pytest
import torch
from transformers import PreTrainedModel

import llava_probe as lp
from llava_probe.inside import seam
from tests import torchvision_half, zoo
from tests.models import photo
from tests.zoo import newer

QUESTION = "what is the text"
ROWS = lp.Capture(hidden_states=False, attention_positions=["text", "predicting"])

#: Families whose attention has a kernel of its own.
REFUSED = ("blip", "git")

#: Families in which something passes attention by: a state, a convolution, an indexer, features of the picture.
PASSED = (
    *("dots3_note", "glm5_next", "idefics", "inkling2", "inkling_mm_model", "lfm2_vl", "lfm3_vl", "minicpm_ocr"),
    *("minicpmv4_6", "minicpmv4_7", "minimax_m3_vl", "mistral_large4", "mllama", "nemotron_h_omni"),
    *("qwen3_5", "qwen3_5_moe", "qwen4_exp"),
)

#: Families whose experts are computed token by token here: for all tokens that chose one at once, pictures' among them,
#: torch may round by how many those are.
APART = ("ernie4_5_vl_moe", "kimi_k25")

#: Families in which each further way of decoding is tried, and what transformers itself cannot do there.
DECODED: dict[str, tuple[str, ...]] = {
    "llava": (),
    "llava_onevision": (),
    "qwen2_5_vl": (),
    "qwen3_vl": (),
    "gemma3": (),
    "paligemma": ("chunks",),  # its prompt's tokens see each other, which chunks break in a plain run too
    "idefics3": (),
    "internvl": (),
    "llama4": ("beams", "chunks"),
    "kosmos-2": ("static cache", "chunks"),
}
SETTINGS = {
    "beams": {"num_beams": 2},
    "static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
    "chunks": {"prefill_chunk_size": 8},
}

pytestmark = [
    pytest.mark.skipif(not torchvision_half.present(), reason="the processors of most families need torchvision"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:.*carries something"),
]


def built(name):
    return token_by_token(name) if name in APART else zoo.unplaced(name)


@cache
def token_by_token(name):
    """A model of its own, so that the zoo's stays as it was."""
    model, processor = zoo.build(name)
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            part.config._experts_implementation = "batched_mm"
    return lp.VLM(model, processor, layout="none")


def answers(vlm, new=3, **settings):
    """To one question about two pictures."""
    words = {"suppress_tokens": vlm.processor.tokenizer.all_special_ids}
    return [
        vlm.generate(photo(seed=seed), QUESTION, max_new_tokens=new, capture=ROWS, **words, **settings)
        for seed in (0, 1)
    ]


def check_cut(name, one, two):
    """No row looks at the picture, and the answers are those of any picture."""
    visual = [token.position for token in one.tokens if token.role == "image"]
    text = [p for p in one.attention_positions if p not in visual]
    assert visual and not one.rows(at=text)[..., visual].any()
    if name not in PASSED:
        assert torch.equal(one.logits, two.logits)
        assert one.generated_ids.tolist() == two.generated_ids.tolist()


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("name", [name for name in zoo.NAMES if name not in REFUSED])
def test_an_answer_cut_off_from_the_picture_does_not_depend_on_it(name, kernel):
    vlm = built(name)
    parts = [part for part in vlm.model.modules() if isinstance(part, PreTrainedModel)]
    before = [part.config._attn_implementation for part in parts]
    if kernel == "eager":
        if "eager" in before:
            pytest.skip("it runs in eager anyway")
        vlm.model.set_attn_implementation("eager")
    try:
        plain = answers(vlm, new=1)
        assert not torch.equal(plain[0].logits, plain[1].logits)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            with lp.knock_out(vlm, keys=lp.IMAGE) as cut:
                one, two = answers(vlm)
    finally:
        for part, name_before in zip(parts, before, strict=True):
            seam.set_implementation(part.config, name_before)
    check_cut(name, one, two)
    assert {act.layer for act in cut.acts} == set(vlm.anatomy.head_counts)
    assert any("past attention" in str(each.message) for each in said) == (name in PASSED)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", DECODED)
def test_with_every_cache_and_in_every_way_of_decoding(name, setting):
    if setting in DECODED[name]:
        pytest.skip("transformers itself cannot do that")
    newer.skip_where_broken(SETTINGS[setting], name)
    vlm = built(name)
    with lp.knock_out(vlm, keys=lp.IMAGE):
        one, two = answers(vlm, **SETTINGS[setting])
        check_cut(name, one, two)
        plain = answers(vlm)[0]
    if setting != "beams":
        torch.testing.assert_close(one.logits, plain.logits, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", DECODED)
def test_members_of_a_batch_are_cut_each_at_its_own_places(name):
    if name == "llama4":
        pytest.skip("it anchors its chunks at places with padding: plain generate differs too")
    if name == "kosmos-2":
        pytest.skip("it counts padding into its places: plain generate differs too")
    vlm, words = built(name), {"suppress_tokens": built(name).processor.tokenizer.all_special_ids, "max_new_tokens": 3}
    asked = [(photo(), QUESTION), (photo(70, 150, 1), "where is the red circle on the sign")]
    with lp.knock_out(vlm, keys=lp.IMAGE, queries="last"):
        batch = vlm.generate_batch(asked, capture=ROWS, **words)
        for (image, question), together in zip(asked, batch, strict=True):
            alone = vlm.generate(image, question, capture=ROWS, **words)
            spread = float(alone.logits.std())
            torch.testing.assert_close(together.logits / spread, alone.logits / spread, atol=1e-3, rtol=0)
            visual = [token.position for token in together.tokens if token.role == "image"]
            assert not together.rows(at=[together.prompt_length - 1])[..., visual].any()


def test_a_picture_that_no_id_marks_is_refused_in_a_pass_by_hand():
    vlm = built("kosmos-2")
    inputs, _ = vlm.model_inputs(photo(), QUESTION)
    answers(vlm, new=1)  # a run of ours knows where it is
    with pytest.raises(lp.BadInput, match="beside the ids"), lp.knock_out(vlm, keys=lp.IMAGE):
        vlm.model(**inputs)


@pytest.mark.parametrize("name", REFUSED)
def test_attention_that_cannot_be_reached_is_refused(name):
    with pytest.raises(lp.errors.BadModel, match="kernel of its own"), lp.knock_out(built(name), keys=1):
        pass


@pytest.mark.parametrize("name", zoo.NAMES)
def test_what_attention_and_feed_forward_add_is_found_in_every_block(name):
    """A block's parts are found by what they are: their outputs come by in each block that has them."""
    vlm = built(name)
    from llava_probe.inside.passes import Visitor, visiting

    class Parts(Visitor):
        def __init__(self):
            self.seen = {"attention": set(), "mlp": set()}

        def part(self, stack, kind, layer, output):
            assert torch.isfinite(output).all()
            self.seen[kind].add(layer)

    parts = Parts()
    inputs, _ = vlm.model_inputs(photo(), QUESTION)
    with visiting(vlm.anatomy, parts), torch.no_grad():
        vlm.model(**inputs, use_cache=False)
    assert parts.seen["attention"] == set(vlm.anatomy.head_counts)
    assert parts.seen["mlp"] or name in ("blip", "blip-2", "git")  # single matrices, one after another
