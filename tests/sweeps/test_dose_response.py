"""Each point of a dose-response curve is one steered run, read by the model without the push."""

from __future__ import annotations

import math

import numpy as np
import pytest

import llava_probe as lp
from llava_probe import tiny
from llava_probe.sweeps.answers import way_of
from llava_probe.sweeps.sweeping import sample_name
from tests.models import photo


@pytest.fixture(scope="module")
def sample():
    scene = tiny.scene(2)
    return scene.image, scene.questions[0].question


@pytest.fixture(scope="module")
def direction(tiny_vlm):
    return lp.Direction.of_word(tiny_vlm, "red")


@pytest.fixture(scope="module")
def found(tiny_vlm, direction, sample):
    return lp.dose_response(tiny_vlm, direction, [sample], layers=[4, 5], scales=(-1, 0, 1.5), at="last", random=2)


def test_each_point_is_one_steered_run(tiny_vlm, found, direction, sample):
    plain = tiny_vlm.generate(*sample, max_new_tokens=16)
    token, other = (int(id_) for id_ in plain.logits[0].topk(2).indices)
    for row, given in enumerate((direction, direction.random(0), direction.random(1))):
        for column, scale in enumerate((-1, 0, 1.5)):
            with lp.steer(tiny_vlm, given, layers=[4, 5], scale=scale, at="last", allow_nothing=True) as push:
                trace = tiny_vlm.generate(*sample, max_new_tokens=16)
            logits = trace.logits[0].double()
            assert found.values["probability"][0, row, column] == pytest.approx(
                float(logits.softmax(-1)[token]), abs=1e-6
            )
            assert found.values["difference"][0, row, column] == pytest.approx(
                float(logits[token] - logits[other]), abs=1e-4
            )
            assert found.said[0][row][column] == trace.answer
            assert found.values["length"][0, row, column] == len(trace.generated_ids)
            read = tiny_vlm.score(*sample, trace.generated_ids)
            mean = sum(
                float(row_.log_softmax(-1)[id_])
                for row_, id_ in zip(read.logits.double(), trace.generated_ids, strict=True)
            )
            assert found.values["perplexity"][0, row, column] == pytest.approx(
                math.exp(-mean / len(trace.generated_ids)), rel=1e-4
            )
    assert found.norms == pytest.approx(push.norms)


def test_no_push_is_the_plain_run_whatever_the_direction(tiny_vlm, found, sample):
    at = found.scales.index(0.0)
    plain = tiny_vlm.generate(*sample, max_new_tokens=16)
    assert {row[at] for row in found.said[0]} == {plain.answer}
    assert np.ptp(found.values["probability"][0, :, at]) == 0


def test_the_table_has_a_line_a_strength_with_the_random_ones_beside(found):
    lines = found.table().splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["-1", "+0", "+1.5"]
    mean = found.interval("probability")[0]
    assert mean.shape == (2, 3) and mean[1, 0] == pytest.approx(found.values["probability"][0, 1:, 0].mean())
    with pytest.raises(lp.BadInput, match="of= takes one of"):
        found.interval("loss")


def test_a_folder_goes_on_where_it_was(tiny_vlm, direction, sample, tmp_path):
    given = {"layers": 4, "scales": (0, 1), "random": 0, "folder": tmp_path / "dose"}
    first = lp.dose_response(tiny_vlm, direction, [sample], **given)
    again = lp.dose_response(tiny_vlm, direction, [sample], **given)
    np.testing.assert_array_equal(first.values["difference"], again.values["difference"])
    assert first.said == again.said
    with pytest.raises(lp.BadInput, match="another sweep"):
        lp.dose_response(tiny_vlm, direction.random(3), [sample], **given)


def test_no_strength_is_a_sentence(tiny_vlm, direction, sample):
    with pytest.raises(lp.BadInput, match="names no strength"):
        lp.dose_response(tiny_vlm, direction, [sample], layers=4, scales=[])


def test_a_trace_is_asked_again_with_all_of_its_request(random_vlm):
    chat = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "where"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "there"}]},
        {"role": "user", "content": [{"type": "text", "text": "what"}]},
    ]
    settings = {"do_center_crop": False, "size": {"height": 48, "width": 48}}
    asked = [
        random_vlm.generate(photo(96, 48), "where", max_new_tokens=1, processor_kwargs=settings),
        random_vlm.generate(photo(96, 48), messages=chat, max_new_tokens=1),
        random_vlm.generate(photo(96, 48), prompt="<image> where", max_new_tokens=1),
    ]
    for trace in asked:
        again = random_vlm.generate(list(trace.images), **way_of(trace), max_new_tokens=1)
        assert [token.id for token in again.tokens] == [token.id for token in trace.tokens]
        assert again.layouts == trace.layouts and again.question == (None if trace.request.messages else trace.question)
    assert len({sample_name(trace) for trace in asked}) == 3
