"""Figures of sweeps draw the numbers of the sweep, with controls and intervals."""

from __future__ import annotations

import numpy as np
import pytest

import llava_probe as lp
from llava_probe.sweeps import AttributionPatching, CausalTrace, DoseResponse, InformationFlow


def texts(figure):
    return " ".join(text.get_text() for text in figure.findobj(match=lambda a: hasattr(a, "get_text")))


def random(*shape):
    return np.random.default_rng(0).normal(size=shape)


FLOW = InformationFlow(
    *(("image->last", "question->last"), (1, 3), (0, 1, 2)),
    *(random(4, 3, 2, 2, 3), random(4, 3, 2, 2, 3), np.ones((4, 2)), np.array([0.9, 0.1])),
    (("a", "b"),) * 4,
)
TRACE = CausalTrace(
    *(("changed", "last"), ("residual", "mlp"), (0, 1, 2), 1, random(4, 2, 2, 2, 3), np.ones((4, 2)), np.ones((4, 2))),
    *((("a", "b"),) * 4, "blur"),
)
DOSE = DoseResponse(
    (-1.0, 0.0, 1.0),
    {4: 10.0},
    {name: np.abs(random(4, 3, 3)) for name in ("probability", "difference", "perplexity", "length")},
    (),
    (("a", "b"),) * 4,
)
PATCHING = AttributionPatching(
    ("changed", "last"), ("mlp", "query"), (0, 1), *(random(3, 2, 2, 2) for _ in range(3)), np.ones((3, 2))
)


def test_a_flow_has_a_panel_for_each_window_and_edge_with_its_controls(tmp_path):
    figure = lp.figures.information_flow(FLOW, "difference")
    assert len(figure.axes) == 4
    mean = FLOW.interval("difference")[0]
    lines = {line.get_label(): list(line.get_ydata()) for line in figure.axes[1].lines}
    for control, name in enumerate(("cut", "uniform", "random")):
        assert lines[name] == list(mean[control, 1, 0])
    told = texts(figure)
    assert "image → last" in told and "window 3" in told and "4 samples" in told
    assert lp.figures.save(figure, tmp_path / "flow.pdf").stat().st_size > 1000


def test_a_trace_has_a_panel_for_each_mode_and_part_and_a_line_for_each_group():
    figure = lp.figures.causal_trace(TRACE)
    mean = TRACE.interval()[0]
    assert len(figure.axes) == 4
    lines = {line.get_label(): list(line.get_ydata()) for line in figure.axes[3].lines}
    assert lines["last"] == list(mean[1, 1, 1])
    assert "denoising" in texts(figure) and "noising" in texts(figure) and "corrupted by blur" in texts(figure)


def test_a_mode_that_was_not_traced_is_not_drawn_and_nothing_at_all_is_a_sentence():
    effects = TRACE.effects.copy()
    effects[:, 1] = np.nan
    one = CausalTrace(*(vars(TRACE) | {"effects": effects}).values())
    assert len(lp.figures.causal_trace(one).axes) == 2
    none = CausalTrace(*(vars(TRACE) | {"effects": effects * np.nan}).values())
    with pytest.raises(lp.BadInput, match="anything to bring back"):
        lp.figures.causal_trace(none)


def test_doses_stand_beside_random_directions():
    figure = lp.figures.dose_response(DOSE)
    assert [axes.get_title() for axes in figure.axes] == ["probability", "difference", "perplexity", "length"]
    lines = {line.get_label(): list(line.get_ydata()) for line in figure.axes[0].lines}
    assert lines["direction"] == list(DOSE.interval("probability")[0][0])
    assert lines["random"] == list(DOSE.interval("probability")[0][1])


def test_approximations_are_drawn_against_the_exact_with_their_correlation():
    figure = lp.figures.attribution_patching(PATCHING)
    assert f"query, ρ = {PATCHING.correlation('query'):.2f}" in texts(figure)
    points = next(line for line in figure.axes[0].lines if line.get_label() == "corrected")
    assert list(points.get_xdata()) == list(PATCHING.exact[:, :, 0].ravel())
    inexact = AttributionPatching(*(vars(PATCHING) | {"exact": PATCHING.exact * np.nan}).values())
    with pytest.raises(lp.BadInput, match="no sample was swept exactly"):
        lp.figures.attribution_patching(inexact)
