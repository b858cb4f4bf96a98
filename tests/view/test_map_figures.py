"""Maps as figures: values are read back from their pixels, on one scale, wherever they are drawn."""

import dataclasses
import re
import zlib

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import llava_probe as lp
from llava_probe.layout import ImageLayout
from tests.maps.test_maps import map_of, one_hot
from tests.synthetic import TEXTS, causal, photograph, synthetic_trace
from tests.view.drawn import at, cut_off, pixels, texts


@pytest.fixture(scope="module")
def trace():
    logits = torch.randn(4, len(TEXTS), generator=torch.Generator().manual_seed(0))
    return synthetic_trace(attention=causal(), logits=logits)


@pytest.fixture
def m(trace):
    return lp.attention_map(trace)


def seen(image):
    """Proportions of red, green and blue: what a photograph over colours leaves as it is."""
    return image / image.sum(-1, keepdims=True)


def middles(figure, axes, panels):
    """Pixels of the middle of each cell, [panels × cells, 3], as they are ordered in the collection."""
    image = pixels(figure)
    cells = next(each for each in axes.collections if each.get_label() == "values")
    found = []
    for path in cells.get_paths():
        x, y = path.vertices[:4].mean(0)
        row, column = at(figure, axes, x, y)
        found.append(image[row - 8 : row + 8, column - 8 : column + 8].mean((0, 1)))
    assert len(found) == panels * 6
    return np.array(found), np.asarray(cells.get_array())


def read_back(figure, bar, colours, by):
    """Values of colours, by the pixels of a drawn colour bar."""
    image = pixels(figure)
    low, high = bar.get_ylim()
    levels = np.linspace(low + 0.02 * (high - low), high - 0.02 * (high - low), 400)
    ramp = np.array([image[at(figure, bar, np.mean(bar.get_xlim()), level)] for level in levels])
    ramp, colours = by(ramp), by(colours)
    return np.array([levels[np.linalg.norm(ramp - colour, axis=1).argmin()] for colour in colours])


def bar_of(figure):
    return next(axes for axes in figure.axes if axes.get_label() == "<colorbar>")


SCALED = torch.tensor([[0.0, 0.1, 0.2, 0.35, 0.5, 0.6], [1.0, 0.9, 0.8, 0.7, 0.65, 0.05]])


@pytest.mark.parametrize(
    ("options", "by"),
    [
        ({"photograph": "under"}, seen),
        ({"photograph": "under", "cmap": "plasma"}, seen),
        ({"photograph": "none"}, np.asarray),
        ({"photograph": "none", "cmap": "gray"}, np.asarray),
        ({"photograph": "none", "highest": 2.0}, np.asarray),
    ],
    ids=["under", "under-plasma", "alone", "alone-gray", "alone-to-2"],
)
def test_values_are_read_back_from_the_colour_bar(options, by):
    figure = lp.figures.maps(map_of(SCALED), **options)
    colours, values = middles(figure, figure.axes[0], 2)
    found = read_back(figure, bar_of(figure), colours, by)
    np.testing.assert_allclose(found, values, atol=0.025 * options.get("highest", 1))
    assert sorted(values.tolist()) == sorted(SCALED.flatten().tolist())


def test_signed_values_are_read_back_too():
    figure = lp.figures.maps(map_of(SCALED - 0.5))
    colours, values = middles(figure, figure.axes[0], 2)
    np.testing.assert_allclose(read_back(figure, bar_of(figure), colours, seen), values, atol=0.025)


def test_a_hand_made_colour_bar_shows_what_is_drawn():
    own = Figure(figsize=(5, 3), layout="constrained")
    ax, side = own.subplots(1, 2, width_ratios=[10, 1])
    assert lp.figures.maps(map_of(SCALED), ax=ax, bar=False) is own
    shown = lp.figures.mappable(own)
    assert lp.figures.mappable(ax) is shown
    own.colorbar(shown, cax=side)
    own.draw_without_rendering()
    colours, values = middles(own, ax, 2)
    np.testing.assert_allclose(read_back(own, side, colours, seen), values, atol=0.025)


def test_photographs_are_seen_through_their_maps():
    """Where the map has one value a photograph's light and dark stand under it."""
    m = map_of(torch.full((1, 6), 0.5))
    figure = lp.figures.maps(m, highest=1.0)
    image, axes = pixels(figure), figure.axes[0]
    drawn = axes.images[0].get_extent()
    (top, left), (bottom, right) = at(figure, axes, drawn[0], drawn[3]), at(figure, axes, drawn[1], drawn[2])
    shown = Image.fromarray(image[top:bottom, left:right].astype(np.uint8)).resize((50, 20), Image.Resampling.BOX)
    light = np.asarray(m.image.convert("L"))[:, 10:40].astype(float)
    assert np.corrcoef(np.asarray(shown).mean(-1)[:, 10:40].ravel(), light.ravel())[0, 1] > 0.8


def test_panels_have_one_scale_and_one_bar_unless_each_has_its_own(m):
    figure = lp.figures.maps(m)
    shown = lp.figures.mappable(figure)
    assert shown.norm.vmax == pytest.approx(float(m.values.max()))
    assert sum(axes.get_label() == "<colorbar>" for axes in figure.axes) == 1
    each = lp.figures.maps(m, scale="each")
    values = np.asarray(lp.figures.mappable(each).get_array()).reshape(len(m), 6)
    np.testing.assert_allclose(values.max(1), 1)
    assert all(f"largest {float(row.max()):.2g}" in texts(each) for row in m.values)
    with pytest.raises(lp.BadInput, match="one scale"):
        lp.figures.maps(m, scale="each", highest=1.0)


def test_maps_are_compared_on_one_scale_with_their_difference():
    weak, strong = map_of(0.25 * one_hot(1)), map_of(one_hot(1, 2))
    figure = lp.figures.compare({"before": weak, "after": strong}, difference=True)
    first, second = (each for each in figure.axes[0].collections if each.get_label() == "values")
    assert (first.norm.vmin, first.norm.vmax) == (0, 0.5)  # the mean of two rows
    after, before = strong.row().numpy(), weak.row().numpy()
    np.testing.assert_allclose(np.asarray(first.get_array()), [*before, *after])
    np.testing.assert_allclose(np.asarray(second.get_array()), after - before)
    assert (second.norm.vmin, second.norm.vmax) == (-0.5, 0.5)
    assert {"before", "after"} <= set(texts(figure).split())
    assert "less before" in texts(figure)


def test_a_difference_has_both_sides_of_nothing_whatever_it_holds():
    same, more = map_of(one_hot(1, 2)), map_of(one_hot(1, 2) + 0.5)
    for other in (same, more):  # no value is negative
        figure = lp.figures.compare([same, other], difference=True)
        _, apart = (each for each in figure.axes[0].collections if each.get_label() == "values")
        assert apart.norm.vmin == -apart.norm.vmax
        red, green, blue, _ = apart.to_rgba(0.0)
        assert max(red, green, blue) - min(red, green, blue) < 0.02, "nothing is grey"


def test_what_cannot_be_compared_is_refused(m):
    with pytest.raises(lp.BadInput, match="got none"):
        lp.figures.compare([])
    with pytest.raises(lp.BadInput, match="takes two maps; got 1"):
        lp.figures.compare([m], difference=True)
    with pytest.raises(lp.BadInput, match="one unit"):
        lp.figures.compare([m, dataclasses.replace(m, about={"unit": "relevance"})])
    other = dataclasses.replace(m, layout=dataclasses.replace(m.layout, boxes=m.layout.boxes + 1))
    with pytest.raises(lp.BadInput, match="same visual tokens"):
        lp.figures.compare([m, other], difference=True)


def test_a_panorama_has_fewer_columns():
    counts = []
    for width, height in ((400, 100), (100, 100), (100, 300)):
        boxes = np.array([[0, 0, width, height]], dtype=float)
        layout = ImageLayout((width, height), np.array([2]), boxes, np.zeros(1, dtype=np.int64), (1, 1))
        m = map_of(torch.ones(4, 1), layout=layout, image=Image.new("RGB", (width, height)))
        figure = lp.figures.maps(m, width="column")
        tops = {round(text.get_position()[1], 3) for text in figure.axes[0].texts}
        counts.append(4 // len(tops))
    assert counts == [1, 2, 4]


def test_a_square_and_a_tall_picture_are_drawn_as_large_as_each_other():
    """Each in its own shape over its own caption."""
    sizes = {"square": (100, 100), "tall": (100, 400), "wide": (300, 100)}
    several = {}
    for name, (width, height) in sizes.items():
        layout = ImageLayout(
            (width, height), np.array([2]), np.array([[0.0, 0, width, height]]), np.zeros(1, dtype=np.int64), (1, 1)
        )
        several[name] = map_of(torch.ones(1, 1), layout=layout, image=Image.new("RGB", (width, height)))
    for pair in (("square", "tall"), ("wide", "tall"), ("square", "wide")):
        figure = lp.figures.compare({name: several[name] for name in pair})
        assert not cut_off(figure)
        areas = []
        for drawn, text, name in zip(figure.axes[0].images, figure.axes[0].texts, pair, strict=True):
            left, right, bottom, top = drawn.get_extent()
            assert (bottom - top) / (right - left) == pytest.approx(sizes[name][1] / sizes[name][0])
            x, y = text.get_position()
            assert text.get_text() == name and left < x < right and 0 < y - bottom < 0.1, "right under it"
            areas.append((bottom - top) * (right - left))
        assert max(areas) == pytest.approx(min(areas))


def test_cells_are_vectors_in_a_pdf_with_its_fonts(m, tmp_path):
    data = lp.figures.save(lp.figures.maps(m), tmp_path / "m.pdf").read_bytes()
    streams = [
        zlib.decompress(each)
        for each in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", data, re.DOTALL)
        if each[:1] == b"x"
    ]
    drawn = b"".join(streams)
    assert len(re.findall(rb" m\n.*? l\n.*? l\n.*? l\n", drawn)) >= m.values.numel()
    assert b"/FontFile2" in data
    svg = lp.figures.save(lp.figures.maps(m), tmp_path / "m.svg").read_text()
    assert "<text" not in svg and "font-family" not in svg, "letters are outlines"


def test_as_many_cells_as_pixels_are_an_image():
    size = (80, 60)
    y, x = np.mgrid[0:60, 0:80].reshape(2, -1).astype(float)
    layout = ImageLayout(size, np.arange(4800), np.stack([x, y, x + 1, y + 1], -1), np.zeros(4800, np.int64), (60, 80))
    m = map_of(torch.rand(1, 4800), layout=layout, image=photograph().resize(size))
    figure = lp.figures.maps(m)
    assert lp.figures.mappable(figure) in figure.axes[0].images
    np.testing.assert_allclose(np.asarray(lp.figures.mappable(figure).get_array()), m.pixels(0))


def test_a_contrast_and_heads_are_told(trace, m):
    weighed = dataclasses.replace(m, about={**m.about, "contrast": ["blue"] * len(m)})
    assert "rather than blue" in texts(lp.figures.maps(weighed)).replace("\n", " ")
    shown = texts(lp.figures.head_maps(trace, "sign"))
    assert "L0" in shown and "head 0" in shown and "“sign”" in shown


def test_layers_and_heads_that_were_chosen_are_told(trace):
    assert "layer 2, head 1" in texts(lp.figures.maps(lp.attention_map(trace, layers=2, heads=1)))
    assert "layers 0 to 1" in texts(lp.figures.maps(lp.attention_map(trace, layers=[0, 1])))
    assert "layer" not in texts(lp.figures.maps(lp.attention_map(trace)))


def test_one_row_several_and_their_mean(m):
    for options, rows in (({"row": 1}, [1]), ({"row": [0, -1]}, [0, -1])):
        shown = np.asarray(lp.figures.mappable(lp.figures.maps(m, **options)).get_array())
        np.testing.assert_allclose(shown, m.values[rows].flatten())
    mean = np.asarray(lp.figures.mappable(lp.figures.maps(m, mean=True)).get_array())
    np.testing.assert_allclose(mean, m.row(), rtol=1e-6)
    with pytest.raises(lp.OutOfRange, match="row 7"):
        lp.figures.maps(m, row=7, mean=True)


def test_marks_and_unseen_parts_are_told(m):
    marked = dataclasses.replace(m, marked=torch.arange(6) == 2)
    told = texts(lp.figures.maps(marked))
    assert "ringed: 1 sinks" in told and "hatched: never seen" in told


def test_a_sheet_tells_how_many_it_left_out():
    pieces = [" x"] * 100
    trace = synthetic_trace(attention=causal(size=10 + len(pieces) - 1, layers=1, heads=1), answer=pieces, layers=1)
    assert "first 96 of 100" in texts(lp.figures.maps(lp.attention_map(trace))).replace("\n", " ")


def test_nothing_is_cut_off_and_captions_do_not_overlap():
    pieces = [" word", "<unk>", " a-very-long-token-of-text-indeed", ",", " an", "\n"] * 6
    trace = synthetic_trace(attention=causal(size=10 + len(pieces) - 1), answer=pieces)
    m = lp.attention_map(trace, tokens=lp.GENERATED)
    for options in (
        {},
        {"width": "column"},
        {"mean": True, "width": 2.0},
        {"photograph": "both", "title": "long " * 40},
    ):
        figure = lp.figures.maps(m, **options)
        assert not cut_off(figure)
        boxes = [text.get_window_extent() for text in figure.axes[0].texts]
        for number, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[number + 1 :])


@pytest.mark.parametrize("options", [{}, {"mean": True}], ids=["rows", "mean"])
def test_no_row_is_refused(m, options):
    with pytest.raises(lp.BadInput, match=r"maps takes one row or more, .* got none"):
        lp.figures.maps(m, row=[], **options)


@pytest.mark.parametrize("width", [0.01, 51, 1e9])
def test_inches_that_nobody_prints_are_refused(m, width):
    with pytest.raises(lp.BadInput, match=r"width=.* from 0\.5 to 50"):
        lp.figures.maps(m, width=width)


def test_more_dots_than_are_told_apart_are_refused(m, tmp_path):
    """As many as the command line takes."""
    with pytest.raises(lp.BadInput, match=r"dpi=.* from 1 to 1,200"):
        lp.figures.save(lp.figures.maps(m, 0), tmp_path / "map.png", dpi=1201)
    assert not any(tmp_path.iterdir())


def test_unknown_ways_are_refused(m):
    with pytest.raises(lp.BadInput, match="photograph= takes one of 'under'"):
        lp.figures.maps(m, photograph="over")
    with pytest.raises(lp.BadInput, match='width= takes "column"'):
        lp.figures.maps(m, width="wide")
    with pytest.raises(lp.BadInput, match="scale= takes 'one'"):
        lp.figures.maps(m, scale="two")
