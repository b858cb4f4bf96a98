"""How sure the model was, against transformers' own transition scores and dense formulas in float64."""

import copy
import json
import math

import numpy as np
import pandas
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import llava_probe as lp
from llava_probe.analyzers.confidence import Confidence
from llava_probe.trace.distributions import top_k
from tests.models import llava_processor, photo, random_llava
from tests.synthetic import TEXTS, P, T, synthetic_trace

QUESTION = "what is the text on the stop sign"
PROMPT = f"USER: <image>\n{QUESTION}\nASSISTANT:"
DECODING = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "seed": 3},
    "beams": {"num_beams": 3, "length_penalty": 1.3},
    "sampled beams": {"num_beams": 3, "do_sample": True, "seed": 5},
}


@pytest.fixture(scope="module")
def vlm():
    return lp.VLM(random_llava(), llava_processor())


def plain_generate(vlm, seed=None, **kwargs):
    inputs = vlm.processor(text=PROMPT, images=photo(), return_tensors="pt")
    if seed is not None:
        torch.manual_seed(seed)
    model = copy.deepcopy(vlm.model)
    out = model.generate(
        **inputs, max_new_tokens=7, return_dict_in_generate=True, output_scores=True, output_logits=True, **kwargs
    )
    return model, out


def answer_trace(logits, **changes):
    """A trace whose answer has these logits [T, V] and takes the ids given (or the likeliest)."""
    ids = changes.pop("ids", logits.argmax(1).tolist())
    trace = synthetic_trace(logits=logits, answer=[TEXTS[token] for token in ids], **changes)
    return trace


# --- against transformers ---


@pytest.mark.parametrize("decoding", DECODING)
def test_logprobs_equal_transition_scores(vlm, decoding):
    trace = vlm.generate(photo(), prompt=PROMPT, max_new_tokens=7, **DECODING[decoding])
    model, out = plain_generate(vlm, **DECODING[decoding])
    beams = getattr(out, "beam_indices", None)
    expected = model.compute_transition_scores(out.sequences, out.logits, beams, normalize_logits=True)[0]
    found = lp.confidence(trace)
    assert trace.generated_ids.tolist() == out.sequences[0, trace.prompt_length :].tolist()
    torch.testing.assert_close(found.logprob, expected[: len(found.logprob)], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.probability, expected[: len(found.logprob)].exp(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("decoding", ["greedy", "sampling"])
def test_sampled_probability_comes_from_the_processed_scores(vlm, decoding):
    trace = vlm.generate(photo(), prompt=PROMPT, max_new_tokens=7, **DECODING[decoding])
    model, out = plain_generate(vlm, **DECODING[decoding])
    expected = model.compute_transition_scores(out.sequences, out.scores, normalize_logits=True)[0].exp()
    torch.testing.assert_close(lp.confidence(trace).sampled_probability, expected, atol=1e-6, rtol=1e-5)


def test_temperature_shows_only_in_the_sampled_probability(vlm):
    trace = vlm.generate(photo(), prompt=PROMPT, max_new_tokens=7, do_sample=True, top_k=0, temperature=0.5, seed=1)
    c = lp.confidence(trace)
    warmed = torch.softmax(trace.logits / 0.5, 1).gather(1, trace.generated_ids[:, None]).squeeze(1)
    torch.testing.assert_close(c.sampled_probability, warmed, atol=1e-6, rtol=1e-4)
    assert not torch.allclose(c.probability, c.sampled_probability, atol=1e-3)


def test_beam_logprobs_add_up_to_the_sequence_score(vlm):
    beams = {"num_beams": 3, "length_penalty": 1.3, "num_return_sequences": 3}
    trace = vlm.generate(photo(), prompt=PROMPT, max_new_tokens=7, **beams)
    for sequence in (trace, *trace.alternatives):
        c = lp.confidence(sequence)
        total = float(c.sampled_probability.double().log().sum())
        assert total / len(c.logprob) ** 1.3 == pytest.approx(sequence.sequence_score, abs=1e-5)
        assert c.sum / len(c.logprob) ** 1.3 == pytest.approx(sequence.sequence_score, abs=1e-5)


def test_a_scored_answer_has_the_confidence_it_was_generated_with(vlm):
    trace = vlm.generate(photo(), prompt=PROMPT, max_new_tokens=7)
    scored = vlm.score(photo(), prompt=PROMPT, answer=trace.generated_ids)
    one, other = lp.confidence(trace), lp.confidence(scored)
    for name in ("logprob", "entropy", "margin", "rank"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=1e-4, rtol=1e-4)
    assert other.sampled_probability is None


def test_mean_is_minus_the_models_own_loss(vlm):
    answer = torch.tensor([30, 60, 90, 2])
    scored = vlm.score(photo(), prompt=PROMPT, answer=answer)
    inputs = dict(vlm.processor(text=PROMPT, images=photo(), return_tensors="pt"))
    labels = torch.cat([torch.full_like(inputs["input_ids"], -100), answer[None]], dim=1)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], answer[None]], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        loss = float(vlm.model(**inputs, labels=labels).loss)
    assert lp.confidence(scored).mean == pytest.approx(-loss, abs=1e-5)
    assert lp.confidence(scored).perplexity == pytest.approx(math.exp(loss), rel=1e-4)


# --- against dense formulas ---


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([0.01, 1.0, 30.0, 1e4]),
    steps=st.integers(1, 20),
)
def test_numbers_equal_the_dense_formulas(seed, scale, steps):
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(steps, len(TEXTS))) * scale).astype(np.float32)
    ids = rng.integers(0, len(TEXTS), steps)
    found = lp.confidence(answer_trace(torch.from_numpy(logits), ids=ids.tolist()))

    exact = logits.astype(np.float64)
    logp = exact - exact.max(1, keepdims=True)
    logp -= np.log(np.exp(logp).sum(1, keepdims=True))
    p = np.exp(logp)
    taken = np.arange(steps), ids
    others = p.copy()
    others[taken] = -1
    np.testing.assert_allclose(found.logprob, logp[taken], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.probability, p[taken], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found.entropy, -(p * np.where(p > 0, logp, 0)).sum(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.margin, p[taken] - others.max(1), rtol=1e-4, atol=1e-6)
    assert found.rank.tolist() == [(row > row[token]).sum() for row, token in zip(logits, ids, strict=True)]
    assert found.sum == pytest.approx(logp[taken].sum(), rel=1e-5, abs=1e-5)


def test_an_even_distribution_is_as_perplexing_as_its_size():
    c = lp.confidence(answer_trace(torch.zeros(4, len(TEXTS)), ids=[6, 7, 8, 1]))
    assert c.perplexity == pytest.approx(len(TEXTS))
    assert c.entropy.tolist() == pytest.approx([math.log(len(TEXTS))] * 4)
    assert c.margin.tolist() == pytest.approx([0] * 4, abs=1e-6)
    assert c.rank.tolist() == [0] * 4


def test_the_top_k_are_enough_for_every_number(vlm):
    sampling = {"max_new_tokens": 6, "do_sample": True, "seed": 2}
    whole = vlm.generate(photo(), QUESTION, **sampling)
    few = vlm.generate(photo(), QUESTION, **sampling, capture=lp.Capture(logits=4, scores=4))
    one, other = lp.confidence(whole), lp.confidence(few)
    for name in ("logprob", "probability", "entropy", "margin", "rank", "sampled_probability"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=2e-5, rtol=2e-5)
    for step, other_step in zip(one.top(4), other.top(4), strict=True):
        assert [candidate.id for candidate in step] == [candidate.id for candidate in other_step]
        assert [candidate.text for candidate in step] == [candidate.text for candidate in other_step]


# --- what is missing ---


def test_what_was_not_kept_is_named(vlm):
    def kept(**capture):
        return vlm.generate(photo(), QUESTION, max_new_tokens=2, capture=lp.Capture(**capture))

    with pytest.raises(lp.NotCaptured, match="logits=True"):
        lp.confidence(kept(logits=False))
    with pytest.raises(lp.NotCaptured, match="scores=True"):
        _ = lp.confidence(kept(scores=False)).sampled_probability
    single = lp.confidence(kept(logits=1))
    assert single.probability.shape == (2,)
    with pytest.raises(lp.NotCaptured, match="logits=2"):
        _ = single.margin
    with pytest.raises(lp.NotCaptured, match="logits=5"):
        single.top(5)
    assert "margin" not in single.to_dict()


def test_nan_is_an_error():
    logits = torch.zeros(4, len(TEXTS))
    logits[2, 5] = math.nan
    with pytest.raises(lp.NotANumber, match="generated token 2"):
        lp.confidence(answer_trace(logits, ids=[6, 7, 8, 1]))


# --- alternatives, choices, words ---


def test_top_lists_the_likeliest_with_their_texts():
    logits = torch.full((1, len(TEXTS)), -5.0)
    logits[0, 2], logits[0, 5], logits[0, 3] = 3.0, 2.0, 1.0
    (step,) = lp.confidence(answer_trace(logits)).top(3)
    assert [candidate.text for candidate in step] == [" yes", " No", "Yes"]
    assert step[0].probability == pytest.approx(float(torch.softmax(logits[0], 0)[2]))
    with pytest.raises(lp.BadInput, match="vocabulary of 11"):
        lp.confidence(answer_trace(logits)).top(12)
    with pytest.raises(lp.BadInput):
        lp.confidence(answer_trace(logits)).top(0)
    for wrong in (2.0, "2", None):
        with pytest.raises(lp.BadInput, match="whole number from 1"):
            lp.confidence(answer_trace(logits)).top(wrong)
    assert lp.confidence(answer_trace(logits)).top(np.int64(3)) == (step,)


def test_choices_sum_every_spelling():
    logits = torch.randn(4, len(TEXTS), generator=torch.Generator().manual_seed(0))
    c = lp.confidence(answer_trace(logits, ids=[6, 7, 8, 1]))
    p = torch.softmax(logits[0].double(), 0)
    found = c.choices(["yes", "no"])
    assert found.ids == ((2, 3), (4, 5))
    assert found.probability == pytest.approx([float(p[2] + p[3]), float(p[4] + p[5])])
    assert found["no"] == found.probability[1]
    assert sum(found.normalised) == pytest.approx(1)
    assert found.normalised[0] / found.normalised[1] == pytest.approx(found.probability[0] / found.probability[1])
    assert found.best == max(("yes", "no"), key=lambda name: found[name])
    assert found.position == P

    later = torch.softmax(logits[2].double(), 0)
    assert c.choices(["yes"], at="sign").probability == pytest.approx([float(later[2] + later[3])])
    assert c.choices(["yes"], at=-2) == c.choices(["yes"], at=P + 2)


def test_choices_that_cannot_be_weighed():
    c = lp.confidence(answer_trace(torch.zeros(2, len(TEXTS)), ids=[2, 1]))
    with pytest.raises(lp.BadInput, match="no single token spells 'perhaps'"):
        c.choices(["yes", "perhaps"])
    with pytest.raises(lp.BadInput, match="more than their case"):
        c.choices(["yes", "Yes"])
    with pytest.raises(lp.BadInput, match="got none"):
        c.choices([])
    with pytest.raises(lp.OutOfRange, match="in the prompt"):
        c.choices(["yes"], at="what")


def test_choices_need_no_model(vlm, tmp_path):
    trace = vlm.generate(photo(), QUESTION, max_new_tokens=3)
    loaded = lp.Trace.load(trace.save(tmp_path / "a.trace"))
    assert lp.confidence(loaded).choices(["yes", "no"]) == lp.confidence(trace).choices(["yes", "no"])
    words = vlm.processor.tokenizer.get_vocab()
    p = torch.softmax(trace.logits[0], 0)
    assert lp.confidence(loaded).choices("yes")["yes"] == pytest.approx(float(p[words["yes"]] + p[words["Ġyes"]]))


def test_choices_among_the_top_k():
    logits = torch.zeros(2, len(TEXTS))
    logits[0, 2], logits[0, 4] = 4.0, 3.0
    full = answer_trace(logits, ids=[2, 1])
    top = top_k(logits, full.generated_ids, 2)
    few = answer_trace(logits, ids=[2, 1], records={f"logits.{n}": getattr(top, n) for n in top.__dataclass_fields__})
    found = lp.confidence(few).choices(["yes", "no"])
    p = torch.softmax(logits[0], 0)
    assert found.probability == pytest.approx([float(p[2]), float(p[4])])
    with pytest.raises(lp.NotCaptured, match="not among the top 2"):
        lp.confidence(few).choices(["x"])


def test_words_are_whole_and_leave_eos_out():
    logits = torch.randn(4, len(TEXTS), generator=torch.Generator().manual_seed(1))
    c = lp.confidence(answer_trace(logits, ids=[6, 7, 8, 1]))  # " ST" "OP" " sign" "</s>"
    stop, sign = c.words()
    assert (stop.text, sign.text) == ("STOP", "sign")
    assert stop.positions == (P, P + 1)
    assert stop.logprob == pytest.approx(float(c.logprob[0] + c.logprob[1]))
    assert stop.probability == pytest.approx(float(c.probability[0] * c.probability[1]))
    assert stop.lowest == pytest.approx(float(min(c.probability[:2])))
    assert sign.entropy == pytest.approx(float(c.entropy[2]))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(["a", " b", " ", "\n", "c ", "", "</s>", ".", " d"]), min_size=1, max_size=12))
def test_words_divide_the_tokens(pieces):
    logits = torch.zeros(len(pieces), len(TEXTS))
    trace = synthetic_trace(logits=logits, answer=pieces)
    words = Confidence(torch.zeros(len(pieces)), torch.zeros(len(pieces)), torch.zeros(len(pieces)), trace).words()
    kept = [token.position for token in trace.generated if token.text != "</s>"]
    assert [position for word in words for position in word.positions] == kept
    assert [word.text for word in words if word.text] == "".join(pieces).replace("</s>", " ").split()


# --- as data ---


def test_as_data_and_as_text(vlm):
    trace = vlm.generate(photo(), QUESTION, max_new_tokens=4)
    c = lp.confidence(trace)
    told = json.loads(json.dumps(c.to_dict()))
    assert told["id"] == trace.generated_ids.tolist()
    assert told["probability"] == pytest.approx(c.probability.tolist())
    assert set(told) >= {"logprob", "entropy", "margin", "rank", "sampled_probability", "perplexity"}
    assert len(c.table().splitlines()) == 5
    assert len({len(line) for line in c.table().splitlines()}) == 1
    frame = c.to_pandas()
    assert frame["rank"].tolist() == c.rank.tolist()
    assert set(c.table().splitlines()[0].split()) <= set(frame.columns), "the same names on screen and in frames"
    assert list(frame.columns) == [name for name, column in c.to_dict().items() if isinstance(column, list)]


def test_words_and_choices_are_tables_too(tmp_path):
    logits = torch.randn(T, len(TEXTS), generator=torch.Generator().manual_seed(1))
    c = lp.confidence(synthetic_trace(logits=logits))
    words, choices = c.words(), c.choices(["yes", "no"])
    assert words.to_pandas()["word"].tolist() == ["STOP", "sign"]
    assert words.to_dict()["logprob"] == [word.logprob for word in words]
    assert [line.split()[0] for line in words.table().splitlines()] == ["word", "STOP", "sign"]
    told = json.loads(json.dumps(choices.to_dict()))
    assert (told["answer"], told["best"], told["position"]) == (["yes", "no"], choices.best, P)
    assert told["probability"] == list(choices.probability)
    for table, first in ((words, "word"), (choices, "answer"), (c, "token")):
        path = table.to_csv(tmp_path / "t.csv")
        frame = pandas.read_csv(path)
        assert frame.columns[0] == first
        np.testing.assert_allclose(frame["probability"], table.to_pandas()["probability"])


def test_what_a_notebook_shows_is_short_and_safe():
    logits = torch.randn(T, len(TEXTS), generator=torch.Generator().manual_seed(1))
    c = lp.confidence(synthetic_trace(logits=logits, answer=["<b>x</b>", "OP", " sign", "</s>"]))
    assert len(repr(c)) < 120
    shown = c._repr_html_()
    assert "&lt;b&gt;x&lt;/b&gt;" in shown and "<b>" not in shown
    assert shown.count("<tr>") == 5


def test_an_answer_beyond_all_belief_has_an_infinite_perplexity():
    """Its exponential is no float."""
    logits = torch.full((T, len(TEXTS)), 2000.0)
    logits[torch.arange(T), synthetic_trace().generated_ids] = 0.0
    assert lp.confidence(synthetic_trace(logits=logits)).perplexity == float("inf")
