"""Resamples are draws of whole pictures, and paired tests reject as often as they say."""

import numpy as np
import pytest
from scipy.stats import binomtest

from llava_probe.resampling import by_group, resamples, sign_flip, two_sided, weighed


def test_sums_of_a_resample_are_those_of_the_rows_that_were_drawn():
    generator = np.random.default_rng(0)
    groups, part = generator.integers(0, 7, 40), generator.standard_normal((40, 3))
    counts = resamples(7, 70, seed=1)  # more than are multiplied at once
    assert (counts.sum(1) == 7).all()
    found = weighed(counts, by_group(part, groups, 7))
    for number, drawn in enumerate(counts):
        rows = np.concatenate([np.repeat(np.flatnonzero(groups == group), times) for group, times in enumerate(drawn)])
        np.testing.assert_allclose(found[number], part[rows].sum(0), atol=1e-12)


LEVELS = (0.05, 0.2)


def rejected(differences):
    """[levels, tests] share of simulated sweeps, [simulations, pictures], that sign flips and bootstrap reject."""
    counts = resamples(differences.shape[1], 400, seed=0).astype(float)
    found = np.array([(sign_flip(each, 0), two_sided(counts @ each)) for each in differences])
    return np.array([(found <= level).mean(0) for level in LEVELS])


def test_the_paired_test_is_calibrated_where_there_is_no_difference():
    """To three standard errors of the simulation."""
    generator = np.random.default_rng(0)
    one, other = generator.exponential(generator.random((500, 60)), (2, 500, 60))
    for level, (flipped, bootstrapped) in zip(LEVELS, rejected(one - other), strict=True):
        slack = 3 * np.sqrt(level * (1 - level) / 500)
        assert flipped == pytest.approx(level, abs=slack)
        assert bootstrapped == pytest.approx(level, abs=slack)


def test_counted_answers_make_the_paired_test_no_bolder():
    """Sums of whole answers often tie, and ties count against the difference."""
    generator = np.random.default_rng(0)
    one, other = (generator.random((2, 300, 60, 3)) < generator.random((300, 60, 1))).sum(3)
    for level, (flipped, _) in zip(LEVELS, rejected(one - other.astype(float)), strict=True):
        assert flipped <= level + 3 * np.sqrt(level * (1 - level) / 300)


@pytest.mark.parametrize(("wins", "losses"), [(8, 2), (5, 5), (12, 0), (30, 14)])
def test_one_row_a_picture_is_mcnemars_exact_test(wins, losses):
    differences = np.array([1.0] * wins + [-1.0] * losses + [0.0] * 50) / 97
    expected = binomtest(wins, wins + losses).pvalue
    assert sign_flip(differences, 0) == pytest.approx(expected, abs=1e-9 if wins + losses < 13 else 0.01)


def test_nan_is_no_significance():
    holes = np.array([0.5, np.nan, -0.2, 0.3])
    assert np.isnan(sign_flip(holes, 0))
    assert two_sided(np.array([0.1, -0.2, 0.3, np.nan, np.nan])) == two_sided(np.array([0.1, -0.2, 0.3]))
    assert np.isnan(two_sided(np.array([np.nan])))
