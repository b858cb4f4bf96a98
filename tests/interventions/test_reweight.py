"""Attention with other weights is the dense formula in float64, in rows and in logits."""

from __future__ import annotations

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

import llava_probe as lp
from tests.interventions.by_hand import more_logits, more_weight, moved
from tests.models import llava_processor, photo, random_llava

QUESTION = "what is the text on the stop sign"
NEW = {"max_new_tokens": 4, "min_new_tokens": 4, "suppress_tokens": [3]}

#: What the dense attention does: a function of logits and weights at pairs, and the rows that it saw.
HAND: dict = {"rule": None, "pairs": None, "kept": []}


def dense(module, query, key, value, attention_mask, scaling, **_kwargs):
    groups = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    logits = query @ key.transpose(2, 3) * scaling
    if not hasattr(module, "layer_idx"):  # the tower's
        return (torch.softmax(logits, -1) @ value).transpose(1, 2), None
    seen = torch.ones(logits.shape[2:], dtype=torch.bool).tril()
    pairs = HAND["pairs"] & seen
    weights = HAND["rule"](logits.masked_fill(~seen, float("-inf")), pairs)
    HAND["kept"].append(weights)
    return (weights @ value).transpose(1, 2), weights


AttentionInterface.register("reweighted_by_hand", dense)
AttentionMaskInterface.register("reweighted_by_hand", sdpa_mask)


RULES = {"logits": more_logits, "weights": more_weight, "move": moved}


@pytest.fixture(scope="module")
def vlm():
    return lp.VLM(random_llava().double(), llava_processor())


@pytest.fixture(scope="module")
def plain(vlm):
    return vlm.generate(photo(), QUESTION, **NEW)


def visual(trace):
    return [token.position for token in trace.tokens if token.role == "image"]


def by_hand(vlm, trace, rule, queries):
    """Logits [T, V] and rows [L, H, Q, K] of one pass with the rule between queries and the picture."""
    count = len(trace.tokens) - 1
    pairs = torch.zeros(count, count, dtype=torch.bool)
    pairs[torch.tensor(queries)[:, None], torch.tensor(visual(trace))] = True
    inputs, _ = vlm.model_inputs(trace.images[0], prompt=trace.request.prompt)
    ids = torch.tensor([[token.id for token in trace.tokens[:-1]]])
    HAND.update(rule=rule, pairs=pairs, kept=[])
    before = vlm.model.config._attn_implementation
    vlm.model.set_attn_implementation("reweighted_by_hand")
    try:
        with torch.no_grad():
            out = vlm.model(**{**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}, use_cache=False)
    finally:
        vlm.model.set_attn_implementation(before)
    return out.logits[0, trace.prompt_length - 1 :].float(), torch.stack(HAND["kept"])[:, 0]


@pytest.mark.parametrize("queries", ["last", None])
@pytest.mark.parametrize("by", [0.4, -0.4])
@pytest.mark.parametrize("how", RULES)
def test_logits_and_rows_are_the_dense_formulas(how, by, queries, vlm, plain):
    with lp.reweight(vlm, keys="image", queries=queries, by=by, how=how) as more:
        trace = vlm.rerun(plain, answer=plain.generated_ids, capture=lp.Capture(attention_positions="all"))
    count = len(trace.tokens) - 1
    places = [plain.prompt_length - 1] if queries else [p for p in range(count) if p not in visual(plain)]
    logits, rows = by_hand(vlm, plain, RULES[how](by), places)
    torch.testing.assert_close(trace.rows(at=list(range(count))).permute(1, 2, 0, 3), rows, atol=1e-9, rtol=1e-7)
    torch.testing.assert_close(trace.logits, logits, atol=1e-5, rtol=1e-5)
    assert {act.layer for act in more.acts} == {0, 1, 2, 3}


def test_layers_and_heads_are_changed_alone(vlm, plain):
    with lp.reweight(vlm, keys="image", queries="last", by=-0.5, how="move", layers=[0], heads=[1]):
        trace = vlm.rerun(plain, answer=plain.generated_ids, capture=lp.Capture(attention_positions="all"))
    before = vlm.rerun(plain, answer=plain.generated_ids, capture=lp.Capture(attention_positions="all"))
    one, two = (each.rows(at="last", layer=0)[0] for each in (trace, before))
    assert torch.equal(one[[0, 2, 3]], two[[0, 2, 3]])
    shares = one[1, visual(plain)].sum() / two[1, visual(plain)].sum()
    assert float(shares) == pytest.approx(0.5) and float(one[1].sum()) == pytest.approx(1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("how", RULES)
def test_every_way_of_decoding(how, attention):
    vlm = lp.VLM(random_llava(attention=attention), llava_processor())
    plain = vlm.generate(photo(), QUESTION, **NEW)
    with lp.reweight(vlm, keys="image", by=0.5, how=how):
        for setting in ({}, {"num_beams": 2}, {"cache_implementation": "static"}, {"prefill_chunk_size": 16}):
            decoded = vlm.generate(photo(), QUESTION, **NEW, **setting)
            scored = vlm.rerun(plain, answer=decoded.generated_ids)
            torch.testing.assert_close(decoded.logits, scored.logits, atol=1e-4, rtol=1e-4)
        asked = [(photo(), QUESTION), (photo(30, 90, 1), "where")]
        for (image, question), together in zip(asked, vlm.generate_batch(asked, **NEW), strict=True):
            alone = vlm.generate(image, question, **NEW)
            torch.testing.assert_close(together.logits, alone.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("how", RULES)
def test_gradients_go_through_the_changed_weights(how, vlm, plain):
    """Along the picture's embeddings, as finite differences of the changed model say."""
    with lp.reweight(vlm, keys="image", queries="last", by=0.5, how=how):
        found = lp.attribute(vlm, plain, "input_x_gradient", tokens=[plain.prompt_length]).values[0]
        relevant = lp.attribute(vlm, plain, "relevance", tokens=[plain.prompt_length]).values[0]
    untouched = lp.attribute(vlm, plain, "input_x_gradient", tokens=[plain.prompt_length]).values[0]
    assert torch.isfinite(relevant).all() and not torch.allclose(found, untouched)


def test_a_kernel_without_masks_is_changed_beside_it():
    def flash(module, query, key, value, attention_mask, scaling=None, **kwargs):
        assert attention_mask is None or attention_mask.ndim == 2
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, scale=scaling, is_causal=query.shape[2] > 1 and module.is_causal, enable_gqa=True
        )
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register("flash_attention_2", flash)
    vlm = lp.VLM(random_llava(), llava_processor())
    with lp.reweight(vlm, keys="image", queries="last", by=0.5):
        sdpa = vlm.generate(photo(), QUESTION, **NEW)
    for part in vlm.model.modules():
        if hasattr(part, "config"):
            part.config._attn_implementation_internal = "flash_attention_2"
    with lp.reweight(vlm, keys="image", queries="last", by=0.5):
        fused = vlm.generate(photo(), QUESTION, **NEW)
    torch.testing.assert_close(fused.logits, sdpa.logits, atol=1e-4, rtol=1e-4)


def test_no_change_raises_unless_it_is_allowed_and_is_the_plain_run_to_the_bit(vlm, plain):
    with pytest.raises(lp.NotActed, match="its strength is 0"), lp.reweight(vlm, keys="image", by=0):
        vlm.generate(photo(), QUESTION, **NEW)
    with lp.reweight(vlm, keys="image", by=0, allow_nothing=True):
        trace = vlm.generate(photo(), QUESTION, **NEW)
    assert torch.equal(trace.logits, plain.logits) and torch.equal(trace.attention, plain.attention)


@pytest.mark.parametrize(("how", "by"), [("weights", -1.5), ("move", 1.5), ("move", -2)])
def test_more_than_there_is_is_a_sentence(how, by, vlm):
    with pytest.raises(lp.BadInput, match=f"how='{how}'"), lp.reweight(vlm, keys="image", by=by, how=how):
        pass


def test_a_plan_says_what_becomes_of_the_weights(vlm, plain):
    with lp.reweight(vlm, keys="image", queries="last", by=-0.25, how="move", allow_nothing=True) as less:
        told = less.plan(plain)
    assert "25% of theirs goes to the rest" in told and "36 visual tokens" in told


@pytest.mark.parametrize("how", RULES)
def test_above_0_is_more_attention_in_every_way_of_doing_it(how, vlm, plain):
    """At the first block, whose queries and keys are as they were."""
    shares = {}
    for by in (-0.5, 0, 0.5):
        with lp.reweight(vlm, keys="image", queries="last", by=by, how=how, layers=[0], allow_nothing=True):
            trace = vlm.rerun(plain, answer=plain.generated_ids)
        shares[by] = trace.rows(at="last", layer=0)[0][:, visual(plain)].sum(-1)
    assert (shares[-0.5] < shares[0]).all() and (shares[0] < shares[0.5]).all()
