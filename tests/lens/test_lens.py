"""The lens of each layer is what a dense formula says, in blocks, at any tokens, of whatever the trace kept."""

import csv

import pytest
import torch

import llava_probe as lp
from llava_probe import tiny
from llava_probe.lens import reading
from tests.models import photo

QUESTION = "what is the text on the stop sign"
EVERYTHING = lp.Capture(positions="all")


def dense(vlm, trace, layer, at):
    """[N, V] by the published formula, from the module's weights."""
    inside = vlm.model.model.language_model
    states = trace.hidden(layer=layer, at=at)
    if layer < 4:
        spread = states.pow(2).mean(-1, keepdim=True)
        states = inside.norm.weight * states / (spread + inside.norm.variance_epsilon).sqrt()
    return torch.log_softmax((states @ vlm.model.lm_head.weight.T).double(), -1)


@pytest.fixture
def trace(random_vlm):
    return random_vlm.generate(photo(), QUESTION, max_new_tokens=4, capture=EVERYTHING)


def test_every_layer_equals_the_dense_formula(random_vlm, trace):
    found = lp.lens(random_vlm, trace, at=lp.ALL, top=3, words=["stop", "sign"])
    assert found.layers == (0, 1, 2, 3, 4) and found.positions == tuple(range(len(trace.tokens) - 1))
    for row, layer in enumerate(found.layers):
        logprobs = dense(random_vlm, trace, layer, lp.ALL)
        best = logprobs.topk(3)
        torch.testing.assert_close(found.probability[row], best.values.exp().float(), atol=1e-7, rtol=1e-5)
        assert torch.equal(found.ids[row], best.indices)
        entropy = torch.special.entr(logprobs.exp()).sum(-1)
        torch.testing.assert_close(found.entropy[row], entropy.float(), atol=1e-6, rtol=1e-5)
        for number, word in enumerate(found.words):
            ids = trace.spellings.of(word)
            share, ahead = logprobs[:, ids].exp().sum(-1), logprobs[:, ids].max(-1, keepdim=True).values
            torch.testing.assert_close(found.word_probability[number, row], share.float(), atol=1e-7, rtol=1e-5)
            assert torch.equal(found.word_rank[number, row], (logprobs > ahead).sum(-1))


def test_the_last_layer_is_what_the_model_said(random_vlm, trace):
    found = lp.lens(random_vlm, trace, layers=-1, at=lp.PREDICTING, top=1)
    assert found.ids[0, :, 0].tolist() == trace.generated_ids.tolist()
    torch.testing.assert_close(found.probability[0, :, 0], lp.confidence(trace).probability, atol=0, rtol=1e-5)
    chosen = lp.confidence(trace).choices(["stop"])
    weighed = lp.lens(random_vlm, trace, layers=-1, at=lp.LAST, words=["stop"])
    assert float(weighed.word_probability) == pytest.approx(chosen["stop"], rel=1e-5)
    assert weighed.word_ids == chosen.ids


def test_blocks_do_not_change_it(random_vlm, trace, monkeypatch):
    whole = lp.lens(random_vlm, trace, words="stop")
    monkeypatch.setattr(reading, "BLOCK_BYTES", 7 * 4 * random_vlm.anatomy.vocabulary)
    apart = lp.lens(random_vlm, trace, words="stop")
    assert torch.equal(whole.ids, apart.ids) and torch.equal(whole.word_rank, apart.word_rank)
    torch.testing.assert_close(whole.entropy, apart.entropy, atol=0, rtol=1e-6)


def test_what_was_not_kept_is_computed_again(random_vlm, trace):
    little = random_vlm.generate(photo(), QUESTION, max_new_tokens=4)
    kept, again = (lp.lens(random_vlm, each, layers=[0, 3]) for each in (trace, little))
    torch.testing.assert_close(kept.entropy, again.entropy, atol=1e-5, rtol=1e-5)
    assert kept.texts == again.texts and kept.positions == again.positions


def test_what_was_kept_is_not(random_vlm, trace, monkeypatch):
    monkeypatch.setattr(type(random_vlm), "prepare", lambda *_: pytest.fail("the processor ran"))
    lp.lens(random_vlm, trace)


def test_states_made_under_an_intervention_are_read_as_they_were(random_vlm):
    with lp.ablate(random_vlm, mlp=[2]):
        changed = random_vlm.generate(photo(), QUESTION, max_new_tokens=2, capture=EVERYTHING)
    found = lp.lens(random_vlm, changed, layers=-1, at=lp.PREDICTING, top=1)
    torch.testing.assert_close(found.probability[0, :, 0], lp.confidence(changed).probability, atol=0, rtol=1e-5)
    with lp.ablate(random_vlm, mlp=[2]):
        little = random_vlm.generate(photo(), QUESTION, max_new_tokens=2)
    with pytest.warns(UserWarning, match="under interventions, none is in force now"):
        lp.lens(random_vlm, little, layers=1)


def test_a_map_lies_where_the_word_was_read(random_vlm, trace):
    found = lp.lens(random_vlm, trace, words="stop")
    m = found.map("stop", layer=-2)
    assert m.layout is trace.layouts[0] and m.about["layer"] == 3
    at = trace.layouts[0].positions.tolist()
    share = dense(random_vlm, trace, 3, at)[:, trace.spellings.of("stop")].exp().sum(-1)
    torch.testing.assert_close(m.values[0], share.float(), atol=1e-7, rtol=1e-5)


def test_first_is_the_layer_that_says_it_first(random_vlm, trace):
    words = sorted({text.strip() for text in trace.spellings.texts.values() if text.strip().isalpha()})
    found = lp.lens(random_vlm, trace, words=words, top=1)
    for word in words:
        ids = set(found.word_ids[found.words.index(word)])
        each = zip(found.layers, found.ids, strict=True)
        says = [layer for layer, said in each if ids & set(said.flatten().tolist())]
        assert found.first(word) == (says[0] if says else None)
    said = [(place, layer[place][0].strip()) for layer in found.texts for place in range(len(found.positions))]
    place, word = next((place, word) for place, word in said if word in words)
    ids = set(found.word_ids[found.words.index(word)])
    layers = [
        layer for layer, of_layer in zip(found.layers, found.ids, strict=True) if ids & set(of_layer[place].tolist())
    ]
    assert found.first(word, position=found.positions[place]) == layers[0]


def test_a_word_of_several_tokens_counts_by_its_first(random_vlm, trace):
    (ids,) = lp.lens(random_vlm, trace, layers=0, words="zebra").word_ids
    tokenizer = random_vlm.processor.tokenizer
    assert not trace.spellings.of("zebra")
    spelled = [tokenizer(text, add_special_tokens=False).input_ids for text in ("zebra", "Zebra", "ZEBRA")]
    assert {each[0] for each in spelled} <= set(ids)


def test_it_is_a_table_too(random_vlm, trace, tmp_path):
    found = lp.lens(random_vlm, trace, layers=[1, 4], words="stop")
    columns = found.to_dict()
    assert len(columns["word"]) == 2 * 36 and columns["rank of stop"] == found.word_rank.flatten().tolist()
    assert found.table().splitlines()[0].split()[:2] == ["layer", "entropy"] and len(found.table().splitlines()) == 3
    with found.to_csv(tmp_path / "lens.csv").open(newline="") as file:
        assert len([*csv.reader(file)]) == 1 + 2 * 36
    assert "logit lens at 36 tokens" in found._repr_html_() and "2 layers at 36 tokens" in repr(found)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"layers": 5}, "hidden state 5 is not there: this model has 0 to 4"),
        ({"layers": []}, "layers= names no layer"),
        ({"at": 500}, "500"),
        ({"at": -1}, "never fed to the model"),
        ({"at": []}, "names no token"),
        ({"words": ["stop", " "]}, "takes words, as text"),
        ({"top": 10**6}, "asked for the top 1000000 of a vocabulary of"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(random_vlm, trace, given, sentence):
    with pytest.raises(lp.ProbeError, match=sentence):
        lp.lens(random_vlm, trace, **given)


def test_what_was_not_read_is_one_sentence(random_vlm, trace):
    found = lp.lens(random_vlm, trace, layers=[1], words="stop", at=lp.QUESTION)
    for ask, sentence in (
        (lambda: found.map("dog", 1), "'dog' was not weighed, only \\['stop'\\]"),
        (lambda: found.map("stop", 1), "not all visual tokens of picture 0 were read"),
        (lambda: found.row(2), "layer 2 was not read, only 1"),
        (lambda: found.first("stop", position=3), "not read at position 3"),
    ):
        with pytest.raises(lp.ProbeError, match=sentence):
            ask()


def test_a_trace_of_another_model_is_refused(random_vlm, tiny_vlm):
    other = tiny_vlm.generate(tiny.scene(1).image, "What is it?", max_new_tokens=1)
    with pytest.raises(lp.BadInput, match="this trace is of another model"):
        lp.lens(random_vlm, other)
