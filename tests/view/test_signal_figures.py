"""The figure of a signal table draws its numbers, the best on top, and tells baselines apart."""

import llava_probe as lp
from llava_probe.signals.measured import Estimate
from llava_probe.signals.signal_table import SignalScore, SignalTable

SCORES = SignalTable(
    (
        SignalScore("position", Estimate(0.9, 0.8, 0.95), Estimate(0, 0, 0), 20, 5, True),
        SignalScore("internal_confidence", Estimate(0.7, 0.6, 0.8), Estimate(-0.2, -0.3, -0.1), 20, 5, False),
        SignalScore("svar", Estimate(0.4), Estimate(-0.5), 20, 5, False),
    ),
    "position", 20, 5, 8,
)  # fmt: skip


def test_each_signal_has_its_line():
    figure = lp.figures.signal_scores(SCORES)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["svar", "internal confidence", "position"]
    dots = {int(line.get_ydata()[0]): line for line in axes.lines if line.get_marker() == "o"}
    assert [float(dots[place].get_xdata()[0]) for place in range(3)] == [0.4, 0.7, 0.9]
    assert dots[2].get_markerfacecolor() == "white" != dots[1].get_markerfacecolor()
    spans = {
        tuple(line.get_xdata())
        for line in axes.lines
        if line.get_marker() == "None" and len(set(line.get_ydata())) == 1
    }
    assert spans == {(0.8, 0.95), (0.6, 0.8)}, "one without an interval has none to draw"
    assert "5 of 20 words made up, 8 pictures" in figure._suptitle.get_text()
