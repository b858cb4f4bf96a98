"""A picture that a family cannot take is one clear sentence that names the processor's limit; any other is taken."""

import pytest

import llava_probe as lp
from tests import torchvision_half, zoo
from tests.layout.test_places import NOTHING, PLACELESS
from tests.models import photo

pytestmark = [
    pytest.mark.skipif(not torchvision_half.present(), reason="the processors of most families need torchvision"),
    pytest.mark.filterwarnings("ignore"),
]

#: One pixel, and strips far beyond any photograph.
EXTREME = [(1, 1), (1, 1000), (1000, 1), (2, 3)]


@pytest.mark.parametrize("name", [name for name in zoo.NAMES if name not in PLACELESS])
def test_extreme_pictures_are_taken_or_refused_in_one_sentence(name):
    for size in EXTREME:
        try:
            trace = zoo.vlm(name).generate(photo(*size), "what", max_new_tokens=1, capture=NOTHING)
        except lp.BadInput as refusal:
            assert "\n" not in str(refusal), size
            assert "refused" in str(refusal), (size, str(refusal))
            assert len(str(refusal)) < 400, size
        else:
            for layout in trace.layouts:
                assert layout.size == size
                assert layout.to_pixels(range(len(layout))).shape == size[::-1]


def test_the_processors_limit_is_named():
    with pytest.raises(lp.BadInput, match=r"Qwen2VLProcessor refused the input.*aspect ratio must be smaller than 200"):
        zoo.vlm("qwen2_vl").generate(photo(1, 1000), "what")
