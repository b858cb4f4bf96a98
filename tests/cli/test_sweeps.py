"""Sweeps on the command line print the tables of Python, write them with their figures, and go on where they were."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import llava_probe as lp
from llava_probe import tiny
from llava_probe.cli import app


@pytest.fixture(scope="module")
def pair():
    return tiny.counterfactual(6, "colour")


@pytest.fixture
def pictures(pair, tmp_path):
    pair.clean.image.save(tmp_path / "clean.png")
    pair.corrupt.image.save(tmp_path / "corrupt.png")
    return tmp_path / "clean.png", tmp_path / "corrupt.png"


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_flow_is_pythons_and_goes_on(tiny_vlm, pair, pictures, tmp_path):
    words = ("flow", pictures[0], pair.question, "--window", 3, "--of", "difference", "--out", tmp_path / "flow")
    done = call(*words)
    assert done.exit_code == 0, done.output
    found = lp.information_flow(tiny_vlm, [(pair.clean.image, pair.question)], window=3)
    assert found.table("difference") in done.stdout
    assert (tmp_path / "flow" / "flow.txt").read_text() == found.table("difference") + "\n"
    assert {path.name for path in (tmp_path / "flow").glob("*.png")} == {"flow_probability.png", "flow_difference.png"}
    assert call(*words).stdout == done.stdout
    assert call(*words[:3], "--window", 1, "--out", tmp_path / "flow").exit_code == 1


def test_rows_of_a_file_are_samples(pair, pictures, tmp_path):
    rows = [{"image": str(path), "question": pair.question} for path in pictures]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    edges = ("--edges", "image->last,question->last", "--window", 1, "--layers", "2,3")
    done = call("flow", tmp_path / "rows.jsonl", *edges, "--out", tmp_path / "flow")
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "flow" / "samples").glob("0*.json"))) == 2


def test_a_trace_is_pythons(tiny_vlm, pair, pictures, tmp_path):
    words = ("trace-cause", pictures[0], pair.question, "--corrupt", pictures[1], "--parts", "residual")
    done = call(*words, "--out", tmp_path / "trace")
    assert done.exit_code == 0, done.output
    found = lp.causal_trace(tiny_vlm, (pair.clean.image, pair.question), pair.corrupt.image, parts=["residual"])
    for mode in ("denoise", "noise"):
        assert found.table(mode) in done.stdout
    assert "' yellow' against ' black'" in done.stdout
    assert (tmp_path / "trace" / "trace.png").stat().st_size > 1000
    rough = call(*words[:5], "--approximate", "--out", tmp_path / "rough")
    assert rough.exit_code == 0 and "rank correlation" in rough.stdout


WRONG = {
    "no question": (("flow", "clean.png"), "say what to ask"),
    "another measure": (("flow", "clean.png", "What?", "--of", "loss"), "--of takes probability or difference"),
    "no arrow": (("flow", "clean.png", "What?", "--edges", "image"), "written 'image->last'"),
    "a file of no picture": (("trace-cause", "clean.png", "What?", "--corrupt", "nowhere.png"), "nowhere.png"),
    "another part": (("trace-cause", "clean.png", "What?", "--parts", "head"), "--parts takes some of"),
    "a data set's columns": (("flow", "clean.png", "What?", "--image-column", "x"), "is one picture"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_meant_is_one_sentence(name, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words, why = WRONG[name]
    done = call(*words)
    assert done.exit_code == 1 and why in done.output and "Traceback" not in done.output


def test_an_approximate_trace_takes_parts_and_refuses_what_it_does_not_read(tiny_vlm, pair, pictures, tmp_path):
    words = ("trace-cause", pictures[0], pair.question, "--corrupt", pictures[1], "--approximate")
    done = call(*words, "--parts", "mlp", "--out", tmp_path / "trace")
    assert done.exit_code == 0, done.output
    table = (tmp_path / "trace" / "trace.txt").read_text()
    assert [line.split()[0] for line in table.splitlines()[1:]] == ["mlp"]
    for option in (("--layers", 3), ("--window", 2)):
        refused = call(*words, *option, "--out", tmp_path / "o")
        assert refused.exit_code == 1 and "goes through all layers one by one" in refused.stderr
