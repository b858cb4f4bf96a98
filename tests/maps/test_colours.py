"""A colour map that is read over a photograph has proportions of its own at each value."""

import numpy as np
import pytest

import llava_probe as lp
from llava_probe.maps.colours import HEAT, SIGNED, check_over_a_photograph, colour_map, colour_table
from tests.maps.test_maps import map_of, one_hot


def lightness(table):
    """CIE L* by its definition, of sRGB in [0, 255]."""
    linear = np.where(table <= 10.31, table / 255 / 12.92, ((table / 255 + 0.055) / 1.055) ** 2.4)
    y = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(y > (6 / 29) ** 3, 116 * np.cbrt(y) - 16, (29 / 3) ** 3 * y)


def test_heat_gets_darker_all_the_way_from_white():
    table = colour_table(colour_map(HEAT))
    assert (np.diff(lightness(table)) < 0.05).all()
    assert lightness(table)[0] > 97
    assert np.ptp(table[0]) == 0, "nothing leaves a photograph as it is"
    assert lightness(table)[-1] < 40


@pytest.mark.parametrize("name", [HEAT, SIGNED, "plasma", "viridis"])
def test_colours_that_differ_in_hue_may_lie_under_a_photograph(name):
    check_over_a_photograph(colour_map(name))


@pytest.mark.parametrize("name", ["gray", "Greys", "binary"])
def test_greys_may_not(name):
    with pytest.raises(lp.BadInput, match='photograph="beside"'):
        check_over_a_photograph(colour_map(name))
    with pytest.raises(lp.BadInput, match="cannot be told apart"):
        map_of(one_hot(0)).overlay(0, cmap=name)


def test_a_colour_map_that_is_not_there_is_a_sentence():
    with pytest.raises(lp.BadInput, match="'heat' or the name"):
        map_of(one_hot(0)).overlay(0, cmap="no such")


def test_a_photograph_only_darkens():
    """Proportions of red, green and blue are those of the colour map, on any photograph."""
    m = map_of([[0.0, 0.2, 0.4, 0.6, 0.8, 1.0]])
    over = np.asarray(m.overlay(0)).astype(float)[:, 10:40]
    hue = (over / over.sum(-1, keepdims=True)).reshape(2, 10, 3, 10, 3).mean((1, 3)).reshape(6, 3)
    table = colour_table(colour_map(HEAT))
    own = table / table.sum(1, keepdims=True)
    read = [int(np.linalg.norm(own - each, axis=1).argmin()) / 255 for each in hue]
    np.testing.assert_allclose(read, m.values[0], atol=0.02)
