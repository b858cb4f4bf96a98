"""A trace is read by the model's own numbers, and what it does not hold is an error that says how to keep it."""

import re

import numpy as np
import pytest
import torch

import llava_probe as lp
from tests.models import photo

QUESTION = "what is the text on the stop sign"


@pytest.fixture
def trace(random_vlm):
    return random_vlm.generate(photo(), QUESTION, max_new_tokens=4)


@pytest.mark.parametrize("at", [[2, 3], 5, "image", "prompt", lp.TEXT, "layout", [0, "image"]], ids=str)
def test_the_advice_of_an_error_keeps_what_was_missing(random_vlm, trace, at):
    at = trace.layouts[0].positions if at == "layout" else at
    readers = {"positions": lambda t: t.hidden(layer=1, at=at), "attention_positions": lambda t: t.rows(at=at)}
    for field, read in readers.items():
        with pytest.raises(lp.NotCaptured) as caught:
            read(trace)
        advice = re.search(r"pass (Capture\(.*\))$", str(caught.value))[1]
        assert field in advice
        kept = random_vlm.generate(photo(), QUESTION, max_new_tokens=4, capture=eval(advice, {"Capture": lp.Capture}))
        read(kept)


def test_numbers_of_numpy_and_torch_are_numbers(random_vlm):
    everything = lp.Capture(positions="all", attention_positions="all", layers=np.arange(4), heads=torch.arange(3))
    trace = random_vlm.generate(photo(), QUESTION, max_new_tokens=np.int64(3), capture=everything)
    position = trace.layouts[0].positions[4]
    assert torch.equal(trace.hidden(layer=np.int64(2), at=position), trace.hidden(layer=2, at=int(position)))
    assert torch.equal(trace.rows(at=position, head=torch.tensor(1)), trace.rows(at=int(position), head=1))
    assert trace.hidden(layer=np.array([1, 2]), at=trace.layouts[0].positions).shape == (36, 2, 64)


def test_names_and_numbers_are_mixed_in_one_list(trace):
    assert trace.positions(["last_prompt", 0, "image"])[:2] == [trace.prompt_length - 1, 0]
    assert trace.positions(-1) == [len(trace.tokens) - 1]


def test_the_answers_rows_are_those_that_were_fed(trace):
    assert trace.rows(at="generated", layer=0).shape[0] == len(trace.generated) - 1
    with pytest.raises(lp.NotCaptured, match="never fed"):
        trace.rows(at=-1)


@pytest.mark.parametrize(
    ("read", "sentence"),
    [
        (lambda t: t.hidden(layer=9), "hidden states of layer 9 is not there: this model has 0 to 4"),
        (lambda t: t.hidden(layer=-6), "is not there"),
        (lambda t: t.rows(layer=4), "attention of layer 4 is not there: this model has 0 to 3"),
        (lambda t: t.rows(head=4), "attention of head 4"),
        (lambda t: t.hidden(layer="1"), "whole number"),
        (lambda t: t.hidden(layer=[1.0]), "whole number"),
        (lambda t: t.positions(1000), "position 1000 is not there"),
        (lambda t: t.positions([0.5]), "whole number"),
        (lambda t: t.positions("zebra"), "'zebra' is neither a word of"),
        (lambda t: t.top(), "logits were not kept apart"),
        (lambda t: t.vision_hidden_states, r"Capture\(vision=True\)"),
    ],
)
def test_what_is_not_there_is_one_sentence(trace, read, sentence):
    with pytest.raises(lp.ProbeError, match=sentence):
        read(trace)


def test_nothing_kept_is_said_of_each_record(random_vlm):
    bare = lp.Capture(attention=False, hidden_states=False, logits=False, scores=False)
    trace = random_vlm.generate(photo(), QUESTION, max_new_tokens=2, capture=bare)
    assert trace.records == {}
    for name, field in (
        ("logits", "logits=True"),
        ("scores", "scores=True"),
        ("hidden_states", "hidden_states=True"),
        ("attention", "attention=True"),
    ):
        with pytest.raises(lp.NotCaptured, match=field):
            getattr(trace, name)
