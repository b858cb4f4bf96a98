"""Figures of probes can be made of every sweep and never show a score without its controls."""

import pytest
import torch

import llava_probe as lp
from llava_probe.probes import fit_probe
from tests.probes.probe_store import coloured
from tests.synthetic import K, synthetic_trace


def texts(figure):
    return " ".join(text.get_text() for text in figure.findobj(match=lambda a: hasattr(a, "get_text")))


@pytest.fixture(scope="module")
def sweep():
    return fit_probe(coloured(), "colour", kind="mean_difference", bootstrap=50)


def test_a_sweep_shows_its_controls(sweep, tmp_path):
    figure = lp.figures.probes(sweep)
    told = texts(figure)
    for name in ("control task", "majority", "shuffled labels", "random features", "selectivity", "last_prompt"):
        assert name in told
    scores = next(line for line in figure.axes[0].lines if line.get_label() == "probe")
    assert list(scores.get_ydata()) == [cell.score for cell in sweep]
    assert list(scores.get_xdata()) == [0, 1, 2]
    assert lp.figures.save(figure, tmp_path / "sweep.pdf").stat().st_size > 1000


def test_without_a_control_task_it_says_why():
    sweep = fit_probe(coloured(question=["What?"] * 120), "colour", kind="mean_difference", bootstrap=0, layers=[1])
    figure = lp.figures.probes(sweep)
    told = texts(figure).replace("\n", " ")
    assert f"no control task: {sweep['layer_1', 'last_prompt'].control_reason}" in told
    assert len(figure.axes) == 1


def test_numbers_have_no_confusion_but_a_figure():
    store = coloured(number=[float(row % 5) for row in range(120)])
    sweep = fit_probe(store, "number", bootstrap=20, types="question")
    assert "R²" in texts(lp.figures.probes(sweep))
    with pytest.raises(lp.BadInput, match="not confused"):
        lp.figures.confusion(sweep, "layer_1", "last_prompt")


def test_confusion_counts_every_row(sweep, tmp_path):
    figure = lp.figures.confusion(sweep, "layer_2", "last_prompt")
    counts = sweep.confusion("layer_2", "last_prompt")
    assert counts.sum() == 120
    assert counts.trace() == round(sweep["layer_2", "last_prompt"].score * 120)
    assert {str(count) for count in counts.ravel()} <= set(texts(figure).split())
    assert lp.figures.save(figure, tmp_path / "confusion.png").stat().st_size > 1000


def test_a_probe_is_drawn_over_the_photograph(sweep):
    trace = synthetic_trace(hidden=torch.randn(K, 4, 12) + 3)
    probe = sweep.probe("layer_2", "last_prompt")
    told = texts(lp.figures.maps(probe.map(trace, "red")))
    assert "colour red" in told
    assert "score at layer_2" in told
