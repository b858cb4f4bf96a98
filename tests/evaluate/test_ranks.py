"""Agreement of two maps is scipy's rank correlation, and the top ones are counted with their ties."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

import llava_probe as lp
from llava_probe.evaluate import agreement, spearman, top_overlap
from tests.evaluate.drawn_maps import grid_layout, map_on

LAYOUT = grid_layout((40, 24), 3, 4)
VALUES = st.lists(st.one_of(st.integers(0, 4), st.floats(-9, 9, width=32)), min_size=12, max_size=12)


def one(values):
    return map_on(LAYOUT, [values])


@settings(max_examples=100, deadline=None)
@given(VALUES, VALUES)
def test_rank_correlation_is_scipys(first, second):
    found = spearman(one(first), one(second), 0)
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.permutations(range(12)), st.permutations(range(12)), st.integers(1, 12))
def test_the_top_ones_in_common_are_counted(first, second, k):
    tops = [set(np.argsort(values)[-k:].tolist()) for values in (first, second)]
    assert top_overlap(one(first), one(second), 0, k) == pytest.approx(len(tops[0] & tops[1]) / k)


@settings(max_examples=50, deadline=None)
@given(VALUES, VALUES, st.integers(1, 12))
def test_the_overlap_is_symmetric_and_whole_with_itself(first, second, k):
    a, b = one(first), one(second)
    assert top_overlap(a, a, 0, k) == pytest.approx(1)
    assert top_overlap(a, b, 0, k) == pytest.approx(top_overlap(b, a, 0, k))
    assert 0 <= top_overlap(a, b, 0, k) <= 1 + 1e-12


def test_tied_places_are_shared():
    first = [9, 5, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    second = [9, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    assert top_overlap(one(first), one(second), 0, 2) == pytest.approx((1 + 0.5) / 2)
    assert top_overlap(one(first), one(second), 0) == 1  # a tenth of twelve tokens is one


def test_the_matrix_holds_every_pair():
    generator = np.random.default_rng(0)
    maps = {name: map_on(LAYOUT, generator.random((2, 12))) for name in "abc"}
    found = agreement(maps, 1)
    assert found.names == ("a", "b", "c")
    for (i, x), (j, y) in itertools.product(enumerate("abc"), repeat=2):
        assert found.values[i, j] == pytest.approx(spearmanr(maps[x].values[1], maps[y].values[1]).statistic)
    overlaps = agreement(maps, None, top_overlap)
    assert overlaps.values[0, 1] == top_overlap(maps["a"], maps["b"])
    assert f"{found.values[2, 0]:.2f}" in str(found).splitlines()[3]


def test_maps_of_different_places_are_not_compared():
    m = map_on(LAYOUT, np.ones((1, 12)))
    for layout in (
        grid_layout((40, 24), 4, 3),
        grid_layout((40, 24), 3, 4, (8, 0, 32, 24)),
        grid_layout((40, 24), 2, 2),
    ):
        with pytest.raises(lp.BadInput, match="token by token on one picture"):
            spearman(m, map_on(layout, np.ones((1, len(layout)))))
    with pytest.raises(lp.BadInput, match="k=13"):
        top_overlap(m, m, k=13)
    with pytest.raises(lp.BadInput, match="none"):
        agreement({})
