"""A sweep is single knock-outs, its table tells what they say, and a folder goes on where it was."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import llava_probe as lp
from llava_probe import tiny
from llava_probe.sweeps import information_flow as _function  # noqa: F401 - the name of the module is the function's

LITTLE = lp.Capture(attention=False, hidden_states=False)


def samples(count, kind="colour"):
    found = []
    for seed in range(200):
        scene = tiny.scene(seed)
        question = next((each for each in scene.questions if each.kind == kind), None)
        if question is not None:
            found.append((scene.image, question.question))
        if len(found) == count:
            return found
    raise AssertionError


@pytest.fixture(scope="module")
def flow(tiny_vlm):
    return lp.information_flow(tiny_vlm, samples(3), window=[1, 3])


def test_each_number_is_that_of_one_knock_out(tiny_vlm, flow):
    asked = samples(3)
    for number, (image, question) in enumerate(asked):
        plain = tiny_vlm.generate(image, question, max_new_tokens=1, capture=LITTLE).logits[0].double()
        token = int(plain.argmax())
        other = int(plain.topk(2).indices[1])
        assert flow.plain[number] == pytest.approx(
            [float(plain.softmax(-1)[token]), float(plain[token] - plain[other])], rel=1e-4
        )
        for edge, (keys, queries) in enumerate((("image", "question"), ("image", "last"), ("question", "last"))):
            for window, layers in ((0, [2]), (1, [1, 2, 3])):
                for control, uniform in ((0, False), (1, True)):
                    with lp.knock_out(tiny_vlm, keys=keys, queries=queries, layers=layers, uniform=uniform):
                        cut = tiny_vlm.generate(image, question, max_new_tokens=1, capture=LITTLE).logits[0].double()
                    here = (number, control, edge, window, 2)
                    assert flow.probability[here] == pytest.approx(float(cut.softmax(-1)[token]), abs=1e-4)
                    assert flow.difference[here] == pytest.approx(float(cut[token] - cut[other]), abs=1e-3)


def test_changes_are_relative_and_intervals_hold_the_mean(flow):
    change = flow.change("difference")
    plain = flow.plain[:, 1]
    expected = 100 * (flow.difference[0, 0, 1, 0, 3] - plain[0]) / abs(plain[0])
    assert change[0, 0, 1, 0, 3] == pytest.approx(expected)
    mean, low, high = flow.interval("difference")
    np.testing.assert_allclose(mean, change.mean(0), rtol=1e-9)
    assert (low <= mean + 1e-9).all() and (mean <= high + 1e-9).all()
    with pytest.raises(lp.BadInput, match="'probability' or 'difference'"):
        flow.change("loss")


def test_the_table_names_the_layer_where_a_cut_takes_most(flow):
    lines = flow.table("difference").splitlines()
    assert len(lines) == 1 + 4 * 2
    mean = flow.interval("difference")[0]
    edge = flow.edges.index("image->last")
    at = int(mean[0, edge, 1].argmin())
    line = next(line for line in lines if line.startswith("image->last") and line.split()[1] == "3")
    assert line.split()[2] == str(flow.layers[at]) and f"{mean[0, edge, 1, at]:+.1f}" in line


def test_random_keys_are_as_many_and_overlap_where_there_are_few_others(flow):
    overlap = dict(zip(flow.edges, flow.overlap, strict=True))
    assert overlap["image->last"] > 0.8 and overlap["question->last"] < 0.5


def test_edges_may_be_named_and_given(tiny_vlm):
    image, question = samples(1)[0]
    named = lp.information_flow(
        tiny_vlm, [(image, question)], edges={"top": (lp.Region((0, 0, 168, 168)), "last")}, window=1, controls=False
    )
    assert named.edges == ("top",) and named.probability.shape == (1, 3, 1, 1, 6)
    assert np.isnan(named.probability[:, 1:]).all() and not np.isnan(named.probability[:, 0]).any()
    with lp.knock_out(tiny_vlm, keys=lp.Region((0, 0, 168, 168)), queries="last", layers=4):
        cut = tiny_vlm.generate(image, question, max_new_tokens=1, capture=LITTLE).logits[0].double()
    plain = tiny_vlm.generate(image, question, max_new_tokens=1, capture=LITTLE).logits[0].double()
    assert named.probability[0, 0, 0, 0, 4] == pytest.approx(float(cut.softmax(-1)[plain.argmax()]), abs=1e-4)


def test_a_word_that_one_prompt_does_not_hold_is_no_number_there(tiny_vlm):
    asked = [samples(1)[0], (tiny.scene(3).image, "Describe the image.")]
    found = lp.information_flow(tiny_vlm, asked, edges=["colour->last"], window=1, layers=[0, 1], controls=False)
    assert not np.isnan(found.probability[0, 0]).any() and np.isnan(found.probability[1]).all()


def test_words_to_watch_can_be_said(tiny_vlm):
    found = lp.information_flow(
        tiny_vlm, samples(1), edges=["image->last"], window=1, layers=0, answer="red", against="blue"
    )
    assert found.answers == ((" red", " blue"),)
    with pytest.raises(lp.BadInput, match="same token"):
        lp.information_flow(tiny_vlm, samples(1), edges=["image->last"], layers=0, answer="red", against="red")


def test_a_folder_goes_on_where_it_was_and_holds_one_sweep(tiny_vlm, tmp_path):
    asked, given = samples(3), {"edges": ["image->last"], "window": 1, "controls": False}
    whole = lp.information_flow(tiny_vlm, asked, **given)
    lp.information_flow(tiny_vlm, asked[:2], **given, folder=tmp_path / "flow")
    first = (tmp_path / "flow" / "00000.json").read_text()
    kept = json.loads(first)
    kept["values"]["probability"][0] = 0.123
    (tmp_path / "flow" / "00000.json").write_text(json.dumps(kept))
    again = lp.information_flow(tiny_vlm, asked, **given, folder=tmp_path / "flow")
    assert again.probability[0, 0, 0, 0, 0] == 0.123  # it was not made again
    np.testing.assert_allclose(again.probability[1:], whole.probability[1:], rtol=1e-12)
    with pytest.raises(lp.BadInput, match=r"holds another sweep .*window"):
        lp.information_flow(tiny_vlm, asked, **{**given, "window": 3}, folder=tmp_path / "flow")
    with pytest.raises(lp.BadInput, match="another sample"):
        lp.information_flow(tiny_vlm, asked[::-1], **given, folder=tmp_path / "flow")
    (tmp_path / "flow" / "00001.json").write_text("{")
    with pytest.raises(lp.BadFile, match="sample of a sweep"):
        lp.information_flow(tiny_vlm, asked, **given, folder=tmp_path / "flow")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("x")
    with pytest.raises(lp.BadInput, match="holds other files"):
        lp.information_flow(tiny_vlm, asked, **given, folder=tmp_path / "other")


WRONG = {
    "no sample": (([],), {}, "no sample"),
    "no picture": (([1],), {}, "takes a Trace, a list of Trace objects or a list of lists"),
    "three things": (([[1, 2, 3]],), {}, "a trace, or a picture and a question; got list"),
    "no arrow": ((None,), {"edges": ["image"]}, "written 'image->last'"),
    "no edge": ((None,), {"edges": []}, "names none"),
    "no window": ((None,), {"window": []}, "names none"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_swept_is_a_sentence(name, tiny_vlm):
    (given,), more, why = WRONG[name]
    with pytest.raises(lp.BadInput, match=why):
        lp.information_flow(tiny_vlm, samples(1) if given is None else given, **more)


def test_it_runs_under_what_is_in_force(tiny_vlm):
    asked = samples(1)
    alone = lp.information_flow(tiny_vlm, asked, edges=["image->last"], window=1, controls=False)
    with lp.ablate(tiny_vlm, heads={0: [0, 1]}, with_="zero"):
        under = lp.information_flow(tiny_vlm, asked, edges=["image->last"], window=1, controls=False)
        with lp.knock_out(tiny_vlm, keys="image", queries="last", layers=3):
            cut = tiny_vlm.generate(*asked[0], max_new_tokens=1, capture=LITTLE).logits[0].double()
        plain = tiny_vlm.generate(*asked[0], max_new_tokens=1, capture=LITTLE).logits[0].double()
    assert under.probability[0, 0, 0, 0, 3] == pytest.approx(float(torch.softmax(cut, -1)[plain.argmax()]), abs=1e-4)
    assert not np.allclose(alone.difference[:, 0], under.difference[:, 0])


def test_changes_of_next_to_nothing_are_left_out(flow):
    plain = flow.plain.copy()
    plain[0] = (0.001, -0.2)
    little = replace(flow, plain=plain)
    for of in ("probability", "difference"):
        change = little.change(of)
        assert np.isnan(change[0]).all() and not np.isnan(change[1:]).any()
        np.testing.assert_array_equal(change[1:], flow.change(of)[1:])
