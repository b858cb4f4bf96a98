"""Localisation heads: each criterion against scipy and geometry, the choice on planted attention and the tiny model."""

import json
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

import llava_probe as lp
from llava_probe import tiny
from llava_probe.attribution import LocalisationHeads, find_heads, localisation
from llava_probe.attribution.localisation import above_elbow, components, smoothed, spatial_entropy
from llava_probe.layout import ImageLayout
from llava_probe.layout.geometry import boxes_between
from llava_probe.tiny import scene
from llava_probe.trace.tokens import Token
from tests.models import photo
from tests.synthetic import IMAGE_AT, P, causal, layout, synthetic_trace

ROOM = np.ones((3, 3), dtype=int)  # scipy's word for 8-connected


def square(rows, columns):
    boxes = boxes_between(np.arange(columns + 1.0), np.arange(rows + 1.0))
    count = rows * columns
    return ImageLayout((columns, rows), np.arange(count), boxes, np.zeros(count, dtype=int), (rows, columns))


def entropy_of(grid):
    grid = np.asarray(grid, dtype=float)
    return float(spatial_entropy(grid.reshape(1, -1), [(np.arange(grid.size), grid.shape)])[0])


# --- pieces ---


@given(arrays(bool, st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))))
@settings(max_examples=80, deadline=None)
def test_pieces_are_scipys(on):
    for found, plane in zip(components(on), on, strict=True):
        expected, count = scipy.ndimage.label(plane, ROOM)
        assert len(set(found[plane])) == count
        assert len(set(zip(found[plane], expected[plane], strict=True))) == count
        assert not found[~plane].any()


def test_a_snake_is_one_piece():
    on = np.zeros((1, 21, 21), dtype=bool)
    on[0, ::2] = True
    on[0, 1::4, -1] = on[0, 3::4, 0] = True
    assert set(components(on)[on]) == {21 * 21}


# --- entropy ---


def test_one_piece_has_no_entropy_and_pieces_count_by_their_mass():
    grid = np.zeros((6, 6))
    grid[0:2, 0:2] = 1
    assert entropy_of(grid) == 0
    grid[3, 4] = 1
    mean = grid.mean()
    shares = np.array([4 * (1 - mean), 1 - mean]) / (5 * (1 - mean))
    assert entropy_of(grid) == pytest.approx(-(shares * np.log(shares)).sum())
    grid = np.zeros((7, 7))
    grid[[0, 0, 3, 3], [0, 3, 0, 3]] = 0.3
    assert entropy_of(grid) == pytest.approx(np.log(4))


@given(arrays(np.float64, (6, 7), elements=st.floats(0, 1, width=32)), st.floats(1e-3, 1e3))
@settings(max_examples=60, deadline=None)
def test_entropy_is_that_of_scipys_pieces_on_any_scale(grid, scale):
    lit = grid > 2 * grid.mean()
    labels, count = scipy.ndimage.label(lit, ROOM)
    masses = np.array(scipy.ndimage.sum_labels(grid - grid.mean(), labels, range(1, count + 1)))
    expected = np.inf
    if count and not lit[-1].all():
        shares = masses / masses.sum()
        expected = -(shares * np.log(shares)).sum()
    assert entropy_of(grid) == pytest.approx(expected, abs=1e-9)
    if np.abs(grid / (grid.mean() or 1) - 2).min() > 1e-6:
        assert entropy_of(grid * scale) == pytest.approx(expected, abs=1e-6)


def test_maps_without_a_piece_and_heads_that_rest_never_win():
    assert entropy_of(np.zeros((4, 4))) == np.inf
    assert entropy_of(np.full((4, 4), 0.02)) == np.inf
    resting = np.zeros((5, 5))
    resting[-1] = 1
    assert entropy_of(resting) == np.inf
    resting[-1, 2] = 0
    assert entropy_of(resting) == pytest.approx(np.log(2))


def test_pieces_of_two_tiles_stay_apart():
    maps = np.zeros((1, 18))
    maps[0, [4, 13]] = 1
    halves = [(np.arange(9), (3, 3)), (np.arange(9, 18), (3, 3))]
    assert spatial_entropy(maps, halves)[0] == pytest.approx(np.log(2))


# --- the elbow ---


@given(arrays(np.float64, st.integers(2, 40), elements=st.floats(0, 1, width=16)))
@settings(max_examples=80, deadline=None)
def test_the_elbow_is_the_point_furthest_below_the_chord(sums):
    ordered = np.sort(sums)
    above = above_elbow(sums)
    span = ordered[-1] - ordered[0]
    if span == 0:
        assert above.all()
        return
    points = np.stack([np.arange(len(sums)) / (len(sums) - 1), (ordered - ordered[0]) / span], axis=1)
    along = np.array([1.0, 1.0]) / 2**0.5
    distances = [np.cross([*along, 0], [*point, 0])[2] for point in points]  # signed: below is negative
    if min(distances) > -1e-9:
        assert above.all()
    else:
        np.testing.assert_array_equal(above, sums > ordered[int(np.argmin(np.round(distances, 12)))])
        assert above.any() and not above.all()


def test_the_elbow_does_not_depend_on_the_scale():
    sums = np.random.default_rng(0).random((8, 8)) ** 6
    np.testing.assert_array_equal(above_elbow(sums), above_elbow(1e-4 * sums + 0.3))


def test_few_large_sums_are_told_from_many_small_ones():
    sums = np.full(100, 0.01)
    sums[[3, 40, 77]] = [0.5, 0.6, 0.7]
    assert np.flatnonzero(above_elbow(sums)).tolist() == [3, 40, 77]


# --- smoothing ---


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_smoothing_is_scipys(sigma):
    grid = np.random.default_rng(0).random((3, 5, 7))
    expected = scipy.ndimage.gaussian_filter(grid, sigma, axes=(1, 2), truncate=3.0, mode="reflect")
    found = smoothed(grid.reshape(3, -1), square(5, 7), sigma)
    np.testing.assert_allclose(found, expected.reshape(3, -1), atol=1e-12)
    np.testing.assert_allclose(found.sum(-1), grid.sum((1, 2)))


def test_no_width_smooths_nothing():
    values = np.random.default_rng(0).random(35)
    np.testing.assert_array_equal(smoothed(values, square(5, 7), 0), values)


# --- the choice ---

SIDE, LAYERS, HEADS = 12, 4, 8
TRUE = (2, 5)


class Planted(lp.VLM):
    """Answers with attention in which one head looks at the object, some look all over, most elsewhere."""

    def __init__(self, seed=0):
        self.random = np.random.default_rng(seed)

    def generate(self, image, question, **_):
        top, left = image
        count = SIDE * SIDE
        maps = self.random.random((LAYERS, HEADS, SIDE, SIDE)) * 0.02 / count  # heads that ignore the picture
        maps[1] = self.random.random((HEADS, SIDE, SIDE)) ** 8  # heads that look here and there
        maps[1] *= 0.7 / maps[1].sum((1, 2), keepdims=True)
        maps[TRUE][top : top + 3, left : left + 3] += 0.6 / 9
        maps[0, 7] = 0  # in one piece, but of nothing
        maps[0, 7, top, left] = 1e-4
        maps[0, 0] = 0.9 / count  # looks everywhere alike
        maps[3, 1] = 0  # rests at the bottom
        maps[3, 1, -1] = 0.9 / SIDE
        rows = torch.zeros(1, LAYERS, HEADS, 1 + count + 2)
        rows[0, ..., 1 : 1 + count] = torch.from_numpy(maps.reshape(LAYERS, HEADS, count))
        places = square(SIDE, SIDE)
        whole = ImageLayout(places.size, places.positions + 1, places.boxes, places.tiles, places.grid)
        return SimpleNamespace(
            tokens=[Token(7, "word", "prompt", place) for place in range(count + 4)],
            prompt_length=count + 3,
            images=(None,),
            layouts=(whole,),
            attention_layers=(4, 9, 14, 20),
            attention_heads=tuple(range(HEADS)),
            each_row=lambda at: rows if at == [count + 2] else None,
        )


def planted(count, masks=True):
    random = np.random.default_rng(1)
    for _ in range(count):
        place = random.integers(0, SIDE - 3, 2)
        mask = np.zeros((SIDE, SIDE), dtype=bool)
        mask[place[0] : place[0] + 3, place[1] : place[1] + 3] = True
        yield (tuple(place), "where is it", mask) if masks else (tuple(place), "where is it")


def test_the_head_that_was_planted_is_found():
    found = find_heads(Planted(), planted(30), most=1)
    assert found.heads == ((14, 5),)
    assert found.picked[0].frequency == 1 and found.picked[0].entropy == pytest.approx(0, abs=0.1)
    assert found.samples == 15 and found.held_out == 15
    assert found.of == LAYERS * HEADS and found.candidates == 11
    assert found.iou > 0.35 > 0.2 > found.iou_all
    assert not {(4, 0), (4, 7), (20, 1)} & {(each.layer, each.head) for each in found.picked}


def test_frequencies_are_shares_of_the_samples_picks():
    found = find_heads(Planted(), planted(20, masks=False), picked=2)
    assert (found.samples, found.held_out, found.iou, found.iou_all) == (20, 0, None, None)
    assert sum(each.frequency for each in found.picked) == pytest.approx(2)
    assert list(found.heads) == [(each.layer, each.head) for each in found.picked[:3]]
    frequencies = [each.frequency for each in found.picked]
    assert frequencies == sorted(frequencies, reverse=True)


def test_held_out_samples_choose_nothing():
    listed = list(planted(20))
    wrong = [(sample[0], sample[1], ~sample[2]) for sample in listed[10:]]
    right, other = find_heads(Planted(), listed), find_heads(Planted(), listed[:10] + wrong)
    assert right.picked == other.picked
    assert right.iou != other.iou


def test_the_result_survives_json_and_prints():
    found = find_heads(Planted(), planted(8))
    assert LocalisationHeads.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert found.table().splitlines()[1].startswith("*     14     5       100%")
    assert "held out: IoU" in found.table()
    with pytest.raises(lp.BadInput, match="to_dict"):
        LocalisationHeads.from_dict({"heads": [1]})


def test_samples_that_cannot_choose_are_refused():
    with pytest.raises(lp.BadInput, match="0 samples"):
        find_heads(Planted(), [])
    with pytest.raises(lp.BadInput, match="mask"):
        find_heads(Planted(), [*planted(2), *planted(2, masks=False)])
    with pytest.raises(lp.BadInput, match=r"most=.* from 1"):
        find_heads(Planted(), planted(4), most=0)


# --- the method ---


def test_the_map_is_the_sum_of_the_heads_rows(random_vlm):
    trace = random_vlm.generate(photo(), "what is the text", max_new_tokens=4)
    pairs = [(1, 0), (3, 2), (0, 3)]
    found = lp.attribute(random_vlm, trace, "localisation_heads", tokens="generated", heads=pairs, sigma=0)
    rows = sum(trace.attention[:, layer, head] for layer, head in pairs)
    torch.testing.assert_close(found.values, rows[:, trace.layouts[0].positions])
    text = torch.tensor([token.position for token in found.text_tokens])
    torch.testing.assert_close(found.text, rows[:, text])
    assert found.about["forwards"] == 0


def test_a_word_takes_the_mean_of_its_tokens_rows(random_vlm):
    trace = random_vlm.generate(photo(), "what is the text", max_new_tokens=4)
    start, places = trace.prompt_length, trace.layouts[0].positions
    word = [[start + 1, start + 2]]
    found = lp.attribute(random_vlm, trace, "localisation_heads", tokens=word, heads=[(1, 0), (3, 2)], sigma=0)
    rows = trace.attention[1:3]
    torch.testing.assert_close(found.row(0), (rows[:, 1, 0] + rows[:, 3, 2]).mean(0)[places])


def test_the_map_is_smoothed_on_its_grid_and_the_text_is_not(random_vlm):
    trace = random_vlm.generate(photo(), "what is the text", max_new_tokens=2)
    plain, soft = (lp.attribute(random_vlm, trace, "localisation_heads", heads=[(2, 1)], sigma=s) for s in (0, 1.0))
    expected = scipy.ndimage.gaussian_filter(plain.grid(0).astype(float), 1.0, truncate=3.0)
    np.testing.assert_allclose(soft.grid(0), expected, atol=1e-7)
    torch.testing.assert_close(plain.text, soft.text)


def test_rows_that_were_not_kept_are_recorded_now(random_vlm):
    trace = random_vlm.generate(photo(), "what is the text", max_new_tokens=3)
    bare = random_vlm.generate(photo(), "what is the text", max_new_tokens=3, capture=lp.Capture(attention=False))
    one, other = (lp.attribute(random_vlm, each, "localisation_heads", heads=[(2, 1)]) for each in (trace, bare))
    torch.testing.assert_close(one.values, other.values, atol=1e-6, rtol=1e-5)
    assert (one.about["forwards"], other.about["forwards"]) == (0, 1)


def test_without_heads_one_is_told_to_find_them(random_vlm):
    trace = random_vlm.generate(photo(), "what", max_new_tokens=2)
    for nothing in (None, []):
        with pytest.raises(lp.BadInput, match="find_heads"):
            lp.attribute(random_vlm, trace, "localisation_heads", heads=nothing)
    for wrong in ([3], [(1, 2, 3)], "heads"):
        with pytest.raises(lp.BadInput):
            lp.attribute(random_vlm, trace, "localisation_heads", heads=wrong)
    with pytest.raises(lp.OutOfRange):
        lp.attribute(random_vlm, trace, "localisation_heads", heads=[(9, 0)])


def test_nan_is_refused():
    attention = causal()
    attention[:, 1, 1] = float("nan")
    trace = synthetic_trace(attention=attention)
    vlm = Mock(spec=lp.VLM, generate=lambda *_, **__: trace)
    with pytest.raises(lp.NotANumber, match="attention"):
        find_heads(vlm, [(None, "what")])


def test_tokens_name_the_rows_that_are_read():
    attention = causal(seed=3)
    trace = synthetic_trace(attention=attention)
    vlm = SimpleNamespace(generate=lambda *_, **__: trace)
    places = list(IMAGE_AT)
    for tokens, rows in ((lp.LAST, [P - 1]), ("sign", [P + 1]), ("generated", range(P - 1, P + 3))):
        _, maps, where = localisation._maps(vlm, {"image": None, "question": "what"}, tokens)
        np.testing.assert_allclose(maps, attention[list(rows)][..., places].mean(0), atol=1e-6)
        assert where == layout()


# --- the tiny model ---


@pytest.fixture(scope="module")
def colours():
    """Forty held-out scenes with a question about a colour: (image, question, mask)."""
    found = []
    seed = 40_000
    while len(found) < 40:
        scene = tiny.scene(seed)
        asked = [question for question in scene.questions if question.kind == "colour"][:1]
        found += [(scene.image, question.question, scene.objects[question.objects[0]].mask) for question in asked]
        seed += 1
    return found


def test_heads_of_the_tiny_model_cover_objects_better_than_all_heads(tiny_vlm, colours):
    found = find_heads(tiny_vlm, colours)
    assert found.samples == found.held_out == 20
    assert found.iou > found.iou_all


def test_heads_of_the_tiny_model_point_at_objects(tiny_vlm, colours):
    found = find_heads(tiny_vlm, colours[:20], validation=0)
    hits = 0
    for image, question, mask in colours[20:]:
        trace = tiny_vlm.generate(image, question)
        m = lp.attribute(tiny_vlm, trace, "localisation_heads", tokens=trace.prompt_length, heads=found)
        x, y = m.peak(0)
        hits += bool(mask[int(y), int(x)])
    assert hits >= 8  # an object covers 2 % of a picture: by chance 8 of 20 have a probability of 1e-9


def test_heads_of_a_model_without_template_are_found_from_prompts():
    vlm, bare = lp.load(), lp.load()
    bare.processor.chat_template = bare.processor.tokenizer.chat_template = None
    pictures = [scene(number).image for number in range(2)]
    question = "What is the text on the stop sign?"
    asked = [vlm.model_inputs(picture, question)[1].prompt for picture in pictures]
    expected = find_heads(vlm, [(picture, question) for picture in pictures])
    prompts = [{"image": picture, "prompt": prompt} for picture, prompt in zip(pictures, asked, strict=True)]
    assert find_heads(bare, prompts) == expected


def test_a_mask_of_samples_is_read_as_everywhere():
    see_through = np.zeros((SIDE, SIDE, 4), dtype=np.uint8)

    def layered():
        for place, question, mask in planted(8):
            picture = see_through.copy()
            picture[mask] = 255
            yield place, question, Image.fromarray(picture)

    assert find_heads(Planted(), layered()) == find_heads(Planted(), planted(8))
