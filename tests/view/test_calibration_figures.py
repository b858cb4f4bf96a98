"""The figures draw the numbers of a calibration: bins with intervals, counts and the floor; risk by coverage."""

import numpy as np
import pytest

import llava_probe as lp

GENERATOR = np.random.default_rng(0)
STATED = GENERATOR.beta(5, 2, 300)
FOUND = lp.calibration(STATED, GENERATOR.random(300) < STATED, np.arange(300) // 3, times=50, draws=50)


@pytest.mark.parametrize("of", ["width", "mass"])
def test_a_diagram_shows_bins_floor_and_counts(of, tmp_path):
    figure = lp.figures.reliability(FOUND, of)
    bins, error = (FOUND.bins, FOUND.ece) if of == "width" else (FOUND.mass_bins, FOUND.ece_mass)
    upper, lower = figure.axes
    (line,) = [line for line in upper.lines if line.get_label().startswith("share that is right")]
    assert list(line.get_xdata()) == list(bins.confidence) and list(line.get_ydata()) == list(bins.accuracy)
    band = [(bar.get_y(), bar.get_y() + bar.get_height()) for bar in upper.patches]
    assert np.array(band) == pytest.approx(np.stack([bins.floor_low, bins.floor_high], 1))
    assert [bar.get_height() for bar in lower.patches] == list(bins.count)
    (whiskers,) = upper.collections
    ends = np.array([segment[:, 1] for segment in whiskers.get_segments()])
    assert ends == pytest.approx(np.stack([bins.accuracy_low, bins.accuracy_high], 1))
    told = figure._suptitle.get_text()
    assert f"{float(error):.3f}" in told and f"{error.floor:.3f}" in told and "300 answers in 100 groups" in told
    assert lp.figures.save(figure, tmp_path / "r.pdf").stat().st_size > 1000


def test_one_answer_has_no_interval_to_draw():
    figure = lp.figures.reliability(lp.calibration([0.7], [1], draws=2), title=False)
    assert not figure.axes[0].collections


def test_another_kind_of_bins_is_refused():
    with pytest.raises(lp.BadInput, match="width"):
        lp.figures.reliability(FOUND, "equal")


def test_risk_by_coverage_is_the_calibrations():
    figure = lp.figures.risk_coverage({"stated": FOUND, "any order": lp.calibration([0.7, 0.7], [1, 0], draws=2)})
    (axes,) = figure.axes
    stated, whole, chance, _ = axes.lines
    assert list(stated.get_ydata()) == list(FOUND.risk) and list(stated.get_xdata()) == list(FOUND.coverage)
    assert list(whole.get_ydata()) == pytest.approx([1 - float(FOUND.accuracy)] * 2)
    assert set(chance.get_ydata()) == {0.5}, "equal confidences have no order"
    assert [text.get_text().split(":")[0] for text in figure.legends[0].get_texts()] == ["stated", "any order"]
    with pytest.raises(lp.BadInput, match="got none"):
        lp.figures.risk_coverage({})
