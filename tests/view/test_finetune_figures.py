"""The figure of a training run draws what was measured, and what was held out from before the first step on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import llava_probe as lp
from llava_probe.finetune.result import Finetuned
from tests.view.drawn import texts

STEPS = range(2, 402, 2)
RUN = Finetuned(
    Path("tuned"),
    ("projector", "language"),
    tuple({"step": step, "loss": 0.3 + 2 * 0.98**step, "learning_rate": 2e-4} for step in STEPS),
    tuple({"step": step, "loss": 0.4 + 2 * 0.98**step, "exact": step / 500} for step in range(0, 401, 40)),
    *(1_900, 24_000, 0.3),
)


def lines(axes):
    return {line.get_label(): line.get_xydata() for line in axes.lines}


def test_the_curve_is_what_was_measured(tmp_path):
    figure = lp.figures.losses(RUN)
    above, below = figure.axes
    drawn = lines(above)
    assert drawn["training"].tolist() == [[each["step"], each["loss"]] for each in RUN.losses]
    assert drawn["held out"].tolist() == [[each["step"], each["loss"]] for each in RUN.held_out]
    assert below.lines[0].get_xydata().tolist() == [[each["step"], each["exact"]] for each in RUN.held_out]
    assert below.get_ylim()[0] <= 0 and below.get_ylim()[1] >= 1, "shares are seen against all there is"
    assert above.get_ylim()[0] == 0
    told = texts(figure)
    assert "projector, language trained on 1,900 rows" in told and "step" in told and "exact" in told
    assert lp.figures.save(figure, tmp_path / "losses.pdf").stat().st_size > 1000


def test_a_straight_fall_is_smoothed_to_itself_and_noise_to_nothing():
    noise = np.random.default_rng(0).normal(0, 0.1, len(STEPS))
    for loss, far in ((np.linspace(3, 1, len(STEPS)), 1e-9), (2 + noise, 0.1)):
        entries = tuple({"step": s, "loss": float(v), "learning_rate": 0.0} for s, v in zip(STEPS, loss, strict=True))
        smooth = lines(lp.figures.losses(replace(RUN, losses=entries)).axes[0])["smoothed"][:, 1]
        middle = slice(20, -20)  # the ends have neighbours on one side only
        straight = loss if far < 1e-6 else np.full(len(STEPS), 2.0)
        assert np.abs(smooth - straight)[middle].max() <= far


def test_a_few_steps_are_drawn_as_they_are():
    assert set(lines(lp.figures.losses(replace(RUN, losses=RUN.losses[:3])).axes[0])) == {"training", "held out"}
    assert len(lp.figures.losses(replace(RUN, losses=RUN.losses[:1])).axes) == 2


def test_without_a_held_out_part_there_is_one_panel():
    figure = lp.figures.losses(replace(RUN, held_out=()))
    assert len(figure.axes) == 1 and "held out" not in texts(figure)


def test_a_run_without_a_loss_is_refused():
    with pytest.raises(lp.BadInput, match="no loss was measured"):
        lp.figures.losses(replace(RUN, losses=()))
