"""Words stand on their patches, fit them, and are the darker the nearer they came."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

import llava_probe as lp
from llava_probe.layout import ImageLayout
from llava_probe.lens.bank import BANK_LIMITS
from llava_probe.view.canvas import Canvas
from llava_probe.view.patch_words import write_words
from tests.models import photo
from tests.view.drawn import cut_off, texts


@pytest.fixture(scope="module")
def found(tiny_vlm, tmp_path_factory):
    sentences = ["There is a red circle at the top left.", "There is a stop sign that says OPEN at the bottom."]
    bank = lp.word_bank(tiny_vlm, sentences, tmp_path_factory.mktemp("bank"), layers=[2])
    capture = lp.Capture(layers=[3], positions=["predicting", "image"])
    return bank.words(tiny_vlm.generate(lp.tiny.scene(7).image, "What?", max_new_tokens=1, capture=capture), layer=3)


def test_each_patch_has_its_word_and_the_nearest_is_darkest(found):
    figure = lp.figures.contextual_words(found)
    layout, (axes,) = found.trace.layouts[0], figure.axes
    assert [text.get_text() for text in axes.texts] == [each[0] for each in found.texts]
    middles = [((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in layout.boxes]
    assert np.allclose([text.get_position() for text in axes.texts], middles)
    greys = np.array([to_rgb(text.get_color())[0] for text in axes.texts])
    assert np.argmin(greys) == int(found.similarity[:, 0].argmax()) and greys.min() == 0
    assert "layer 3" in texts(figure) and BANK_LIMITS[:40] in texts(figure).replace("\n", " ")
    assert not cut_off(figure) and not cut_off(lp.figures.contextual_words(found, width="column"))


def test_a_word_fits_its_patch():
    figure = Canvas(2, 2)
    axes = figure.add_subplot()
    boxes = np.array([[8.0 * column, 0, 8.0 * column + 8, 48] for column in range(6)])
    layout = ImageLayout(size=(48, 48), boxes=boxes, positions=np.arange(6), tiles=np.zeros(6, int), grid=(1, 6))
    write_words(axes, photo(48, 48), layout, ["a", "incomprehensibilities", "\n", "dog", "stop", "x"], np.ones(6))
    figure.draw_without_rendering()
    room = (axes.transData.transform((8, 0)) - axes.transData.transform((0, 0)))[0]
    assert all(text.get_window_extent().width <= room for text in axes.texts)
    assert axes.texts[1].get_text().endswith("…") and axes.texts[2].get_text() == "⏎"


def test_only_the_asked_view_of_a_tiled_picture_is_written(found):
    with pytest.raises(lp.BadInput, match="tile=3 is not there: this picture is seen in 0"):
        lp.figures.contextual_words(found, tile=3)
    few = lp.Trace(**vars(found.trace))
    some = type(found)(**{**{name: getattr(found, name) for name in found.__dataclass_fields__}, "trace": few})
    object.__setattr__(some, "positions", found.positions[:-1])
    object.__setattr__(some, "similarity", torch.as_tensor(found.similarity)[:-1])
    with pytest.raises(lp.BadInput, match="not all visual tokens of picture 0"):
        lp.figures.contextual_words(some)
