"""Unbiased CKA is the published sum over rows, says nothing of noise, and its interval is that of rows left out."""

import numpy as np
import pytest

from llava_probe.compare import cka


def draws(rows, columns, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, columns))


def by_quadruples(x, y):
    """HSIC₁ as the U-statistic that it is (Gretton et al. 2005): a mean over all quadruples of different rows."""
    one, other, n = x @ x.T, y @ y.T, len(x)
    rows = range(n)
    total = 0.0
    for i in rows:
        for j in rows:
            for q in rows:
                for r in rows:
                    if len({i, j, q, r}) == 4:
                        total += one[i, j] * (other[i, j] + other[q, r] - 2 * other[i, q])
    return total / (n * (n - 1) * (n - 2) * (n - 3))


def dense(x, y):
    """HSIC₁ as Song et al. write it, from raw inner products, neither matrix centred."""
    one, other, n = x @ x.T, y @ y.T, len(x)
    one, other = one - np.diag(np.diag(one)), other - np.diag(np.diag(other))
    ones = np.ones(n)
    middle = (ones @ one @ ones) * (ones @ other @ ones) / ((n - 1) * (n - 2))
    return (np.trace(one @ other) + middle - 2 / (n - 2) * (ones @ one @ other @ ones)) / (n * (n - 3))


def test_it_is_the_mean_over_all_quadruples_of_rows():
    x, y = draws(7, 3), draws(7, 5, seed=1) + 2
    assert dense(x, y) == pytest.approx(by_quadruples(x, y), rel=1e-10)
    expected = by_quadruples(x, y) / np.sqrt(by_quadruples(x, x) * by_quadruples(y, y))
    assert cka.unbiased_cka(x, y) == pytest.approx(expected, rel=1e-10)


def test_it_equals_the_dense_formula():
    x, y = draws(60, 20), draws(60, 30, seed=1)
    y[:, :20] += x
    expected = dense(x, y) / np.sqrt(dense(x, x) * dense(y, y))
    assert cka.unbiased_cka(x, y) == pytest.approx(expected, rel=1e-10)
    assert cka.alikeness(x, y).cka.value == pytest.approx(expected, rel=1e-10)


def test_independent_gaussians_have_none_where_the_biased_one_sees_much():
    x, y = draws(576, 4096).astype(np.float32), draws(576, 4096, seed=1).astype(np.float32)
    assert abs(cka.unbiased_cka(x, y)) < 0.02
    assert cka.biased_cka(x, y) == pytest.approx(0.876, abs=0.005)


def test_states_and_themselves_in_another_basis_are_alike():
    x = draws(40, 12)
    turned = 3 * x @ np.linalg.qr(draws(12, 12, seed=2))[0] + 5
    found = cka.alikeness(x, turned)
    assert found.cka.value == pytest.approx(1, abs=1e-9)
    assert cka.alikeness(x, x).cka.value == pytest.approx(1, abs=1e-12)


def test_the_interval_is_of_the_estimates_without_each_row():
    x, y = draws(30, 8), draws(30, 8, seed=1)
    y += x
    without = np.array([cka.unbiased_cka(np.delete(x, row, 0), np.delete(y, row, 0)) for row in range(30)])
    error = np.sqrt(29 / 30 * ((without - without.mean()) ** 2).sum())
    found = cka.alikeness(x, y).cka
    assert (found.low, found.high) == pytest.approx((found.value - 1.96 * error, found.value + 1.96 * error), rel=1e-9)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    truth = 0.2  # ‖cov(x, y)‖² / (‖cov(x)‖ ‖cov(y)‖) of y = √truth · x + √(1 − truth) · z
    found = []
    for seed in range(60):
        x, z = draws(80, 200, seed), draws(80, 200, seed + 1000)
        found.append(cka.alikeness(x, np.sqrt(truth) * x + np.sqrt(1 - truth) * z).cka)
    held = sum(each.low <= truth <= each.high for each in found)
    assert held >= 51  # at least 0.85 of 60; of a 95 % interval fewer come one time in a thousand


def test_chance_is_what_shuffled_rows_give():
    x, y = draws(40, 10), draws(40, 10, seed=1)
    related = cka.alikeness(x, x + 0.3 * y)
    assert related.cka.value > related.shuffled > 0
    found = [cka.alikeness(draws(30, 10, seed), draws(30, 10, seed + 500)) for seed in range(100)]
    above = sum(each.cka.value > each.shuffled for each in found)
    assert above <= 12  # 5 expected; more than 12 come once in two thousand


def test_overlap_is_the_cosines_of_the_angles_between_subspaces():
    directions = np.linalg.qr(draws(50, 50))[0].T
    count = cka.DIRECTIONS
    wide = draws(60, count, seed=3) * 100
    x, half = (wide @ directions[start : start + count] for start in (0, count // 2))
    tilted = wide @ (np.cos(0.5) * directions[:count] + np.sin(0.5) * directions[count : 2 * count])
    found = cka.alikeness(x, half)
    assert found.overlap == pytest.approx(0.5, abs=1e-9) and found.chance == count / 50
    assert cka.alikeness(x, tilted).overlap == pytest.approx(np.cos(0.5) ** 2, abs=1e-9)
    assert cka.alikeness(x, x).overlap == pytest.approx(1, abs=1e-12)


def test_what_cannot_be_told_is_not_a_number():
    x = draws(10, 4)
    assert np.isnan(cka.alikeness(x[:3], x[:3]).cka.value) and np.isnan(cka.unbiased_cka(x[:3], x[:3]))
    constant = np.ones((10, 4))
    assert np.isnan(cka.alikeness(x, constant).cka.value) and np.isnan(cka.biased_cka(x, constant))
    assert np.isnan(cka.alikeness(x, draws(10, 6)).overlap)
