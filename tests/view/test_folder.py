"""A run's folder holds the run, whatever becomes of its maps, and nothing of an earlier one."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import llava_probe as lp
from llava_probe.view.folder import write_run
from tests.synthetic import TEXTS, causal, layout, photograph, synthetic_trace


@pytest.fixture
def trace():
    logits = torch.randn(4, len(TEXTS), generator=torch.Generator().manual_seed(0))
    return synthetic_trace(attention=causal(), logits=logits)


def test_trace_and_answer_outlive_maps_that_cannot_be_made(trace, tmp_path):
    with pytest.raises(lp.OutOfRange, match="77"):
        write_run(trace, tmp_path / "out", layers=[77])
    assert lp.Trace.load(tmp_path / "out" / "run.trace").answer == trace.answer
    told = json.loads((tmp_path / "out" / "answer.json").read_text())
    assert told["answer"] == trace.answer
    assert told["peaks"] == []


def test_the_trace_outlives_a_confidence_that_cannot_be_told(trace, tmp_path):
    records = {"attention": trace.records["attention"]}
    with pytest.raises(lp.NotCaptured, match="logits"):
        write_run(dataclasses.replace(trace, records=records), tmp_path)
    assert lp.Trace.load(tmp_path / "run.trace").answer == trace.answer


def test_all_that_is_told_is_there_and_nothing_else(trace, tmp_path):
    two = dataclasses.replace(trace, images=(photograph(),) * 2, layouts=(layout(),) * 2)
    fewer = synthetic_trace(attention=causal(size=11), logits=trace.logits[:2], answer=[" co", "</s>"])
    for each, maps in ((trace, True), (two, True), (fewer, True), (two, False), (trace, True)):
        written = write_run(each, tmp_path, maps=maps)
        assert {path for path in tmp_path.rglob("*") if path.is_file()} == set(written)
    assert {path.name for path in tmp_path.iterdir()} == {"answer.json", "run.trace", "page.html", "maps", "figures"}


def test_files_that_are_not_ours_stay(trace, tmp_path):
    write_run(trace, tmp_path)
    (tmp_path / "maps" / "notes.txt").write_text("mine")
    (tmp_path / "maps_2025").mkdir()
    (tmp_path / "figures" / "mine.png").write_text("mine")
    write_run(trace, tmp_path, maps=False)
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["notes.txt"]
    assert (tmp_path / "maps_2025").is_dir()
    assert (tmp_path / "figures" / "mine.png").exists()


def test_the_peaks_are_those_of_the_maps(trace, tmp_path):
    write_run(trace, tmp_path, layers=[1])
    m = lp.attention_map(trace, 0, lp.GENERATED, layers=1)
    told = json.loads((tmp_path / "answer.json").read_text())
    np.testing.assert_allclose(told["peaks"], [[m.peak(row) for row in range(len(m))]])


@pytest.mark.parametrize("kind", ["pdf", "svg"])
def test_figures_are_written_in_one_format_and_replace_those_of_another(trace, tmp_path, kind):
    write_run(trace, tmp_path)
    write_run(trace, tmp_path, format=kind, dpi=100)
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert names == {f"{name}.{kind}" for name in ("confidence", "maps", "heads")}


def test_another_format_is_refused_before_anything_is_written(trace, tmp_path):
    with pytest.raises(lp.BadInput, match="png, pdf, svg; got 'bmp'"):
        write_run(trace, tmp_path / "out", format="bmp")
    assert not (tmp_path / "out").exists()
