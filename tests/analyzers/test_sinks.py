"""Sinks planted in hidden states are found, wherever they are; ordinary states have none."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import llava_probe as lp
from llava_probe import tiny
from tests.models import photo
from tests.synthetic import IMAGE_AT, K, causal, synthetic_trace

LAYERS, WIDTH = 6, 128


def ordinary(seed=0, width=WIDTH):
    return torch.randn(K, LAYERS + 1, width, generator=torch.Generator().manual_seed(seed))


def planted(which, dimensions=(7,), seed=0, at=slice(2, LAYERS), size=300.0, width=WIDTH):
    """Hidden states, massive in these dimensions at the first token and at these visual tokens, as in a 7B model."""
    hidden = ordinary(seed, width)
    for dimension in dimensions:
        for token in [0, *(IMAGE_AT[number] for number in which)]:
            hidden[token, at, dimension] = size
    return hidden


@settings(max_examples=40, deadline=None)
@given(
    which=st.sets(st.integers(0, 5), max_size=5),
    dimension=st.integers(0, WIDTH - 1),
    seed=st.integers(0, 1000),
    sign=st.sampled_from([-1, 1]),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_planted_sinks_are_found_and_only_they(which, dimension, seed, sign, scale):
    hidden = planted(which, [dimension], seed, size=sign * 300.0) * scale
    found = lp.sinks(synthetic_trace(hidden=hidden, layers=LAYERS))
    assert set(found.positions.tolist()) == {IMAGE_AT[number] for number in which}
    assert found.dimensions == (dimension,)
    assert len(found) == len(which)


def test_two_massive_dimensions_share_the_energy_in_a_wide_model():
    hidden = planted([1], [3, 900], width=4096, size=100.0)
    found = lp.sinks(synthetic_trace(hidden=hidden, layers=LAYERS))
    assert found.threshold == 20
    assert found.dimensions == (3, 900)
    assert found.marked.tolist() == [False, True, False, False, False, False]


def test_ordinary_states_have_no_sinks():
    for seed in range(20):
        found = lp.sinks(synthetic_trace(hidden=ordinary(seed), layers=LAYERS))
        assert len(found) == 0
        assert found.dimensions == ()


def test_a_massive_visual_token_alone_is_none():
    """Massive where the first token is not: an unusual patch, not the dimension in which attention sinks are made."""
    hidden = ordinary()
    hidden[IMAGE_AT[2], :, 11] = 300
    assert len(lp.sinks(synthetic_trace(hidden=hidden, layers=LAYERS))) == 0


def test_a_sink_lasts_through_half_of_the_layers():
    hidden = planted([0])
    hidden[IMAGE_AT[3], 2:4, 7] = 300.0  # two of the four middle layers
    hidden[IMAGE_AT[5], 2, 7] = 300.0  # one
    found = lp.sinks(synthetic_trace(hidden=hidden, layers=LAYERS))
    assert found.marked.tolist() == [True, False, False, True, False, False]
    assert found.layers == (2, 3, 4, 5)
    assert found.strength.shape == (4, 6)
    assert found.strength[:, 0].min() > found.threshold > found.strength[1:, 5].max()


def test_the_share_that_sinks_draw_is_told():
    attention = causal(layers=LAYERS)
    found = lp.sinks(synthetic_trace(hidden=planted([4]), attention=attention, layers=LAYERS))
    rows = attention.mean((1, 2))[-4:]
    torch.testing.assert_close(found.attention, rows[:, IMAGE_AT[4]])
    torch.testing.assert_close(found.share, rows[:, IMAGE_AT[4]] / rows[:, list(IMAGE_AT)].sum(1))
    assert lp.sinks(synthetic_trace(hidden=planted([4]), layers=LAYERS)).attention is None


def test_a_random_model_has_none(random_vlm):
    trace = random_vlm.generate(
        photo(), "what is the text", max_new_tokens=2, capture=lp.Capture(positions=["predicting", "image", 0])
    )
    found = lp.sinks(trace)
    assert len(found) == 0
    assert "no massive dimension" in repr(found)


def test_a_trained_model_runs_through(tiny_vlm):
    scene = tiny.scene(3)
    capture = lp.Capture(positions=["predicting", "image", 0])
    trace = tiny_vlm.generate(scene.image, scene.questions[0].question, capture=capture)
    assert lp.sinks(trace).marked.float().mean() < 0.1
    assert lp.attention_map(trace, sinks="drop").values.shape[1] == len(trace.layouts[0])


def test_what_must_be_kept_is_named(random_vlm):
    with pytest.raises(lp.NotCaptured, match=r'positions=\["predicting", "image", 0\]'):
        lp.sinks(random_vlm.generate(photo(), "what is the text", max_new_tokens=2))
    with pytest.raises(lp.NotCaptured, match=r"none were kept.*positions="):
        lp.sinks(synthetic_trace())
    last = lp.Capture(positions="all", layers=[0, -1])
    with pytest.raises(lp.NotCaptured, match=r"hidden states 2 to 3 and only of layers \[0, 4\]"):
        lp.sinks(random_vlm.generate(photo(), "what is the text", max_new_tokens=2, capture=last))
