"""Rows and what may be seen, for every kernel and every form of mask: a dense softmax written out is the truth."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from transformers import AttentionInterface

import llava_probe as lp
from llava_probe.inside import seam
from llava_probe.inside.rows import Call
from tests import torchvision_half, zoo
from tests.models import photo

B, H, KV, Q, D = 2, 4, 2, 5, 8


class Module(torch.nn.Module):
    """Stands for an attention module."""

    def __init__(self, causal=True):
        super().__init__()
        self.is_causal, self.num_key_value_groups = causal, H // KV


def call(mask=None, *, causal=True, keys=Q, start=0, kernel="sdpa", queries=Q, **kwargs):
    make = torch.Generator().manual_seed(0)
    query = torch.randn(B, H, queries, D, generator=make, dtype=torch.float64)
    key, value = (torch.randn(B, KV, keys, D, generator=make, dtype=torch.float64) for _ in range(2))
    return Call(Module(causal), None, -1, query, key, value, mask, {"scaling": 0.3, **kwargs}, kernel, start)


def dense(made, seen):
    """softmax(q kT) over what may be seen, and its product with the values."""
    key, value = (each.repeat_interleave(H // KV, dim=1) for each in (made.key, made.value))
    logits = made.query @ key.transpose(2, 3) * 0.3
    weights = torch.softmax(logits.masked_fill(~seen, float("-inf")), -1).nan_to_num(0)
    return weights, (weights @ value).transpose(1, 2)


def later(queries=Q, keys=Q):
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)


LOW = torch.finfo(torch.float64).min
SPARSE = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 1, 0, 1, 0], [0, 1, 0, 0, 1]]).bool()
SLID = later(1, 5) & torch.tensor([[0, 0, 1, 1, 1]]).bool()
LEFT = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
WINDOWS = torch.tensor([0, 2, 5], dtype=torch.int32)
BLOCKS = torch.block_diag(torch.ones(2, 2), torch.ones(3, 3)).bool()
CASES = {
    "causal by a flag": (call(), later()),
    "nothing hidden": (call(causal=False), torch.ones(Q, Q).bool()),
    "causal in the call's arguments": (call(causal=False, is_causal=True), later()),
    "truth values": (call(SPARSE[None, None].expand(B, 1, Q, Q)), SPARSE),
    "numbers to add": (call(torch.zeros(Q, Q).double().masked_fill(~SPARSE, LOW)[None, None]), SPARSE),
    "a mask wider than the keys": (call(torch.cat([SPARSE, SPARSE], -1)[None, None]), SPARSE),
    "one step": (call(queries=1, keys=5, start=4), torch.ones(1, 5).bool()),
    "a step of a sliding window": (call(queries=1, keys=5, start=4, sliding_window=3), SLID),
    "padding, as flash takes it": (call(LEFT, kernel="flash_attention_2"), later() & LEFT[:, None, None].bool()),
    "a window, as flash takes it": (
        call(kernel="flash_attention_2", sliding_window=2),
        later() & ~later().tril(-2).roll(0) & (torch.arange(Q)[None] > torch.arange(Q)[:, None] - 2),
    ),
    "lengths, as flash takes them": (call(kernel="flash_attention_2", causal=False, cu_seq_lens_q=WINDOWS), BLOCKS),
    "lengths that sdpa does not read": (call(causal=False, cu_seq_lens_q=WINDOWS), torch.ones(Q, Q).bool()),
    "eager without a mask": (call(kernel="eager"), torch.ones(Q, Q).bool()),
}


@pytest.mark.parametrize("name", CASES)
def test_rows_are_a_dense_softmax_over_what_may_be_seen(name):
    made, seen = CASES[name]
    weights, _ = dense(made, seen)
    assert torch.equal(made.allowed().expand(B, 1, *seen.shape[-2:]), seen.expand(B, 1, *seen.shape[-2:]))
    made = made.without(~seen) if not seen.any(-1).all() else made  # a pad token sees nothing
    torch.testing.assert_close(made.rows(), weights, atol=1e-12, rtol=0)
    some, heads = torch.tensor([0, seen.shape[-2] - 1]), torch.tensor([3, 1])
    torch.testing.assert_close(made.rows(some, heads), weights[:, heads][:, :, some], atol=1e-12, rtol=0)
    for index, block in made.blocks(some):
        whole = torch.nn.functional.pad(block, (0, weights.shape[-1] - block.shape[-1]))
        torch.testing.assert_close(whole, weights[:, :, index], atol=1e-12, rtol=0)
    torch.testing.assert_close(made.of_row(slice(1, 2)).rows(), weights[1:], atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_keys_that_are_taken_away_are_gone_from_rows_and_output(name):
    made, seen = CASES[name]
    hidden = torch.zeros(1, 1, *seen.shape[-2:], dtype=torch.bool)
    hidden[..., 0, :] = True  # a query that is left without any
    hidden[..., -1, 1:3] = True
    weights, output = dense(made, seen & ~hidden)

    def kernel(module, query, key, value, mask, **kwargs):
        assert made.kernel in ("sdpa", "eager")
        added = torch.zeros(mask.shape).double().masked_fill(~mask, LOW) if mask.dtype == torch.bool else mask
        key, value = (each.repeat_interleave(H // KV, dim=1) for each in (key, value))
        own = torch.softmax(query @ key.transpose(2, 3) * 0.3 + added[..., : key.shape[2]], -1)
        return (own @ value).transpose(1, 2), own

    cut = made.without(hidden)
    given, own = cut.through(kernel)
    torch.testing.assert_close(cut.rows(), weights, atol=1e-12, rtol=0)
    assert not cut.rows()[(hidden.expand_as(weights))].any()  # exactly 0
    torch.testing.assert_close(given, output, atol=1e-12, rtol=0)
    if own is not None:
        torch.testing.assert_close(own, weights, atol=1e-12, rtol=0)
    twice = cut.without(torch.zeros_like(hidden))
    torch.testing.assert_close(twice.rows(), weights, atol=1e-12, rtol=0)


# --- a tower under a flash kernel, which gets all windows of all pictures in one call ---


def windows_by_sdpa(module, query, key, value, attention_mask, scaling=None, cu_seq_lens_q=None, **kwargs):
    """What a flash kernel computes, a window at a time, on the CPU."""
    sdpa = torch.nn.functional.scaled_dot_product_attention
    if cu_seq_lens_q is None:
        causal = kwargs.get("is_causal", True) and query.shape[2] > 1
        out = sdpa(query, key, value, scale=scaling, is_causal=causal, enable_gqa=True)
    else:
        ends = cu_seq_lens_q.tolist()
        parts = [slice(*pair) for pair in pairwise(ends)]
        out = torch.cat([sdpa(query[:, :, p], key[:, :, p], value[:, :, p], scale=scaling) for p in parts], 2)
    return out.transpose(1, 2).contiguous(), None


needs_processors = pytest.mark.skipif(not torchvision_half.present(), reason="its processor needs torchvision")


@pytest.fixture
def flash(monkeypatch):
    """Switches a tower to the stand-in and back."""
    monkeypatch.setitem(AttentionInterface._global_mapping, "flash_attention_2", windows_by_sdpa)
    switched = []

    def switch(vlm):
        config = vlm.anatomy.vision.owner.config
        switched.append((config, config._attn_implementation))
        seam.set_implementation(config, "flash_attention_2")

    yield switch
    for config, name in switched:
        seam.set_implementation(config, name)


@needs_processors
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen2_vl", "qwen3_vl", "glm4v", "video_llama_3"])
@pytest.mark.parametrize("pictures", [1, 2])
def test_a_towers_rows_under_flash_are_those_of_sdpa(name, pictures, flash):
    vlm = lp.VLM(*zoo.build(name), layout="none")
    images = [photo(96, 64), photo(64, 64, 3)][:pictures]
    given = {"max_new_tokens": 1, "capture": lp.Capture(vision=True)}
    plain = vlm.generate(images, "what is this", **given)
    flash(vlm)
    fused = vlm.generate(images, "what is this", **given)
    torch.testing.assert_close(fused.vision_hidden_states, plain.vision_hidden_states, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fused.vision_attention, plain.vision_attention, atol=1e-6, rtol=0)


@needs_processors
def test_relevance_through_a_tower_with_windows_is_the_same_in_every_kernel(flash):
    """A call a window (sdpa, eager) and one call for all (flash) are the same relevance."""
    vlm = lp.VLM(*zoo.build("qwen2_5_vl"))
    trace = vlm.generate(photo(96, 64), "what is this", max_new_tokens=2)
    maps = [lp.attribute(vlm, trace, "relevance", tokens=trace.prompt_length, through="tower").values]
    config = vlm.anatomy.vision.owner.config
    seam.set_implementation(config, "eager")
    maps.append(lp.attribute(vlm, trace, "relevance", tokens=trace.prompt_length, through="tower").values)
    seam.set_implementation(config, "sdpa")
    flash(vlm)
    maps.append(lp.attribute(vlm, trace, "relevance", tokens=trace.prompt_length, through="tower").values)
    for other in maps[1:]:
        torch.testing.assert_close(other, maps[0], atol=1e-6, rtol=1e-4)
