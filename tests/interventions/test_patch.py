"""A patch puts another run's states in place, to the bit; what cannot be matched is refused."""

from __future__ import annotations

import pytest
import torch

import llava_probe as lp
from tests.interventions.by_hand import feed_of, layers_of, passed, projection_of, steps
from tests.models import llava_processor, photo, random_llava

QUESTION = "what is the text on the stop sign"
NEW = {"max_new_tokens": 4, "min_new_tokens": 4, "suppress_tokens": [3]}
PARTS = ("residual", "attention", "mlp", "head")
EVERYTHING = lp.Capture(positions="all")


@pytest.fixture(scope="module")
def vlm():
    return lp.VLM(random_llava(), llava_processor())


@pytest.fixture(scope="module")
def plain(vlm):
    return vlm.generate(photo(), QUESTION, **NEW)


@pytest.fixture(scope="module")
def other(vlm):
    return vlm.generate(photo(seed=1), QUESTION, **NEW)


def visual(trace):
    return [token.position for token in trace.tokens if token.role == "image"]


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("part", PARTS)
def test_a_run_patched_with_itself_is_itself_to_the_bit(part, kept, vlm, plain):
    source = vlm.generate(photo(), QUESTION, capture=EVERYTHING, **NEW) if kept else plain
    with lp.patch(vlm, source=source, at=lp.ALL, layers=[0, 1, 2, 3], part=part) as put:
        trace = vlm.generate(photo(), QUESTION, **NEW)
    assert torch.equal(trace.logits, plain.logits) and torch.equal(trace.hidden(), plain.hidden())
    assert {act.layer for act in put.acts} == {0, 1, 2, 3} and {act.step for act in put.acts} == {0, 1, 2, 3}


@pytest.mark.parametrize("layer", [0, 1, 2, 3, 4])
def test_all_positions_of_any_layer_give_the_sources_logits_to_the_bit(layer, vlm, plain, other):
    assert not torch.equal(plain.logits, other.logits)
    with lp.patch(vlm, source=other, at=lp.ALL, layers=layer):
        trace = vlm.generate(photo(), QUESTION, **NEW)
    assert torch.equal(trace.logits[0], other.logits[0])
    if trace.generated_ids.tolist() == other.generated_ids.tolist():
        assert torch.equal(trace.logits, other.logits)


@pytest.mark.parametrize("where", ["image", "stop", "last"])
@pytest.mark.parametrize("part", PARTS)
def test_states_at_some_positions_are_those_put_in_by_hand(part, where, vlm, plain, other):
    block, layer = layers_of(vlm)[2], 2
    side, module = {
        "residual": ("in", block),
        "attention": ("out", block.self_attn),
        "mlp": ("out", feed_of(block)),
        "head": ("in", projection_of(block)),
    }[part]
    places = plain.positions(where) if where != "stop" else list(plain.find("stop", "prompt"))
    held = []
    passed(vlm, other, [(module, side, lambda value: held.append(value) or value)])

    def put_in(value):
        value = value.clone()
        value[0, places] = held[0][0, places]
        return value

    with lp.patch(vlm, source=other, at=where, layers=layer, part=part):
        trace = vlm.rerun(plain, answer=plain.generated_ids)
    out = passed(vlm, plain, [(module, side, put_in)])
    torch.testing.assert_close(trace.logits, steps(trace, out), atol=2e-5, rtol=1e-5)
    assert not torch.equal(trace.logits, vlm.rerun(plain, answer=plain.generated_ids).logits) or where == "stop"


def test_heads_are_patched_alone(vlm, plain, other):
    projection, held = projection_of(layers_of(vlm)[1]), []
    passed(vlm, other, [(projection, "in", lambda value: held.append(value) or value)])

    def put_in(value):
        value = value.clone()
        value[0, visual(plain), 16:32] = held[0][0, visual(plain), 16:32]
        return value

    with lp.patch(vlm, source=other, at="image", layers=1, part="head", heads=1):
        trace = vlm.rerun(plain, answer=plain.generated_ids)
    out = passed(vlm, plain, [(projection, "in", put_in)])
    torch.testing.assert_close(trace.logits, steps(trace, out), atol=2e-5, rtol=1e-5)


def test_words_are_matched_by_name_in_another_prompt(vlm, plain):
    source = vlm.generate(photo(seed=1), "where is the red stop sign", capture=EVERYTHING, **NEW)
    (theirs,), (ours,) = source.find("stop", "prompt"), plain.find("stop", "prompt")
    assert theirs != ours
    with lp.patch(vlm, source=source, at="stop", layers=2) as put:
        trace = vlm.generate(photo(), QUESTION, capture=EVERYTHING, **NEW)
    assert put.positions == (theirs,) and [act.count for act in put.acts] == [1]
    assert torch.equal(trace.hidden(layer=2, at=ours), source.hidden(layer=2, at=theirs))


def test_members_of_a_batch_are_patched_each_at_its_own_places(vlm, other):
    asked = [(photo(), QUESTION), (photo(seed=3), "where is the stop sign on it")]
    with lp.patch(vlm, source=other, at=["image", "last"], layers=[1, 2]):
        batch = vlm.generate_batch(asked, **NEW)
        for (image, question), together in zip(asked, batch, strict=True):
            alone = vlm.generate(image, question, **NEW)
            torch.testing.assert_close(together.logits, alone.logits, atol=1e-4, rtol=1e-4)


def test_beams_and_caches_see_it_too(vlm, plain, other):
    for setting in ({"num_beams": 2}, {"cache_implementation": "static"}, {"prefill_chunk_size": 16}):
        with lp.patch(vlm, source=other, at="image", layers=2):
            decoded = vlm.generate(photo(), QUESTION, **NEW, **setting)
            scored = vlm.rerun(plain, answer=decoded.generated_ids)
        torch.testing.assert_close(decoded.logits, scored.logits, atol=1e-4, rtol=1e-4)


def test_a_source_that_was_drawn_or_came_from_beams_is_captured_with_its_own_answer(vlm):
    source = vlm.generate(photo(seed=1), QUESTION, num_beams=2, **NEW)
    with lp.patch(vlm, source=source, at=lp.ALL, layers=1, part="mlp") as put:
        vlm.generate(photo(), QUESTION, **NEW)
    assert put.states[1, 1].shape == (source.prompt_length + 3, 64)


def test_a_loaded_source_is_as_good(vlm, other, plain, tmp_path):
    loaded = lp.Trace.load(other.save(tmp_path / "other.trace"))
    found = []
    for source in (other, loaded):
        with lp.patch(vlm, source=source, at="image", layers=1, part="attention"):
            found.append(vlm.generate(photo(), QUESTION, **NEW))
    assert torch.equal(found[0].logits, found[1].logits)


def test_two_patches_hold_in_the_order_written(vlm, plain, other):
    third = vlm.generate(photo(seed=2), QUESTION, **NEW)
    at = {"at": "image", "layers": 1}
    with lp.patch(vlm, source=third, **at), lp.patch(vlm, source=other, **at):
        inner = vlm.generate(photo(), QUESTION, **NEW)
    with lp.patch(vlm, source=other, **at):
        alone = vlm.generate(photo(), QUESTION, **NEW)
    assert torch.equal(inner.logits, alone.logits)


# --- refused ---


def test_pictures_that_lie_otherwise_are_refused_unless_positions_are_meant(vlm):
    square = vlm.generate(photo(48, 48), QUESTION, **NEW)
    with pytest.raises(lp.BadInput, match="lie elsewhere"), lp.patch(vlm, source=square, at="image", layers=1):
        vlm.generate(photo(96, 40), QUESTION, **NEW)
    with lp.patch(vlm, source=square, at="image", layers=1, align="position"):
        vlm.generate(photo(96, 40), QUESTION, **NEW)


def test_words_of_another_length_are_refused_unless_positions_are_meant(vlm, other):
    at = {"at": "question", "layers": 1}
    with pytest.raises(lp.BadInput, match="align='position'"), lp.patch(vlm, source=other, **at):
        vlm.generate(photo(), "where", **NEW)
    with lp.patch(vlm, source=other, **at, align="position"):
        vlm.generate(photo(), "where is the stop sign", **NEW)


def test_a_source_of_another_model_is_refused(vlm, tiny_vlm, other):
    twin = lp.VLM(random_llava(seed=1), llava_processor())
    with pytest.raises(lp.BadInput, match="of another model"), lp.patch(twin, source=other, at="image", layers=1):
        pass
    with pytest.raises(lp.BadInput, match="4 layers of width 64"), lp.patch(tiny_vlm, source=other, at=1, layers=1):
        pass


def test_a_source_under_an_intervention_is_taken_as_it_was_kept_or_refused(vlm):
    with lp.knock_out(vlm, keys="image"):
        kept = vlm.generate(photo(seed=1), QUESTION, capture=EVERYTHING, **NEW)
    with lp.patch(vlm, source=kept, at="image", layers=2):
        vlm.generate(photo(), QUESTION, **NEW)
    wrong = {"source": kept, "at": "image", "layers": 2, "part": "mlp"}
    with pytest.raises(lp.BadInput, match="made under an intervention"), lp.patch(vlm, **wrong):
        pass


WRONG = {
    "a hidden state": ({"layers": 5}, lp.OutOfRange, "hidden states 0 to 4"),
    "a block": ({"layers": 4, "part": "mlp"}, lp.OutOfRange, "blocks 0 to 3"),
    "heads of the residual": ({"layers": 1, "heads": 1}, lp.BadInput, "part='head'"),
    "a word": ({"layers": 1, "at": "zebra"}, lp.OutOfRange, "neither a word"),
    "a position": ({"layers": 1, "at": 900}, lp.OutOfRange, "position 900 is not there"),
    "layers the wrong way": ({"layers": range(3, 1)}, lp.BadInput, "runs the other way"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_meant_is_a_sentence(name, vlm, other):
    given, kind, why = WRONG[name]
    with pytest.raises(kind, match=why), lp.patch(vlm, **{"source": other, "at": "image", **given}):
        pass


def test_nothing_raises_unless_it_is_allowed_and_is_the_plain_run_to_the_bit(vlm, plain, other):
    for given in ({"at": [], "layers": 1}, {"at": "image", "layers": []}):
        with pytest.raises(lp.NotActed, match="names no"), lp.patch(vlm, source=other, **given):
            vlm.generate(photo(), QUESTION, **NEW)
        with lp.patch(vlm, source=other, **given, allow_nothing=True):
            trace = vlm.generate(photo(), QUESTION, **NEW)
        assert torch.equal(trace.logits, plain.logits)


def test_a_trace_tells_what_was_put_in(vlm, other, tmp_path):
    with lp.patch(vlm, source=other, at="image", layers=1) as put:
        trace = vlm.generate(photo(), QUESTION, **NEW)
        plan = put.plan(trace)
    told = trace.interventions[0]
    assert told["kind"] == "patch" and told["at"] == "image" and told["source"]["answer"] == other.answer
    assert lp.Trace.load(trace.save(tmp_path / "put.trace")) == trace
    assert "hidden states 1 (of 0 to 4" in plan and "36 visual tokens" in plan and "on prompt and answer" in plan


def test_acts_are_the_positions_that_the_source_has(vlm, plain):
    short = vlm.generate(photo(), "where", **NEW)
    with lp.patch(vlm, source=short, at=lp.PROMPT, layers=2, align="position", phase="prompt") as put:
        vlm.rerun(plain, answer=plain.generated_ids)
    there, here = (len(trace.positions(lp.PROMPT)) for trace in (short, plain))
    assert [act.count for act in put.acts] == [there] and there < here
