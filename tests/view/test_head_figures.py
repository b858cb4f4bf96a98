"""Shares by layer and head are drawn where they stand, with intervals over pictures."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats

import llava_probe as lp
from tests.synthetic import causal, synthetic_trace
from tests.view.drawn import texts


def shares_of(image):
    """Shares whose picture's part is given, [L, H]."""
    shares = lp.heads(synthetic_trace(attention=causal()))
    return dataclasses.replace(shares, image=torch.as_tensor(image).expand_as(shares.image))


def test_a_grid_has_a_cell_for_each_layer_and_head():
    table = torch.arange(6.0).reshape(3, 2) / 10
    figure = lp.figures.layers_heads(shares_of(table), highest=1.0)
    shown = lp.figures.mappable(figure)
    np.testing.assert_allclose(np.asarray(shown.get_array()), table)
    assert shown.norm.vmax == 1
    low, high = sorted(figure.axes[0].get_ylim())
    assert (low, high) == (-0.5, 2.5)
    assert figure.axes[0].yaxis_inverted(), "layer 0 stands at the top"
    assert "the picture" in texts(figure).replace("\n", " ")
    assert "the first token" in texts(lp.figures.layers_heads(shares_of(table), "first", 0)).replace("\n", " ")


def test_a_part_that_is_none_is_refused():
    with pytest.raises(lp.BadInput, match=r"lp\.heads\(trace, mask="):
        lp.figures.layers_heads(shares_of(torch.zeros(3, 2)), "mask")


def test_no_part_is_refused():
    with pytest.raises(lp.BadInput, match=r"layers takes one part or more, .* got none"):
        lp.figures.layers([shares_of(torch.zeros(3, 2))], of=[])


def test_intervals_over_pictures_are_those_of_a_mean():
    """Beside Student's interval, which holds for shares that are normal."""
    drawn = np.random.default_rng(0).normal([0.3, 0.5, 0.7], 0.05, (50, 3))
    figure = lp.figures.layers([shares_of(torch.tensor(each)[:, None].float()) for each in drawn])
    (line,), (band,) = figure.axes[0].lines, figure.axes[0].collections
    np.testing.assert_allclose(line.get_ydata(), drawn.mean(0), rtol=1e-5)
    ends = band.get_paths()[0].vertices
    for layer in range(3):
        own = ends[ends[:, 0] == layer][:, 1]
        expected = stats.t.interval(0.95, 49, drawn[:, layer].mean(), stats.sem(drawn[:, layer]))
        np.testing.assert_allclose([own.min(), own.max()], expected, atol=0.004)


def test_what_cannot_be_averaged_is_refused():
    with pytest.raises(lp.BadInput, match="got none"):
        lp.figures.layers([])
    one = shares_of(torch.zeros(3, 2))
    with pytest.raises(lp.BadInput, match="same layers"):
        lp.figures.layers([one, dataclasses.replace(one, layers=(3, 4, 5))])
