"""Four numbers mean what was said that they mean; what cannot be a box on the picture is refused."""

import pytest

from llava_probe.errors import BadInput
from llava_probe.pictures.boxes import BOX_FORMATS, corners

SIZE = (200, 100)
WRITTEN = {  # one box, from (20, 10) to (60, 40) on a picture of 200 × 100, as each format writes it
    "xyxy": (20, 10, 60, 40),
    "xywh": (20, 10, 40, 30),
    "cxcywh": (40, 25, 40, 30),
    "relative_xyxy": (0.1, 0.1, 0.3, 0.4),
    "relative_xywh": (0.1, 0.1, 0.2, 0.3),
    "yolo": (0.2, 0.25, 0.2, 0.3),
}


@pytest.mark.parametrize("name", BOX_FORMATS)
def test_every_format_writes_the_same_box(name):
    (found,) = corners([WRITTEN[name]], name, SIZE)
    assert found == pytest.approx((20, 10, 60, 40))


@pytest.mark.parametrize(
    ("box", "name", "said"),
    [
        ((60, 80, 30, 40), "xyxy", "is empty; x, y, width, height are box_format='xywh'"),
        ((10, 10, -5, 5), "xywh", "is empty"),
        ((0.1, 0.2, 0.5, 0.6), "xyxy", "thinner than a pixel.*shares of the picture are relative_xyxy"),
        ((0, 0, 1, 1), "xywh", "shares of the picture"),
        ((10.1, 10.1, 10.4, 60), "xyxy", "thinner than a pixel"),
        ((300, 10, 320, 20), "xyxy", "outside its picture of 200 × 100"),
        ((-30, 10, 20, 20), "xywh", "outside its picture"),
        ((100, 50, 900, 900), "xyxy", "far beyond its picture of 200 × 100.*'relative_xyxy'"),
        ((0, 0, 1e9, 10), "xywh", "far beyond its picture"),
        ((20, 10, 60, 40), "yolo", "whose shares are 0 to 1; numbers in pixels are xyxy"),
        ((0, 0, float("nan"), 5), "xywh", "not four finite numbers"),
        ((0, 0, float("inf"), 5), "xywh", "not four finite numbers"),
    ],
)
def test_what_cannot_be_a_box_on_the_picture_is_refused(box, name, said):
    with pytest.raises(BadInput, match=said):
        corners([box], name, SIZE)


def test_a_box_may_reach_beyond_its_picture():
    assert corners([(190, 90, 20, 20)], "xywh", SIZE) == ((190, 90, 210, 110),)
