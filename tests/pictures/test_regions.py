"""One object on one picture, in every form that people keep: the same pixels each time."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from llava_probe.errors import BadInput
from llava_probe.pictures.regions import filled_polygons, inside, read_mask
from tests.encoded import encode

SIZE = (30, 20)
TRUTH = np.zeros((20, 30), dtype=bool)
TRUTH[4:9, 10:16] = True
LABELS = TRUTH.astype(np.uint8)
COUNTS = [10 * 20 + 4, *[5, 15] * 5, 5, 30 * 20 - (15 * 20 + 9)]


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def palette():
    picture = Image.fromarray(1 - LABELS, "P")  # black is the second of its colours
    picture.putpalette([128, 0, 0, 0, 0, 0])
    return picture


GREY = Image.fromarray(LABELS * 255)
CLEAR = Image.fromarray(np.stack([LABELS * 0 + 9] * 3 + [LABELS * 255], -1))
FORMS = {
    "1": Image.fromarray(TRUTH),
    "L of one label": Image.fromarray(LABELS),
    "P": palette(),
    "16 bits": Image.fromarray(LABELS.astype(np.uint16)),
    "F": Image.fromarray(TRUTH.astype(np.float32)),
    "RGB": Image.fromarray(np.stack([LABELS * 0, LABELS, LABELS * 0], -1)),
    "RGBA, opaque": GREY.convert("RGBA"),
    "RGBA, see-through outside": CLEAR,
    "LA": GREY.convert("LA"),
    "PNG": encoded(GREY.convert("RGBA")),
    "PNG with a see-through colour": encoded(GREY, transparency=0),
    "GIF": encoded(palette(), "GIF"),
    "TIFF": encoded(GREY, "TIFF"),
    "data URL": "data:image/png;base64," + base64.b64encode(encoded(CLEAR)).decode(),
    "as Hugging Face stores": {"bytes": encoded(GREY), "path": None},
    "bool": TRUTH,
    "0 and 255": LABELS * 255,
    "-": LABELS.astype(np.int64) * 3,
    "soft": np.where(TRUTH, 0.5, 0.49),
    "floats 0 and 255": TRUTH * 255.0,
    "[1, H, W]": LABELS[None],
    "[H, W, 4]": np.asarray(CLEAR),
    "tensor": torch.from_numpy(TRUTH),
    "bfloat16": torch.from_numpy(TRUTH).to(torch.bfloat16),
    "nested lists": LABELS.tolist(),
    "nested lists of labels": (LABELS * 7).tolist(),
    "run lengths": {"size": [20, 30], "counts": COUNTS},
    "run lengths as text": json.dumps({"size": [20, 30], "counts": COUNTS}),
    "polygon": [[10, 4, 16, 4, 16, 9, 10, 9]],
    "polygon alone": [10, 4, 16, 4, 16, 9, 10, 9],
    "polygons of points": [[[10, 4], [16, 4], [16, 9], [10, 9]]],
    "polygons in two parts": [[10, 4, 13, 4, 13, 9, 10, 9], [13, 4, 16, 4, 16, 9, 13, 9]],
    "polygons of a stated size": {"size": [20, 30], "polygons": [[10, 4, 16, 4, 16, 9, 10, 9]]},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_place(form):
    np.testing.assert_array_equal(inside(FORMS[form], (), "", SIZE), TRUTH)


def test_boxes_are_the_place_where_there_is_no_mask(tmp_path):
    np.testing.assert_array_equal(inside(None, [(10, 4, 6, 5)], "xywh", SIZE), TRUTH)
    np.testing.assert_array_equal(inside(None, [(9.6, 3.6, 15.6, 8.6)], "xyxy", SIZE), TRUTH)  # by pixel centres
    np.testing.assert_array_equal(inside(None, [(10, 4, 3, 5), (13, 4, 3, 5)], "xywh", SIZE), TRUTH)
    np.testing.assert_array_equal(inside(TRUTH, [(0, 0, 9, 9)], "xyxy", SIZE), TRUTH)
    GREY.save(tmp_path / "m.png")
    np.testing.assert_array_equal(inside(str(tmp_path / "m.png"), (), "", SIZE), TRUTH)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(3, 9))
def test_a_polygon_holds_the_centres_that_a_ray_leaves_an_odd_number_of_times(seed, corners):
    points = np.random.default_rng(seed).uniform(-10, 60, (corners, 2))
    y, x = np.mgrid[:40, :50] + 0.5
    crossings = np.zeros((40, 50), dtype=int)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        crossings += ((y0 <= y) != (y1 <= y)) & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    np.testing.assert_array_equal(filled_polygons([points.reshape(-1).tolist()], (50, 40)), crossings % 2 == 1)


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (encoded(GREY, "JPEG"), "cannot be read as PNG, BMP, GIF, TIFF"),
        (Image.open(io.BytesIO(encoded(GREY, "JPEG"))), "is JPEG, whose black is not exactly black"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "cannot be read as PNG"),
        (np.where(TRUTH, 7.5, 0.3), "floats lie in 0..1"),
        (np.where(TRUTH, 1.0, np.nan), "below 0 or NaN"),
        (np.where(TRUTH, 1, -1), "below 0 or NaN"),
        (np.zeros((2, 3, 4, 5)), r"pass \[H, W\]"),
        (TRUTH[:-1], "the mask is 30 × 19, its picture 30 × 20"),
        ({"size": [20, 30], "counts": [5]}, "these sum to 5"),
        ({"size": [20, None], "polygons": [[0, 0, 1, 0, 1, 1]]}, "the size"),
        ([[1, 2, 3, 4]], "at least three corners"),
        ([[1, 2, 3, 4, 5, 6, 7]], "at least three corners"),
        ([[1, 2, 3, 4, 5, float("inf")]], "at least three corners"),
        ([], "empty list"),
        ({"a": 1}, "keys a"),
        ("{nothing", "no JSON"),
        ("/nowhere/m.png", "no file that exists"),
        ("/dev/zero", "no file that exists"),
        (3, "is a int"),
        (None, "neither a mask nor a box"),
    ],
)
def test_what_is_no_mask_is_refused(mask, said):
    with pytest.raises(BadInput, match=said):
        inside(mask, (), "", SIZE)


def test_polygons_want_the_size_of_their_picture():
    with pytest.raises(BadInput, match="the picture's size"):
        read_mask([[10, 4, 16, 4, 16, 9, 10, 9]])


def test_a_format_that_is_none_of_ours_is_refused_in_the_same_words_each_time():
    written = encode(np.full((4, 5, 3), 255, dtype=np.uint8), "WEBP", lossless=True)
    with pytest.raises(BadInput) as caught:
        read_mask(written)
    assert str(caught.value) == "the mask cannot be read as PNG, BMP, GIF, TIFF; save it as PNG"
