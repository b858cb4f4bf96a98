"""Intervals cover what they say, and sums over pictures give scikit-learn's measures."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, r2_score

import llava_probe as lp
from llava_probe.probes import fit_probe
from llava_probe.probes.intervals import sums_of
from llava_probe.resampling import interval, resamples
from tests.probes.probe_store import coloured


def test_resampled_measures_are_those_of_the_resampled_rows():
    generator = np.random.default_rng(0)
    groups = generator.integers(0, 9, 60)
    truth, told = generator.integers(0, 3, (2, 60))
    numbers, guesses = generator.standard_normal((2, 60, 2)) + 1000
    counts = resamples(9, 5, seed=1)
    measured = sums_of(truth, told, groups, 9, 3).measures(counts)
    r2 = sums_of(numbers, guesses, groups, 9, None).measures(counts)["r2"]
    for number, drawn in enumerate(counts):
        rows = np.concatenate([np.repeat(np.flatnonzero(groups == group), times) for group, times in enumerate(drawn)])
        assert measured["accuracy"][number] == pytest.approx(np.mean(truth[rows] == told[rows]))
        assert measured["balanced"][number] == pytest.approx(balanced_accuracy_score(truth[rows], told[rows]))
        assert r2[number] == pytest.approx(r2_score(numbers[rows], guesses[rows]))


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Pictures of four rows that stand or fall together; an interval over rows would cover about 0.7 of the time."""
    generator = np.random.default_rng(0)
    groups, told = np.repeat(np.arange(80), 4), np.ones(320, dtype=int)
    counts = resamples(80, 400, seed=0)
    covered = 0
    for _ in range(400):
        chance = np.repeat(generator.beta(1.4, 0.6, 80), 4)  # of mean 0.7
        truth = (generator.random(320) < chance).astype(int)
        low, high = interval(sums_of(truth, told, groups, 80, 2).measures(counts)["accuracy"])
        covered += low <= 0.7 <= high
    assert 0.91 <= covered / 400 <= 0.98


def test_two_cells_are_compared_on_the_same_pictures():
    sweep = fit_probe(coloured(pictures=100), "colour", kind="mean_difference")
    strong, weak = ("layer_2", "last_prompt"), ("layer_0", "last_prompt")
    apart = sweep.compare(strong, weak)
    assert apart.difference == pytest.approx(sweep[strong].score - sweep[weak].score)
    assert 0 < apart.low < apart.difference < apart.high
    assert apart.p < 0.001
    assert apart.groups == 100
    same = sweep.compare(strong, strong)
    assert (same.difference, same.low, same.high, same.p, same.bootstrap_p) == (0, 0, 0, 1, 1)
    back = sweep.compare(weak, strong)
    assert (back.difference, back.low, back.p) == (-apart.difference, pytest.approx(-apart.high), apart.p)
    with pytest.raises(lp.OutOfRange, match="layer_9"):
        sweep.compare(("layer_9", "last_prompt"), weak)
