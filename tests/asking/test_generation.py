"""Scores, logits and lengths mean what transformers says they mean, under each way of decoding."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers.processors import TemplateProcessing
from transformers import GenerationConfig, StoppingCriteria

import llava_probe as lp
from llava_probe.trace.capture import in_units
from llava_probe.trace.request import Unsaved
from tests.models import llava_processor, photo, random_llava

QUESTION = "what is the text on the stop sign"
PROMPT = f"USER: <image>\n{QUESTION}\nASSISTANT:"


def plain(vlm, seed=None, **kwargs):
    inputs = vlm.processor(text=PROMPT, images=photo(), return_tensors="pt")
    if seed is not None:
        torch.manual_seed(seed)
    return vlm.model.generate(**inputs, return_dict_in_generate=True, output_scores=True, output_logits=True, **kwargs)


def sampled_logprobs(trace, normalised=True):
    scores = torch.log_softmax(trace.scores, dim=-1) if normalised else trace.scores
    return scores.gather(1, trace.generated_ids[:, None]).squeeze(1)


@pytest.mark.parametrize(
    "kwargs", [{}, {"do_sample": True, "temperature": 0.6, "top_p": 0.8}], ids=["greedy", "sampling"]
)
def test_sampled_logprobs_equal_compute_transition_scores(random_vlm, kwargs):
    out = plain(random_vlm, seed=5, max_new_tokens=8, **kwargs)
    expected = random_vlm.model.compute_transition_scores(out.sequences, out.scores, normalize_logits=True)[0]
    trace = random_vlm.generate(photo(), prompt=PROMPT, max_new_tokens=8, seed=5, **kwargs)
    torch.testing.assert_close(sampled_logprobs(trace), expected[: len(trace.generated)])


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("sampling", [False, True], ids=["beams", "sampled beams"])
def test_beam_scores_sum_to_the_sequence_score(random_vlm, length_penalty, sampling):
    kwargs = {"num_beams": 4, "num_return_sequences": 3, "length_penalty": length_penalty, "do_sample": sampling}
    out = plain(random_vlm, seed=2, max_new_tokens=10, **kwargs)
    trace = random_vlm.generate(photo(), prompt=PROMPT, max_new_tokens=10, seed=2, **kwargs)
    expected = random_vlm.model.compute_transition_scores(out.sequences, out.scores, out.beam_indices)
    family = (trace, *trace.alternatives)
    assert len(family) == 3
    for row, one in enumerate(family):
        length = len(one.generated)
        assert one.generated_ids.tolist() == out.sequences[row, one.prompt_length :][:length].tolist()
        torch.testing.assert_close(sampled_logprobs(one, normalised=False), expected[row, :length])
        total = float(sampled_logprobs(one, normalised=False).double().sum()) / length**length_penalty
        assert one.sequence_score == pytest.approx(total, abs=1e-5)
        assert one.sequence_score == pytest.approx(float(out.sequences_scores[row]), abs=1e-6)


@pytest.mark.parametrize(
    "kwargs", [{}, {"do_sample": True, "temperature": 1.5}, {"num_beams": 3}], ids=["greedy", "sampling", "beams"]
)
def test_logits_equal_a_teacher_forced_pass(random_vlm, kwargs):
    trace = random_vlm.generate(photo(), prompt=PROMPT, max_new_tokens=8, seed=1, **kwargs)
    inputs = random_vlm.processor(text=PROMPT, images=photo(), return_tensors="pt")
    ids = torch.tensor([[token.id for token in trace.tokens]])
    with torch.no_grad():
        logits = random_vlm.model(ids, pixel_values=inputs["pixel_values"]).logits[0]
    expected = torch.log_softmax(logits[trace.prompt_length - 1 : -1], dim=-1)
    torch.testing.assert_close(torch.log_softmax(trace.logits, dim=-1), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kwargs", [{}, {"do_sample": True}, {"num_beams": 3}], ids=["greedy", "sampling", "beams"])
def test_scoring_the_models_own_answer_gives_the_same_rows(random_vlm, kwargs):
    capture = lp.Capture(positions=["predicting", "image"], attention_positions="all")
    made = random_vlm.generate(photo(), QUESTION, max_new_tokens=8, seed=1, capture=capture, **kwargs)
    scored = random_vlm.score(photo(), QUESTION, made.generated_ids, capture=capture)
    assert scored.tokens == made.tokens
    torch.testing.assert_close(scored.rows(at="all"), made.rows(at="all"), atol=1e-5, rtol=0)
    torch.testing.assert_close(scored.records["hidden"], made.records["hidden"], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(scored.logits, made.logits, atol=1e-4, rtol=1e-5)
    with pytest.raises(lp.NotCaptured, match="nothing was sampled"):
        _ = scored.scores


def test_a_text_answer_is_scored_as_the_model_would_write_it(random_vlm):
    ids = random_vlm.processor.tokenizer(" a red sign", add_special_tokens=False).input_ids
    trace = random_vlm.score(photo(), QUESTION, "a red sign")
    assert trace.generated_ids.tolist() == [*ids, random_vlm.processor.tokenizer.eos_token_id]
    assert trace.answer == "a red sign"


def test_a_sequence_ends_with_its_eos():
    model = random_llava()
    model.lm_head.weight.data[2] = model.lm_head.weight.data.abs().mean(0) * 4  # EOS soon, not at once
    vlm = lp.VLM(model, llava_processor())
    asked = [(photo(seed=n), "where " * n + "is the sign") for n in range(6)]
    traces = vlm.generate_batch(asked, max_new_tokens=20)
    lengths = {len(trace.generated) for trace in traces}
    assert len(lengths) > 1, "the example should end its members at different times"
    for trace, (image, question) in zip(traces, asked, strict=True):
        alone = vlm.generate(image, question, max_new_tokens=20)
        assert trace.tokens == alone.tokens
        ids = trace.generated_ids.tolist()
        assert 2 not in ids[:-1]
        assert len(trace.logits) == len(trace.attention) == len(trace.hidden_states) == len(ids)


def test_stop_strings_end_each_member_alone(random_vlm):
    free = random_vlm.generate(photo(), QUESTION, max_new_tokens=10)
    stop = [free.generated[3].text.strip() or free.generated[3].text]
    asked = [(photo(), QUESTION), (photo(30, 90, 1), "where")]
    batch = random_vlm.generate_batch(asked, max_new_tokens=10, stop_strings=stop)
    for (image, question), together in zip(asked, batch, strict=True):
        alone = random_vlm.generate(image, question, max_new_tokens=10, stop_strings=stop)
        assert together.tokens == alone.tokens
    assert len(batch[0].generated) < 10


def test_seeds_repeat_and_return_sequences_differ(random_vlm):
    kwargs = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 6}
    first = random_vlm.generate(photo(), QUESTION, seed=4, **kwargs)
    again = random_vlm.generate(photo(), QUESTION, seed=4, **kwargs)
    assert first == again
    assert len({one.answer for one in (first, *first.alternatives)}) > 1
    for one in (first, *first.alternatives):
        scored = random_vlm.score(photo(), QUESTION, one.generated_ids)
        torch.testing.assert_close(one.attention, scored.attention, atol=1e-5, rtol=0)


def test_top_k_logits_keep_what_they_say(random_vlm):
    full = random_vlm.generate(photo(), QUESTION, max_new_tokens=5, do_sample=True, seed=0)
    part = random_vlm.generate(
        photo(), QUESTION, max_new_tokens=5, do_sample=True, seed=0, capture=lp.Capture(logits=7, scores=3)
    )
    top = part.top()
    assert torch.equal(top.values, full.logits.topk(7).values)
    logprobs = torch.log_softmax(full.logits.double(), dim=-1)
    torch.testing.assert_close(top.entropy.double(), -(logprobs.exp() * logprobs).sum(-1), atol=1e-5, rtol=1e-5)
    chosen = logprobs.gather(1, full.generated_ids[:, None])[:, 0]
    torch.testing.assert_close((top.chosen - top.logsumexp).double(), chosen, atol=1e-5, rtol=1e-5)
    order = full.logits.argsort(dim=-1, descending=True)
    assert top.rank.tolist() == [
        row.tolist().index(t) for row, t in zip(order, full.generated_ids.tolist(), strict=True)
    ]
    with pytest.raises(lp.NotCaptured, match="only the top 7 logits"):
        _ = part.logits


def test_rerun_repeats_a_run_from_its_trace(random_vlm, tmp_path):
    chat = [
        {"role": "user", "content": [{"type": "image", "image": photo(seed=1)}, {"type": "text", "text": "where"}]},
        {"role": "assistant", "content": "a red sign"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "what colour"}, {"type": "image", "image": photo(90, 40)}],
        },
    ]
    ready = random_vlm.processor(text=PROMPT, images=photo(), return_tensors="pt")
    traces = [
        random_vlm.generate(photo(), QUESTION, max_new_tokens=5, do_sample=True, seed=3),
        random_vlm.generate(messages=chat, max_new_tokens=5),
        random_vlm.generate(photo(), inputs=ready, max_new_tokens=5, num_beams=2),
        random_vlm.generate(photo(80, 40), QUESTION, max_new_tokens=4, processor_kwargs={"do_center_crop": True}),
        random_vlm.score(photo(), QUESTION, "a stop sign"),
    ]
    assert len(traces[1].layouts) == 2
    for trace in traces:
        assert random_vlm.rerun(trace) == trace
        assert random_vlm.rerun(lp.Trace.load(trace.save(tmp_path / "a.trace"))) == trace


def test_ready_made_inputs_equal_the_prompt_they_came_from(random_vlm):
    ready = random_vlm.processor(text=PROMPT, images=photo(), return_tensors="pt")
    one = random_vlm.generate(photo(), inputs=ready, max_new_tokens=5)
    other = random_vlm.generate(photo(), prompt=PROMPT, max_new_tokens=5)
    assert one.records.keys() == other.records.keys()
    assert all(torch.equal(one.records[name], other.records[name]) for name in one.records)
    assert one.layouts == other.layouts


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"prompt_lookup_num_tokens": 3}, "assisted generation"),
        ({"assistant_model": "another"}, "assistant_model"),
        ({"assistant_early_exit": 2}, "assisted generation"),
        ({"penalty_alpha": 0.5, "top_k": 4}, "contrastive search"),
        ({"dola_layers": "low"}, "dola"),
        ({"custom_generate": "x/y"}, "custom_generate"),
        ({"num_beams": 4, "num_beam_groups": 2}, "group beam search"),
        ({"past_key_values": "a cache"}, "past_key_values"),
        ({"output_attentions": True}, "output_attentions"),
        ({"return_dict_in_generate": False}, "return_dict_in_generate"),
        ({"max_new_tokens": 2.5}, "max_new_tokens=.* takes a whole number"),
        ({"seed": 1.5}, "seed=.* takes a whole number"),
        ({"max_new_tokens": 0}, "max_new_tokens=.* takes a whole number from 1"),
        ({"max_new_tokens": -3}, "max_new_tokens=.* takes a whole number from 1"),
        ({"no_such_flag": 1}, "no_such_flag"),
        ({"temperature": -1.0, "do_sample": True}, "temperature"),
        ({"num_return_sequences": 3}, "num_return_sequences"),
        ({"generation_config": GenerationConfig(prompt_lookup_num_tokens=2)}, "assisted generation"),
    ],
    ids=str,
)
def test_decoding_without_one_step_a_token_is_refused_by_name(random_vlm, kwargs, named):
    with pytest.raises(lp.BadInput, match=named):
        random_vlm.generate(photo(), QUESTION, **{"max_new_tokens": 3, **kwargs})


def test_a_large_capture_tells_its_size_first(random_vlm, monkeypatch):
    monkeypatch.setattr("llava_probe.asking.announce.TELL_ABOVE", 100_000)
    with pytest.warns(UserWarning, match=r"keeps up to [0-9.]+ kB"):
        random_vlm.generate(photo(), QUESTION, max_new_tokens=30)


def test_the_announced_size_bounds_the_kept_size(random_vlm):
    from llava_probe.trace.capture import Extent, nbytes, resolve

    for capture in (lp.Capture(), lp.Capture(positions="all", attention_positions="image", logits=5, heads=[1])):
        trace = random_vlm.generate(photo(), QUESTION, max_new_tokens=9, capture=capture)
        extent = Extent(trace.prompt_length, 36, len(trace.generated), 64, trace.sizes.vocabulary, 4)
        kept = sum(tensor.nbytes for tensor in trace.records.values())
        plan = resolve(capture, 4, dict.fromkeys(range(4), 4), trace.sizes.vocabulary)
        assert kept <= nbytes(plan, extent) <= 1.1 * kept


def early_ender() -> lp.VLM:
    """A random model that often says EOS soon."""
    model = random_llava()
    model.lm_head.weight.data[2] = model.lm_head.weight.data.abs().mean(0) * 4
    return lp.VLM(model, llava_processor())


ASKED = [(photo(seed=n), "where " * n + "is the sign") for n in range(6)]


@pytest.mark.parametrize(
    "kwargs",
    [
        {"generation_config": GenerationConfig(do_sample=False, max_new_tokens=9)},
        {"max_length": 90, "max_new_tokens": None},
        {"pad_token_id": 2, "max_new_tokens": 9},
    ],
    ids=["a config of the user's", "max_length", "pad is eos"],
)
def test_batch_members_end_at_their_own_eos(kwargs):
    vlm = early_ender()
    traces = vlm.generate_batch(ASKED, **kwargs)
    assert len({len(trace.generated) for trace in traces}) > 1
    for trace, (image, question) in zip(traces, ASKED, strict=True):
        assert 2 not in trace.generated_ids.tolist()[:-1]
        if "max_length" not in kwargs:  # which counts the padding too
            assert trace.tokens == vlm.generate(image, question, **kwargs).tokens


class Never(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.zeros(len(input_ids), dtype=torch.bool)


class AfterThree(StoppingCriteria):
    def __init__(self, row):
        self.row, self.steps = row, 0

    def __call__(self, input_ids, scores, **kwargs):
        self.steps += 1
        return torch.tensor([row == self.row and self.steps >= 3 for row in range(len(input_ids))])


@pytest.mark.parametrize("pad", [0, 2], ids=["pad", "pad is eos"])
def test_a_criterion_of_the_users_ends_only_its_row(pad):
    vlm = early_ender()
    free = vlm.generate_batch(ASKED, max_new_tokens=8, pad_token_id=pad)
    row = max(range(6), key=lambda n: len(free[n].generated))
    assert len(free[row].generated) > 3
    never = vlm.generate_batch(ASKED, max_new_tokens=8, pad_token_id=pad, stopping_criteria=[Never()])
    three = vlm.generate_batch(ASKED, max_new_tokens=8, pad_token_id=pad, stopping_criteria=[AfterThree(row)])
    assert [trace.tokens for trace in never] == [trace.tokens for trace in free]
    for n, trace in enumerate(three):
        expected = free[n].generated_ids[:3] if n == row else free[n].generated_ids
        assert trace.generated_ids.tolist() == expected.tolist()


def test_scoring_padded_inputs_equals_generating_from_them(random_vlm):
    ready = dict(random_vlm.processor(text=PROMPT, images=photo(), return_tensors="pt"))
    ready["input_ids"] = torch.nn.functional.pad(ready["input_ids"], (5, 0), value=0)
    ready["attention_mask"] = torch.nn.functional.pad(ready["attention_mask"], (5, 0), value=0)
    made = random_vlm.generate(photo(), inputs=ready, max_new_tokens=5)
    scored = random_vlm.score(photo(), inputs=ready, answer=made.generated_ids)
    assert scored.tokens == made.tokens
    torch.testing.assert_close(scored.attention, made.attention, atol=1e-5, rtol=0)
    torch.testing.assert_close(scored.logits, made.logits, atol=1e-4, rtol=1e-5)


def test_each_sample_keeps_its_own_pictures_of_the_vision_tower(random_vlm):
    capture = lp.Capture(vision=True)
    asked = [
        {"image": [photo(seed=1), photo(seed=2)], "question": "where"},
        {"question": "what is red"},
        {"image": photo(seed=3), "question": "where"},
    ]
    batch = random_vlm.generate_batch(asked, max_new_tokens=2, capture=capture)
    assert [len(trace.vision_hidden_states) for trace in batch] == [2, 0, 1]
    for trace, sample in zip(batch, asked, strict=True):
        if "image" in sample:
            alone = random_vlm.generate(**sample, max_new_tokens=2, capture=capture)
            torch.testing.assert_close(trace.vision_attention, alone.vision_attention, atol=1e-5, rtol=0)
    beams = random_vlm.generate(**asked[0], max_new_tokens=2, num_beams=3, capture=capture)
    torch.testing.assert_close(beams.vision_attention, batch[0].vision_attention, atol=1e-5, rtol=0)


def test_an_alternative_and_a_chat_are_run_again_as_they_were(random_vlm):
    drawn = random_vlm.generate(photo(), QUESTION, max_new_tokens=4, do_sample=True, num_return_sequences=3, seed=1)
    for number in range(2):
        assert random_vlm.rerun(drawn.alternatives[number]).tokens == drawn.alternatives[number].tokens
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "where"}]}]
    scored = random_vlm.score(photo(), messages=chat, answer="a sign")
    assert random_vlm.rerun(scored) == scored
    batch = random_vlm.generate_batch(ASKED[:2], max_new_tokens=3, do_sample=True, seed=0)
    with pytest.raises(lp.BadInput, match="drawn beside the others"):
        random_vlm.rerun(batch[1])


def test_settings_of_any_kind_come_back_equal(random_vlm, tmp_path):
    tensors = {
        "guidance_scale": 1.5,
        "negative_prompt_ids": torch.tensor([[5, 6, 7]]),
        "sequence_bias": {(5,): -1.0},
        "stop_strings": ("zzz",),
        "temperature": 0.5,
        "do_sample": True,
    }
    trace = random_vlm.generate(photo(), QUESTION, max_new_tokens=np.int64(3), seed=np.int64(3), **tensors)
    back = lp.Trace.load(trace.save(tmp_path / "run.trace"))
    assert back == trace
    assert random_vlm.rerun(back) == trace


def test_the_length_is_sixty_four_unless_somebody_says(random_vlm):
    model = random_vlm.model
    model.generation_config.eos_token_id = None
    lengths = [
        len(random_vlm.generate(photo(), "where", capture=lp.Capture(attention=False), **kwargs).generated)
        for kwargs in ({}, {"max_length": 60}, {"generation_config": GenerationConfig(max_new_tokens=5)})
    ]
    model.generation_config.max_new_tokens = 7
    lengths.append(len(random_vlm.generate(photo(), "where").generated))
    prompt = random_vlm.generate(photo(), "where").prompt_length
    assert lengths == [64, 60 - prompt, 5, 7]


@pytest.mark.parametrize(
    ("count", "told"),
    [(999, "999 bytes"), (1536, "1.5 kB"), (73e6, "73.0 MB"), (245.76e9, "245.8 GB"), (3.2e12, "3,200.0 GB")],
)
def test_sizes_are_told_in_the_unit_that_one_reads(count, told):
    assert in_units(count) == told


def test_a_setting_of_the_processor_that_no_file_can_hold_is_told_and_an_enum_is_its_number(random_vlm, tmp_path):
    trace = random_vlm.generate(
        photo(), QUESTION, max_new_tokens=2, processor_kwargs={"resample": Image.Resampling.BICUBIC}
    )
    assert random_vlm.rerun(lp.Trace.load(trace.save(tmp_path / "a.trace"))) == trace
    request = replace(trace.request, processor={"resample": Unsaved("Filter")})
    with pytest.raises(lp.BadInput, match="resample could not be saved with the trace"):
        random_vlm.rerun(replace(trace, request=request))


def test_an_answer_is_cut_off_by_whatever_limits_it(random_vlm, monkeypatch):
    given = {"pad_token_id": 0, "eos_token_id": []}
    cut = random_vlm.generate(photo(), QUESTION, max_new_tokens=3, **given)
    assert cut.cut_off
    config = GenerationConfig(max_new_tokens=3, **given)
    assert random_vlm.generate(photo(), QUESTION, generation_config=config).cut_off
    assert random_vlm.generate(photo(), QUESTION, max_length=cut.prompt_length + 2, **given).cut_off
    monkeypatch.setattr(random_vlm.model.generation_config, "max_new_tokens", 3)
    told = random_vlm.generate(photo(), QUESTION, **given)
    assert len(told.generated) == 3 and told.cut_off


def test_a_batch_in_which_some_begin_with_the_first_token_gives_each_one():
    vlm = lp.VLM(random_llava(), llava_processor())
    tokenizer = vlm.processor.tokenizer
    first = TemplateProcessing(single=f"{tokenizer.bos_token} $A", special_tokens=[(tokenizer.bos_token, 1)])
    tokenizer.backend_tokenizer.post_processor = first
    asked = [{"image": photo(), "prompt": tokenizer.bos_token + PROMPT}, {"image": photo(), "prompt": PROMPT}]
    for sample, trace in zip(asked, vlm.generate_batch(asked, max_new_tokens=2), strict=True):
        alone = vlm.generate(**sample, max_new_tokens=2)
        assert [token.id for token in trace.tokens] == [token.id for token in alone.tokens]
        assert [token.id for token in trace.tokens[:2]].count(tokenizer.bos_token_id) == 1
