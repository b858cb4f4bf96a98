"""``tokens=`` and ``at=`` are read by one reader: positions, words and places mean the same to everybody."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import llava_probe as lp
from llava_probe import tiny
from llava_probe.attribution.engine.target import targets
from llava_probe.trace.explained import PLACES, positions, spans
from llava_probe.trace.request import Request
from llava_probe.trace.tokens import Token
from tests.models import photo
from tests.synthetic import IMAGE_AT, P, T, causal, synthetic_trace

#: Of the prompt <s> USER: 6 × <image> " what" "?" and the answer " ST" "OP" " sign" </s>.
EXPECTED = {
    lp.IMAGE: list(IMAGE_AT),
    lp.TEXT: [0, 1, 8, 9],
    lp.PROMPT: [1, 8, 9],
    lp.QUESTION: [8, 9],
    lp.LAST: [9],
    lp.PREDICTING: [9, 10, 11, 12],
    lp.ANSWER: [10, 11, 12],
    lp.GENERATED: [10, 11, 12, 13],
    lp.SPECIAL: [0],
    lp.ALL: list(range(13)),
}


@pytest.fixture
def trace():
    return synthetic_trace(attention=causal(), request=Request("a prompt", question="what?"))


@pytest.fixture(scope="module")
def ambiguous(tiny_vlm):
    """A trace whose words are the names of places too, with every attention row."""
    kept = lp.Capture(attention_positions="all")
    return tiny_vlm.score(tiny.scene(34).image, "What is it?", "the image shows text", capture=kept)


def texts(trace, at):
    return "".join(trace.tokens[place].text for place in trace.positions(at)).strip()


@pytest.mark.parametrize("place", EXPECTED, ids=repr)
def test_a_place_is_where_it_says(trace, place):
    assert trace.positions(place) == trace.positions(place.name) == EXPECTED[place]
    assert trace.positions([0, place]) == [0, *EXPECTED[place]]
    assert getattr(lp, place.name.upper()) == place
    assert eval(repr(place), {"lp": lp}) == place


def test_capture_and_trace_spell_the_last_prompt_position_alike(trace):
    assert trace.positions("last_prompt") == [P - 1]
    assert set(PLACES.values()) == set(EXPECTED)


def test_a_word_is_found_in_the_answer_then_in_the_prompt(trace):
    assert trace.positions("STOP") == [P, P + 1]
    assert trace.positions("stop sign") == [P, P + 1, P + 2]
    assert trace.positions("what") == [P - 2]
    assert spans(trace, ["sign", "STOP", [P + 2, P], 0]) == [[P + 2], [P, P + 1], [P, P + 2], [0]]
    twice = synthetic_trace(answer=[" no", " sign", ",", " no", "</s>"])
    assert spans(twice, "no") == [[P], [P + 3]]


@pytest.mark.parametrize(
    "at",
    [
        [3, -1],
        np.array([3, -1]),
        torch.tensor([3, -1]),
        [np.int64(3), torch.tensor(-1)],
        (3, P + T - 1),
        range(3, 14, 10),
    ],
    ids=repr,
)
def test_positions_are_numbers_of_any_kind(trace, at):
    assert trace.positions(at) == [3, P + T - 1]
    assert trace.positions(np.int64(-1)) == trace.positions(torch.tensor(-1)) == [P + T - 1]


@pytest.mark.parametrize("at", [0.5, [True], np.ones(3, bool), [None], torch.tensor(1.0), [["STOP"]]], ids=repr)
def test_what_is_no_position_is_said(trace, at):
    with pytest.raises(lp.BadInput, match="a whole number"):
        trace.positions(at)


# --- both a word and a place ---


@pytest.mark.parametrize("name", ["image", "text"])
def test_a_word_that_names_a_place_is_refused_with_both_spellings(tiny_vlm, ambiguous, name):
    place = PLACES[name]
    readers = [
        lambda: ambiguous.positions(name),
        lambda: ambiguous.rows(at=name),
        lambda: lp.attention_map(ambiguous, tokens=name),
        lambda: lp.rollout(ambiguous, tokens=name),
        lambda: lp.heads(ambiguous, [name]),
        lambda: lp.figures.head_maps(ambiguous, name),
        lambda: lp.attribute(tiny_vlm, ambiguous, "attention", tokens=name),
        lambda: lp.evaluate.sensitivity(tiny_vlm, ambiguous, "attention", tokens=[name]),
    ]
    for read in readers:
        with pytest.raises(lp.BadInput) as caught:
            read()
        assert f"trace.find('{name}')" in str(caught.value)
        assert f"lp.{name.upper()} for the place" in str(caught.value)
    word = ambiguous.find(name)
    assert texts(ambiguous, word) == name
    assert [token.position for token in lp.attention_map(ambiguous, tokens=word).tokens] == list(word)
    assert lp.attribute(tiny_vlm, ambiguous, "attention", tokens=[word]).about["positions"] == [list(word)]
    assert {ambiguous.tokens[at].role == "image" for at in ambiguous.positions(place)} == {name == "image"}


def test_the_case_of_a_place_is_small_and_special_tokens_are_no_words(ambiguous):
    assert ambiguous.positions("Image") == list(ambiguous.find("image"))
    marked = synthetic_trace(answer=[" a", "</s>"])
    tokens = list(marked.tokens)
    tokens[0] = Token(0, "<|image|>", "special", 0)
    assert positions(synthetic_trace(tokens=tuple(tokens)), "image") == list(IMAGE_AT)


# --- the default ---


def test_none_is_the_content_words_to_everybody(tiny_vlm, ambiguous):
    word = list(ambiguous.find("text", role="generated"))  # the only word that says something of this picture
    for m in (lp.attention_map(ambiguous), lp.rollout(ambiguous), lp.attribute(tiny_vlm, ambiguous, "attention")):
        assert m.about["tokens"] == "content words"
        assert [place for row in m.about["positions"] for place in row] == word
    assert [token.position for token in lp.heads(ambiguous).tokens] == word


def test_every_function_gives_a_word_one_row():
    trace = synthetic_trace(attention=causal(), answer=[" ST", "OP", " sign", "."])
    m = lp.attention_map(trace)
    assert [token.text for token in m.tokens] == [" STOP", " sign"]
    assert m.about["positions"] == [[P, P + 1], [P + 2]]
    assert [token.text for token in lp.heads(trace).tokens] == [" STOP", " sign"]
    assert len(lp.attention_map(trace, tokens=lp.GENERATED)) == 4
    found, _ = targets(None, trace)
    assert [(target.token.text, target.positions) for target in found] == [(" STOP", (P, P + 1)), (" sign", (P + 2,))]
    assert lp.attention_map(trace, tokens=lp.GENERATED).about["tokens"] == "generated"
    assert lp.attention_map(trace, tokens=[P]).about["tokens"] == "positions"
    assert lp.attention_map(trace, tokens="STOP").about["tokens"] == "STOP"


def test_a_word_is_named_in_its_case_and_by_the_time_it_is_said():
    """A description of a sign that says STOP says "stop sign" too."""
    trace = synthetic_trace(attention=causal(size=16), answer=[" ST", "OP", " on", " a", " stop", " sign", " stop"])
    assert spans(trace, "STOP") == [[P, P + 1]]
    assert spans(trace, "stop") == [[P + 4], [P + 6]]
    assert spans(trace, "Stop") == [[P, P + 1], [P + 4], [P + 6]]
    assert spans(trace, "stop#2") == spans(trace, "stop#-1") == [[P + 6]]
    assert spans(trace, ["STOP#1", "Stop#2"]) == [[P, P + 1], [P + 4]]
    assert len(lp.attention_map(trace, tokens="STOP")) == len(targets(None, trace, "STOP")[0]) == 1
    with pytest.raises(lp.OutOfRange, match="'stop' stands there 2 times"):
        spans(trace, "stop#3")
    assert spans(synthetic_trace(answer=[" No", ".", "#2", "."]), "#2") == [[P + 2]]


def test_an_answer_without_content_is_explained_by_what_it_has():
    trace = synthetic_trace(attention=causal(), answer=[" it", " is", " a", "</s>"])
    assert lp.attention_map(trace).about["positions"] == [[P], [P + 1], [P + 2]]
    assert len(lp.attention_map(synthetic_trace(attention=causal(size=P), answer=["</s>"]))) == 1


# --- what ends an answer ---


def test_an_answer_cut_at_a_tag_is_not_ended():
    trace = synthetic_trace(answer=[" red", "<b>"])
    assert trace.positions(lp.ANSWER) == [P, P + 1]
    (target,), _ = targets(None, trace, lp.ANSWER)
    assert target.positions == (P, P + 1)


def test_a_turns_end_that_is_not_called_special_is_no_word(random_vlm):
    plain = random_vlm.generate(photo(), "what is red", max_new_tokens=3)
    end = plain.generated[-1].id
    assert end not in random_vlm.processor.tokenizer.all_special_ids and end not in plain.ends
    assert plain.positions(lp.ANSWER)[-1] == len(plain.tokens) - 1
    stopped = random_vlm.generate(photo(), "what is red", max_new_tokens=9, eos_token_id=[2, end])
    assert stopped.generated[-1].id == end
    assert len(stopped.tokens) - 1 not in [*stopped.positions(lp.ANSWER), *stopped.positions(None)]
    random_vlm.model.generation_config.eos_token_id = [2, end]
    assert end in random_vlm.score(photo(), "what is red", "red").ends


# --- the question ---


@pytest.mark.parametrize("asked", ["what is red", "  What is THE text?\n", "où est l'œuf 🙂?", "what what"])
def test_the_question_is_where_the_prompt_says_it(random_vlm, asked):
    trace = random_vlm.generate(photo(), asked, max_new_tokens=2)
    assert texts(trace, lp.QUESTION) == asked.strip()


def test_the_question_of_a_chat_is_the_last(random_vlm):
    turn = {"role": "user", "content": [{"type": "text", "text": "what is red"}]}
    first = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is red"}]}
    chat = [first, {"role": "assistant", "content": "the sign"}, turn]
    trace = random_vlm.generate(photo(), messages=chat, max_new_tokens=2)
    places = trace.positions("question")
    assert texts(trace, places) == "what is red"
    assert places == list(trace.find("what is red", occurrence=-1))
    assert places[0] > trace.find("sign", role="prompt")[0]


def test_a_question_that_is_not_known_or_not_written_so_is_told(random_vlm):
    prompt = random_vlm.generate(photo(), "what is red", max_new_tokens=2).request.prompt
    with pytest.raises(lp.BadInput, match=r"lp\.PROMPT"):
        random_vlm.generate(photo(), prompt=prompt, max_new_tokens=2).positions(lp.QUESTION)
    random_vlm.processor.chat_template = random_vlm.processor.chat_template.replace(
        "{{ part['text'] }}", "{{ part['text'] | replace('red', 'blue') }}"
    )
    with pytest.raises(lp.OutOfRange, match="'what is red' does not stand in the prompt as it was asked"):
        random_vlm.generate(photo(), "what is red", max_new_tokens=2).positions(lp.QUESTION)


# --- before there is an answer ---


def test_places_of_a_prompt_that_was_not_answered_yet(trace):
    prompt = SimpleNamespace(tokens=trace.tokens[:P], prompt_length=P, question="what?", ends=frozenset())
    for place in (lp.IMAGE, lp.TEXT, lp.PROMPT, lp.QUESTION, lp.LAST, lp.SPECIAL):
        assert positions(prompt, place) == EXPECTED[place]
    assert positions(prompt, lp.ALL) == list(range(P))
    assert positions(prompt, lp.PREDICTING) == [P - 1]
    assert positions(prompt, [-1, "what"]) == [P - 1, P - 2]
    with pytest.raises(lp.BadInput, match="no answer yet"):
        positions(prompt, None)


# --- what is not there ---


@pytest.mark.parametrize("tokens", ["what", lp.IMAGE, "prompt", [P, 0]], ids=repr)
def test_what_the_model_read_is_not_explained_by_attribution(trace, tokens):
    with pytest.raises(lp.OutOfRange, match=r"in the prompt; only what the model said is explained .* text="):
        targets(None, trace, tokens)


def test_rows_that_are_missing_are_told_all_at_once(tiny_vlm):
    """The advice keeps what was asked for, not one position after another."""
    trace = tiny_vlm.generate(tiny.scene(34).image, "What is it?", max_new_tokens=2)
    with pytest.raises(
        lp.NotCaptured, match=r"196 positions .* pass Capture\(attention_positions=\['predicting', 'all'\]"
    ):
        lp.attention_map(trace, tokens=lp.IMAGE)


def test_each_row_is_the_row_of_all(random_vlm):
    trace = random_vlm.generate(photo(), "what is red", max_new_tokens=3)
    for layer, head in ((None, None), (1, None), ([0, 2], 3)):
        rows = list(trace.each_row(lp.PREDICTING, layer, head))
        assert torch.equal(torch.stack(rows), trace.rows(lp.PREDICTING, layer, head))
    with pytest.raises(lp.NotCaptured):
        trace.each_row([0])
