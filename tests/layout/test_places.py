"""Every pixel in its place, for every family that the zoo can build: change a few pixels and see which tokens move.

The truth is the real processor and the real vision path, with each patch seeing only itself. Nothing of the layouts is
used to find it: a picture is changed somewhere, both pictures are processed whole, and the visual tokens are compared.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

import llava_probe as lp
from llava_probe.inside.isolation import entering, isolated
from tests import torchvision_half, zoo
from tests.models import photo

pytestmark = [
    pytest.mark.skipif(not torchvision_half.present(), reason="the processors of most families need torchvision"),
    pytest.mark.filterwarnings("ignore"),
]

SIZES = [(20, 700), (700, 20), (64, 48), (48, 64), (150, 90), (250, 250), (333, 90), (1100, 1500), (1500, 1100)]
POINTS = 16
#: Families that share the mechanism of those above, with other decoders: fewer pictures, fewer points.
FEW_SIZES, FEW_POINTS = [(64, 48), (333, 90)], 14
MANY = {
    *("llava", "llava full", "llava siglip", "llava pixtral", "vipllava", "llava_next", "llava_next_video"),
    *("llava_onevision", "video_llava", "mistral3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "paligemma"),
    *("gemma3", "gemma3 pan", "idefics3", "smolvlm", "granite_docling", "internvl", "aya_vision", "got_ocr2"),
    *("cohere2_vision", "ovis2", "perception_lm", "fast_vlm", "lfm2_vl", "llama4", "gemma4", "qwen3_5", "glm46v"),
    *("molmo2", "kimi_k25"),
}

#: A token has moved from this share of the largest move among the tokens of its view of the photograph.
MOVED = 0.25
#: How far beyond its edge a box reaches, in shares of its side: what resampling blurs.
REACH = 0.15
#: A box narrower than a patch of the zoo (8 processed pixels) is enlarged, and a cubic kernel then reaches so many
#: pixels of the original.
PATCH, KERNEL = 8, 2
#: Less than this share of the usual move is no move: a crop hid the change.
STILL = 1e-2

#: Processors that first shrink the longer side to so many pixels, and then resize again: what is enlarged are these.
TWICE = {"idefics3": 256, "smolvlm": 256}
#: Processors that shrink without smoothing, so that a few pixels may be skipped: as many as a thumbnail has a side are
#: changed, so that one pixel of it is touched.
SKIPS, THUMBNAIL = {"molmo2"}, 48
#: Where features are shrunk, a token blends up to four patches: it need not move with the lightest of them.
BLENDS = {"llava_onevision"}
#: Towers that mix patches by convolution: a box is the main share. Only the token that moves most is judged,
#: and its box may be the next one to the change.
MIXES = {"got_ocr2", "got_ocr2 crop", "pp_chart2table", "fast_vlm", "deepseek_vl_hybrid", "unlimited_ocr", "lfm3_vl"}

#: Families whose visual tokens have no place, and why.
PLACELESS = {
    "aria": "its projector's queries read all patches",
    "blip": "cross-attention: no token of the sequence carries a patch",
    "blip-2": "a Q-Former's queries read all patches",
    "chameleon": "pictures become words of a code book before the decoder",
    "deepseek_ocr2": "queries in its second tower read all patches",
    "emu3": "pictures become words of a code book before the decoder",
    "git": "no id of the prompt stands for a patch",
    "granite4_vision": "features enter the decoder's layers, not its sequence",
    "idefics": "cross-attention: no token of the sequence carries a patch",
    "idefics2": "a resampler's queries read all patches",
    "instructblip": "a Q-Former's queries read all patches",
    "kosmos-2": "a resampler's queries read all patches",
    "kosmos-2.5": "a resampler's queries read all patches",
    "mllama": "cross-attention: no token of the sequence carries a patch",
}

NOTHING = lp.Capture(attention=False, hidden_states=False, logits=False, scores=False)


@dataclass(frozen=True)
class Change:
    """A picture with a square turned to its opposite, and the square."""

    picture: Image.Image
    square: np.ndarray


def changed(picture, x, y, side):
    pixels = np.asarray(picture).copy()
    part = pixels[y : y + side, x : x + side]
    part[:] = 0 if part.mean() > 127 else 255
    return Change(Image.fromarray(pixels), np.array([x, y, x + part.shape[1], y + part.shape[0]]))


def moves_of(vlm, picture, changes):
    """[changes, tokens] how far each visual token moves against the unchanged picture, each patch alone."""
    inputs = [vlm.model_inputs(one, "what")[0] for one in (picture, *(change.picture for change in changes))]
    at = torch.isin(inputs[0]["input_ids"][0], torch.tensor(vlm.visual_ids)).nonzero().flatten()

    def tokens(batch):
        stacked = {
            name: torch.cat([one[name] for one in batch]) if torch.is_tensor(value) else [*value] * len(batch)
            for name, value in batch[0].items()
        }
        return entering(vlm.anatomy, stacked)[:, at].double()

    with isolated(vlm.anatomy.model):
        size = 9  # some towers mask each pair of all patches of a batch
        try:  # some inputs count through a batch, so that they cannot be stacked
            torch.testing.assert_close(tokens(inputs[:2])[1:], tokens(inputs[1:2]), atol=1e-3, rtol=1e-3)
        except Exception:
            size = 1
        found = torch.cat([tokens(inputs[start : start + size]) for start in range(0, len(inputs), size)])
    return (found[1:] - found[:1]).norm(dim=-1).numpy(), at.numpy()


def misplaced(vlm, size, name="", points=POINTS):
    """What contradicts the layout of one picture: one line each."""
    picture = photo(*size)
    (layout,) = vlm.lay_out(picture, "what")
    rng = np.random.default_rng(0)
    side = max(2, max(size) // (THUMBNAIL if name in SKIPS else 200))
    changes = [changed(picture, rng.integers(size[0]), rng.integers(size[1]), side) for _ in range(points)]
    moves, at = moves_of(vlm, picture, changes)
    placed = np.isin(at, layout.positions)
    moves, strays = moves[:, placed], moves[:, ~placed].max(initial=0)
    views = [view for view in (layout.tiles == 0, layout.tiles > 0) if view.any()]
    most = [moves[:, view].max(axis=1) for view in views]
    usual = [np.median(most_of[most_of > 1e-3 * most_of.max()]) for most_of in most]  # a crop may hide most changes
    low, high = layout.boxes[:, :2], layout.boxes[:, 2:]
    sides = high - low
    kernel = KERNEL * max(1, max(size) / TWICE.get(name, max(size)))
    reach = (1 if name in MIXES else REACH) * sides
    slack = np.where(sides < PATCH, np.maximum(kernel, reach), reach)
    wrong = []
    if strays > STILL * min(usual) and name not in MIXES:
        wrong.append(f"a token without a place moves by {strays:.2g}")
    for change, move in zip(changes, moves, strict=True):
        middle = (change.square[:2] + change.square[2:]) / 2
        touched = ((low - slack < change.square[2:]) & (high + slack > change.square[:2])).all(axis=1)
        inside = ((low + slack < middle) & (high - slack > middle)).all(axis=1)
        for view, typical in zip(views, usual, strict=True):
            largest = move[view].max()
            moved = view & (move >= MOVED * largest) & (move > STILL * typical)
            whole = view & (sides <= 1.5 * sides[view].min(axis=0)).all(axis=1) if name in BLENDS else view
            if name in MIXES:
                moved &= move == largest
                whole = np.zeros(len(move), dtype=bool)
            if (moved & ~touched).any():
                wrong.append(f"{change.square} moves {layout.boxes[moved & ~touched].round(1).tolist()}")
            if (inside & whole & ~moved).any():
                wrong.append(f"{change.square} does not move {layout.boxes[inside & whole & ~moved].round(1).tolist()}")
    return wrong


@pytest.mark.parametrize("name", [name for name in zoo.NAMES if name not in PLACELESS])
def test_the_tokens_that_move_are_those_whose_boxes_touch_the_change(name):
    vlm = zoo.vlm(name)
    for size in SIZES if name in MANY else FEW_SIZES:
        assert misplaced(vlm, size, name, POINTS if name in MANY else FEW_POINTS) == [], size


@pytest.mark.parametrize("name", PLACELESS)
def test_tokens_that_read_the_whole_picture_have_no_place(name):
    trace = zoo.vlm(name).generate(photo(), "what", max_new_tokens=2)
    assert trace.layouts == ()
    assert len(lp.confidence(trace).probability) == 2
    with pytest.raises(lp.ProbeError, match="is not known"):
        lp.attention_map(trace)


def test_the_families_tried_at_every_size_are_in_the_zoo():
    assert zoo.WRITTEN >= MANY
