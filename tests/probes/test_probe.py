"""A fitted probe reads hidden states wherever they are, and comes back from its file as it was."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import llava_probe as lp
from llava_probe.probes import Probe, fit_probe
from tests.probes.probe_store import coloured
from tests.synthetic import IMAGE_AT, K, P, synthetic_trace

WIDTH = 12


@pytest.fixture(scope="module")
def probe():
    return fit_probe(coloured(strength=2.0), "colour", layers=[2], bootstrap=20, draws=1).probe(
        "layer_2", "last_prompt"
    )


@pytest.fixture(scope="module")
def trace():
    return synthetic_trace(hidden=torch.randn(K, 4, WIDTH, generator=torch.Generator().manual_seed(0)) + 3)


def test_scores_take_any_leading_axes(probe):
    hidden = torch.randn(2, 3, WIDTH)
    scores = probe.scores(hidden)
    assert scores.shape == (2, 3, 3)
    for place in np.ndindex(2, 3):
        torch.testing.assert_close(scores[place], probe.scores(hidden[place]))
    assert probe.predict(hidden)[1][2] == probe.classes[scores[1, 2].argmax()]
    assert isinstance(probe.predict(hidden[0, 0]), str)
    torch.testing.assert_close(probe.probabilities(hidden).sum(-1), torch.ones(2, 3))


def test_the_direction_is_the_gradient_of_the_score_at_the_raw_states(probe):
    hidden = torch.randn(5, WIDTH, dtype=torch.float64)
    for number, colour in enumerate(probe.classes):
        steps = torch.eye(WIDTH, dtype=torch.float64)
        moved = [(probe.scores(hidden + step) - probe.scores(hidden))[:, number].mean() for step in steps]
        slope = torch.tensor(moved)
        torch.testing.assert_close(probe.direction(colour), slope / slope.norm(), atol=1e-4, rtol=1e-4)
        further = probe.scores(hidden + probe.direction(colour))[:, number]
        assert (further > probe.scores(hidden)[:, number]).all()


def test_a_saved_probe_comes_back_as_it_was(probe, tmp_path):
    path = probe.save(tmp_path / "colour.probe")
    back = Probe.load(path)
    hidden = torch.randn(4, WIDTH)
    assert torch.equal(back.scores(hidden), probe.scores(hidden))
    for name in ("label", "task", "kind", "classes", "layer", "position"):
        assert getattr(back, name) == getattr(probe, name)
    assert back.about == json.loads(json.dumps(dict(probe.about)))
    with safe_open(path, framework="pt") as opened:
        assert set(opened.keys()) == {"weights", "bias"}  # nothing but tensors and JSON
    assert [found.name for found in tmp_path.iterdir()] == ["colour.probe"]


@pytest.mark.parametrize("classes", [(1, 2, 10), (False, True), ("é", "漢")])
def test_labels_keep_their_type_in_the_file(classes, tmp_path):
    probe = fit_probe(coloured(classes=classes), "colour", layers=[2], kind="ridge", bootstrap=0).probe(
        "layer_2", "last_prompt"
    )
    back = Probe.load(probe.save(tmp_path / "it.probe"))
    assert back.classes == probe.classes == tuple(sorted(classes, key=str))
    assert list(map(type, back.classes)) == list(map(type, probe.classes))


def test_other_files_are_no_probes(probe, tmp_path, trace):
    path = probe.save(tmp_path / "colour.probe")
    with pytest.raises(lp.BadFile, match="there is no probe"):
        Probe.load(tmp_path / "none.probe")
    (tmp_path / "text.probe").write_text("colour")
    with pytest.raises(lp.BadFile, match="no probe, or a damaged one"):
        Probe.load(tmp_path / "text.probe")
    save_file({"weights": torch.zeros(2)}, tmp_path / "other.probe")
    with pytest.raises(lp.BadFile, match="no probe of llava_probe"):
        Probe.load(tmp_path / "other.probe")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(lp.BadFile, match="checksum"):
        Probe.load(path)
    with pytest.raises(lp.BadFile, match="could not be written"):
        probe.save(tmp_path / "nowhere" / "colour.probe")


def test_it_reads_a_trace_token_by_token(probe, trace):
    reading = probe.apply(trace, at="predicting")
    hidden = trace.hidden(layer=2, at="predicting")
    torch.testing.assert_close(reading.scores, probe.scores(hidden))
    assert list(reading.predicted) == probe.predict(hidden)
    assert [token.position for token in reading.tokens] == list(trace.predicting)
    assert len(reading.table().splitlines()) == 1 + len(reading.tokens)
    assert len(probe.apply(trace, at=P - 1).tokens) == 1


def test_the_strip_is_every_text_token_that_was_fed(probe, trace):
    strip = probe.strip(trace)
    assert [token.position for token in strip.tokens] == [place for place in range(K) if place not in IMAGE_AT]


def test_the_map_lies_on_the_visual_tokens(probe, trace):
    m = probe.map(trace, "red")
    assert isinstance(m, lp.ImageMap)
    red = probe.probabilities(trace.hidden(layer=2, at=list(IMAGE_AT)))[:, probe.classes.index("red")]
    torch.testing.assert_close(m.values[0], red - 1 / 3)  # chance has no colour
    assert m.label() == "colour red"
    assert m.overlay().size == trace.images[0].size
    every = probe.map(trace)
    assert len(every) == 3
    torch.testing.assert_close(every.values.sum(0), torch.zeros(len(IMAGE_AT)), atol=1e-6, rtol=0)


def test_what_it_cannot_read_is_said(probe, trace):
    with pytest.raises(lp.BadInput, match=r"\[\.\.\., 12\] of layer_2"):
        probe.scores(torch.zeros(3, 5))
    with pytest.raises(lp.OutOfRange, match="'blue', 'green', 'red'"):
        probe.direction("violet")
    with pytest.raises(lp.NotCaptured):
        probe.map(synthetic_trace(), "red")
    with pytest.raises(lp.BadInput, match="no layer of the language model"):
        Probe(probe.weights, probe.bias, "colour", "classification", "ridge", probe.classes, "tower_1", "x").strip(
            trace
        )
    with pytest.raises(lp.BadInput, match="no probabilities"):
        Probe(
            probe.weights, probe.bias, "colour", "classification", "ridge", probe.classes, "layer_2", "x"
        ).probabilities(torch.zeros(WIDTH))


def test_it_tells_how_it_was_found(probe):
    assert probe.about["score"] > 0.8
    assert probe.about["low"] <= probe.about["score"] <= probe.about["high"]
    assert math.isfinite(probe.about["strength"])
    assert "score 0." in repr(probe) or "score 1." in repr(probe)
