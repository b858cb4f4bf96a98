"""Figures of what changed draw the numbers of the comparison, with what chance gives and with intervals."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

import llava_probe as lp
from llava_probe.compare.cka import Similarity
from llava_probe.compare.model_comparison import ComparedSample, ModelComparison
from llava_probe.compare.over_pictures import Means
from llava_probe.compare.weights import MovedWeight
from llava_probe.signals.measured import Estimate
from tests.synthetic import ANSWER, TEXTS, causal, synthetic_trace
from tests.view.drawn import texts


def means(*shape, seed=0):
    value = np.random.default_rng(seed).random(shape)
    return Means(value, value * 0.8, value * 1.2)


def alike(layer):
    value = 1 - layer / 10
    return Similarity(Estimate(value, value - 0.1, min(1.0, value + 0.1)), 0.2, 0.99, 0.9, 0.1, 12)


FOUND = ModelComparison(
    samples=tuple(
        ComparedSample(
            str(row), row // 2, f"What colour is thing {row % 2}?", "red", ("red", "blue")[row % 2], "red", -row / 9, 2
        )
        for row in range(8)
    ),
    left_out=(),
    logprob=means(seed=1),
    kl=means(4, seed=2),
    drift={"image": means(4, seed=3), "predicting": means(4, seed=4)},
    looked=means(3, 2, seed=5),
    shares=means(5, 3, 2, seed=6),
    own=means(3, 2, seed=7),
    attending=((0, 1, 2), (0, 1)),
    similar={"image": tuple(map(alike, range(4)))},
    dropped=(3, 90),
    weights=(
        MovedWeight("model.language_model.layers.3.self_attn.v_proj", "weight", 2.0, 0.5),
        MovedWeight("a", "b", 1.0, 0),
    ),
    unrelated=(),
    reasons={},
)


def pair(answer=ANSWER):
    logits = torch.randn(4, len(TEXTS), generator=torch.Generator().manual_seed(0))
    hidden = torch.randn(len(synthetic_trace().tokens) - 1, 4, 4, generator=torch.Generator().manual_seed(1))
    a = synthetic_trace(attention=causal(), logits=logits, hidden=hidden)
    b = synthetic_trace(attention=causal(seed=1), logits=2 * logits[: len(answer)], hidden=1.5 * hidden, answer=answer)
    return a, b


def lines(axes):
    return {line.get_label(): list(line.get_ydata()) for line in axes.lines}


def test_words_stand_with_both_probabilities_and_layers_with_their_drift():
    found = lp.compare(*pair())
    words, drift, heads = lp.figures.changed(found).axes[:3]
    both = {line.get_label(): list(line.get_xdata()) for line in words.lines}
    assert both["a"] == found.probability[:, 0].tolist() and both["b"] == found.probability[:, 1].tolist()
    assert [label.get_text() for label in words.get_yticklabels()] == ["ST", "OP", "sign", "</s>"]
    assert lines(drift)["image"] == pytest.approx([0.5] * 4)
    assert np.array_equal(np.asarray(heads.collections[0].get_array()).ravel(), found.looking.moved.flatten().numpy())


def test_words_that_stand_for_one_another_are_both_named():
    a, b = pair()
    tokens = tuple(dataclasses.replace(each, text=" x") if each.text == " sign" else each for each in b.tokens)
    figure = lp.figures.changed(lp.compare(a, dataclasses.replace(b, tokens=tokens)))
    assert "sign | x" in texts(figure)


def test_models_are_group_chance_and_intervals():
    figure = lp.figures.models_compared(FOUND)
    told = texts(figure)
    assert "8 samples of 4 pictures" in told and "image, shuffled" in told and "…layers.3.self_attn.v_proj" in told
    drawn = {label: values for axes in figure.axes for label, values in lines(axes).items()}
    assert drawn["predicting"] == list(FOUND.drift["predicting"].value)
    assert drawn["image, shuffled"] == [0.2] * 4
    bars = [bar.get_width() for bar in figure.axes[0].patches]
    assert bars[0] == float(FOUND.flips) == 0.5 and sorted(bars[1:]) == [0.0, 1.0]
    column = lp.figures.models_compared(FOUND, width="column")
    assert len(column.axes) == len(figure.axes)


def test_a_comparison_of_nothing_is_one_sentence():
    with pytest.raises(lp.BadInput, match="nothing of this comparison can be drawn"):
        lp.figures.changed(lp.compare(synthetic_trace(), synthetic_trace()))
