"""Rollout, pulled back row by row, equals the dense matrix product of the paper."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import llava_probe as lp
from tests.models import llava_processor, photo, random_llava
from tests.synthetic import IMAGE_AT, K, P, T, causal, synthetic_trace


def dense(attention, layers, heads, fuse=np.mean):
    """R = Â_L ... Â_1, every row of it, in float64; attention [K, L, H, K]."""
    flow = np.eye(attention.shape[0])
    for layer in layers:
        mixed = fuse(attention[:, layer].double().numpy()[:, heads], axis=1) + np.eye(attention.shape[0])
        flow = (mixed / mixed.sum(1, keepdims=True)) @ flow
    return flow


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31), fuse=st.sampled_from(["mean", "max"]), layers=st.sampled_from([[0, 1, 2], [1], [0, 2]])
)
def test_rollout_equals_the_dense_product(seed, fuse, layers):
    attention = causal(seed=seed)
    m = lp.rollout(synthetic_trace(attention=attention), 0, lp.GENERATED, layers=layers, reduce=fuse)
    flow = dense(attention, layers, [0, 1], np.mean if fuse == "mean" else np.max)
    np.testing.assert_allclose(m.values, flow[P - 1 : P - 1 + T, list(IMAGE_AT)], rtol=1e-4, atol=1e-7)


def test_heads_and_negative_layers_are_the_models_numbers():
    attention = causal()
    trace = synthetic_trace(attention=attention)
    flow = dense(attention, [2], [1])
    said = lp.rollout(trace, tokens=lp.GENERATED, layers=-1, heads=1)
    np.testing.assert_allclose(said.values, flow[P - 1 :, list(IMAGE_AT)], rtol=1e-5)
    what = lp.rollout(trace, tokens="what", layers=2, heads=[1])
    np.testing.assert_allclose(what.values, flow[[P - 2]][:, list(IMAGE_AT)], rtol=1e-5)


def test_a_chain_of_hops_is_followed():
    """The answer looks only at " what", which two layers below looked only at the fifth visual token."""
    attention = torch.zeros(K, 3, 2, K)
    attention[:, :, :, 0] = 1.0
    attention[P - 1, 2] = torch.eye(K)[P - 2]
    attention[P - 2, 0] = torch.eye(K)[IMAGE_AT[4]]
    trace = synthetic_trace(attention=attention)
    assert lp.attention_map(trace, tokens=P).values.sum() == 0
    values = lp.rollout(trace, tokens=P).values[0]
    # half each at layer 2, half stays at layer 1 (the other half goes to the first token), half at layer 0
    assert values[4] == pytest.approx(0.5**3)
    assert values.sum() == pytest.approx(0.5**3)


def test_rollout_of_a_model_equals_the_product_of_eager_attention():
    vlm = lp.VLM(random_llava(), llava_processor())
    trace = vlm.generate(photo(), "what is the text", max_new_tokens=3, capture=lp.Capture(attention_positions="all"))
    model = copy.deepcopy(vlm.model)
    model.set_attn_implementation("eager")
    inputs = dict(vlm.processor(text=trace.request.prompt, images=photo(), return_tensors="pt"))
    inputs["input_ids"] = torch.tensor([[token.id for token in trace.tokens[:-1]]])
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        attentions = model(**inputs, output_attentions=True, use_cache=False).attentions
    attention = torch.stack([layer[0] for layer in attentions]).permute(2, 0, 1, 3)
    flow = dense(attention, range(4), range(4))[list(trace.predicting)][:, trace.layouts[0].positions]
    np.testing.assert_allclose(lp.rollout(trace, 0, lp.GENERATED).values, flow, rtol=1e-3, atol=1e-7)


def test_rollout_says_what_it_needs_and_what_that_costs():
    attention = causal()
    with pytest.raises(lp.NotCaptured, match=r'attention_positions="all"') as caught:
        lp.rollout(synthetic_trace(attention=attention[-T:]))
    assert f"{K * K * 3 * 2 * 4 / 1000:.1f} kB" in str(caught.value)
    with pytest.raises(lp.NotCaptured, match="attention_positions"):
        lp.rollout(synthetic_trace())
    fewer = synthetic_trace(attention=attention[:, :2], layers=3, attention_layers=(0, 1))
    with pytest.raises(lp.NotCaptured, match="layer 2"):
        lp.rollout(fewer)
    assert lp.rollout(fewer, 0, lp.GENERATED, layers=[0, 1]).values.shape == (T, 6)


def test_wrong_options():
    trace = synthetic_trace(attention=causal())
    with pytest.raises(lp.BadInput, match="reduce="):
        lp.rollout(trace, reduce="min")
    with pytest.raises(lp.OutOfRange):
        lp.rollout(trace, layers=3)
