"""A knock-out is what a model computes whose mask was changed by hand, whatever is looked at under it.

The truth is a dense attention of its own, softmax(q·kᵀ + mask)·v with the pairs taken out of the mask, put into
transformers' table under another name; nothing of the package runs in it.
"""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

import llava_probe as lp
from llava_probe import tiny
from llava_probe.view.terminal import show
from tests.models import llava_processor, photo, random_llava
from tests.zoo import newer

QUESTION = "what is the text on the stop sign"
NEW = {"max_new_tokens": 5, "min_new_tokens": 5, "suppress_tokens": [3]}  # a mark of a picture is no answer

#: Of the dense attention: pairs [Q, K] that may not be seen, in which layers, and the weights that it saw.
HAND: dict = {"cut": None, "layers": (), "kept": []}


def by_hand(module, query, key, value, attention_mask, scaling, **_kwargs):
    groups = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    seen = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool)
    text = hasattr(module, "layer_idx")
    if text:
        seen = seen.tril(key.shape[2] - query.shape[2])
    if text and module.layer_idx in HAND["layers"]:
        seen = seen & ~HAND["cut"]
    weights = torch.softmax((query @ key.transpose(2, 3) * scaling).masked_fill(~seen, float("-inf")), dim=-1)
    weights = weights.nan_to_num(0.0)  # a query without any key
    if text and weights.requires_grad:
        weights.retain_grad()
    if text:
        HAND["kept"].append(weights)
    return (weights @ value).transpose(1, 2), weights


AttentionInterface.register("by_hand", by_hand)
AttentionMaskInterface.register("by_hand", sdpa_mask)


def exact(**options) -> lp.VLM:
    return lp.VLM(random_llava(**options).double(), llava_processor())


def answered(vlm) -> lp.Trace:
    return vlm.generate(photo(), QUESTION, **NEW)


def visual(trace) -> list[int]:
    return [token.position for token in trace.tokens if token.role == "image"]


def pairs(trace, queries=None, keys=None) -> torch.Tensor:
    """[fed, fed] what a knock-out of these takes away: by default the picture, from everything else."""
    count = len(trace.tokens) - 1
    keys = visual(trace) if keys is None else keys
    queries = [place for place in range(count) if place not in keys] if queries is None else queries
    cut = torch.zeros(count, count, dtype=torch.bool)
    cut[torch.tensor(queries)[:, None], torch.tensor(keys)] = True
    return cut


class Dense:
    """The model with its mask changed by hand, in one pass over prompt and answer."""

    def __init__(self, vlm, trace, cut, layers=range(4)):
        self.model, self.trace = vlm.model, trace
        inputs, _ = vlm.model_inputs(trace.images[0], prompt=trace.request.prompt)
        ids = torch.tensor([[token.id for token in trace.tokens[:-1]]])
        self.inputs = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        self.cut, self.layers = cut, tuple(layers)

    def __enter__(self):
        self.before = self.model.model.language_model.config._attn_implementation
        self.model.set_attn_implementation("by_hand")
        HAND.update(cut=self.cut, layers=self.layers, kept=[])
        return self

    def __exit__(self, *_):
        self.model.set_attn_implementation(self.before)
        HAND.update(cut=None, layers=(), kept=[])

    def __call__(self, entry=None, **more):
        """The output, with other embeddings where the sequence enters if they are given."""
        HAND["kept"].clear()
        decoder = self.model.model.language_model
        swap = decoder.register_forward_pre_hook(
            lambda _module, args, kwargs: (args, kwargs if entry is None else {**kwargs, "inputs_embeds": entry}),
            with_kwargs=True,
        )
        try:
            return self.model(**self.inputs, **more)
        finally:
            swap.remove()

    def entry(self):
        """[1, P, D] what enters the decoder."""
        kept = []
        hook = self.model.model.language_model.register_forward_pre_hook(
            lambda _module, args, kwargs: kept.append(kwargs["inputs_embeds"]), with_kwargs=True
        )
        self.model(**self.inputs)
        hook.remove()
        return kept[0].detach()


CUTS = {
    "the picture": ({"keys": lp.IMAGE}, lambda trace: pairs(trace), range(4)),
    "two layers": ({"keys": lp.IMAGE, "layers": [1, 2]}, lambda trace: pairs(trace), (1, 2)),
    "from the last word": (
        {"keys": "image", "queries": "last"},
        lambda trace: pairs(trace, queries=[trace.prompt_length - 1]),
        range(4),
    ),
    "a word": (
        {"keys": "stop", "queries": lp.ANSWER, "layers": 3},
        lambda trace: pairs(
            trace, queries=range(trace.prompt_length, len(trace.tokens) - 1), keys=list(trace.find("stop", "prompt"))
        ),
        (3,),
    ),
    "the beginning": (
        {"keys": list(range(20)), "queries": lp.LAST},
        lambda trace: pairs(trace, queries=[trace.prompt_length - 1], keys=list(range(20))),
        range(4),
    ),
    "everything but a word": (
        {"keep": "stop", "queries": lp.LAST, "layers": [1, 3]},
        lambda trace: pairs(
            trace,
            queries=[trace.prompt_length - 1],
            keys=[place for place in range(trace.prompt_length - 1) if place not in trace.find("stop", "prompt")],
        ),
        (1, 3),
    ),
    "in the prompt alone": (
        {"keys": lp.IMAGE, "phase": "prompt"},
        lambda trace: pairs(trace, queries=[p for p in range(trace.prompt_length) if p not in visual(trace)]),
        range(4),
    ),
    "in the answer alone": (
        {"keys": lp.IMAGE, "phase": "answer"},
        lambda trace: pairs(trace, queries=range(trace.prompt_length, len(trace.tokens) - 1)),
        range(4),
    ),
}


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_states_and_rows_are_those_of_a_mask_changed_by_hand(name, attention):
    given, taken, layers = CUTS[name]
    vlm = exact(attention=attention)
    ids = answered(vlm).generated_ids
    with lp.knock_out(vlm, **given) as cut:
        trace = vlm.score(photo(), QUESTION, ids, capture=lp.Capture(positions="all", attention_positions="all"))
    hidden = taken(trace)
    with Dense(vlm, trace, hidden, layers) as dense, torch.no_grad():
        out = dense(output_hidden_states=True)
        rows = torch.stack(HAND["kept"])[:, 0]  # [L, H, Q, K]
    torch.testing.assert_close(trace.logits.double(), out.logits[0, trace.prompt_length - 1 :], atol=1e-5, rtol=1e-5)
    fed = list(range(len(trace.tokens) - 1))
    close = 1e-9 if attention == "sdpa" else 1e-5  # transformers' eager softmax is in float32
    torch.testing.assert_close(trace.hidden(at=fed), torch.stack(out.hidden_states, dim=2)[0], atol=close, rtol=close)
    torch.testing.assert_close(trace.rows(at=fed).permute(1, 2, 0, 3), rows, atol=close, rtol=0)
    assert not trace.rows(at=fed).permute(1, 2, 0, 3)[list(layers)][..., hidden].any()  # exactly 0
    assert {act.layer for act in cut.acts} == set(layers)
    assert all(act.count == int((hidden & torch.ones_like(hidden).tril()).sum()) for act in cut.acts)


def test_heads_are_cut_alone():
    vlm = exact()
    ids = answered(vlm).generated_ids
    everywhere = lp.Capture(attention_positions="all")
    plain = vlm.score(photo(), QUESTION, ids, capture=everywhere)
    with lp.knock_out(vlm, keys=lp.IMAGE, layers=0, heads=[1, -1]):
        trace = vlm.score(photo(), QUESTION, ids, capture=everywhere)
    later = [place for place in range(len(trace.tokens) - 1) if place > max(visual(trace))]
    assert not trace.rows(at=later, layer=0, head=[1, 3])[..., visual(trace)].any()
    assert torch.equal(trace.rows(at=later, layer=0, head=[0, 2]), plain.rows(at=later, layer=0, head=[0, 2]))


DECODING = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "sampling": {"do_sample": True, "num_return_sequences": 2},
    "static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
    "chunked prefill": {"prefill_chunk_size": 16},
    "guided": {"guidance_scale": 1.5},
}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", DECODING)
def test_an_answer_without_the_picture_does_not_depend_on_it(name, attention):
    newer.skip_where_broken(DECODING[name])
    vlm = lp.VLM(random_llava(attention=attention), llava_processor())
    plain = [vlm.generate(photo(seed=seed), QUESTION, seed=0, **NEW, **DECODING[name]) for seed in (0, 1)]
    assert not torch.equal(plain[0].logits[0], plain[1].logits[0])
    with lp.knock_out(vlm, keys=lp.IMAGE):
        one, two = (vlm.generate(photo(seed=seed), QUESTION, seed=0, **NEW, **DECODING[name]) for seed in (0, 1))
    assert torch.equal(one.logits, two.logits) and one.answer == two.answer
    assert not one.attention[..., visual(one)].any()
    with lp.knock_out(vlm, keys=lp.IMAGE):
        scored = vlm.score(photo(), QUESTION, one.generated_ids)
    torch.testing.assert_close(one.logits, scored.logits, atol=1e-4, rtol=1e-4)


def test_members_of_a_batch_are_cut_each_at_its_own_places():
    vlm = exact()
    asked = [(photo(), QUESTION), (photo(30, 90, 1), "where"), ([photo(), photo(50, 60, 2)], "what is the difference")]
    for at in (
        {"keys": lp.IMAGE},
        {"keys": lp.QUESTION, "queries": lp.LAST},
        {"keys": [3, 4], "queries": lp.GENERATED},
    ):
        with lp.knock_out(vlm, **at):
            batch = vlm.generate_batch(asked, **NEW)
            beams = vlm.generate_batch(asked, **NEW, num_beams=2)
            for (image, question), together, beamed in zip(asked, batch, beams, strict=True):
                alone = vlm.generate(image, question, **NEW)
                assert together.generated_ids.tolist() == alone.generated_ids.tolist()
                torch.testing.assert_close(together.logits, alone.logits, atol=1e-5, rtol=1e-5)
                torch.testing.assert_close(together.attention, alone.attention, atol=1e-9, rtol=0)
                assert beamed.logits.shape == vlm.generate(image, question, **NEW, num_beams=2).logits.shape


def test_a_fused_kernel_that_takes_no_mask_is_stood_in_for():
    def flash(module, query, key, value, attention_mask, scaling=None, **kwargs):
        assert attention_mask is None or attention_mask.ndim == 2
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, scale=scaling, is_causal=query.shape[2] > 1 and module.is_causal, enable_gqa=True
        )
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register("flash_attention_2", flash)  # transformers' own runs on a GPU alone
    vlm = lp.VLM(random_llava(), llava_processor())
    with lp.knock_out(vlm, keys=lp.IMAGE):
        sdpa = vlm.generate(photo(), QUESTION, **NEW)
    for part in vlm.model.modules():
        if hasattr(part, "config"):
            part.config._attn_implementation_internal = "flash_attention_2"
    with lp.knock_out(vlm, keys=lp.IMAGE):
        fused = vlm.generate(photo(), QUESTION, **NEW)
    assert fused.answer == sdpa.answer
    torch.testing.assert_close(fused.logits, sdpa.logits, atol=1e-4, rtol=1e-4)
    assert not fused.attention[..., visual(fused)].any()


# --- what is looked at under it ---


@pytest.fixture(scope="module")
def partly():
    """A knock-out of half of the layers, so that the picture still matters, and an answer under it."""
    vlm = exact()
    with lp.knock_out(vlm, keys=lp.IMAGE, layers=[2, 3]):
        trace = vlm.generate(photo(), QUESTION, **NEW)
    return vlm, trace, pairs(trace), (2, 3)


def target(trace):
    """The first word of the answer: where it was predicted, and its id."""
    return trace.prompt_length, trace.prompt_length - 1, trace.tokens[trace.prompt_length].id


def test_relevance_and_rollout_are_the_dense_rules(partly):
    vlm, trace, cut, layers = partly
    place, at, token = target(trace)
    with lp.knock_out(vlm, keys=lp.IMAGE, layers=layers):
        relevance = lp.attribute(vlm, trace, "relevance", tokens=place).values[0]
        rollout = lp.attribute(vlm, trace, "rollout", tokens=place).values[0]
    assert not torch.allclose(relevance, lp.attribute(vlm, trace, "relevance", tokens=place).values[0], rtol=1e-3)
    with Dense(vlm, trace, cut, layers) as dense:
        dense().logits[0, at, token].backward()
        kept = [(weights.detach()[0], weights.grad[0]) for weights in HAND["kept"]]
    size = len(trace.tokens) - 1
    whole, flow = torch.eye(size, dtype=torch.float64), torch.eye(size, dtype=torch.float64)
    for weights, slope in kept:
        whole = whole + (weights * slope).clamp(min=0).mean(0) @ whole
        mixed = weights.mean(0) + torch.eye(size, dtype=torch.float64)
        flow = mixed / mixed.sum(1, keepdim=True) @ flow
    torch.testing.assert_close(relevance.double(), whole[at, visual(trace)], atol=1e-7, rtol=1e-5)
    torch.testing.assert_close(rollout.double(), flow[at, visual(trace)], atol=1e-7, rtol=1e-5)


def test_gradients_are_those_of_the_changed_mask(partly):
    vlm, trace, cut, layers = partly
    place, at, token = target(trace)
    with lp.knock_out(vlm, keys=lp.IMAGE, layers=layers):
        found = lp.attribute(vlm, trace, "gradient", tokens=place).values[0]
        product = lp.attribute(vlm, trace, "input_x_gradient", tokens=place).values[0]
    with Dense(vlm, trace, cut, layers) as dense:
        entry = dense.entry().requires_grad_()
        torch.log_softmax(dense(entry).logits[0, at], -1)[token].backward()
    slope = entry.grad[0, visual(trace)]
    torch.testing.assert_close(found.double(), slope.norm(dim=-1), atol=1e-7, rtol=1e-5)
    truth = (slope * entry[0, visual(trace)]).sum(-1).detach()
    torch.testing.assert_close(product.double(), truth, atol=1e-7, rtol=1e-5)


def test_occlusion_is_that_of_the_changed_mask(partly):
    vlm, trace, cut, layers = partly
    place, at, token = target(trace)
    with lp.knock_out(vlm, keys=lp.IMAGE, layers=layers):
        found = lp.attribute(vlm, trace, "occlusion", tokens=place).values[0]
    with Dense(vlm, trace, cut, layers) as dense, torch.no_grad():
        entry = dense.entry()
        mean = entry[0, visual(trace)].mean(0)
        base = torch.log_softmax(dense(entry).logits[0, at], -1)[token]
        for row in (0, 17, 35):
            changed = entry.clone()
            changed[0, visual(trace)[row]] = mean
            drop = base - torch.log_softmax(dense(changed).logits[0, at], -1)[token]
            assert float(found[row]) == pytest.approx(float(drop), rel=1e-5, abs=1e-7)


def test_features_are_those_of_the_changed_mask(partly, tmp_path):
    vlm, _, _, layers = partly
    rows = [{"image": photo(seed=n), "question": q, "id": f"{n} {q}"} for n in (0, 1) for q in (QUESTION, "where")]
    with lp.knock_out(vlm, keys=lp.IMAGE, layers=layers), pytest.warns(UserWarning, match="under an intervention"):
        features = lp.extract(vlm, rows, tmp_path / "cut", layers=[1, 3, 4], image_attention=True)
    assert not features.errors().num_rows
    assert features.interventions[0]["layers"] == [2, 3] and "under knock_out" in repr(features)
    looks = torch.as_tensor(features.numpy("image_attention", "last_prompt"))
    assert not looks[:, list(layers)].any() and looks[:, [0, 1]].all()
    for number, row in enumerate(rows):
        trace = vlm.score(row["image"], row["question"], [4, 5])
        with Dense(vlm, trace, pairs(trace), layers) as dense, torch.no_grad():
            states = dense(output_hidden_states=True).hidden_states
        for layer in (1, 3, 4):
            kept = torch.as_tensor(features.numpy(f"layer_{layer}", "last_prompt")[number])
            truth = states[layer][0, trace.prompt_length - 1]
            torch.testing.assert_close(kept.double(), truth, atol=1e-5, rtol=1e-5)


def test_every_other_method_sees_the_intervened_model(tiny_vlm):
    trace = tiny_vlm.generate(tiny.scene(34).image, "What is the text on the stop sign?")
    for method in ("attention", "attention_gradient", "attnlrp", "llava_cam", "gradient", "rise"):
        options = {"budget": 4} if method == "rise" else {}
        with lp.knock_out(tiny_vlm, keys=lp.IMAGE):
            m = lp.attribute(tiny_vlm, trace, method, tokens=trace.prompt_length, **options)
        assert m.about["interventions"][0]["keys"] == "image"
        assert not m.values.any(), method  # nothing of the picture reaches the answer
        assert lp.attribute(tiny_vlm, trace, method, tokens=trace.prompt_length, **options).values.any()


def test_evaluation_sees_the_intervened_model(tiny_vlm):
    """Without a look at the picture, taking parts of it away changes nothing."""
    trace = tiny_vlm.generate(tiny.scene(34).image, "What is the text on the stop sign?")
    m = lp.attribute(tiny_vlm, trace, "attention", tokens=trace.prompt_length)
    plain = lp.evaluate.deletion_insertion(tiny_vlm, trace, m, steps=3)
    with lp.knock_out(tiny_vlm, keys=lp.IMAGE):
        cut = lp.evaluate.deletion_insertion(tiny_vlm, trace, m, steps=3)
    assert np.ptp(plain.deletion) > 0.1 and np.ptp(cut.deletion) < 1e-6 and np.ptp(cut.insertion) < 1e-6


def test_a_check_compares_the_intervened_model_with_itself(tiny_vlm):
    with lp.knock_out(tiny_vlm, keys=lp.IMAGE, layers=[2, 3]):
        found = lp.check(tiny_vlm, tiny.scene(34).image, max_new_tokens=3)
    assert found.ok, str(found)


def test_a_model_called_by_hand_is_changed_too_and_another_thread_is_not(tiny_vlm):
    from threading import Thread

    scenes = [tiny.scene(34), tiny.scene(92)]
    inputs = [tiny_vlm.model_inputs(scene.image, "What colour is the circle?")[0] for scene in scenes]
    run = lambda which: tiny_vlm.model(**inputs[which]).logits[0, -1].detach()  # noqa: E731
    plain, elsewhere = run(0), []
    with lp.knock_out(tiny_vlm, keys=lp.IMAGE) as cut:
        assert torch.equal(run(0), run(1))
        thread = Thread(target=lambda: elsewhere.append(run(0)))
        thread.start()
        thread.join()
        other = Thread(target=lambda: elsewhere.append(tiny_vlm.generate(scenes[0].image, "What?", max_new_tokens=1)))
        other.start()
        other.join()
    assert torch.equal(elsewhere[0], plain) and not torch.equal(plain, run(1))
    assert elsewhere[1].interventions == ()
    assert len(cut.acts) == 12  # two passes of six layers, none of them another thread's


def test_two_compose_in_either_order():
    vlm = exact()
    trace = answered(vlm)
    with lp.knock_out(vlm, keys=lp.IMAGE, layers=[0, 1]), lp.knock_out(vlm, keys=[1, 2], layers=[1, 3]):
        both = vlm.rerun(trace, answer=trace.generated_ids)
    rows = both.rows()
    assert not rows[:, :2][..., visual(trace)].any() and not rows[:, [1, 3]][..., [1, 2]].any()
    with lp.knock_out(vlm, keys=[1, 2], layers=[1, 3]), lp.knock_out(vlm, keys=lp.IMAGE, layers=[0, 1]):
        turned = vlm.rerun(trace, answer=trace.generated_ids)
    assert torch.equal(both.logits, turned.logits) and torch.equal(both.attention, turned.attention)
    assert [each["keys"] for each in both.interventions] == ["image", [1, 2]]
    assert [each["keys"] for each in turned.interventions] == [[1, 2], "image"]


# --- never in silence ---


IDLE = {
    "a position that is never passed": ({"keys": 500}, "no pass held a key"),
    "a query that is never computed": ({"keys": 1, "queries": 400}, "no pass computed a token that queries=400"),
    "keys that come later": ({"keys": lp.ANSWER, "queries": lp.IMAGE}, "could see these keys anyway"),
    "no key": ({"keys": []}, r"keys=\[\] names no token"),
    "no query": ({"keys": 1, "queries": []}, r"queries=\[\] names no token"),
    "no layer": ({"keys": 1, "layers": []}, "names no layer"),
    "another phase": ({"keys": 1, "queries": lp.IMAGE, "phase": "answer"}, "no pass computed a token in an answer"),
}


@pytest.mark.parametrize("name", IDLE)
def test_what_acts_nowhere_raises(name, tiny_vlm):
    given, why = IDLE[name]
    with pytest.raises(lp.NotActed, match=why), lp.knock_out(tiny_vlm, **given):
        tiny_vlm.generate(photo(), "What is this?", max_new_tokens=3)


@pytest.mark.parametrize("name", ["no key", "no query", "no layer"])
def test_nothing_that_is_allowed_leaves_the_run_as_it_is(name, tiny_vlm):
    plain = tiny_vlm.generate(photo(), "What is this?", max_new_tokens=3)
    with lp.knock_out(tiny_vlm, **IDLE[name][0], allow_nothing=True) as cut:
        trace = tiny_vlm.generate(photo(), "What is this?", max_new_tokens=3)
    assert torch.equal(trace.logits, plain.logits) and torch.equal(trace.attention, plain.attention) and not cut.acts


LEFT_ALONE = {"its own key": {"keys": [0], "queries": [0]}, "all keys": {"keys": lp.ALL, "queries": lp.LAST}}


@pytest.mark.parametrize("name", LEFT_ALONE)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_query_that_is_left_without_any_key_is_refused(name, attention):
    vlm = lp.VLM(random_llava(attention=attention), llava_processor())
    plain = answered(vlm)
    with pytest.raises(lp.BadInput, match="leaves a query without any key"), lp.knock_out(vlm, **LEFT_ALONE[name]):
        answered(vlm)
    assert answered(vlm) == plain


def test_spread_attention_is_the_dense_mean_and_keeps_what_the_keys_had():
    vlm = exact()
    ids = answered(vlm).generated_ids
    everything = lp.Capture(attention_positions="all", positions="all")
    plain = vlm.score(photo(), QUESTION, ids, capture=everything)
    with lp.knock_out(vlm, keys=lp.IMAGE, queries=lp.LAST, layers=0, uniform=True) as cut:
        trace = vlm.score(photo(), QUESTION, ids, capture=everything)
    before, after = (each.rows(at="last", layer=0)[0] for each in (plain, trace))
    image = visual(trace)
    mean = before[:, image].mean(-1, keepdim=True).expand(-1, len(image))
    torch.testing.assert_close(after[:, image], mean, atol=1e-12, rtol=1e-9)
    rest = [place for place in range(before.shape[-1]) if place not in image]
    assert torch.equal(after[:, rest], before[:, rest])
    assert cut.acts[0].count == len(image) and not torch.equal(trace.logits, plain.logits)


def test_what_is_hidden_stays_hidden_when_attention_is_spread():
    vlm = exact()
    trace = answered(vlm)
    image = visual(trace)
    spread = {"keys": lp.IMAGE, "queries": lp.LAST, "uniform": True}
    found = []
    for outer, inner in ((spread, {"keys": image[:5]}), ({"keys": image[:5]}, spread)):
        with lp.knock_out(vlm, **outer), lp.knock_out(vlm, **inner):
            found.append(vlm.rerun(trace, answer=trace.generated_ids))
    for each in found:
        rows = each.rows(at="last")[0]
        assert not rows[..., image[:5]].any() and (rows[..., image[5:]] == rows[..., image[5:6]]).all()
    assert torch.equal(found[0].logits, found[1].logits)


def test_a_context_in_which_nothing_runs_raises(tiny_vlm):
    with pytest.raises(lp.NotActed, match="no pass of this model ran"), lp.knock_out(tiny_vlm, keys=1):
        pass


def test_keys_that_a_cache_holds_already_are_still_cut_and_queries_that_it_holds_are_told(tiny_vlm):
    inputs, _ = tiny_vlm.model_inputs(photo(), "What is this?")
    with torch.no_grad():
        held = tiny_vlm.model(**inputs, use_cache=True)
        token = {"input_ids": torch.tensor([[5]]), "past_key_values": held.past_key_values}
        last = inputs["input_ids"].shape[1]
        with pytest.raises(lp.NotActed, match="cache"), lp.knock_out(tiny_vlm, keys=1, queries=last - 1):
            tiny_vlm.model(**token)


WRONG = {
    "a layer": ({"keys": 1, "layers": 99}, lp.OutOfRange, "blocks 0 to 5"),
    "a head": ({"keys": 1, "heads": 99}, lp.OutOfRange, "heads 0 to 3"),
    "a negative position": ({"keys": -1}, lp.OutOfRange, "count from 0"),
    "layers the wrong way": ({"keys": 1, "layers": range(4, 1)}, lp.BadInput, "runs the other way"),
    "keys and what is kept": ({"keys": 1, "keep": 2}, lp.BadInput, "give one of the two"),
    "neither": ({}, lp.BadInput, "give one of the two"),
    "no place": ({"keys": 1.5}, lp.BadInput, "takes a whole number, text, a Place, a Region, a list"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_meant_is_a_sentence(name, tiny_vlm):
    given, kind, why = WRONG[name]
    with pytest.raises(kind, match=why), lp.knock_out(tiny_vlm, **given):
        pass


def test_a_word_that_is_nowhere_is_a_sentence(tiny_vlm):
    with pytest.raises(lp.OutOfRange, match="neither a word"), lp.knock_out(tiny_vlm, keys="zebra"):
        tiny_vlm.generate(photo(), "What is this?")


def test_a_plan_says_what_will_happen_before_anything_runs(tiny_vlm):
    with (
        pytest.raises(lp.NotActed),
        lp.knock_out(tiny_vlm, keys=lp.IMAGE, queries="last", layers=[1, 2], heads=0) as cut,
    ):
        plan = cut.plan()
    assert "LlamaAttention (sdpa) of blocks 1, 2, heads 0" in plan
    assert "queries: last" in plan and "keys: image" in plan and "they are not looked at" in plan
    trace = tiny_vlm.generate(photo(), "What is this?", max_new_tokens=1)
    assert f"keys: image: {len(visual(trace))} positions" in cut.plan(trace) and "'ASSISTANT:'" in cut.plan(trace)


# --- what remembers it ---


def test_a_trace_says_so_and_comes_back_equal(tiny_vlm, tmp_path):
    with lp.knock_out(tiny_vlm, keys=lp.IMAGE, queries="last", layers=[1, 2], heads=0):
        trace = tiny_vlm.generate(photo(), "What is this?")
    told = {"kind": "knock_out", "keys": "image", "queries": "last", "layers": [1, 2], "heads": [0], "phase": "both"}
    assert trace.interventions == (told,)
    assert lp.Trace.load(trace.save(tmp_path / "cut.trace")) == trace
    assert "under knock_out(keys='image', queries='last', layers=[1, 2], heads=[0], phase='both')" in repr(trace)
    assert "under knock_out" in trace._repr_html_()
    printed = Console(record=True, width=200, file=io.StringIO())
    show(trace, console=printed)
    assert "under knock_out(keys='image'" in printed.export_text()
    assert tiny_vlm.generate(photo(), "What is this?") != trace


def test_a_store_made_under_one_is_not_mixed(tiny_vlm, tmp_path):
    rows = [{"image": photo(seed=n), "question": "What is this?", "id": str(n)} for n in range(3)]
    lp.extract(tiny_vlm, rows, tmp_path / "plain", layers=[3])
    with pytest.raises(lp.BadInput, match="interventions"), lp.knock_out(tiny_vlm, keys=lp.IMAGE):
        lp.extract(tiny_vlm, rows, tmp_path / "plain", layers=[3])
    with lp.knock_out(tiny_vlm, keys=lp.IMAGE):
        lp.extract(tiny_vlm, rows, tmp_path / "cut", layers=[3], pack=False)
    with pytest.raises(lp.BadInput, match="interventions"):
        lp.extract(tiny_vlm, rows, tmp_path / "cut", layers=[3], pack=False)
    with pytest.raises(lp.NotActed, match="no pass"), lp.knock_out(tiny_vlm, keys=lp.IMAGE):
        lp.extract(tiny_vlm, rows, tmp_path / "cut", layers=[3], pack=False)  # all of it is there already


def test_generated_answers_of_an_extraction_are_the_intervened_models(tiny_vlm, tmp_path):
    rows = [{"image": tiny.scene(34).image, "question": "What is the text on the stop sign?", "id": "0"}]
    with lp.knock_out(tiny_vlm, keys=lp.IMAGE):
        features = lp.extract(tiny_vlm, rows, tmp_path, layers=[3], max_new_tokens=5, pack=False)
        trace = tiny_vlm.generate(rows[0]["image"], rows[0]["question"], max_new_tokens=5)
    assert features.column("answer") == [trace.answer]


def test_maps_of_a_trace_are_made_again_under_it(tiny_vlm):
    trace = tiny_vlm.generate(tiny.scene(34).image, "What is the text on the stop sign?")
    assert lp.attribute(tiny_vlm, trace, "attention").about["forwards"] == 0
    with lp.knock_out(tiny_vlm, keys=lp.IMAGE):
        assert not lp.attribute(tiny_vlm, trace, "attention").values.any()


# --- contexts and passes as people have them ---


def changed(vlm, inputs):
    """The last logits of a pass by hand."""
    with torch.no_grad():
        return vlm.model(**inputs).logits[0, -1]


@pytest.fixture
def plain_inputs(tiny_vlm):
    return tiny_vlm.model_inputs(tiny.scene(34).image, "What is the text on the stop sign?")[0]


def test_contexts_that_do_not_nest_end_each_by_itself(tiny_vlm, plain_inputs):
    plain = changed(tiny_vlm, plain_inputs)
    alone = []
    for keys in (lp.IMAGE, [1, 2]):
        with lp.knock_out(tiny_vlm, keys=keys):
            alone.append(changed(tiny_vlm, plain_inputs))
    one, two = lp.knock_out(tiny_vlm, keys=lp.IMAGE), lp.knock_out(tiny_vlm, keys=[1, 2])
    one.__enter__()
    two.__enter__()
    changed(tiny_vlm, plain_inputs)
    one.__exit__(None, None, None)
    assert torch.equal(changed(tiny_vlm, plain_inputs), alone[1])
    two.__exit__(None, None, None)
    assert torch.equal(changed(tiny_vlm, plain_inputs), plain)
    assert tiny_vlm.generate(photo(), "What is this?", max_new_tokens=1).interventions == ()


def test_a_task_that_outlives_the_context_runs_plain(tiny_vlm, plain_inputs):
    from contextvars import copy_context

    plain = changed(tiny_vlm, plain_inputs)
    with lp.knock_out(tiny_vlm, keys=lp.IMAGE):
        within = copy_context()
        cut = within.run(changed, tiny_vlm, plain_inputs)
    assert not torch.equal(cut, plain)
    assert torch.equal(within.run(changed, tiny_vlm, plain_inputs), plain)
    with lp.knock_out(tiny_vlm, keys=1):
        changed(tiny_vlm, plain_inputs)
        assert torch.equal(within.run(changed, tiny_vlm, plain_inputs), plain)
    trace = within.run(lambda: tiny_vlm.generate(photo(), "What is this?", max_new_tokens=1))
    assert trace.interventions == ()


def test_it_acts_through_every_vlm_of_its_model(tiny_vlm):
    other = lp.VLM(tiny_vlm.model, tiny_vlm.processor)
    asked = (tiny.scene(34).image, "What is the text on the stop sign?")
    with lp.knock_out(tiny_vlm, keys=lp.IMAGE):
        mine, theirs = (vlm.generate(*asked, max_new_tokens=2) for vlm in (tiny_vlm, other))
    assert torch.equal(mine.logits, theirs.logits) and theirs.interventions
    with lp.knock_out(tiny_vlm, keys=lp.IMAGE, layers=0), lp.knock_out(other, keys=[1], layers=1):
        both = other.generate(*asked, max_new_tokens=2)
    assert len(both.interventions) == 2


def test_a_word_means_the_prompts_whether_the_answer_is_given_or_not():
    vlm = exact()
    for given in ({"keys": "stop"}, {"keys": "stop", "queries": "last"}):
        with lp.knock_out(vlm, **given):
            trace = vlm.generate(photo(), QUESTION, **NEW)
        answer = [*vlm.processor.tokenizer(" stop sign", add_special_tokens=False).input_ids, *trace.generated_ids]
        with lp.knock_out(vlm, **given):
            scored = vlm.score(photo(), QUESTION, answer, capture=lp.Capture(attention_positions="all"))
        places = list(scored.find("stop", "prompt"))
        assert scored.find("stop", "generated")
        assert not scored.rows(at=[scored.prompt_length - 1])[..., places].any()
        assert scored.rows(at="predicting")[..., list(scored.find("stop", "generated"))].any()


def test_a_kernel_that_is_switched_inside_is_reached_too():
    vlm = lp.VLM(random_llava(attention="eager"), llava_processor())
    inputs = [vlm.model_inputs(photo(seed=seed), QUESTION)[0] for seed in (0, 1)]
    with lp.knock_out(vlm, keys=lp.IMAGE):
        for kernel in ("eager", "sdpa"):
            vlm.model.set_attn_implementation(kernel)
            assert torch.equal(*(changed(vlm, each) for each in inputs))
        vlm.model.set_attn_implementation("flex_attention")
        with torch.compiler.set_stance("force_eager"), pytest.raises(lp.errors.BadModel, match="flex_attention"):
            changed(vlm, inputs[0])


def test_padding_on_either_side_is_read_from_the_mask():
    vlm = exact()
    inputs = vlm.model_inputs(photo(), QUESTION)[0]
    ids, pads = inputs["input_ids"], torch.zeros(1, 3, dtype=torch.long)
    for given in ({"keys": lp.IMAGE, "queries": "last"}, {"keys": [1, 2], "queries": [40, 41]}):
        with lp.knock_out(vlm, **given):
            alone = changed(vlm, inputs)
            for order, last in ((lambda a, b: [a, b], -4), (lambda a, b: [b, a], -1)):
                padded = {**inputs, "input_ids": torch.cat(order(ids, pads), 1)}
                padded["attention_mask"] = torch.cat(order(torch.ones_like(ids), pads), 1)
                with torch.no_grad():
                    found = vlm.model(**padded).logits[0, last]
                torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-3)  # rotary angles are float32's


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_batch_by_hand_is_cut_as_a_batch_of_ours(cache):
    vlm = exact()
    asked = [(photo(), QUESTION), (photo(30, 90, 1), "where")]
    encoded = vlm.processor(
        images=[image for image, _ in asked],
        text=[f"USER: <image>\n{question}\nASSISTANT:" for _, question in asked],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    kwargs = {**NEW, **({"cache_implementation": "static"} if cache == "static" else {})}
    for keys in (lp.IMAGE, [1, 2]):
        with lp.knock_out(vlm, keys=keys, queries=lp.LAST) as cut:
            ours = vlm.generate_batch(asked, **kwargs)
            acts = [act.count for act in cut.acts]
        with lp.knock_out(vlm, keys=keys, queries=lp.LAST) as by_hand:
            out = vlm.model.generate(
                **encoded.to(torch.float64), **kwargs, return_dict_in_generate=True, output_logits=True
            )
        for row, trace in enumerate(ours):
            found = torch.stack([step[row] for step in out.logits]).double()
            torch.testing.assert_close(found, trace.logits.double(), atol=1e-5, rtol=1e-5)
        assert [act.count for act in by_hand.acts] == acts


def test_passes_by_hand_that_do_not_belong_together_are_told_apart():
    vlm = exact()
    inputs = vlm.model_inputs(photo(), QUESTION)[0]
    with lp.knock_out(vlm, keys=lp.IMAGE, queries="last"):
        whole = changed(vlm, inputs)
    with lp.knock_out(vlm, keys=lp.IMAGE, queries="last"):
        changed(
            vlm,
            {**inputs, "input_ids": inputs["input_ids"][:, :-1], "attention_mask": inputs["attention_mask"][:, :-1]},
        )
        assert torch.equal(changed(vlm, inputs), whole)
    with torch.no_grad(), lp.knock_out(vlm, keys="stop"):
        held = vlm.model(**inputs).past_key_values
        vlm.model(**vlm.model_inputs(photo(seed=1), QUESTION)[0])  # another cache, as long as the first
        with pytest.raises(lp.BadInput, match="cache that was made before"):
            vlm.model(input_ids=torch.tensor([[5]]), past_key_values=held)
    with pytest.raises(lp.BadInput, match="fed in parts"), lp.knock_out(vlm, keys=lp.IMAGE):
        vlm.model.generate(**inputs, **NEW, prefill_chunk_size=8)


def test_guidance_of_any_length_is_none_of_the_run(tiny_vlm):
    scene = tiny.scene(34)
    asked = (scene.image, "What is the text on the stop sign?")
    plain = tiny_vlm.generate(*asked, max_new_tokens=3, min_new_tokens=3)
    length = plain.prompt_length
    inputs = tiny_vlm.model_inputs(*asked)[0]
    for beside in (length - 1, length, length + 1, length + 2):
        given = {"guidance_scale": 1.5, "negative_prompt_ids": torch.full((1, beside), 7)}
        trace = tiny_vlm.generate(*asked, max_new_tokens=3, min_new_tokens=3, **given)
        out = tiny_vlm.model.generate(
            **inputs, max_new_tokens=3, min_new_tokens=3, **given,
            return_dict_in_generate=True, output_hidden_states=True,
        )  # fmt: skip
        states = torch.stack([torch.stack([layer[0, -1] for layer in step]) for step in out.hidden_states])
        torch.testing.assert_close(trace.hidden_states, states, atol=1e-5, rtol=1e-5)


def test_a_run_inside_a_run_is_told_apart(tiny_vlm):
    asked = (tiny.scene(34).image, "What is the text on the stop sign?")
    plain = tiny_vlm.generate(*asked, max_new_tokens=3)

    class Asks:
        def __call__(self, ids, scores):
            tiny_vlm.score(tiny.scene(92).image, "What colour is it?", "red")
            return scores

    trace = tiny_vlm.generate(*asked, max_new_tokens=3, logits_processor=[Asks()])
    assert torch.equal(trace.attention, plain.attention) and torch.equal(trace.hidden_states, plain.hidden_states)


def test_threads_that_share_a_context_are_told_apart(tiny_vlm):
    from concurrent.futures import ThreadPoolExecutor
    from contextvars import copy_context

    questions = ["What is the text on the stop sign?", "Is there a stop here, and what colour is the stop sign?"]
    inputs = [tiny_vlm.model_inputs(tiny.scene(34).image, question)[0] for question in questions]
    with lp.knock_out(tiny_vlm, keys="stop"):
        truth = [changed(tiny_vlm, each) for each in inputs]
        with ThreadPoolExecutor(4) as pool:
            runs = [pool.submit(copy_context().run, changed, tiny_vlm, inputs[n % 2]) for n in range(24)]
        for number, run in enumerate(runs):
            torch.testing.assert_close(run.result(), truth[number % 2], atol=1e-4, rtol=1e-4)


def test_blocks_that_are_computed_again_are_refused():
    vlm = lp.VLM(random_llava(), llava_processor())
    vlm.model.gradient_checkpointing_enable()
    vlm.model.train()
    inputs = vlm.model_inputs(photo(), QUESTION)[0]
    with pytest.raises(lp.errors.BadModel, match="gradient checkpointing"), lp.knock_out(vlm, keys=lp.IMAGE):
        vlm.model(**inputs).logits.sum().backward()
    with lp.knock_out(vlm, keys=lp.IMAGE), torch.no_grad():
        vlm.model(**inputs)


def test_a_kernel_of_ones_own_is_given_the_mask(monkeypatch):
    def sharper(module, query, key, value, attention_mask, scaling=None, **_kwargs):
        key, value = (each.repeat_interleave(query.shape[1] // key.shape[1], 1) for each in (key, value))
        mask = torch.ones(query.shape[2], key.shape[2]).bool().tril() if attention_mask is None else attention_mask
        mask = mask if module.is_causal else torch.ones(1).bool()
        logits = (query @ key.transpose(2, 3) * scaling * 2).masked_fill(~mask, float("-inf"))
        return (torch.softmax(logits, -1) @ value).transpose(1, 2), None

    AttentionInterface.register("sharper", sharper)
    AttentionMaskInterface.register("sharper", sdpa_mask)
    vlm = exact()
    vlm.model.set_attn_implementation("sharper")
    inputs = vlm.model_inputs(photo(), QUESTION)[0]
    plain = changed(vlm, inputs)
    with lp.knock_out(vlm, keys=1, queries=2, layers=0):
        cut = changed(vlm, inputs)
    assert 0 < float((cut - plain).abs().max()) < 0.5 * float(plain.abs().max())


def test_a_copy_made_inside_is_no_part_of_it(tiny_vlm, plain_inputs):
    import copy
    import pickle

    before = [len(each._forward_hooks) for each in tiny_vlm.model.modules()]
    plain = changed(tiny_vlm, plain_inputs)
    with lp.knock_out(tiny_vlm, keys=lp.IMAGE) as cut:
        twin = copy.deepcopy(tiny_vlm.model)
        with torch.no_grad():
            assert torch.equal(twin(**plain_inputs).logits[0, -1], plain)
        assert not cut.acts
        changed(tiny_vlm, plain_inputs)
    assert [len(each._forward_hooks) for each in tiny_vlm.model.modules()] == before
    fresh = lp.VLM(random_llava(), llava_processor())
    with pytest.raises(lp.NotActed), lp.knock_out(fresh, keys=1):
        twin = pickle.loads(pickle.dumps(fresh))
    assert twin.generate(photo(), QUESTION, max_new_tokens=1) == fresh.generate(photo(), QUESTION, max_new_tokens=1)


@pytest.mark.parametrize("given", [{"keys": torch.tensor([True, False])}, {"keys": 1, "layers": torch.tensor([True])}])
def test_a_mask_is_no_list_of_positions(tiny_vlm, given):
    with (
        pytest.raises(lp.BadInput, match=r"=\.\.\.\) takes a whole number, .*; got Tensor of shape .* torch.bool"),
        lp.knock_out(tiny_vlm, **given),
    ):
        pass


def test_what_is_cut_twice_acts_once(tiny_vlm, plain_inputs):
    again = lp.knock_out(tiny_vlm, keys=[0], queries=[1])
    with lp.knock_out(tiny_vlm, keys=[0], queries=[1]) as first, pytest.raises(lp.NotActed, match="could see"), again:
        changed(tiny_vlm, plain_inputs)
    assert first.acts


def test_pairs_are_counted_in_every_row(tiny_vlm):
    with lp.knock_out(tiny_vlm, keys=1, queries=lp.GENERATED, layers=0) as cut:
        tiny_vlm.generate(photo(), "What is this?", max_new_tokens=2, min_new_tokens=2, num_beams=3)
    assert [act.count for act in cut.acts] == [3]


def test_adapters_that_put_tokens_of_their_own_ahead_are_refused():
    peft = pytest.importorskip("peft")
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    model = peft.get_peft_model(random_llava(), config)
    with pytest.raises(lp.errors.BadModel, match="5 virtual tokens"):
        lp.VLM(model, llava_processor())


def test_three_that_hold_in_different_layers_cut_each_its_own():
    """Two beside the kernel, in other blocks; a third by the mask: its mask hides nothing of theirs elsewhere."""
    vlm = exact()
    trace = answered(vlm)
    with (
        lp.knock_out(vlm, keys=[1, 2], queries="last", layers=[0, 1]),
        lp.knock_out(vlm, keys=[3], queries="last", layers=[2, 3]),
        lp.knock_out(vlm, keys=[0]) as everywhere,
    ):
        rows = vlm.rerun(trace, answer=trace.generated_ids).rows(at="last")  # [1, layers, heads, K]
    assert not rows[..., 0].any()
    assert not rows[:, :2][..., [1, 2]].any() and (rows[:, 2:][..., [1, 2]] > 0).all()
    assert not rows[:, 2:][..., 3].any() and (rows[:, :2][..., 3] > 0).all()
    assert len({act.count for act in everywhere.acts if act.step == 0}) == 1
