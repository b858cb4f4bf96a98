"""Boxes lie where the real processor took its pixels from: it is fed pictures whose colour is the coordinate."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPImageProcessorPil, LlavaImageProcessorPil

import llava_probe as lp
from llava_probe.layout.geometry import ImageLayout
from tests.models import llava_processor, photo, random_llava

SIZES = [(64, 48), (48, 64), (20, 700), (700, 20), (1500, 1100), (48, 48), (336, 336), (13, 17), (90, 333)]
SQUARE = {"height": 48, "width": 48}
PROCESSORS = {
    "crop": CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size=SQUARE),
    "larger resize, then crop": CLIPImageProcessorPil(size={"shortest_edge": 60}, crop_size=SQUARE),
    "smaller resize, padded by the crop": CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size=SQUARE),
    "pad to a square": LlavaImageProcessorPil(do_pad=True, size={"shortest_edge": 48}, crop_size=SQUARE),
    "squash": CLIPImageProcessorPil(size=SQUARE, do_center_crop=False),
}


PLAIN = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3, "return_tensors": "np"}


def processed(image_processor, pixels):
    """[3, 48, 48] of 0..255: what the processor makes of an array of pixels."""
    return np.asarray(image_processor(Image.fromarray(pixels), **PLAIN)["pixel_values"][0]) * 255


def sources(image_processor, size):
    """[2, 48, 48]: which (x, y) of the original each processed pixel came from (ramps up and down); NaN: padding."""
    width, height = size
    there = processed(image_processor, np.full((height, width, 3), 255, dtype=np.uint8)).min(0) > 254
    coordinates = []
    for axis, side in enumerate(size):
        at = np.arange(side) + 0.5
        channels = np.stack([at * 255 / side, 255 - at * 255 / side, np.full(side, 128.0)], axis=-1)
        ramp = np.broadcast_to(channels[None] if axis == 0 else channels[:, None], (height, width, 3))
        pixels = processed(image_processor, ramp.round().astype(np.uint8))
        coordinates.append(np.where(there, (pixels[0] + 255 - pixels[1]) / 2 * side / 255, np.nan))
    return np.stack(coordinates)


def layout_of(image_processor, size, strategy="default"):
    vlm = lp.VLM(random_llava(strategy=strategy), llava_processor(image_processor=image_processor, strategy=strategy))
    return vlm.generate(photo(*size), "where", max_new_tokens=1).layouts[0]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", PROCESSORS)
def test_each_box_is_where_the_processor_took_its_patch(name, size):
    image_processor = PROCESSORS[name]
    layout = layout_of(image_processor, size)
    x, y = sources(image_processor, size)
    boxes = layout.boxes.reshape(6, 6, 4)
    blur = [max(1.0, 0.15 * side) for side in (boxes[0, 0, 2:] - boxes[0, 0, :2])]
    rounding = [side / 255 for side in size]
    checked = 0
    for row, column in np.ndindex(6, 6):
        patch = np.s_[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
        on_photograph = np.isfinite(x[patch])
        inside = boxes[row, column].clip(0, [*size, *size])
        x0, y0, x1, y1 = inside
        share = np.prod(inside[2:] - inside[:2]) / np.prod(boxes[row, column][2:] - boxes[row, column][:2])
        assert abs(on_photograph.mean() - share) < 0.4, "a box hangs over the photograph as far as its patch is padding"
        if on_photograph.any():
            assert abs(np.nanmean(x[patch]) - (x0 + x1) / 2) < blur[0] / 2 + rounding[0], (row, column)
            assert abs(np.nanmean(y[patch]) - (y0 + y1) / 2) < blur[1] / 2 + rounding[1], (row, column)
            checked += 1
    assert checked >= 6 or min(size) * 48 / max(size) < 3


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (300, 100)], ids=str)
def test_a_cropped_pixel_is_unseen(size):
    """Independent of our arithmetic: paint a pixel, see whether what the processor makes of it moves."""
    image_processor = PROCESSORS["crop"]
    layout = layout_of(image_processor, size)
    grey = np.full((size[1], size[0], 3), 128, dtype=np.uint8)
    base = np.asarray(image_processor(Image.fromarray(grey), return_tensors="np")["pixel_values"])
    rng = np.random.default_rng(0)
    wrong = 0
    scale = min(size) / 48
    for _ in range(60):
        px, py = rng.integers(size[0]), rng.integers(size[1])
        painted = grey.copy()
        painted[max(0, py - 1) : py + 2, max(0, px - 1) : px + 2] = 255
        moved = np.abs(
            np.asarray(image_processor(Image.fromarray(painted), return_tensors="np")["pixel_values"]) - base
        )
        edge = 3 + 2 * scale  # what the bicubic kernel reaches across the crop's border
        inside = layout.boxes[:, 0].min() + edge < px < layout.boxes[:, 2].max() - edge
        outside = px < layout.boxes[:, 0].min() - edge or px > layout.boxes[:, 2].max() + edge
        if size[0] < size[1]:
            inside = layout.boxes[:, 1].min() + edge < py < layout.boxes[:, 3].max() - edge
            outside = py < layout.boxes[:, 1].min() - edge or py > layout.boxes[:, 3].max() + edge
        if inside:
            wrong += moved.max() == 0 or not layout.seen[py, px]
        elif outside:
            wrong += moved.max() > 0 or layout.seen[py, px]
    assert wrong == 0
    assert 0 < layout.seen.mean() < 1


def test_the_class_token_has_no_place():
    layout = layout_of(PROCESSORS["crop"], (64, 48), strategy="full")
    assert len(layout) == 36
    dropped = layout_of(PROCESSORS["crop"], (64, 48))
    assert layout.positions[0] == dropped.positions[0] + 1
    assert np.array_equal(layout.boxes, dropped.boxes)


def test_two_pictures_have_two_layouts(random_vlm):
    trace = random_vlm.generate([photo(64, 48), photo(30, 90)], "where", max_new_tokens=1)
    first, second = trace.layouts
    assert (first.size, second.size) == ((64, 48), (30, 90))
    image = [token.position for token in trace.tokens if token.role == "image"]
    assert [*first.positions, *second.positions] == image


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(6, 90),
    height=st.integers(6, 90),
    columns=st.integers(1, 6),
    rows=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_tokens_to_pixels_and_back_is_the_same(width, height, columns, rows, seed):
    x, y = np.linspace(-3, width + 2, columns + 1), np.linspace(1, height - 1, rows + 1)
    x0, y0 = np.meshgrid(x[:-1], y[:-1])
    x1, y1 = np.meshgrid(x[1:], y[1:])
    boxes = np.stack([x0, y0, x1, y1], -1).reshape(-1, 4)
    layout = ImageLayout((width, height), np.arange(len(boxes)), boxes, np.zeros(len(boxes), int), (rows, columns))
    values = np.random.default_rng(seed).random(len(boxes)).astype(np.float32)
    back = layout.to_tokens(layout.to_pixels(values))
    owned = np.isin(np.arange(len(boxes)), np.unique(layout._owner))
    assert np.allclose(back[owned], values[owned], atol=1e-6)
    mask = np.random.default_rng(seed + 1).random((height, width)) < 0.3
    touched = layout.to_pixels(layout.to_tokens(mask) > 0) > 0
    assert (touched >= (mask & layout.seen)).all()


def test_shares_and_positions_of_a_mask():
    boxes = np.array([[0, 0, 4, 4], [4, 0, 8, 4], [0, 4, 4, 8], [4, 4, 8, 8]], float)
    layout = ImageLayout((8, 8), np.array([10, 11, 12, 13]), boxes, np.zeros(4, int), (2, 2))
    mask = np.zeros((8, 8), bool)
    mask[0:4, 2:8] = True
    mask[4, 4] = True
    assert layout.to_tokens(mask).tolist() == [0.5, 1.0, 0.0, 1 / 16]
    assert layout.tokens_in(mask).tolist() == [10, 11]
    with pytest.raises(lp.BadInput, match=r"\(8, 8\).*\(4, 4\)"):
        layout.to_tokens(mask[:4, :4])
    with pytest.raises(lp.BadInput, match="one for each token"):
        layout.to_pixels([1.0, 2.0])


def test_the_finest_token_wins_a_pixel():
    boxes = np.array([[0, 0, 8, 8], [2, 2, 4, 4]], float)
    layout = ImageLayout((8, 8), np.array([0, 1]), boxes, np.array([0, 1]))
    pixels = layout.to_pixels([1.0, 2.0])
    assert (pixels == 2).sum() == 4
    assert pixels[3, 3] == 2


def test_tiles_choose_the_view_that_is_painted():
    boxes = np.array([[0, 0, 8, 8], [2, 2, 4, 4], [4, 2, 6, 4]], float)
    layout = ImageLayout((8, 8), np.arange(3), boxes, np.array([0, 1, 2]))
    assert (layout.to_pixels([1.0, 2.0, 3.0], tiles=0) == 1).all()
    one = layout.to_pixels([1.0, 2.0, 3.0], tiles=[1])
    assert (one == 2).sum() == 4
    assert np.isnan(one).sum() == 60
    assert np.nanmax(layout.to_pixels([1.0, 2.0, 3.0], tiles=[1, 2])) == 3
    with pytest.raises(lp.OutOfRange, match=r"tile 5.*\[0, 1, 2\]"):
        layout.to_pixels([1.0, 2.0, 3.0], tiles=5)


# --- a pixel belongs to a box when its centre lies in it ---


def owned(box, size):
    """[height, width] by looking at the centre of every pixel: from the low edge on, short of the high one."""
    x0, y0, x1, y1 = box
    return np.array([[x0 <= x + 0.5 < x1 and y0 <= y + 0.5 < y1 for x in range(size[0])] for y in range(size[1])])


def one_token(box, size):
    return ImageLayout(size, np.array([0]), np.array([box], dtype=float), np.array([0]))


@pytest.mark.parametrize(
    ("low", "high", "pixels"),
    [
        (2.4, 4.6, [2, 3, 4]),
        (2.5, 4.5, [2, 3]),
        (2.6, 4.4, [3]),
        (2.0, 5.0, [2, 3, 4]),
        (1.51, 3.5, [2]),
        (-3.0, 1.6, [0, 1]),
        (6.4, 9.0, [6, 7]),
    ],
)
def test_a_box_owns_the_pixels_whose_centres_it_holds(low, high, pixels):
    across, down = one_token([low, 0, high, 8], (8, 8)), one_token([0, low, 8, high], (8, 8))
    assert np.flatnonzero(across.seen.all(axis=0)).tolist() == pixels
    assert np.flatnonzero(down.seen.all(axis=1)).tolist() == pixels
    assert across.seen.sum() == down.seen.sum() == 8 * len(pixels)


_EDGES = st.floats(-4, 14, allow_nan=False).map(lambda edge: round(edge * 20) / 20)


@given(x=st.tuples(_EDGES, _EDGES), y=st.tuples(_EDGES, _EDGES), size=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_seen_masks_and_shares_agree_with_a_look_at_every_centre(x, y, size):
    box = [min(x), min(y), max(x), max(y)]
    truth = owned(box, size)
    whole = owned(box, (20, 20)) if min(box) >= 0 else truth
    assume(whole.any())  # a box that holds no centre at all is another claim
    layout = one_token(box, size)
    assert np.array_equal(layout.seen, truth)
    assert np.array_equal(~np.isnan(layout.to_pixels([1.0])), truth)
    weights = np.arange(size[0] * size[1], dtype=float).reshape(size[::-1])
    expected = weights[truth].mean() if truth.any() else 0.0
    assert layout.to_tokens(weights)[0] == pytest.approx(expected)


@given(edge=st.floats(0.05, 8.95))
def test_two_boxes_that_meet_share_no_pixel_and_leave_none(edge):
    boxes = np.array([[0, 0, edge, 3], [edge, 0, 9, 3]])
    layout = ImageLayout((9, 3), np.array([0, 1]), boxes, np.array([0, 0]))
    left = sum(x + 0.5 < edge for x in range(9))
    assume(0 < left < 9)
    assert layout.to_pixels([0.0, 1.0])[1].tolist() == [0.0] * left + [1.0] * (9 - left)


@given(middle=st.floats(0.05, 8.95), width=st.floats(0.001, 0.4))
def test_a_box_that_holds_no_centre_owns_the_pixel_under_its_own(middle, width):
    low, high = middle - width / 2, middle + width / 2
    assume(not any(low <= x + 0.5 < high for x in range(9)))
    layout = one_token([low, 0, high, 3], (9, 3))
    assert np.flatnonzero(layout.seen[0]).tolist() == [int((low + high) / 2)]


def test_a_processor_that_was_set_otherwise_puts_the_same_picture_elsewhere():
    vlm = lp.VLM(random_llava(), llava_processor())
    before = vlm.lay_out(photo(96, 48))
    images = vlm.processor.image_processor
    images.do_center_crop, images.size = False, {"height": 48, "width": 48}
    after = vlm.lay_out(photo(96, 48))
    assert len(before[0]) == len(after[0]) and not np.array_equal(before[0].boxes, after[0].boxes)
    assert after[0].seen.all() and not before[0].seen.all()
