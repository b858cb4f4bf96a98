"""A comparison of two models that was cut off goes on with the next sample, to the numbers of an undisturbed one."""

from dataclasses import fields

import numpy as np
import pytest

import llava_probe as lp
from llava_probe import tiny
from llava_probe.compare.over_pictures import Means
from llava_probe.compare.unrelated import drawn_pictures
from llava_probe.model import VLM
from tests.compare.changed import with_a_head_changed

QUESTIONS = ("What colour is the ring?", "Describe the image.")
SETTINGS = {"unrelated": drawn_pictures(1), "max_new_tokens": 6, "progress": False}


@pytest.fixture(scope="module")
def other():
    return with_a_head_changed(3, 2, weight="v_proj")


@pytest.fixture
def rows():
    asked = [{"image": tiny.scene(seed).image, "question": text} for seed in (9, 3, 4) for text in QUESTIONS]
    return [*asked[:3], {"image": "nowhere.png", "question": "?"}, *asked[3:]]


def same(one, other):
    """Whether two results are equal to the bit, NaN where the other is."""
    if isinstance(one, Means):
        return all(np.array_equal(getattr(one, x), getattr(other, x), equal_nan=True) for x in ("value", "low", "high"))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[name], other[name]) for name in one)
    if type(one) is tuple:
        return len(one) == len(other) and all(map(same, one, other))
    return repr(one) == repr(other)


@pytest.fixture
def asked(monkeypatch):
    """What was asked of either model, in order; ``asked.stop`` interrupts before the one of that number."""

    class Asked(list):
        stop = None

    told, generate = Asked(), VLM.generate

    def counted(self, image, question, **how):
        if how.get("max_new_tokens") == SETTINGS["max_new_tokens"]:  # unrelated pictures are asked for a word alone
            if len(told) == told.stop:
                raise KeyboardInterrupt
            told.append(question)
        return generate(self, image, question, **how)

    monkeypatch.setattr(VLM, "generate", counted)
    return told


def test_a_run_that_was_cut_off_ends_with_the_same_numbers(tiny_vlm, other, rows, asked, tmp_path):
    whole = lp.compare_models(tiny_vlm, other, rows, **SETTINGS)
    every = len(asked)
    assert every == 2 * (len(rows) - 1) + 1, "the row without a picture fails at the first model"
    for stop, done in ((5, 2), (5, 4)):  # in the third sample; then, behind the row that fails, in the fifth
        asked.clear()
        asked.stop = stop
        with pytest.raises(KeyboardInterrupt):
            lp.compare_models(tiny_vlm, other, rows, out=tmp_path / "run", **SETTINGS)
        assert len(list((tmp_path / "run").glob("sample_*"))) == done
        assert not list((tmp_path / "run").glob(".*")), "something half written is left"
    asked.clear()
    asked.stop = None
    ended = lp.compare_models(tiny_vlm, other, rows, out=tmp_path / "run", **SETTINGS)
    assert len(asked) == every - 2 * done, "a finished sample was asked again"
    for each in fields(whole):
        assert same(getattr(whole, each.name), getattr(ended, each.name)), each.name
    assert str(whole) == str(ended) and len(whole.left_out) == 1
    asked.clear()
    again = lp.compare_models(tiny_vlm, other, rows, out=tmp_path / "run", **SETTINGS)
    assert asked == ["?"], "only the row that failed is tried again"
    assert str(again) == str(whole)


def test_rows_that_end_early_are_gone_on_with(tiny_vlm, other, rows, asked, tmp_path):
    def cut_off():
        yield from rows[:2]
        raise RuntimeError("the line is dead")

    good = [row for row in rows if row["question"] != "?"]
    whole = lp.compare_models(tiny_vlm, other, good, **SETTINGS)
    with pytest.raises(Exception, match="the line is dead"):
        lp.compare_models(tiny_vlm, other, cut_off(), out=tmp_path, **SETTINGS)
    asked.clear()
    assert len(list(tmp_path.glob("sample_*"))) == 2
    ended = lp.compare_models(tiny_vlm, other, iter(good), out=tmp_path, **SETTINGS)
    assert len(asked) == 2 * (len(good) - 2)
    assert all(same(getattr(whole, each.name), getattr(ended, each.name)) for each in fields(whole))


def test_a_folder_of_another_run_is_refused(tiny_vlm, other, rows, tmp_path):
    lp.compare_models(tiny_vlm, other, rows[:1], out=tmp_path, **SETTINGS)
    there = {path: path.read_bytes() for path in tmp_path.iterdir()}
    third = with_a_head_changed(2, 1)
    for models, given, settings, sentence in (
        ((tiny_vlm, third), rows[:1], SETTINGS, "second.weights"),
        ((other, tiny_vlm), rows[:1], SETTINGS, "weights"),
        ((tiny_vlm, other), rows[:1], {**SETTINGS, "max_new_tokens": 7}, "max_new_tokens: 6, here 7"),
        ((tiny_vlm, other), rows[1:2], SETTINGS, "another picture or question than row 0 has"),
        ((tiny_vlm, other), [{**rows[0], "image": tiny.scene(8).image}], SETTINGS, "another picture or question"),
    ):
        with pytest.raises(lp.BadInput, match=sentence):
            lp.compare_models(*models, given, out=tmp_path, **settings)
    template = other.processor.chat_template
    try:
        other.processor.chat_template = template + " "
        with pytest.raises(lp.BadInput, match="second_processor"):
            lp.compare_models(tiny_vlm, other, rows[:1], out=tmp_path, **SETTINGS)
    finally:
        other.processor.chat_template = template
    with pytest.raises(lp.BadInput, match="second_under"), lp.knock_out(other, keys=lp.IMAGE, queries="last"):
        lp.compare_models(tiny_vlm, other, rows[:1], out=tmp_path, **SETTINGS)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == there


def test_unrelated_rows_that_cannot_be_read_stop_before_the_first_sample(tiny_vlm, other, rows, asked):
    for unrelated, sentence in (("nowhere.jsonl", "nowhere.jsonl"), ([{"image": "gone.png", "question": "?"}], "gone")):
        with pytest.raises(lp.ProbeError, match=sentence):
            lp.compare_models(tiny_vlm, other, rows, **{**SETTINGS, "unrelated": unrelated})
    assert not asked


def test_a_damaged_file_is_one_sentence(tiny_vlm, other, rows, tmp_path):
    lp.compare_models(tiny_vlm, other, rows[:1], out=tmp_path, **SETTINGS)
    (path,) = tmp_path.glob("*.safetensors")
    data = path.read_bytes()
    for broken in (data[:-9], data[:-1] + bytes([data[-1] ^ 1]), b"", b"x" * 100):
        path.write_bytes(broken)
        with pytest.raises(lp.BadFile, match="damaged"):
            lp.compare_models(tiny_vlm, other, rows[:1], out=tmp_path, **SETTINGS)


def test_a_picture_that_was_changed_under_its_path_is_another_one(tiny_vlm, other, tmp_path):
    path = tmp_path / "a.png"
    tiny.scene(9).image.save(path)
    rows = [{"image": str(path), "question": QUESTIONS[0]}]
    lp.compare_models(tiny_vlm, other, rows, out=tmp_path / "run", **SETTINGS)
    lp.compare_models(tiny_vlm, other, rows, out=tmp_path / "run", **SETTINGS)
    tiny.scene(3).image.save(path)
    with pytest.raises(lp.BadInput, match="another picture or question than row 0 has"):
        lp.compare_models(tiny_vlm, other, rows, out=tmp_path / "run", **SETTINGS)


def test_a_run_goes_on_only_with_the_same_torch_and_transformers(tiny_vlm, other, rows, tmp_path, monkeypatch):
    lp.compare_models(tiny_vlm, other, rows[:1], out=tmp_path, **SETTINGS)
    monkeypatch.setattr("llava_probe.claimed.transformers.__version__", "99.0")
    with pytest.raises(lp.BadInput, match=r'versions.transformers: .*, here "99\.0"'):
        lp.compare_models(tiny_vlm, other, rows[:1], out=tmp_path, **SETTINGS)
