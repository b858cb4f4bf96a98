"""A region of the photograph is the same tokens wherever places are asked for, found by the pixels that it covers."""

from __future__ import annotations

import numpy as np
import pytest

import llava_probe as lp
from llava_probe import tiny
from llava_probe.layout.geometry import ImageLayout, boxes_between


@pytest.fixture(scope="module")
def trace(tiny_vlm):
    return tiny_vlm.generate(
        tiny.scene(5).image, "What is this?", capture=lp.Capture(positions="all"), max_new_tokens=1
    )


def layout(rows=4, columns=6, side=10.0, tiles=None):
    boxes = boxes_between(np.arange(columns + 1) * side, np.arange(rows + 1) * side)
    count = len(boxes)
    kinds = np.zeros(count, dtype=np.int64) if tiles is None else tiles
    return ImageLayout((int(columns * side), int(rows * side)), np.arange(count) + 7, boxes, kinds, (rows, columns))


def test_a_mask_and_its_box_are_the_same_tokens_as_the_layouts_own(trace):
    mask = np.zeros((336, 336), dtype=bool)
    mask[48:144, 96:168] = True
    own = trace.layouts[0].tokens_in(mask).tolist()
    for where in (mask, (96, 48, 168, 144), mask.tolist(), [[96, 48, 168, 48, 168, 144, 96, 144]]):
        assert trace.positions(lp.Region(where)) == own
    assert trace.positions(lp.Region((96, 48, 72, 96), box_format="xywh")) == own
    assert len(own) == 12 and trace.hidden(layer=2, at=lp.Region(mask)).shape == (12, 192)


def test_an_object_of_a_scene_is_a_region(trace):
    thing = tiny.scene(5).objects[0]
    assert trace.positions(lp.Region(thing)) == trace.positions(lp.Region(thing.mask))
    assert lp.Region(thing).told() == lp.Region(thing.mask).told()


def test_what_is_smaller_than_a_token_is_the_token_that_it_lies_on():
    small = lp.Region((12, 11, 15, 14))
    assert small.tokens(layout()).tolist() == [7]
    across = lp.Region((18, 12, 22, 15))  # half on one, half on the next
    assert across.tokens(layout()).tolist() == [7, 8]


def test_a_ring_is_the_tokens_around_in_the_same_view():
    region = lp.Region((20, 10, 30, 20), ring=1)
    assert region.tokens(layout()).tolist() == [1, 2, 3, 7, 8, 9, 13, 14, 15]
    corner = lp.Region((0, 0, 10, 10), ring=2)
    assert corner.tokens(layout()).tolist() == [0, 1, 2, 6, 7, 8, 12, 13, 14]
    assert layout().around([0], 0).tolist() == [0]


def test_every_view_of_the_photograph_is_meant():
    """A thumbnail shows the region so small that it covers half of no token: the best of them stands for it."""
    thumbnail = np.array([[0, 0, 60, 40]], dtype=float).repeat(1, 0)
    fine = boxes_between(np.arange(7) * 10.0, np.arange(5) * 10.0)
    both = ImageLayout((60, 40), np.arange(25), np.concatenate([thumbnail, fine]), np.array([0] + [1] * 24), None)
    assert lp.Region((20, 10, 30, 20)).tokens(both).tolist() == [0, 9]


def test_tokens_without_a_grid_have_those_within_their_own_size_around_them():
    boxes = np.array([[0, 0, 10, 10], [10, 0, 20, 10], [30, 0, 40, 10], [11, 9, 21, 19]], dtype=float)
    loose = ImageLayout((40, 20), np.arange(4), boxes, np.zeros(4, dtype=np.int64), None)
    assert loose.around([0], 1).tolist() == [0, 1, 3]


WRONG = {
    "outside": ((400, 400, 500, 500), lp.BadInput, "outside its picture"),
    "another size": (np.ones((10, 10), dtype=bool), lp.BadInput, "10 × 10, its picture 336 × 336"),
    "empty": (np.zeros((336, 336), dtype=bool), lp.BadInput, "has no pixel"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_on_the_photograph_is_a_sentence(name, trace):
    where, kind, why = WRONG[name]
    with pytest.raises(kind, match=why):
        trace.positions(lp.Region(where))


def test_a_part_that_a_crop_left_out_is_refused():
    cropped = ImageLayout((80, 40), np.arange(24), layout().boxes, np.zeros(24, dtype=np.int64), (4, 6))
    with pytest.raises(lp.OutOfRange, match="a crop left it out"):
        lp.Region((65, 5, 75, 15)).tokens(cropped)


def test_another_picture_is_refused(trace):
    with pytest.raises(lp.OutOfRange, match="picture 1 is not there"):
        trace.positions(lp.Region((0, 0, 50, 50), image=1))


@pytest.mark.parametrize("where", ["nowhere.png", (1, 2, 3), 5])
def test_what_is_no_region_is_refused_at_once_or_when_it_is_read(where, trace):
    with pytest.raises(lp.BadInput):
        trace.positions(lp.Region(where))


def test_a_region_in_a_pass_by_hand_is_refused(tiny_vlm):
    inputs, _ = tiny_vlm.model_inputs(tiny.scene(5).image, "What is this?")
    with pytest.raises(lp.BadInput, match="which pictures"), lp.ablate(tiny_vlm, tokens=lp.Region((0, 0, 50, 50))):
        tiny_vlm.model(**inputs)


def test_regions_are_found_on_each_samples_own_photograph(tiny_vlm):
    asked = [
        (tiny.scene(seed).image.resize(size), "What is this?") for seed, size in ((1, (336, 336)), (2, (200, 120)))
    ]
    with lp.ablate(tiny_vlm, tokens=lp.Region((10, 10, 100, 90))) as cut:
        batch = tiny_vlm.generate_batch(asked, max_new_tokens=1)
        counts = [len(trace.positions(lp.Region((10, 10, 100, 90)))) for trace in batch]
    assert cut.acts[0].count == sum(counts) and counts[0] != counts[1]
