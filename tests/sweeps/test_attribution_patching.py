"""First-order effects are slopes along the change; queries and keys are corrected by their own softmax, as by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

import llava_probe as lp
from llava_probe.sweeps.causal_trace import default_groups
from tests.interventions.by_hand import feed_of, layers_of
from tests.models import llava_processor, photo, random_llava

QUESTION = "what is the text on the stop sign"

#: What the dense attention kept in one pass: queries, keys, values and weights of the text layers, in order.
TAPE: list = []


def taped(module, query, key, value, attention_mask, scaling, **_kwargs):
    groups = query.shape[1] // key.shape[1]
    wide_key, wide_value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    logits = query @ wide_key.transpose(2, 3) * scaling
    if hasattr(module, "layer_idx"):
        logits = logits.masked_fill(~torch.ones(logits.shape[2:], dtype=torch.bool).tril(), float("-inf"))
    weights = torch.softmax(logits, -1)
    if hasattr(module, "layer_idx"):
        if weights.requires_grad:
            weights.retain_grad()
        TAPE.append((query, key, weights, scaling, groups))
    return (weights @ wide_value).transpose(1, 2), weights


AttentionInterface.register("taped_by_hand", taped)
AttentionMaskInterface.register("taped_by_hand", sdpa_mask)


@pytest.fixture(scope="module")
def vlm():
    return lp.VLM(random_llava().double(), llava_processor())


@pytest.fixture(scope="module")
def found(vlm):
    return lp.attribution_patching(vlm, (photo(), QUESTION), photo(seed=1), exact=1)


@pytest.fixture(scope="module")
def runs(vlm):
    return [vlm.generate(photo(seed=seed), QUESTION, max_new_tokens=1) for seed in (0, 1)]


def measure(runs):
    """The two first words, and the logit difference of the clean and the corrupted run."""
    token, other = (int(each.logits[0].argmax()) for each in runs)
    high, low = (float(each.logits[0].double()[token] - each.logits[0].double()[other]) for each in runs)
    return token, other, high, low


def dense(vlm, image, watch=None):
    """One pass of the dense attention, with gradients of a logit difference where it is watched."""
    TAPE.clear()
    inputs, _ = vlm.model_inputs(image, QUESTION)
    before = vlm.model.config._attn_implementation
    vlm.model.set_attn_implementation("taped_by_hand")
    try:
        logits = vlm.model(**inputs, use_cache=False).logits[0, -1]
        if watch is not None:
            (logits[watch[0]] - logits[watch[1]]).backward()
    finally:
        vlm.model.set_attn_implementation(before)
    return [tuple(each) for each in TAPE]


@pytest.mark.parametrize("part", ["query", "key"])
def test_queries_and_keys_are_corrected_by_their_softmax(part, vlm, found, runs):
    token, other, high, low = measure(runs)
    groups = default_groups(*runs, 0)
    with torch.no_grad():
        clean = dense(vlm, photo())
    corrupt = dense(vlm, photo(seed=1), (token, other))
    for layer in (1, 3):
        query, key, weights, scaling, repeat = corrupt[layer]
        for name, places in groups.items():
            if not places:
                continue
            at = list(places)
            new_query, new_key = query.detach().clone(), key.detach().clone()
            if part == "query":
                new_query[:, :, at] = clean[layer][0][:, :, at]
            else:
                new_key[:, :, at] = clean[layer][1][:, :, at]
            logits = new_query @ new_key.repeat_interleave(repeat, 1).transpose(2, 3) * scaling
            logits = logits.masked_fill(~torch.ones(logits.shape[2:], dtype=torch.bool).tril(), float("-inf"))
            change = ((torch.softmax(logits, -1) - weights.detach()) * weights.grad).sum()
            here = found.effects[0, found.groups.index(name), found.parts.index(part), layer]
            assert here == pytest.approx(float(change) / (high - low), abs=1e-5)


@pytest.mark.parametrize("part", ["residual", "attention", "mlp"])
def test_first_order_is_the_slope_of_a_small_patch(part, vlm, found, runs):
    """By finite differences, with plain hooks that mix in a little of the clean run."""
    token, other, high, low = measure(runs)
    block = layers_of(vlm)[2]
    module, side = {
        "residual": (block, "in"),
        "attention": (block.self_attn, "out"),
        "mlp": (feed_of(block), "out"),
    }[part]
    groups = default_groups(*runs, 0)

    def passed(image, change=lambda value: value):
        def before(_module, args, kwargs):
            return (change(args[0]), *args[1:]), kwargs

        def after(_module, _args, output):
            return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

        register = module.register_forward_pre_hook if side == "in" else module.register_forward_hook
        hook = register(before, with_kwargs=True) if side == "in" else register(after)
        try:
            with torch.no_grad():
                logits = vlm.model(**vlm.model_inputs(image, QUESTION)[0], use_cache=False).logits[0, -1]
        finally:
            hook.remove()
        return float(logits[token] - logits[other])

    held = []
    passed(photo(), lambda value: held.append(value) or value)
    for name in ("changed", "question", "last"):
        places = list(groups[name])

        def mixed(share, places=places):
            def change(value):
                value = value.clone()
                value[:, places] += share * (held[0][:, places] - value[:, places])
                return value

            return change

        step = 3e-3  # norms are in float32
        slope = (passed(photo(seed=1), mixed(step)) - passed(photo(seed=1), mixed(-step))) / (2 * step)
        here = found.first_order[0, found.groups.index(name), found.parts.index(part), 2]
        assert here == pytest.approx(slope / (high - low), abs=1e-4)
        assert here == found.effects[0, found.groups.index(name), found.parts.index(part), 2]


def test_the_exact_sweep_beside_it_is_single_patches(vlm, found, runs):
    token, other, high, low = measure(runs)
    places = list(default_groups(*runs, 0)["changed"])
    for part in ("residual", "mlp"):
        with lp.patch(vlm, source=runs[0], at=places, layers=2, part=part):
            moved = vlm.generate(photo(seed=1), QUESTION, max_new_tokens=1).logits[0].double()
        share = (float(moved[token] - moved[other]) - low) / (high - low)
        assert found.exact[0, found.groups.index("changed"), found.parts.index(part), 2] == pytest.approx(
            share, abs=1e-4
        )


def test_rank_correlations_are_scipys(found):
    stats = pytest.importorskip("scipy.stats")
    for part in ("residual", "query"):
        column = found.parts.index(part)
        one, two = found.effects[0, :, column].ravel(), found.exact[0, :, column].ravel()
        there = ~np.isnan(one) & ~np.isnan(two)
        assert found.correlation(part) == pytest.approx(stats.spearmanr(one[there], two[there]).statistic)
    with pytest.raises(lp.BadInput, match="there are parts"):
        found.correlation("head")


def test_the_table_tells_each_part_and_its_correlation(found):
    lines = found.table().splitlines()
    assert len(lines) == 1 + len(found.parts)
    assert f"{found.correlation('mlp'):.2f}" in next(line for line in lines if line.startswith("mlp"))


def test_no_weight_is_left_with_a_gradient_and_the_model_as_it_was(vlm):
    trace = vlm.generate(photo(), QUESTION, max_new_tokens=2)
    for parameter in vlm.model.parameters():
        parameter.grad = None
    lp.attribution_patching(vlm, (photo(), QUESTION), photo(seed=1), parts=["mlp"], exact=0)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in vlm.model.parameters())
    assert vlm.rerun(trace) == trace


def test_parts_that_are_none_are_a_sentence(vlm):
    with pytest.raises(lp.BadInput, match="parts= takes some of"):
        lp.attribution_patching(vlm, (photo(), QUESTION), photo(seed=1), parts=["head"])
