"""Each score of a map against a mask is that of its definition over the seen pixels, one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    auc,
    average_precision_score,
    jaccard_score,
    precision_recall_curve,
    precision_score,
    recall_score,
)

import llava_probe as lp
from llava_probe.evaluate import (
    average_precision,
    energy_inside,
    iou,
    otsu,
    pointing,
    pr_area,
    pr_curve,
    touches,
)
from tests.evaluate.drawn_maps import LAYOUTS, grid_layout, laid, map_on, seen_pixels, tiled_layout

SCORES = (pointing, touches, energy_inside, average_precision, pr_area, pr_curve, iou)


def box_mask(size, x0, y0, x1, y1):
    mask = np.zeros(size[::-1], dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


# --- the ranking of pixels ---


@settings(max_examples=100, deadline=None)
@given(laid())
def test_average_precision_and_area_are_scikit_learns(drawn):
    m, mask = drawn
    values, truth = seen_pixels(m, mask)
    precision, recall, _ = precision_recall_curve(truth, values)
    assert average_precision(m, mask, 0) == pytest.approx(average_precision_score(truth, values), abs=1e-12)
    assert pr_area(m, mask, 0) == pytest.approx(auc(recall, precision), abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(laid())
def test_the_curve_is_that_of_every_value_as_a_threshold(drawn):
    m, mask = drawn
    values, truth = seen_pixels(m, mask)
    curve = pr_curve(m, mask, 0)
    assert curve.thresholds.tolist() == sorted(set(values.tolist()), reverse=True)
    for threshold, precision, recall in zip(curve.thresholds, curve.precision, curve.recall, strict=True):
        chosen = values >= threshold
        assert precision == pytest.approx(precision_score(truth, chosen))
        assert recall == pytest.approx(recall_score(truth, chosen))


@settings(max_examples=50, deadline=None)
@given(laid())
def test_a_ranking_does_not_change_with_the_scale(drawn):
    m, mask = drawn
    stretched = map_on(m.layout, m.values.double().exp().numpy() * 3)
    assert average_precision(m, mask) == pytest.approx(average_precision(stretched, mask))
    assert iou(m, mask).iou == pytest.approx(iou(stretched, mask).iou)


# --- cut at a threshold ---


@settings(max_examples=100, deadline=None)
@given(laid())
def test_the_best_iou_is_the_best_of_all_thresholds(drawn):
    m, mask = drawn
    values, truth = seen_pixels(m, mask)
    found = iou(m, mask, 0)
    assert found.iou == pytest.approx(max(jaccard_score(truth, values >= cut) for cut in set(values.tolist())))
    chosen = values > found.threshold
    assert found.iou == pytest.approx(jaccard_score(truth, chosen))
    assert found.precision == pytest.approx(precision_score(truth, chosen))
    assert found.recall == pytest.approx(recall_score(truth, chosen))


@settings(max_examples=100, deadline=None)
@given(laid(), st.one_of(st.just("otsu"), st.floats(-3, 12)))
def test_overlap_at_a_threshold_is_scikit_learns(drawn, threshold):
    m, mask = drawn
    values, truth = seen_pixels(m, mask)
    found = iou(m, mask, 0, threshold)
    assert found.threshold == (otsu(values) if threshold == "otsu" else threshold)
    chosen = values > found.threshold
    assert found.iou == pytest.approx(jaccard_score(truth, chosen))
    assert found.precision == pytest.approx(precision_score(truth, chosen, zero_division=0))
    assert found.recall == pytest.approx(recall_score(truth, chosen))
    assert found.iou <= iou(m, mask, 0).iou + 1e-12


def between(values, cut):
    """The variance between two classes, from the classes' own means (Otsu 1979, equation 14)."""
    low, high = values[values <= cut], values[values > cut]
    if not len(high):
        return 0.0
    shares = len(low) / len(values), len(high) / len(values)
    return sum(share * (part.mean() - values.mean()) ** 2 for share, part in zip(shares, (low, high), strict=True))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.integers(0, 9), st.floats(-1e3, 1e3, width=32)), min_size=1, max_size=40))
def test_no_threshold_beats_otsus(values):
    values = np.array(values, dtype=np.float64)
    cut = otsu(values)
    assert cut in values
    best = max(between(values, other) for other in values)
    assert between(values, cut) == pytest.approx(best, rel=1e-9, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5)), min_size=1, max_size=20))
def test_a_weight_is_that_many_values(pairs):
    values, weights = np.array(pairs).T
    if weights.sum():
        repeated = np.repeat(values, weights).astype(float)
        assert between(repeated, otsu(values, weights)) == pytest.approx(between(repeated, otsu(repeated)), rel=1e-9)


def test_otsu_is_exact_where_256_bins_are_not():
    """Two groups that differ by less than a bin beside one far value: weights make their border the best cut."""
    assert otsu([0, 1e-4, 1.0], [1e9, 1e9, 1]) == 0
    assert otsu([1e6, 1e6 + 1, 1e6 + 2, 1e6 + 2]) == 1e6 + 1
    assert otsu([4.0, 4.0]) == 4


# --- the top and the sum ---


@pytest.mark.parametrize("top", range(12))
def test_the_game_is_won_where_the_top_box_is_centred_on_the_mask(top):
    layout = grid_layout((40, 24), 3, 4)
    m = map_on(layout, np.eye(12)[[top]])
    for other in range(12):
        x0, y0, x1, y1 = layout.boxes[other].astype(int)
        mask = box_mask((40, 24), x0, y0, x1, y1)
        assert pointing(m, mask, 0) == (other == top)
        assert touches(m, mask, 0) == (other == top)


def test_a_small_object_in_the_corner_of_the_top_box_is_touched_and_not_pointed_at():
    m = map_on(grid_layout((40, 24), 3, 4), np.eye(12)[[5]])  # pixels 10..20 × 8..16, centre (15, 12)
    mask = box_mask((40, 24), 10, 8, 12, 10)
    assert touches(m, mask) == 1
    assert not pointing(m, mask)
    far = np.hypot(15 - 12, 12 - 10)
    assert pointing(m, mask, tolerance=far)
    assert not pointing(m, mask, tolerance=far - 1e-6)


def test_a_point_on_a_border_lies_on_both_sides():
    m = map_on(grid_layout((40, 24), 3, 4), np.eye(12)[[5]])
    for x, y in ((14, 11), (14, 12), (15, 11), (15, 12)):  # the four pixels that meet at (15, 12)
        assert pointing(m, box_mask((40, 24), x, y, x + 1, y + 1))
    assert not pointing(m, box_mask((40, 24), 16, 12, 17, 13))


@settings(max_examples=100, deadline=None)
@given(laid(), st.floats(0, 20))
def test_pointing_is_the_distance_to_the_nearest_mask_pixel(drawn, tolerance):
    m, mask = drawn
    x, y = m.peak(0)
    nearest = min(
        np.hypot(x - np.clip(x, across, across + 1), y - np.clip(y, down, down + 1))
        for down, across in np.argwhere(mask)
    )
    if abs(nearest - tolerance) > 1e-9:
        assert pointing(m, mask, 0, tolerance) == (nearest <= tolerance)


def test_of_tied_tops_the_share_that_touches_counts():
    m = map_on(grid_layout((40, 24), 3, 4), [np.isin(np.arange(12), [0, 5, 11]) * 1.0])
    assert touches(m, box_mask((40, 24), 0, 0, 15, 12)) == pytest.approx(2 / 3)


@settings(max_examples=100, deadline=None)
@given(laid())
def test_energy_is_the_positive_share_inside(drawn):
    m, mask = drawn
    values, truth = seen_pixels(m, mask)
    positive = values[values > 0]
    expected = values[(values > 0) & truth].sum() / positive.sum() if len(positive) else 0
    assert energy_inside(m, mask, 0) == pytest.approx(expected)


@pytest.mark.parametrize("layout", LAYOUTS, ids=repr)
def test_a_uniform_map_scores_the_share_that_the_mask_covers(layout):
    mask = box_mask(layout.size, 1, 2, layout.size[0] // 2 + 1, layout.size[1] - 1)
    share = mask[layout.seen].mean()
    m = map_on(layout, np.full((1, len(layout)), 0.3))
    assert energy_inside(m, mask) == pytest.approx(share)
    assert average_precision(m, mask) == pytest.approx(share)
    assert iou(m, mask).iou == pytest.approx(share)
    assert iou(m, mask).threshold == -np.inf
    assert iou(m, mask, None, "otsu").iou == 0
    nothing = map_on(layout, np.full((1, len(layout)), -1.0))
    assert energy_inside(nothing, mask) == 0


def test_a_perfect_map_scores_one_everywhere():
    layout = tiled_layout()
    mask = box_mask(layout.size, 0, 0, 20, 8)  # the top row of the finer tile
    m = map_on(layout, [layout.to_tokens(mask)])
    assert average_precision(m, mask) == pr_area(m, mask) == iou(m, mask).iou == 1
    assert iou(m, mask, None, "otsu").iou == 1
    assert energy_inside(m, mask) == 1


# --- refusals ---


def test_without_a_row_the_mean_is_judged():
    layout = grid_layout((40, 24), 3, 4)
    m = map_on(layout, [np.eye(12)[0] * 2, np.eye(12)[5] * 8])
    mask = box_mask((40, 24), 10, 8, 20, 16)
    assert energy_inside(m, mask) == pytest.approx(0.8)
    assert energy_inside(m, mask, 0) == 0
    assert pointing(m, mask)
    with pytest.raises(lp.OutOfRange, match="rows 0 to 1"):
        energy_inside(m, mask, 2)


@pytest.mark.parametrize("score", SCORES)
def test_a_mask_that_cannot_be_found_is_refused_in_a_sentence(score):
    m = map_on(grid_layout((40, 24), 3, 4, (8, 0, 32, 24)), np.arange(12.0)[None])
    with pytest.raises(lp.BadInput, match=r"\[24, 40\] of bool.*got \[40, 24\]"):
        score(m, np.ones((40, 24), dtype=bool), 0)
    with pytest.raises(lp.BadInput, match=r"got .* of float64"):
        score(m, np.ones((24, 40)), 0)
    with pytest.raises(lp.BadInput, match="empty"):
        score(m, np.zeros((24, 40), dtype=bool), 0)
    with pytest.raises(lp.BadInput, match="saw nothing"):
        score(m, box_mask((40, 24), 0, 0, 8, 24), 0)


def test_thresholds_and_tolerances_that_mean_nothing_are_refused():
    m, mask = map_on(grid_layout((40, 24), 3, 4), np.arange(12.0)[None]), np.ones((24, 40), dtype=bool)
    for threshold in ("half", float("nan")):
        with pytest.raises(lp.BadInput, match="'best' nor 'otsu' nor a number"):
            iou(m, mask, 0, threshold)
    for tolerance in (-1, float("inf"), float("nan")):
        with pytest.raises(lp.BadInput, match="tolerance="):
            pointing(m, mask, 0, tolerance)
    for values, weights in (([], None), ([1.0, np.nan], None), ([1.0, 2.0], [1.0]), ([1.0], [-1.0]), ([1.0], [0.0])):
        with pytest.raises(lp.BadInput, match="otsu takes"):
            otsu(values, weights)
