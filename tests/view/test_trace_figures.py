"""Tokens stand on the colours of their numbers, and bars have the heights of theirs."""

import dataclasses
import re
from itertools import pairwise

import numpy as np
import pytest
import torch

import llava_probe as lp
from tests.synthetic import TEXTS, causal, synthetic_trace
from tests.view.drawn import cut_off, texts


@pytest.fixture(scope="module")
def sure():
    logits = torch.randn(4, len(TEXTS), generator=torch.Generator().manual_seed(0))
    return lp.confidence(synthetic_trace(logits=logits))


def test_the_doubtful_tokens_stand_out(sure):
    shown = lp.figures.mappable(lp.figures.tokens(sure))
    np.testing.assert_allclose(shown.get_array(), sure.probability)
    certain, doubtful = shown.to_rgba(1.0), shown.to_rgba(0.0)
    assert min(certain[:3]) > 0.95, "white: as the page is"
    assert max(doubtful[:3]) < 0.65
    by_entropy = lp.figures.mappable(lp.figures.tokens(sure, by="entropy"))
    np.testing.assert_allclose(by_entropy.get_array(), sure.entropy)
    with pytest.raises(lp.BadInput, match="by= takes 'probability'"):
        lp.figures.tokens(sure, by="margin")


def test_words_behind_a_word_have_their_weights_but_where_it_starts():
    trace = synthetic_trace(attention=causal())
    m = lp.attention_map(trace)
    others = tuple(token for token in trace.tokens[:-1] if token.role != "image")
    weights = torch.arange(1.0, 1 + len(others)).expand(len(m), -1)
    m = dataclasses.replace(m, text=weights, text_tokens=others)
    shown = np.asarray(lp.figures.mappable(lp.figures.tokens(m, 0)).get_array())
    starts = [place in (trace.prompt_length - 1, trace.prompt_length) for place in (t.position for t in others)]
    np.testing.assert_array_equal(np.isnan(shown), starts)
    np.testing.assert_array_equal(shown[~np.isnan(shown)], weights[0][~torch.tensor(starts)])
    assert [weight for _, weight in m.words(0)] == sorted(shown[~np.isnan(shown)], reverse=True)
    with pytest.raises(lp.BadInput, match="no value for words"):
        lp.figures.tokens(dataclasses.replace(m, text=None, text_tokens=()))


def test_text_flows_within_its_width():
    pieces = [" photograph", " of", " stop", " internationalisation" * 6, "."] * 5
    logits = torch.randn(len(pieces), len(TEXTS), generator=torch.Generator().manual_seed(0))
    figure = lp.figures.tokens(lp.confidence(synthetic_trace(logits=logits, answer=pieces)), width="column")
    assert not cut_off(figure)
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 25
    for number, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[number + 1 :])


def test_bars_are_as_high_as_their_numbers(sure):
    scores = sure.trace.logits * 2
    drawn = lp.confidence(dataclasses.replace(sure.trace, records={**sure.trace.records, "scores": scores}))
    figure = lp.figures.confidence(drawn, highest=5.0)
    above, below = figure.axes
    np.testing.assert_allclose([bar.get_height() for bar in above.patches], sure.probability, rtol=1e-6)
    np.testing.assert_allclose([bar.get_height() for bar in below.patches], sure.entropy, rtol=1e-6)
    assert below.get_ylim() == (5.0, 0.0)
    assert all(word in texts(figure) for word in ("ST", "OP", "sign", "probability", "nats", "as sampled"))


def test_words_under_the_bars_do_not_overlap():
    pieces = [" photograph", " of", " stop", " internationalisation", "."] * 5
    logits = torch.randn(len(pieces), len(TEXTS), generator=torch.Generator().manual_seed(0))
    figure = lp.figures.confidence(lp.confidence(synthetic_trace(logits=logits, answer=pieces)))
    assert len(figure.axes) == 4  # two lines of two panels
    figure.draw_without_rendering()
    for axes in figure.axes[::2]:
        labels = axes.get_xticklabels()
        if labels[0].get_rotation() == 0:
            extents = [label.get_window_extent() for label in labels]
            assert not any(one.overlaps(next_) for one, next_ in pairwise(extents))


def test_of_a_very_long_answer_the_beginning_is_drawn_and_told(sure):
    """Of 3,000 tokens; a raster has at most 65,536 pixels a side."""
    count = 3_000
    trace = synthetic_trace(answer=[" elephant"] * count, logits=torch.zeros(count, len(TEXTS)))
    long = lp.confidence(trace)
    for figure in (
        lp.figures.confidence(long),
        lp.figures.confidence(long, title=True),
        lp.figures.tokens(long),
    ):
        told = re.search(r"the first ([\d,]+) of ([\d,]+) tokens", texts(figure).replace("\n", " "))
        assert int(told[2].replace(",", "")) == len(long.tokens)
        assert 100 < int(told[1].replace(",", "")) < len(long.tokens)
        assert figure.get_figheight() * 1200 < 2**16
    assert "the first" not in texts(lp.figures.confidence(sure, title=True))
