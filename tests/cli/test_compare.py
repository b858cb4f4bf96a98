"""Models are compared on the command line as in Python, on a picture, on rows, and as saved traces."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import llava_probe as lp
from llava_probe import tiny
from llava_probe.cli import app
from llava_probe.tiny import cheats
from tests.compare.changed import with_a_head_changed

QUESTION = "What colour is the ring?"


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The tiny model with one head changed, saved as a model of its own."""
    folder = tmp_path_factory.mktemp("other")
    vlm = with_a_head_changed(3, 2, weight="v_proj")
    vlm.model.save_pretrained(folder)
    vlm.processor.save_pretrained(folder)
    return folder


@pytest.fixture
def picture(tmp_path):
    tiny.scene(9).image.save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_picture_is_compared_as_in_python(tiny_vlm, other, picture, tmp_path):
    done = call("compare", picture, QUESTION, "--other", other, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    second = lp.load(other)
    traces = [vlm.generate(picture, QUESTION) for vlm in (tiny_vlm, second)]
    assert str(lp.compare(*traces, models=(tiny_vlm, second))) in done.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "compare.txt", "changed.png", "maps.png", "changed.html",
    }  # fmt: skip
    files = [trace.save(tmp_path / f"{name}.trace") for name, trace in zip("ab", traces, strict=True)]
    alone = call("compare", *files, "--out", tmp_path / "alone")
    assert alone.exit_code == 0 and str(lp.compare(*traces)) in alone.stdout


def test_what_is_merged_is_the_adapter_that_is_there(tiny_vlm, picture, tmp_path):
    adapter = cheats.path("frame")
    done = call("compare", picture, QUESTION, "--other-adapter", adapter, "--merge", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    second = lp.load(adapter=adapter, merge=True)
    traces = [vlm.generate(picture, QUESTION, max_new_tokens=64) for vlm in (tiny_vlm, second)]
    assert str(lp.compare(*traces, models=(tiny_vlm, second))) in done.stdout
    neither = call("compare", picture, QUESTION, "--other", "tiny", "--merge", "--out", tmp_path / "out")
    assert neither.exit_code and "there is nothing to merge" in " ".join(neither.output.split())


def test_rows_of_a_file_are_samples(other, picture, tmp_path):
    rows = [{"image": str(picture), "question": QUESTION, "answer": "blue"}, {"image": "nowhere.png", "question": "?"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "unrelated.jsonl").write_text(json.dumps(rows[0]))
    words = ("compare", tmp_path / "rows.jsonl", "--other", other, "--unrelated", tmp_path / "unrelated.jsonl")
    done = call(*words, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "layer 3 head 2" in done.stdout and "1 samples could not be asked" in done.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "compare.txt", "answers.csv", "compared.png", "samples",
    }  # fmt: skip


WRONG = {
    "no second model": (("scene.png", "What?"), "name the second model"),
    "no question": (("scene.png", "--other", "tiny"), "say what to ask"),
    "one trace": (("a.trace", "What?"), "is compared with another one"),
    "traces and a model": (("a.trace", "b.trace", "--other", "tiny"), "compared without a model"),
    "a data set's columns": (("scene.png", "What?", "--other", "tiny", "--image-column", "x"), "is one picture"),
    "unrelated rows": (("scene.png", "What?", "--other", "tiny", "--unrelated", "x.jsonl"), "belongs to a data set"),
    "traces and columns": (("a.trace", "b.trace", "--image-column", "x"), "mean nothing to two saved traces"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_meant_is_one_sentence(name, picture, monkeypatch):
    monkeypatch.chdir(picture.parent)
    words, why = WRONG[name]
    done = call("compare", *words)
    assert done.exit_code == 1 and why in done.output and "Traceback" not in done.output
