"""Colour bars tell their scale: the factor of their numbers, what lies beyond them, and their whole name."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

import llava_probe as lp
from llava_probe.layout import ImageLayout
from tests.maps.test_maps import map_of, one_hot
from tests.synthetic import TEXTS, synthetic_trace
from tests.view.drawn import cut_off, texts

RAISED = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")


def small(factor):
    return map_of(factor * one_hot(1), about={"unit": "d logit / d pixel"})


def bars(figure):
    figure.draw_without_rendering()
    return [axes for axes in figure.axes if axes.get_label() == "<colorbar>"]


def told(bar):
    """The values that a bar's numbers say, with the factor in its name, beside where its ticks stand."""
    axis = bar.yaxis if bar.get_ylabel() else bar.xaxis
    name = axis.get_label_text()
    power = int(name.partition("×10")[2].translate(RAISED)) if "×10" in name else 0
    numbers = [float(tick.get_text().replace("−", "-")) * 10.0**power for tick in axis.get_ticklabels()]
    assert not axis.get_offset_text().get_visible() or not axis.get_offset_text().get_text()
    return np.array(numbers), axis.get_ticklocs()


@pytest.mark.parametrize("factor", [2e-9, 3e-6, 0.023, 1.0, 7e7])
def test_numbers_and_factor_tell_the_value(factor):
    """On sheets, and on a horizontal bar under words."""
    sure = lp.confidence(synthetic_trace(logits=torch.randn(4, len(TEXTS), generator=torch.Generator().manual_seed(0))))
    sure = dataclasses.replace(sure, entropy=factor * sure.entropy)
    figures = [
        lp.figures.compare({"a": small(factor), "b": small(1.3 * factor)}, difference=True),
        lp.figures.maps(small(factor), title=False),
        lp.figures.tokens(sure, by="entropy"),
    ]
    for figure in figures:
        assert not cut_off(figure)
        for bar in bars(figure):
            numbers, places = told(bar)
            np.testing.assert_allclose(numbers, places, atol=0.02 * factor)


def test_a_bar_is_pointed_where_values_go_beyond_it():
    signed = map_of(torch.tensor([[0.5, -0.5, 0, 0, 0, 0]] * 2))
    sure = lp.confidence(synthetic_trace(logits=torch.randn(4, len(TEXTS), generator=torch.Generator().manual_seed(0))))
    for figure, ends in (
        (lp.figures.maps(map_of(one_hot(1, 2))), "neither"),
        (lp.figures.maps(map_of(one_hot(1, 2)), highest=2.0), "neither"),
        (lp.figures.maps(map_of(one_hot(1, 2)), highest=0.5), "max"),
        (lp.figures.maps(signed, highest=0.25), "both"),
        (lp.figures.tokens(sure, by="entropy", highest=0.01), "max"),
    ):
        assert lp.figures.mappable(figure).colorbar.extend == ends


def panorama(width=800, height=80):
    boxes = np.array([[0, 0, width / 2, height], [width / 2, 0, width, height]], dtype=float)
    layout = ImageLayout((width, height), np.array([2, 3]), boxes, np.zeros(2, dtype=np.int64), (1, 2))
    picture = Image.new("RGB", (width, height), "tan")
    return map_of(torch.tensor([[0.2, 0.7]] * 2), layout=layout, image=picture, about={"unit": "share of attention"})


def test_beside_a_panorama_a_bar_still_has_its_whole_name():
    for figure in (lp.figures.maps(panorama(), 0), lp.figures.compare([panorama(), panorama()], difference=True)):
        assert "…" not in texts(figure)
        assert "share of attention" in texts(figure).replace("\n", " ")
        assert not cut_off(figure)
