"""Maps made without a model: of the given tokens, at the right places, and knowing nothing but what they say."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter, sobel

import llava_probe as lp
from llava_probe.evaluate import centre_prior, edges, of_another, random
from tests.evaluate.drawn_maps import LAYOUTS, grid_layout, map_on

MADE = (centre_prior, edges, random, lambda m: of_another(m, m))


@pytest.mark.parametrize("make", MADE)
@pytest.mark.parametrize("layout", LAYOUTS, ids=repr)
def test_a_baseline_has_the_tokens_picture_and_layout_of_its_model(make, layout):
    like = map_on(layout, np.random.default_rng(0).random((3, len(layout))))
    made = make(like)
    assert made.tokens == like.tokens
    assert made.layout == like.layout
    assert made.image is like.image
    assert made.method != like.method
    assert make(like).values.equal(made.values)


@pytest.mark.parametrize("make", MADE)
def test_a_baseline_knows_which_tokens_its_rows_stand_for(make):
    layout = LAYOUTS[0]
    plain = map_on(layout, np.random.default_rng(0).random((2, len(layout))))
    assert "positions" not in make(plain).about
    like = replace(plain, about={"positions": [[3, 4], [7]]})
    assert make(like).about["positions"] == [[3, 4], [7]]
    assert of_another(replace(plain, about={"positions": [[9], [10]]}), like).about["positions"] == [[3, 4], [7]]


def test_the_prior_is_the_gaussian_at_the_photographs_centre():
    """An impulse at the centre, blurred by scipy; on tokens of one pixel each."""
    layout = grid_layout((41, 21), 21, 41)
    impulse = np.zeros((21, 41))
    impulse[10, 20] = 1
    blurred = gaussian_filter(impulse, (0.25 * 21, 0.25 * 41), truncate=9, mode="constant")
    made = centre_prior(map_on(layout, np.zeros((2, 21 * 41))))
    np.testing.assert_allclose(made.grid(1), blurred / blurred.max(), rtol=2e-3)


def test_the_prior_is_centred_on_the_photograph_and_not_on_the_crop():
    made = centre_prior(map_on(grid_layout((40, 24), 3, 4, (0, 0, 24, 24)), np.zeros((1, 12))))
    assert made.peak()[0] == 21  # the column of the crop that is nearest to 20


def test_edges_are_scipys_sobel_averaged_over_each_box():
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40), dtype=np.uint8)
    like = replace(map_on(grid_layout((40, 24), 3, 4), np.zeros((1, 12))), image=Image.fromarray(pixels))
    length = np.hypot(sobel(pixels.astype(float), 0, mode="nearest"), sobel(pixels.astype(float), 1, mode="nearest"))
    expected = length.reshape(3, 8, 4, 10).mean((1, 3))
    np.testing.assert_allclose(edges(like).grid(0), expected, rtol=1e-5)


def test_noise_is_uniform_and_of_its_seed():
    like = map_on(grid_layout((40, 40), 40, 40), np.zeros((4, 1600)))
    made = random(like, seed=3)
    assert not made.values[0].equal(made.values[1])
    assert not made.values.equal(random(like, seed=4).values)
    deciles = np.histogram(made.values, 10, (0, 1))[0] / 640
    np.testing.assert_allclose(deciles, 1, atol=4 * np.sqrt(0.9 / 640))


def test_another_pictures_map_is_laid_token_by_token_where_the_grids_are_alike():
    wide = map_on(grid_layout((40, 24), 3, 4, (8, 0, 32, 24)), np.random.default_rng(0).random((2, 12)))
    tall = map_on(grid_layout((30, 90), 3, 4), np.zeros((2, 12)))
    laid = of_another(wide, tall)
    assert laid.values.equal(wide.values)
    assert laid.layout == tall.layout


def test_else_one_photograph_is_stretched_over_the_other():
    """A quarter each, whatever the grid: bright top left, a crop's edge that nobody saw counts as nothing."""
    one = map_on(grid_layout((40, 24), 2, 2), [[1.0, 2, 3, 4]])
    like = map_on(grid_layout((80, 120), 4, 6), np.zeros((1, 24)))
    expected = np.kron([[1, 2], [3, 4]], np.ones((2, 3)))
    np.testing.assert_allclose(of_another(one, like).grid(0), expected)
    cropped = map_on(grid_layout((40, 24), 2, 1, (20, 0, 40, 24)), [[5.0, 7]])
    np.testing.assert_allclose(of_another(cropped, like).grid(0)[:, :3], 0)
    np.testing.assert_allclose(of_another(cropped, like).grid(0)[:, 3:], [[5] * 3] * 2 + [[7] * 3] * 2)


def test_rows_that_do_not_pair_become_their_mean():
    one = map_on(grid_layout((40, 24), 3, 4), np.random.default_rng(0).random((5, 12)))
    like = map_on(grid_layout((40, 24), 3, 4), np.zeros((2, 12)))
    for row in of_another(one, like).values:
        torch.testing.assert_close(row, one.values.mean(0))


def test_a_sigma_of_nothing_is_refused():
    for sigma in (0, -1, float("nan"), float("inf")):
        with pytest.raises(lp.BadInput, match="sigma"):
            centre_prior(map_on(grid_layout((40, 24), 3, 4), np.zeros((1, 12))), sigma)


def test_a_baseline_of_a_contrast_is_judged_by_the_same_contrast():
    plain = map_on(LAYOUTS[0], np.random.default_rng(0).random((2, len(LAYOUTS[0]))))
    like = replace(plain, about={"positions": [[3], [7]], "contrast": ["red", "blue"], "image": 0})
    for make in MADE:
        assert {name: make(like).about[name] for name in ("contrast", "image")} == {
            "contrast": ["red", "blue"],
            "image": 0,
        }
    other = map_on(LAYOUTS[0], np.random.default_rng(0).random((3, len(LAYOUTS[0]))))
    other = replace(other, about={"contrast": ["a", "b", "c"], "image": 1})
    assert of_another(other, like).about["contrast"] == ["red", "blue"]
    assert "contrast" not in of_another(other, plain).about
