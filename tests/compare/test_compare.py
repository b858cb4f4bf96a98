"""Two traces beside each other: nothing of a trace and itself, and of a changed head that head, by dense formulae."""

import json

import pytest
import torch
from torch.nn.functional import kl_div

import llava_probe as lp
from llava_probe import tiny
from llava_probe.compare.alignment import align
from tests.compare.changed import with_a_head_changed
from tests.models import photo

QUESTION = "What colour is the circle?"
EVERYTHING = lp.Capture(positions="all")
LAYER, HEAD = 3, 3  # moved, the answer stays


@pytest.fixture(scope="module")
def picture():
    return tiny.scene(92).image


@pytest.fixture(scope="module")
def plain(tiny_vlm, picture):
    return tiny_vlm.generate(picture, QUESTION, capture=EVERYTHING)


@pytest.fixture(scope="module")
def changed():
    return with_a_head_changed(LAYER, HEAD)


@pytest.fixture(scope="module")
def other(changed, picture):
    return changed.generate(picture, QUESTION, capture=EVERYTHING)


@pytest.fixture(scope="module")
def found(tiny_vlm, changed, plain, other):
    return lp.compare(plain, other, models=(tiny_vlm, changed))


def dense(vlm, trace, layer, at):
    """[rows, V] log-probabilities of the lens by its published formula."""
    inside = vlm.model.model.language_model
    states = trace.hidden(layer=layer, at=at)
    if layer < len(inside.layers):
        spread = states.pow(2).mean(-1, keepdim=True)
        states = inside.norm.weight * states / (spread + inside.norm.variance_epsilon).sqrt()
    return torch.log_softmax((states @ vlm.model.lm_head.weight.T).double(), -1).detach()


def test_a_trace_and_itself_differ_in_nothing(tiny_vlm, plain):
    found = lp.compare(plain, plain, models=tiny_vlm)
    assert not found.left_out and found.same_answer and found.drift.begins is None and found.lens.parting is None
    assert len(found.largest) == 8 and set(found.largest.values()) == {0.0}
    assert "hidden states are the same" in str(found) and "heads that write otherwise on the same states: none" in str(
        found
    )


def test_the_same_question_asked_twice_differs_in_nothing(tiny_vlm, picture, plain):
    again = lp.load().generate(picture, QUESTION, capture=EVERYTHING)
    assert set(lp.compare(plain, again, models=(tiny_vlm, lp.load())).largest.values()) == {0.0}


@pytest.mark.parametrize("weight", ["o_proj", "v_proj", "q_proj", "k_proj"])
def test_a_changed_head_is_the_only_one_that_moved(tiny_vlm, plain, weight):
    changed = with_a_head_changed(1, 3, weight=weight, factor=1.1)
    found = lp.compare(plain, changed.rerun(plain), models=(tiny_vlm, changed))
    first = found.heads(1)[0]
    assert (first.layer, first.head) == (1, 3) and first.moved > 0
    assert int((found.own.moved > 0).sum()) == 1
    assert found.drift.begins == 2
    assert bool((found.looking.moved[2:] > 0).any()), "the heads behind it look elsewhere in their own runs"


def test_how_far_a_head_moved_is_the_length_of_what_it_writes(tiny_vlm, plain, changed, found):
    given = []
    attention = tiny_vlm.model.model.language_model.layers[LAYER].self_attn
    hook = attention.o_proj.register_forward_hook(lambda module, args, output: given.append(args[0][0]))
    inputs, _ = tiny_vlm.model_inputs(plain.images[0], QUESTION)
    ids = torch.tensor([[token.id for token in plain.tokens[:-1]]])
    with torch.no_grad():
        tiny_vlm.model(input_ids=ids, pixel_values=inputs["pixel_values"])
    hook.remove()
    rows = given[0][list(plain.predicting)].unflatten(1, (-1, attention.head_dim))  # [T, H, d]
    writes = torch.einsum("thd,ohd->tho", rows, attention.o_proj.weight.unflatten(1, (-1, attention.head_dim)))
    lengths = writes.norm(dim=2)
    expected = (4 * lengths.detach()[:, HEAD] / lengths.detach().mean(1)).mean()  # −3 w less w
    assert float(found.own.moved[LAYER, HEAD]) == pytest.approx(float(expected), rel=1e-5)


def test_drift_is_the_distance_of_transformers_own_states(tiny_vlm, changed, plain, found):
    inputs, _ = tiny_vlm.model_inputs(plain.images[0], QUESTION)
    ids = torch.tensor([[token.id for token in plain.tokens[:-1]]])
    given = {"input_ids": ids, "pixel_values": inputs["pixel_values"], "output_hidden_states": True}
    with torch.no_grad():
        one, two = (torch.cat(vlm.model(**given).hidden_states) for vlm in (tiny_vlm, changed))
    apart = (two - one).norm(dim=2) / one.norm(dim=2)
    angle = 1 - torch.cosine_similarity(one.double(), two.double(), dim=2)
    visual = [token.position for token in plain.tokens if token.role == "image"]
    words = [place for place in range(plain.prompt_length - 1) if place not in visual]
    places = {"image": visual, "prompt": words, "predicting": list(plain.predicting)}
    assert found.drift.groups == tuple(places) and found.drift.counts == tuple(map(len, places.values()))
    for row, at in enumerate(places.values()):
        torch.testing.assert_close(found.drift.distance[row].float(), apart[:, at].mean(1), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.drift.angle[row], angle[:, at].mean(1), atol=1e-6, rtol=1e-4)


def test_kl_is_torchs_of_the_lens(tiny_vlm, changed, plain, other, found):
    assert found.lens.layers == tuple(range(7))
    for layer, kl in zip(found.lens.layers, found.lens.kl, strict=True):
        one, two = dense(tiny_vlm, plain, layer, lp.PREDICTING), dense(changed, other, layer, lp.PREDICTING)
        expected = kl_div(two, one, reduction="none", log_target=True).sum(1)
        torch.testing.assert_close(kl, expected, atol=1e-6, rtol=1e-3)


@pytest.fixture(scope="module")
def blind(tiny_vlm, picture):
    with lp.knock_out(tiny_vlm, keys="image", queries="last"):
        return tiny_vlm.generate(picture, QUESTION, capture=EVERYTHING)


def test_answers_part_from_the_layer_on_where_each_prefers_its_own(tiny_vlm, plain, blind):
    found = lp.compare(plain, blind, models=tiny_vlm)
    assert not found.same_answer and len(found.alignment.shared) == 1
    mine, theirs = plain.generated[0].id, blind.generated[0].id
    holds = []
    for layer in range(7):
        one, two = (dense(tiny_vlm, trace, layer, [trace.prompt_length - 1])[0] for trace in (plain, blind))
        holds.append(bool(one[mine] > one[theirs]) and bool(two[theirs] > two[mine]))
    assert holds[-1] and not all(holds)
    assert found.lens.parting == max(layer for layer in range(7) if not holds[layer]) + 1
    assert f"each layer from hidden state {found.lens.parting} on would say its own" in str(found)
    assert "under an intervention" in found.left_out["own heads"]


def test_rows_and_shares_are_what_the_traces_kept(plain, blind, found, other):
    one, two = plain.attention.double(), other.attention.double()
    torch.testing.assert_close(found.looking.moved, (one - two).abs().sum(-1).mean(0) / 2, atol=1e-7, rtol=1e-6)
    cut = lp.compare(plain, blind)
    visual = [token.position for token in plain.tokens if token.role == "image"]
    before = plain.attention[0, ..., visual].double().sum(-1)
    torch.testing.assert_close(cut.looking.share("image"), -before, atol=1e-6, rtol=1e-5)
    with pytest.raises(lp.BadInput, match="a share is one of image"):
        cut.looking.share("sky")


def test_maps_are_those_of_each_and_their_difference(plain, other, found):
    one, two = lp.attention_map(plain), lp.attention_map(other)
    assert torch.equal(found.maps.a.values, one.values) and torch.equal(found.maps.b.values, two.values)
    assert torch.equal(found.maps.difference.values, two.values - one.values)
    assert found.maps.highest == float(torch.maximum(one.values, two.values).max())


def test_confidence_stands_beside_each_word(plain, found, other):
    columns = found.to_dict()
    one, two = (lp.confidence(trace).probability.double() for trace in (plain, other))
    assert columns["change"] == pytest.approx((two - one).tolist(), abs=1e-7)
    assert columns["a"] == [token.text for token in plain.generated]
    assert json.loads(json.dumps(columns)) == columns and found.table().splitlines()[0].split()[:2] == ["a", "b"]


def test_two_pictures_are_compared_word_by_word(tiny_vlm):
    described = [tiny_vlm.generate(tiny.scene(seed).image, "Describe the image.") for seed in (92, 93)]
    found = lp.compare(*described, models=tiny_vlm)
    texts = [[None if token is None else token.text for token in pair] for pair in found.tokens]
    assert [one for one, _ in texts if one is not None] == [token.text for token in described[0].generated]
    assert any(one is None for one, _ in texts) and "–" in found.table()
    assert None in found.to_dict()["p(a)"]
    assert found.alignment == align(*described) and len(found.lens.kl[0]) == len(found.alignment.shared)
    assert not bool(found.own.moved.any()) and found.heads(1)[0].moved == float(found.looking.moved.max())


def test_what_cannot_be_compared_is_told(tiny_vlm, random_vlm, plain, picture):
    alone = lp.compare(plain, plain)
    assert set(alone.left_out) == {"lens", "own heads"} and "a trace holds no model" in str(alone)
    stranger = random_vlm.generate(photo(), "what is it", max_new_tokens=2)
    found = lp.compare(plain, stranger, models=(tiny_vlm, random_vlm))
    assert {"drift", "attention", "lens", "own heads"} <= set(found.left_out)
    assert "states of other sizes" in found.left_out["drift"] and "other depths" in found.left_out["lens"]
    little = lp.Capture(attention=False, hidden_states=False, logits=False)
    nothing = tiny_vlm.generate(picture, QUESTION, capture=little)
    found = lp.compare(plain, nothing)
    assert found.probability is None and "Capture(logits=True)" in found.left_out["confidence"]
    assert (
        "Capture(attention=True)" in found.left_out["maps"] and "Capture(hidden_states=True)" in found.left_out["drift"]
    )
    with pytest.raises(lp.BadInput, match="models= takes the model of both traces"):
        lp.compare(plain, plain, models=[tiny_vlm] * 3)
