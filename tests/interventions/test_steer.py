"""A push adds what plain hooks add; its norm is measured and told; directions are those of their sources."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import llava_probe as lp
from llava_probe import tiny
from tests.interventions.by_hand import layers_of, passed, steps
from tests.models import llava_processor, photo, random_llava

QUESTION = "what is the text on the stop sign"
NEW = {"max_new_tokens": 4, "min_new_tokens": 4, "suppress_tokens": [3]}


@pytest.fixture(scope="module")
def vlm():
    return lp.VLM(random_llava().double(), llava_processor())


@pytest.fixture(scope="module")
def plain(vlm):
    return vlm.generate(photo(), QUESTION, **NEW)


@pytest.fixture(scope="module")
def vector():
    return torch.randn(64, generator=torch.Generator().manual_seed(0))


def visual(trace):
    return [token.position for token in trace.tokens if token.role == "image"]


@pytest.mark.parametrize("project_out", [False, True])
def test_states_are_pushed_as_by_hand(project_out, vlm, plain, vector):
    with lp.steer(vlm, vector * 7, layers=[1, 3], scale=0.8, at=["image", "last"], project_out=project_out) as push:
        scored = vlm.rerun(plain, answer=plain.generated_ids)
    unit = (vector / vector.norm()).double()
    places = [*visual(plain), plain.prompt_length - 1]

    def pushed(layer):
        def push_by_hand(state):
            state = state.clone()
            own = state[0, places]
            if project_out:
                state[0, places] = own - 0.8 * (own @ unit)[:, None] * unit
            else:
                state[0, places] = own + 0.8 * push.norms[layer] * unit
            return state

        return push_by_hand

    out = passed(vlm, plain, [(layers_of(vlm)[layer], "in", pushed(layer)) for layer in (1, 3)])
    torch.testing.assert_close(scored.logits, steps(scored, out), atol=1e-4, rtol=1e-5)
    assert {act.layer: act.count for act in push.acts} == {1: len(places), 3: len(places)}


def test_what_lies_along_a_direction_is_gone(vlm, vector):
    with lp.steer(vlm, vector, layers=2, project_out=True):
        trace = vlm.generate(photo(), QUESTION, capture=lp.Capture(positions="all"), **NEW)
    along = trace.hidden(layer=2, at=lp.ALL).float() @ (vector / vector.norm())
    assert float(along.abs().max()) < 1e-5 * float(trace.hidden(layer=2, at=lp.ALL).norm(dim=-1).max())


def test_the_typical_norm_is_the_median_of_a_prompts_states(vlm, vector):
    with lp.steer(vlm, vector, layers=[0, 2, 4]) as push:
        vlm.generate(photo(), QUESTION, **NEW)
    seen = vlm.generate(
        tiny.scene(0).image, "What is in the picture?", max_new_tokens=1, capture=lp.Capture(positions="prompt")
    )
    everywhere = seen.hidden(at=list(range(seen.prompt_length))).float().norm(dim=-1).median(0).values
    assert push.norms == pytest.approx({layer: float(everywhere[layer]) for layer in (0, 2, 4)}, rel=1e-5)
    assert f"2: {push.norms[2]:.3g}" in push.plan()


def test_a_last_state_is_pushed_behind_the_final_norm(vlm, plain, vector):
    with lp.steer(vlm, vector, layers=4, at="last") as push:
        trace = vlm.generate(photo(), QUESTION, max_new_tokens=1)
    moved = plain.hidden(layer=4)[0].double() + push.norms[4] * (vector / vector.norm()).double()
    logits = moved @ vlm.model.lm_head.weight.double().T
    torch.testing.assert_close(trace.logits[0].double(), logits, atol=1e-4, rtol=1e-4)


def test_a_random_direction_goes_as_far_elsewhere(vlm, plain, vector):
    with lp.steer(vlm, vector, layers=2, at="last", random=5) as push:
        one = vlm.generate(photo(), QUESTION, **NEW)
    with lp.steer(vlm, lp.Direction(vector).random(5), layers=2, at="last"):
        same = vlm.generate(photo(), QUESTION, **NEW)
    assert torch.equal(one.logits, same.logits)
    went = one.hidden(layer=2)[0] - plain.hidden(layer=2)[0]
    assert float(went.norm()) == pytest.approx(push.norms[2], rel=1e-5)
    assert abs(float(torch.cosine_similarity(went.float(), vector, dim=0))) < 0.5


def test_batches_caches_and_beams_are_pushed_alike(vlm, plain, vector):
    given = {"direction": vector, "layers": 2, "scale": 0.7, "at": "question"}
    asked = [(photo(), QUESTION), (photo(30, 90, 1), "where")]
    with lp.steer(vlm, **given):
        for (image, question), together in zip(asked, vlm.generate_batch(asked, **NEW), strict=True):
            alone = vlm.generate(image, question, **NEW)
            torch.testing.assert_close(together.logits, alone.logits, atol=1e-5, rtol=1e-5)
        for setting in ({"num_beams": 2}, {"cache_implementation": "static"}, {"prefill_chunk_size": 16}):
            decoded = vlm.generate(photo(), QUESTION, **NEW, **setting)
            scored = vlm.rerun(plain, answer=decoded.generated_ids)
            torch.testing.assert_close(decoded.logits, scored.logits, atol=1e-4, rtol=1e-4)


def test_no_push_raises_unless_it_is_allowed_and_is_the_plain_run_to_the_bit(vlm, plain, vector):
    for project_out in (False, True):
        given = {"layers": 2, "scale": 0.0, "project_out": project_out}
        with pytest.raises(lp.NotActed, match="scale=0"), lp.steer(vlm, vector, **given):
            vlm.generate(photo(), QUESTION, **NEW)
        with lp.steer(vlm, vector, **given, allow_nothing=True):
            assert vlm.generate(photo(), QUESTION, **NEW).logits.equal(plain.logits)


def test_the_order_counts_where_it_must(vlm, vector):
    """To push and then to take away is to take away; the other way round leaves the push."""
    push = {"layers": 2, "at": "last"}
    unit = vector / vector.norm()
    with lp.steer(vlm, vector, **push), lp.steer(vlm, vector, **push, project_out=True):
        first = vlm.generate(photo(), QUESTION, max_new_tokens=1).hidden(layer=2)[0].float() @ unit
    with lp.steer(vlm, vector, **push, project_out=True), lp.steer(vlm, vector, **push) as pushed:
        last = vlm.generate(photo(), QUESTION, max_new_tokens=1).hidden(layer=2)[0].float() @ unit
    assert abs(float(first)) < 1e-4 and float(last) == pytest.approx(pushed.norms[2], rel=1e-4)


WRONG = {
    "another width": (torch.ones(7), lp.BadInput, "7 numbers, the hidden states 64"),
    "NaN": (torch.full((64,), float("nan")), lp.NotANumber, "NaN"),
    "nowhere": (torch.zeros(64), lp.NotANumber, "points nowhere"),
    "a matrix": (torch.ones(2, 64), lp.BadInput, r"a tensor \[D\]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_direction_is_a_sentence(name, vlm):
    given, kind, why = WRONG[name]
    with pytest.raises(kind, match=why), lp.steer(vlm, given, layers=1):
        pass


@pytest.mark.parametrize("layers", [5, range(3, 1)])
def test_states_that_are_not_there_are_a_sentence(layers, vlm, vector):
    sentence = r"hidden states 0 to 4|other way"
    with pytest.raises((lp.OutOfRange, lp.BadInput), match=sentence), lp.steer(vlm, vector, layers=layers):
        pass


# --- directions ---


def test_a_mean_difference_is_numpys(vlm):
    traces = [vlm.generate(photo(seed=seed), QUESTION, max_new_tokens=1) for seed in range(4)]
    found = lp.Direction.between(traces[:2], traces[2:], layer=3)
    states = np.stack([trace.hidden(layer=3, at="last")[0].float().numpy() for trace in traces])
    np.testing.assert_allclose(found.vector.numpy(), states[:2].mean(0) - states[2:].mean(0), rtol=1e-5, atol=1e-6)


def test_the_principal_component_of_pairs_is_scikit_learns_and_points_to_the_first_set():
    pytest.importorskip("sklearn")
    from sklearn.decomposition import TruncatedSVD

    generator = torch.Generator().manual_seed(0)
    two = torch.randn(20, 16, generator=generator)
    one = two + 3 * torch.eye(16)[4] + 0.1 * torch.randn(20, 16, generator=generator)
    found = lp.Direction.between(one, two, method="pca")
    component = TruncatedSVD(1, algorithm="arpack").fit((one - two).double().numpy()).components_[0]
    np.testing.assert_allclose(np.abs(found.unit.numpy()), np.abs(component), atol=1e-4)
    assert float(found.unit[4]) > 0.9


def test_a_words_direction_raises_its_logit_most(tiny_vlm):
    found = lp.Direction.of_word(tiny_vlm, "red")
    logits = tiny_vlm.anatomy.unembed(found.unit[None])[0]
    token = tiny_vlm.processor.tokenizer(" red", add_special_tokens=False).input_ids
    assert int(logits.argmax()) in token
    with lp.steer(tiny_vlm, found, layers=6, at="last", scale=3.0):
        trace = tiny_vlm.generate(tiny.scene(3).image, "What colour is it?", max_new_tokens=1)
    assert "red" in trace.answer


def test_a_column_of_a_store_gives_the_difference_of_its_rows(tiny_vlm, tmp_path):
    pytest.importorskip("pyarrow")
    samples = [
        {"image": tiny.scene(seed).image, "question": "What is this?", "side": "left" if seed % 2 else "right"}
        for seed in range(6)
    ]
    store = lp.extract(tiny_vlm, samples, tmp_path / "store", layers=[4], positions=["last_prompt"])
    found = lp.Direction.of_features(store, "layer_4", "last_prompt", column="side", value="left")
    rows = store["layer_4", "last_prompt"][:].float()
    left = torch.tensor([value == "left" for value in store.column("side")])
    torch.testing.assert_close(found.vector, rows[left].mean(0) - rows[~left].mean(0), atol=1e-4, rtol=1e-4)
    with pytest.raises(lp.OutOfRange, match="no row says 'up'"):
        lp.Direction.of_features(store, "layer_4", "last_prompt", column="side", value="up")


@pytest.mark.parametrize(
    ("one", "two", "why"),
    [((2, 3), (2, 4), "3 and 4 numbers"), ((0, 3), (2, 3), "at least one row"), ((3,), (2, 3), "is \\[n, D\\]")],
    ids=["widths", "empty", "one row"],
)
def test_sets_that_do_not_fit_are_a_sentence(one, two, why):
    with pytest.raises(lp.BadInput, match=why):
        lp.Direction.between(torch.ones(one), torch.ones(two))


def test_pairs_are_needed_for_a_component():
    with pytest.raises(lp.BadInput, match="are of pairs"):
        lp.Direction.between(torch.rand(2, 3), torch.rand(3, 3), method="pca")
