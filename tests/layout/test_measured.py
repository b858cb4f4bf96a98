"""The measured layout and the written one agree, and a measurement costs what it may."""

import numpy as np
import pytest
import torch

import llava_probe as lp
from llava_probe import layout as layouts
from llava_probe.layout import asking
from tests import torchvision_half, zoo
from tests.models import photo
from tests.zoo import newer

pytestmark = [
    pytest.mark.skipif(not torchvision_half.present(), reason="the processors of most families need torchvision"),
    pytest.mark.filterwarnings("ignore"),
]

SIZES = [(20, 700), (700, 20), (64, 48), (150, 90), (250, 250), (333, 90), (1100, 1500), (1500, 1100)]
#: By the table, which stands on the models themselves (``test_family_table.py``): none is built to list the tests.
_WRITTEN = {family.name for family in lp.families() if family.places == "written"}
WRITTEN = [name for name in zoo.NAMES if name.split()[0] in _WRITTEN]
#: One family of each way of tiling is tried at every size, the others at some.
FIRST = ("llava", "llava_next", "llava pixtral", "qwen2_vl", "paligemma", "idefics3", "internvl")
SOME = [(20, 700), (64, 48), (1100, 1500)]
NOTHING = lp.Capture(attention=False, hidden_states=False, logits=False, scores=False)

#: How far edges may lie apart, in shares of a token's side: what resampling blurs.
APART = 0.15
#: Where features are blended, a patch weighs by arithmetic in the written layout, by how far it moves a token in the
#: measured one: a light patch may fall on either side of the line, of so many tokens, and only that one patch.
EITHER = {"llava_onevision": 0.2}
#: The vision path may be run so often for one measurement.
PASSES = 64


def laid_out(name, how, pictures):
    given = zoo.vlm(name)
    vlm = lp.VLM(given.model, given.processor, layout=how)
    return vlm.lay_out(pictures, "what")


def on_photograph(layout):
    """Boxes clipped to the photograph, and which tokens have some of theirs on it."""
    width, height = layout.size
    boxes = layout.boxes.clip(0, [width, height, width, height])
    shown = (boxes[:, 2:] - boxes[:, :2]) / (layout.boxes[:, 2:] - layout.boxes[:, :2])
    return boxes, (shown > 0.02).all(axis=1)


@pytest.mark.parametrize("name", WRITTEN)
def test_measured_layouts_agree_with_the_written(name):
    for size in SIZES if name in FIRST else SOME:
        if name == "idefics3" and min(size) == 20 and not newer.resamples_by_lanczos():
            continue  # it makes 7 pixels of 20, then 64 of those: a bicubic kernel moves the outer edges further
        agree(name, [size])
    agree(name, [(150, 90), (60, 200)])


def test_every_way_of_tiling_is_tried_at_every_size():
    assert {zoo.vlm(name).layouts.way for name in FIRST} == set(layouts.WAYS.values())


def agree(name, sizes):
    pictures = [photo(*size) for size in sizes]
    for written, found in zip(laid_out(name, "auto", pictures), laid_out(name, "measured", pictures), strict=True):
        boxes, shown = on_photograph(written)
        assert np.array_equal(written.positions[shown], found.positions), (name, sizes)
        assert np.array_equal(written.tiles[shown], found.tiles), (name, sizes)
        sides = np.tile(written.boxes[:, 2:] - written.boxes[:, :2], 2)[shown]
        apart = np.abs(boxes[shown] - on_photograph(found)[0]) / sides
        far = apart.max(axis=1) >= APART
        assert far.mean() <= EITHER.get(name, 0), (name, sizes)
        assert apart.max() < 0.6, (name, sizes)


@pytest.mark.parametrize("name", ["llava_next", "mistral3", "gemma4", "got_ocr2", "molmo2", "deepseek_vl_hybrid"])
def test_a_measurement_runs_the_vision_path_so_often_and_once_for_a_size(name, monkeypatch):
    passes = []

    def counted(model, inputs):
        passes.append(len(inputs["input_ids"]))
        return entering(model, inputs)

    entering = asking.entering
    monkeypatch.setattr(asking, "entering", counted)
    given = zoo.vlm(name)
    vlm = lp.VLM(given.model, given.processor, layout="measured")
    first = vlm.generate(photo(700, 500), "what", max_new_tokens=1, capture=NOTHING).layouts
    assert 0 < sum(passes) <= PASSES
    passes.clear()
    again = vlm.generate(photo(700, 500, seed=1), "what is the text", max_new_tokens=1, capture=NOTHING).layouts
    assert not passes
    assert [layout.boxes.tolist() for layout in again] == [layout.boxes.tolist() for layout in first]


def test_a_written_layout_is_worked_out_once_for_a_size(monkeypatch):
    given, worked = zoo.vlm("llava_next"), []
    way = layouts.WAYS["llava_next"]
    monkeypatch.setitem(layouts.WAYS, "llava_next", lambda prepared: worked.append(prepared.sizes) or way(prepared))
    vlm = lp.VLM(given.model, given.processor)
    for seed in range(3):
        vlm.generate(photo(90, 70, seed), "what", max_new_tokens=1, capture=NOTHING)
    assert len(worked) == 1


def test_a_measurement_leaves_the_model_as_it_was():
    given = zoo.vlm("internvl")
    before = given.model.config.vision_config._attn_implementation, torch.get_default_dtype()
    laid_out("internvl", "measured", [photo(90, 70)])
    assert (given.model.config.vision_config._attn_implementation, torch.get_default_dtype()) == before
    hooks = [len(module._forward_pre_hooks) for module in given.model.modules()]
    laid_out("internvl", "measured", [photo(91, 70)])
    assert [len(module._forward_pre_hooks) for module in given.model.modules()] == hooks


def test_none_asks_for_no_layout():
    assert laid_out("internvl", "none", [photo()]) == ()
    with pytest.raises(lp.BadInput, match="auto, measured, none"):
        laid_out("internvl", "guess", [photo()])
