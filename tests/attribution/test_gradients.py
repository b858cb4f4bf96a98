"""Gradients, integrated gradients and LLaVA-CAM against finite differences, captum and the formula written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients
from PIL import Image

import llava_probe as lp
from llava_probe import tiny
from llava_probe.attribution import prepared
from llava_probe.attribution.engine.pixels import pixel_cells
from tests import zoo
from tests.models import llava_processor, photo, random_llava


@pytest.fixture(scope="module")
def vlm() -> lp.VLM:
    """A random LLaVA in float64."""
    return lp.VLM(random_llava().double(), llava_processor())


@pytest.fixture(scope="module")
def trace(vlm) -> lp.Trace:
    return vlm.generate(photo(), "What is this?", max_new_tokens=2, min_new_tokens=2)


def inputs_of(vlm: lp.VLM, trace: lp.Trace) -> dict[str, torch.Tensor]:
    inputs, _ = vlm.model_inputs(trace.images[0], prompt=trace.request.prompt)
    ids = torch.tensor([[token.id for token in trace.tokens[:-1]]])
    return {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def logprob(vlm: lp.VLM, trace: lp.Trace, position: int, pixels=None, entry=None) -> torch.Tensor:
    """log p of the token at ``position`` with other pixels, or with other embeddings where the decoder begins."""
    inputs = inputs_of(vlm, trace)
    if pixels is not None:
        inputs["pixel_values"] = pixels
    hook = None
    if entry is not None:
        hook = vlm.model.get_decoder().register_forward_pre_hook(
            lambda _m, args, kwargs: (args, {**kwargs, "inputs_embeds": entry}), with_kwargs=True
        )
    try:
        logits = vlm.model(**inputs, use_cache=False).logits[0, position - 1]
    finally:
        if hook is not None:
            hook.remove()
    return torch.log_softmax(logits, -1)[trace.tokens[position].id]


def entry_of(vlm: lp.VLM, trace: lp.Trace) -> torch.Tensor:
    seen = []
    hook = vlm.model.get_decoder().register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with torch.no_grad():
        vlm.model(**inputs_of(vlm, trace), use_cache=False)
    hook.remove()
    return seen[0]


def test_input_x_gradient_is_the_slope_of_scaling_a_token(vlm, trace):
    place = trace.prompt_length + 1
    m = lp.attribute(vlm, trace, "input_x_gradient", tokens=place)
    entry, step = entry_of(vlm, trace), 3e-3  # the norms of Llama round to float32
    for number in (0, 17, 35):
        ends = []
        for sign in (1, -1):
            moved = entry.clone()
            moved[0, trace.layouts[0].positions[number]] *= 1 + sign * step
            with torch.no_grad():
                ends.append(float(logprob(vlm, trace, place, entry=moved)))
        assert float(m.values[0, number]) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-2, abs=3e-4)


def test_gradient_of_pixels_is_the_slope_of_moving_a_pixel(vlm, trace):
    place = trace.prompt_length
    m = lp.attribute(vlm, trace, "gradient", tokens=place, on="pixels")
    pixels, step = inputs_of(vlm, trace)["pixel_values"], 1e-2
    for y, x in ((0, 0), (13, 40), (47, 47)):
        slopes = []
        for channel in range(3):
            ends = []
            for sign in (1, -1):
                moved = pixels.clone()
                moved[0, channel, y, x] += sign * step
                with torch.no_grad():
                    ends.append(float(logprob(vlm, trace, place, pixels=moved)))
            slopes.append((ends[0] - ends[1]) / (2 * step))
        assert float(m.values[0, y * 48 + x]) == pytest.approx(np.linalg.norm(slopes), rel=1e-2)


def test_integrated_gradients_of_pixels_are_captums(vlm, trace):
    place = trace.prompt_length
    m = lp.attribute(vlm, trace, "integrated_gradients", tokens=place, on="pixels", baseline="zero", steps=8)
    start = inputs_of(vlm, trace)["pixel_values"]

    def value(pixels):
        return torch.stack([logprob(vlm, trace, place, pixels=one[None]) for one in pixels])

    truth = IntegratedGradients(value).attribute(start, 0 * start, n_steps=8, method="riemann_middle")
    assert m.values[0].numpy() == pytest.approx(truth.sum(1).flatten().numpy(), rel=1e-4, abs=1e-8)


def test_integrated_gradients_of_tokens_are_captums_and_add_up(vlm, trace):
    place = trace.prompt_length + 1
    m = lp.attribute(vlm, trace, "integrated_gradients", tokens=place, steps=64)
    entry, places = entry_of(vlm, trace), torch.from_numpy(trace.layouts[0].positions)
    ground = entry.clone()
    ground[0, places] = entry[0, places].mean(0)

    def value(given):
        return torch.stack([logprob(vlm, trace, place, entry=one[None]) for one in given])

    truth = IntegratedGradients(value).attribute(entry, ground, n_steps=64, method="riemann_middle")
    assert m.values[0].numpy() == pytest.approx(truth[0, places].sum(-1).numpy(), rel=1e-4, abs=1e-7)
    with torch.no_grad():
        gained = float(logprob(vlm, trace, place) - logprob(vlm, trace, place, entry=ground))
    assert float(m.values.sum()) == pytest.approx(gained, rel=0.02)
    assert abs(m.about["delta"][0]) < 0.02 * abs(gained)


def test_llava_cam_is_its_formula(vlm, trace):
    place, layer = trace.prompt_length, 2
    m = lp.attribute(vlm, trace, "llava_cam", tokens=place, layer=layer)
    kept = []

    def keep(_module, _args, output):
        output.retain_grad()
        kept.append(output)

    hook = vlm.model.model.language_model.layers[layer - 1].register_forward_hook(keep)
    logprob(vlm, trace, place).backward()
    hook.remove()
    places = trace.layouts[0].positions
    states, slopes = kept[0].detach()[0, places], kept[0].grad[0, places]
    truth = (slopes.clamp(min=0).mean(0) * states).mean(1).clamp(min=0)
    assert m.values[0].numpy() == pytest.approx(truth.numpy(), rel=1e-5, abs=1e-12)
    vlm.model.zero_grad()


@pytest.mark.parametrize(
    ("name", "size"), [("llava", (96, 64)), ("llava_next", (96, 64)), ("qwen2_vl", (112, 84)), ("gemma3", (70, 90))]
)
def test_a_pixels_cell_lies_where_painting_the_photograph_changes_it(name, size):
    """A square is painted on the photograph: the processor's pixels that change are in cells at that square."""
    vlm = zoo.vlm(name)
    picture = photo(*size)
    trace = vlm.generate(picture, "What is this?", max_new_tokens=1)
    task = prepared(vlm, trace, "gradient", tokens=trace.prompt_length)
    cells = pixel_cells(task)
    box = (size[0] // 2, size[1] // 3, size[0] // 2 + 12, size[1] // 3 + 12)
    painted = picture.copy()
    painted.paste(Image.new("RGB", (12, 12), (255, 0, 0)), box[:2])
    before, after = (vlm.model_inputs(each, "What is this?")[0][cells.name] for each in (picture, painted))
    changed = cells.summed((after - before).abs()).numpy() > 1e-3
    x0, y0, x1, y1 = cells.layout.boxes.T
    reach = 8  # resampling reaches some pixels further
    touching = (x1 > box[0] - reach) & (x0 < box[2] + reach) & (y1 > box[1] - reach) & (y0 < box[3] + reach)
    inside = (x0 >= box[0]) & (x1 <= box[2]) & (y0 >= box[1]) & (y1 <= box[3])
    assert changed.any()
    assert not (changed & ~touching).any()
    assert changed[inside].all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_pixels_have_their_places_in_half_precision_too(tiny_vlm, dtype):
    """On the trained model: the same cells, and maps as alike as half precision lets them be."""
    scene = tiny.scene(34)
    half = lp.load("tiny", dtype=str(dtype).removeprefix("torch."))
    maps, cells = [], []
    for vlm in (tiny_vlm, half):
        trace = vlm.generate(scene.image, "What colour is the triangle?")
        cells.append(pixel_cells(prepared(vlm, trace, "gradient", tokens="red")))
        maps.append(lp.attribute(vlm, trace, "gradient", tokens="red", on="pixels").values[0])
    assert torch.equal(cells[0].cell, cells[1].cell)
    assert np.corrcoef(*(each.sqrt().numpy() for each in maps))[0, 1] > 0.95


def test_the_second_of_two_pictures_alone_is_blanked(vlm):
    """Integrated gradients of pixels add up to what this picture is worth while the other stays."""
    pictures = [photo(seed=1), photo(seed=2)]
    trace = vlm.generate(pictures, "What is this?", max_new_tokens=1)
    place = trace.prompt_length
    m = lp.attribute(vlm, trace, "integrated_gradients", image=1, tokens=place, on="pixels", baseline="zero", steps=200)
    inputs, _ = vlm.model_inputs(pictures, prompt=trace.request.prompt)
    blanked = inputs["pixel_values"].clone()
    blanked[1] = 0
    with torch.no_grad():
        whole, without = (
            vlm.model(**{**inputs, "pixel_values": pixels}).logits[0, -1].log_softmax(-1)[trace.tokens[place].id]
            for pixels in (inputs["pixel_values"], blanked)
        )
    assert float(m.values.sum()) - m.about["delta"][0] == pytest.approx(float(whole - without), rel=1e-5)
    assert float(m.values.sum()) == pytest.approx(float(whole - without), rel=0.05)
    assert m.about["forwards"] == 200 + 3


def test_text_explains_what_the_model_did_not_say(vlm, trace):
    """``text=`` is the map of a scored trace."""
    scored = vlm.score(photo(), "What is this?", "dog")
    m = lp.attribute(vlm, trace, "gradient", text="dog")
    other = lp.attribute(vlm, scored, "gradient", tokens="answer")
    assert m.label().strip() == "dog"
    assert torch.allclose(m.values, other.values)


def test_bad_requests_are_sentences(vlm, trace):
    with pytest.raises(lp.BadInput, match=r"lp\.METHODS has"):
        lp.attribute(vlm, trace, "magic")
    with pytest.raises(lp.BadInput, match=r"has no option window=; it takes through='language'"):
        lp.attribute(vlm, trace, "relevance", window=3)
    with pytest.raises(lp.BadInput, match="knows no contrast"):
        lp.attribute(vlm, trace, "attention", contrast="dog")
    with pytest.raises(lp.OutOfRange, match="text="):
        lp.attribute(vlm, trace, "gradient", tokens="zebra")
    with pytest.raises(lp.BadInput, match="of= takes"):
        lp.attribute(vlm, trace, "gradient", of="score")
    with pytest.raises(lp.OutOfRange, match="in the prompt"):
        lp.attribute(vlm, trace, "gradient", tokens=0)
    other = lp.VLM(random_llava(), llava_processor(strategy="full"))
    with pytest.raises(lp.BadInput, match="another model"):
        lp.attribute(other, trace, "gradient")


def test_content_words_are_explained_by_default(tiny_vlm):
    from llava_probe import tiny

    described = tiny_vlm.generate(tiny.scene(3).image, "Describe the image.")
    m = lp.attribute(tiny_vlm, described, "gradient")
    words = [token.text.strip() for token in m.tokens]
    assert words[:4] == ["white", "star", "top", "yellow"]
    assert not {"There", "is", "a", "at", "the"} & set(words)
    assert m.about["backwards"] == len(m)


def test_maps_with_text_come_back_from_their_file(vlm, trace, tmp_path):
    m = lp.attribute(vlm, trace, "relevance", tokens="generated")
    m.save(tmp_path)
    again = lp.ImageMap.load(tmp_path)
    assert torch.equal(again.values, m.values)
    assert torch.equal(again.text, m.text)
    assert again.text_tokens == m.text_tokens
