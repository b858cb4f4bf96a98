"""Each signal is its formula, worked out again from transformers' own eager pass over prompt and answer."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import llava_probe as lp
from llava_probe import tiny
from llava_probe.signals.hallucination import at_depth
from llava_probe.signals.signal_table import _frequencies
from llava_probe.tiny.plan import SHAPES

SCENE = next(scene for scene in map(tiny.scene, range(40)) if len(scene.objects) == 3)


@pytest.fixture(scope="module")
def trace(tiny_vlm):
    return tiny_vlm.generate(SCENE.image, "Describe the image.")


@pytest.fixture(scope="module")
def found(tiny_vlm, trace):
    return lp.hallucination(tiny_vlm, trace, [*SHAPES, "stop sign"])


@pytest.fixture(scope="module")
def eager(trace):
    """Hidden states, attention and logits of one pass of a model of its own."""
    vlm = lp.load(attn_implementation="eager")
    ids = torch.tensor([[token.id for token in trace.tokens][:-1]])
    inputs, _ = vlm.model_inputs(SCENE.image, "Describe the image.")
    given = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        out = vlm.model(**given, output_hidden_states=True, output_attentions=True)
    return vlm.model, out


def test_every_object_that_is_named_is_found_once(trace, found):
    assert sorted(found.objects) == sorted(thing.kind for thing in SCENE.objects)
    for word, positions in zip(found.words, found.positions, strict=True):
        assert "".join(trace.tokens[place].text for place in positions).strip() == word


def test_signals_are_their_formulae(trace, found, eager):
    model, out = eager
    states = [each[0] for each in out.hidden_states]
    attention = [each[0] for each in out.attentions]
    layers, visual = len(attention), [token.position for token in trace.tokens if token.role == "image"]
    norm, head = model.model.language_model.norm, model.lm_head.weight

    def lens(layer, rows):
        return ((states[layer][rows] if layer == layers else norm(states[layer][rows])) @ head.T).softmax(-1)

    for number, positions in enumerate(found.positions):
        token, row = trace.tokens[positions[0]].id, positions[0] - 1
        told = {name: column[number] for name, column in found.values.items()}
        p = out.logits[0, [place - 1 for place in positions]].softmax(-1)
        own = [trace.tokens[place].id for place in positions]
        assert told["probability"] == pytest.approx(float(p[range(len(own)), own].prod()), abs=1e-4)
        assert told["entropy"] == pytest.approx(float(torch.special.entr(p[0]).sum()), abs=1e-3)
        assert told["margin"] == pytest.approx(float(p[0, token] - p[0].topk(2).values[1]), abs=1e-4)
        middle = sorted({at_depth(layer, layers) for layer in range(5, 19)} & set(range(layers)))
        svar = sum(float(attention[layer][:, row, visual].mean(0).sum()) for layer in middle)
        assert told["svar"] == pytest.approx(svar, abs=1e-4)
        earlier = list(range(trace.prompt_length, row + 1))
        assert told["pas"] == pytest.approx(float(attention[0][:, row, earlier].mean(0).sum()), abs=1e-4)
        inner = max(float(lens(layer, visual)[:, token].max()) for layer in range(layers + 1))
        assert told["internal_confidence"] == pytest.approx(inner, abs=1e-4)
        word = states[3 * layers // 4][list(positions)].mean(0)
        near = torch.cosine_similarity(states[layers // 2][visual], word, dim=-1).max()
        assert told["contextual"] == pytest.approx(float(near), abs=1e-4)
        late = at_depth(31, layers)
        word = states[late][list(positions)].mean(0)
        few = round(32 * len(visual) / 576)
        picked = np.array(visual)[lens(layers, visual)[:, token].topk(few).indices.numpy()]
        local = torch.cosine_similarity(states[layers][picked], word, dim=-1).mean()
        whole = torch.cosine_similarity(states[late][trace.prompt_length - 1], word, dim=-1)
        assert told["glsim"] == pytest.approx(float(0.6 * whole + 0.4 * local), abs=1e-4)
        on_top = [int(lens(layer, [row]).argmax()) == token for layer in range(layers + 1)]
        since = next(layer for layer in range(layers + 1) if all(on_top[layer:]))
        assert told["lens_depth"] == pytest.approx(since / layers)
        assert told["position"] == positions[0] - trace.prompt_length and told["tokens"] == len(positions)
        assert math.isnan(told["frequency"])


def test_published_layers_are_scaled_to_the_depth():
    assert [at_depth(layer, 32) for layer in (5, 18, 31)] == [5, 18, 31]
    assert [at_depth(layer, 40) for layer in (5, 18, 31)] == [6, 22, 39]


def test_cocos_objects_are_found_by_chairs_words(tiny_vlm, trace):
    signs = next(scene for scene in map(tiny.scene, range(40)) if any(thing.text for thing in scene.objects))
    told = tiny_vlm.score(signs.image, "Describe the image.", "There is a stop sign. There is a red heart.")
    found = lp.hallucination(tiny_vlm, told)
    assert found.objects == ("stop sign",) and len(found.positions[0]) == 2
    assert not math.isnan(found.values["contextual"][0])


def test_an_object_is_read_where_it_stands_and_not_in_another_that_has_its_name(tiny_vlm):
    told = tiny_vlm.score(SCENE.image, "Describe the image.", "A teddy bear, a dog-house, a bear and a dog.")
    found = lp.hallucination(tiny_vlm, told)
    assert found.objects == ("teddy bear", "bear", "dog")
    for word, positions in zip(found.words[1:], found.positions[1:], strict=True):
        assert positions == told.find(word, "generated", occurrence=-1)


def test_a_word_that_ends_an_answer_has_no_state_of_its_own(tiny_vlm):
    cut = tiny_vlm.generate(SCENE.image, "Describe the image.", max_new_tokens=5)
    last = cut.tokens[-1].text.strip()
    found = lp.hallucination(tiny_vlm, cut, [last])
    assert math.isnan(found.values["contextual"][-1]) and not math.isnan(found.values["svar"][-1])


def test_what_cannot_be_read_is_a_sentence(tiny_vlm, trace):
    with pytest.raises(lp.OutOfRange, match=r"names none of \['zebra'\]"):
        lp.hallucination(tiny_vlm, trace, "zebra")
    with pytest.raises(lp.OutOfRange, match="names no object of llava_probe's list; name yours"):
        lp.hallucination(tiny_vlm, tiny_vlm.score(SCENE.image, "What?", "A red heart."))
    bare = tiny_vlm.generate(SCENE.image, "Describe the image.", capture=lp.Capture(attention=False))
    with pytest.raises(lp.NotCaptured, match="attention of all layers and heads"):
        lp.hallucination(tiny_vlm, bare, list(SHAPES))
    some = tiny_vlm.generate(SCENE.image, "Describe the image.", capture=lp.Capture(heads=[1]))
    with pytest.raises(lp.NotCaptured, match="and heads"):
        lp.hallucination(tiny_vlm, some, list(SHAPES))
    with pytest.raises(lp.BadInput, match="no visual tokens"):
        lp.hallucination(tiny_vlm, tiny_vlm.score(question="What?", answer="A heart."), "heart")


# --- over a data set ---


def planted(count, seed=0):
    """Answers of which one signal knows the truth, one half of it, and the rest nothing."""
    generator = np.random.default_rng(seed)
    return [generator.random(3) for _ in range(count)], [generator.random(3) < 0.4 for _ in range(count)]


def answers(found, truths, noises):
    """Copies of one answer's signals, with values of ours."""
    made = []
    for truth, noise in zip(truths, noises, strict=True):
        values = dict.fromkeys(found.values, noise * 0)
        values |= {"probability": -truth.astype(float), "entropy": truth + 2 * noise, "svar": noise}
        made.append(replace(found, values=values))
    return made


def test_aurocs_are_scikit_learns(found):
    from sklearn.metrics import roc_auc_score

    noises, truths = planted(60)
    table = lp.signal_table(answers(found, truths, noises), truths)
    truth, noise = np.concatenate(truths), np.concatenate(noises)
    assert table["probability"].auroc.value == 1.0
    assert table["entropy"].auroc.value == pytest.approx(roc_auc_score(truth, truth + 2 * noise))
    assert table["svar"].auroc.value == pytest.approx(roc_auc_score(truth, -noise))
    assert table["position"].auroc.value == 0.5
    with pytest.raises(lp.OutOfRange, match="no score of 'luck'"):
        table["luck"]
    assert table.scores[0].auroc.value == 1.0 and (table.words, table.made_up) == (180, int(truth.sum()))


def test_differences_are_paired_with_the_best_baseline(found, monkeypatch):
    module = sys.modules["llava_probe.signals.signal_table"]  # the package's own name is the function
    monkeypatch.setattr(module, "find_spec", lambda _name: None)  # none of them together
    noises, truths = planted(60)
    made = answers(found, truths, noises)
    for each, truth, noise in zip(made, truths, noises, strict=True):
        each.values["length"] = truth + 2 * noise
    table = lp.signal_table(made, truths)
    assert table.best_baseline == "length"
    same = table["entropy"].less_baseline
    assert same.value == same.low == same.high == 0, "the same numbers under another name"
    assert table["probability"].less_baseline.low > 0


def test_signals_together_are_told_on_pictures_they_were_not_fitted_on(found, monkeypatch):
    """Each word's number, of its picture, is among what the fits read; a fit never reads those that it then tells."""
    from sklearn.linear_model import LogisticRegression

    fitted, told = [], []
    fit, decide = LogisticRegression.fit, LogisticRegression.decision_function

    def watched(model, columns, truth):
        fitted.append(columns)
        return fit(model, columns, truth)

    def asked(model, columns):
        told.append(columns)
        return decide(model, columns)

    monkeypatch.setattr(LogisticRegression, "fit", watched)
    monkeypatch.setattr(LogisticRegression, "decision_function", asked)
    noises, truths = planted(60)
    pictures = [number // 2 for number in range(60)]
    made = answers(found, truths, noises)
    for each, picture in zip(made, pictures, strict=True):
        each.values["length"] = np.full(3, float(picture))
    table = lp.signal_table(made, truths, pictures=pictures)
    assert table.pictures == 30 and table["all signals"].auroc.value == 1.0
    by_length = [column for column in range(fitted[-1].shape[1]) if len(np.unique(fitted[-1][:, column])) > 3]
    assert len(fitted) == len(told) == 10 and len(by_length) == 1
    for some, others in zip(fitted[5:], told[5:], strict=True):
        # scaled alike, so that equal numbers are equal pictures
        assert not set(some[:, by_length[0]].round(6)) & set(others[:, by_length[0]].round(6))
    assert sum(len(np.unique(others[:, by_length[0]])) for others in told[5:]) == 30


def test_baselines_together_that_tell_nothing_are_at_chance(found):
    """Of folds whose shares of made-up words differ the fits' intercepts do too, the other way round."""
    values = []
    for seed in range(12):
        noises, truths = planted(40, seed)
        made = [replace(each, objects=("star",) * 3) for each in answers(found, truths, noises)]
        values.append(lp.signal_table(made, truths)["all baselines"].auroc.value)
    assert values == [0.5] * 12, "constant columns put no word before another"


def test_a_word_without_a_signal_leaves_the_others_together(found):
    noises, truths = planted(60)
    made = answers(found, truths, noises)
    made[0].values["probability"] = np.full(3, np.nan)  # the one that knows the truth
    table = lp.signal_table(made, truths)
    assert (table["all signals"].words, table["all signals"].auroc.value) == (177, 1.0)


def test_all_baselines_may_be_the_best_one(found):
    noises, truths = planted(60)
    made = answers(found, truths, noises)
    for each, truth, noise in zip(made, truths, noises, strict=True):
        each.values["length"], each.values["position"] = truth + 2 * noise, -2 * noise  # either alone tells little
    table = lp.signal_table(made, truths)
    assert table.best_baseline == "all baselines" and table["all baselines"].auroc.value > 0.95


def test_words_are_rarer_where_other_answers_do_not_name_them(found):
    made = [replace(found, objects=("star",) * 3), replace(found, objects=("heart",) * 3), found]
    made[2] = replace(found, objects=("star", "heart", "cross"))
    words = len(found.answer.split())
    told = _frequencies(made, np.arange(3))
    assert told[-3:] == pytest.approx([100 * 3 / (2 * words), 100 * 3 / (2 * words), 0])
    assert _frequencies(made, np.array([0, 1, 0]))[-3:] == pytest.approx([0, 100 * 3 / words, 0])


def test_a_table_without_two_sides_is_a_sentence(found):
    with pytest.raises(lp.BadInput, match="all of 3 words are made up"):
        lp.signal_table([found], [[True] * 3])
    with pytest.raises(lp.BadInput, match=r"a list for each answer.* the first have 3 words"):
        lp.signal_table([found], [[True]])
    with pytest.raises(lp.BadInput, match="a list for each answer"):
        lp.signal_table([found], [True])
    for unknown in (float("nan"), 0.5, "False"):
        with pytest.raises(lp.BadInput, match=f"says True or False of each word; got {unknown!r}"):
            lp.signal_table([found], [[False, True, unknown]])
    with pytest.raises(lp.BadInput, match="got none"):
        lp.signal_table([], [])
