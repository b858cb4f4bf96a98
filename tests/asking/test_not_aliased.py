"""Nothing that is kept can be changed by what users write into: processors, criteria, hooks, inputs, settings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor, RepetitionPenaltyLogitsProcessor, StoppingCriteria

import llava_probe as lp
from llava_probe.tiny import scene

SCENE, QUESTION = scene(34).image, "What is the text on the stop sign?"
PROMPT = f"USER: <image>\n{QUESTION}\nASSISTANT:"


def ban(token):
    def processor(input_ids, scores):
        scores[:, token] = -float("inf")
        return scores

    return processor


@pytest.mark.parametrize("decoding", [{}, {"num_beams": 2}, {"do_sample": True}], ids=str)
def test_logits_are_the_models_own_whatever_a_processor_writes(decoding):
    vlm = lp.load()
    said = int(vlm.generate(SCENE, QUESTION, max_new_tokens=1).generated_ids[0])
    trace = vlm.generate(SCENE, QUESTION, max_new_tokens=2, logits_processor=[ban(said)], seed=0, **decoding)
    own = vlm.score(SCENE, QUESTION, trace.generated_ids)
    torch.testing.assert_close(trace.logits, own.logits, atol=1e-3, rtol=0)
    assert trace.scores[0, said] == -float("inf")


class Keeping(LogitsProcessor):
    """Writes into all that it was given, and gave back, at the steps before."""

    def __init__(self):
        self.held = []

    def __call__(self, input_ids, scores):
        for each in self.held:
            each.fill_(9)
        made = scores * 2
        self.held += [input_ids, scores, made]
        return made


def test_a_processor_that_writes_a_step_later_changes_neither_scores_nor_ids():
    vlm = lp.load()
    trace = vlm.generate(SCENE, QUESTION, max_new_tokens=3, logits_processor=[Keeping()])
    own = vlm.score(SCENE, QUESTION, trace.generated_ids)
    torch.testing.assert_close(trace.logits, own.logits, atol=1e-3, rtol=0)
    torch.testing.assert_close(trace.scores, 2 * own.logits, atol=1e-3, rtol=0)


class Emptying:
    def put(self, value):
        value.zero_()

    def end(self):
        pass


def allow_few(sample, ids):
    ids.zero_()
    return list(range(100))


@pytest.mark.parametrize(
    "given", [{"streamer": Emptying()}, {"prefix_allowed_tokens_fn": allow_few}], ids=["streamer", "prefix function"]
)
def test_what_is_told_the_ids_does_not_write_them(given):
    vlm = lp.load()
    trace = vlm.generate(SCENE, QUESTION, max_new_tokens=3, **given)
    own = vlm.score(SCENE, QUESTION, trace.generated_ids)
    assert [token.id for token in trace.tokens] == [token.id for token in own.tokens]
    torch.testing.assert_close(trace.logits, own.logits, atol=1e-3, rtol=0)


def test_a_processor_of_transformers_still_takes_the_place_of_generates_own():
    vlm = lp.load()
    once = vlm.generate(SCENE, QUESTION, max_new_tokens=2, repetition_penalty=3.0)
    both = vlm.generate(
        SCENE,
        QUESTION,
        max_new_tokens=2,
        repetition_penalty=2.0,
        logits_processor=[RepetitionPenaltyLogitsProcessor(3.0)],
    )
    assert torch.equal(both.scores, once.scores)


class Scribbling(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        for each in scores:
            each.zero_()
        input_ids.zero_()
        return torch.zeros(len(input_ids), dtype=torch.bool)


def test_a_criterion_that_writes_changes_neither_scores_nor_ids():
    vlm = lp.load()
    plain = vlm.generate(SCENE, QUESTION, max_new_tokens=3)
    trace = vlm.generate(SCENE, QUESTION, max_new_tokens=3, stopping_criteria=[Scribbling()])
    assert torch.equal(trace.scores, plain.scores) and trace.tokens == plain.tokens


def test_a_hook_that_writes_later_changes_no_record():
    vlm = lp.load()
    plain = vlm.generate(SCENE, QUESTION, max_new_tokens=1, capture=lp.Capture(vision=True))
    seen = []
    tower = vlm.anatomy.vision.blocks[0].register_forward_hook(
        lambda module, args, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    trace = vlm.generate(SCENE, QUESTION, max_new_tokens=1, capture=lp.Capture(vision=True))
    tower.remove()
    seen[0].zero_()
    assert torch.equal(trace.vision_hidden_states, plain.vision_hidden_states)
    assert torch.equal(trace.logits, plain.logits)


def test_what_was_given_may_change_afterwards():
    vlm = lp.load()
    inputs = dict(vlm.processor(text=PROMPT, images=SCENE, return_tensors="pt"))
    array, config, words = np.array(SCENE), GenerationConfig(max_new_tokens=2), [[5, 6]]
    trace = vlm.generate(array, inputs=inputs, generation_config=config, bad_words_ids=words)
    again = vlm.generate(array, inputs=inputs, generation_config=config, bad_words_ids=words)
    array[:], config.max_new_tokens = 0, 1
    inputs["pixel_values"].zero_()
    words[0].append(7)
    assert trace == again and vlm.rerun(trace) == again
    assert trace.request.generate["bad_words_ids"] == [[5, 6]]
    assert trace.images[0].getpixel((0, 0)) == SCENE.getpixel((0, 0))


def test_trainings_inputs_are_left_out_with_a_word_and_strange_ones_refused():
    vlm = lp.load()
    inputs = dict(vlm.processor(text=PROMPT, images=SCENE, return_tensors="pt"))
    plain = vlm.score(SCENE, inputs=inputs, answer="red")
    with pytest.warns(UserWarning, match="labels"):
        assert vlm.score(SCENE, inputs={**inputs, "labels": inputs["input_ids"]}, answer="red") == plain
    for name in ("position_ids", "weather"):
        with pytest.raises(lp.BadInput, match=name):
            vlm.generate(SCENE, inputs={**inputs, name: inputs["input_ids"]})


@pytest.mark.parametrize("given", [None, 5, ValueError()], ids=["nothing", "a number", "an error"])
def test_a_prefix_function_that_gives_no_ids_is_a_sentence(given, tiny_vlm):
    with pytest.raises(lp.BadInput, match="a list of ids for each step; it gave"):
        tiny_vlm.generate(SCENE, "What?", max_new_tokens=1, prefix_allowed_tokens_fn=lambda _sample, _ids: given)
