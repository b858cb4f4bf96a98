"""Changed inputs a batch at a time, from a cache where it may be: what one pass after the other would give."""

import numpy as np
import pytest
import torch
from captum.attr import FeatureAblation, Occlusion
from PIL import Image

import llava_probe as lp
from llava_probe import tiny
from llava_probe.attribution import prepared
from llava_probe.attribution.engine.perturbing import Pictures, picture_scores, token_scores
from llava_probe.attribution.engine.windows import token_windows, within
from llava_probe.attribution.rise import random_masks
from tests import zoo
from tests.models import llava_processor, photo, random_llava
from tests.plain_passes import plain_logits, plain_scores

QUESTION = "What is it?"
#: Passes of the trial that a cache may be used: two to fill caches, two changed inputs.
TRIAL = 4


def exact(model, processor):
    return lp.VLM(model.double(), processor)


def seen_whole(model):
    """Gemma 3 without sliding windows: a picture's tokens see each other, and the cache is a plain one."""
    decoder = model.model.language_model
    decoder.config.layer_types = ["full_attention"] * len(decoder.layers)
    for layer in decoder.layers:
        layer.self_attn.is_sliding, layer.self_attn.sliding_window = False, None
        layer.self_attn.layer_type = "full_attention"
    return model


def gemma3_whole():
    model, processor = zoo.build("gemma3")
    return exact(seen_whole(model), processor)


def tiny_exact():
    vlm = lp.load()
    vlm.model.double()
    return vlm


MODELS = {
    "llava": lambda: exact(random_llava(), llava_processor()),
    "tiny": tiny_exact,
    "paligemma": lambda: exact(*zoo.build("paligemma")),
    "gemma3": lambda: exact(*zoo.build("gemma3")),
    "gemma3 whole": gemma3_whole,
    "qwen3_vl": lambda: exact(*zoo.build("qwen3_vl")),
    "llava_next": lambda: exact(*zoo.build("llava_next")),
}
RANDOM = [name for name in MODELS if name != "tiny"]
CAUSAL = ("llava", "llava_next")


@pytest.fixture(scope="module")
def asked():
    """Each model in float64, and its answer."""
    made = {}

    def ask(name):
        if name not in made:
            vlm = MODELS[name]()
            made[name] = vlm, vlm.generate(photo(), QUESTION, max_new_tokens=3)
        return made[name]

    return ask


def taken_away(count, seed=0):
    """Each token alone, a run of them, random ones, half shown, all and none."""
    generator = torch.Generator().manual_seed(seed)
    run = torch.ones(1, count)
    run[:, count // 3 : count // 2] = 0
    return torch.cat(
        [
            1 - torch.eye(count)[:: max(1, count // 6)],
            run,
            (torch.rand(3, count, generator=generator) < 0.5).float(),
            torch.rand(2, count, generator=generator),
            torch.zeros(1, count),
            torch.ones(1, count),
        ]
    )


# --- the same as one pass after the other ---


@pytest.mark.parametrize("baseline", ["mean", "zero"])
@pytest.mark.parametrize("name", [name for name in MODELS if name != "qwen3_vl"])
def test_scores_equal_a_plain_loop(asked, name, baseline):
    vlm, trace = asked(name)
    task = prepared(vlm, trace, "occlusion", tokens="generated")
    keep = taken_away(len(task.layout))
    scores = token_scores(task, keep, baseline=baseline, batch=4)
    torch.testing.assert_close(scores, plain_scores(vlm, trace, keep, baseline), atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", RANDOM)
def test_batch_and_cache_change_nothing(asked, name):
    vlm, trace = asked(name)
    task = prepared(vlm, trace, "occlusion", tokens="generated")
    keep = taken_away(len(task.layout))
    one_by_one = torch.cat([token_scores(task, one[None], batch=1) for one in keep])
    for batch in (3, 16):
        torch.testing.assert_close(token_scores(task, keep, batch=batch), one_by_one, atol=1e-9, rtol=0)


def test_a_contrast_of_several_tokens_is_read_in_its_own_continuation(asked):
    vlm, trace = asked("llava")
    place = trace.prompt_length + 1
    task = prepared(vlm, trace, "occlusion", tokens=place, contrast="zebra")
    assert len(task.answers) == 2
    own, other = task.answers
    keep = taken_away(len(task.layout))[::3]
    for one, score in zip(keep, token_scores(task, keep, batch=4), strict=True):
        said = plain_logits(vlm, trace, one, "mean", own).log_softmax(-1)[1, own[1]]
        might = plain_logits(vlm, trace, one, "mean", other).log_softmax(-1)
        rather = sum(might[step, other[step]] for step in range(1, len(other)))
        assert float(score) == pytest.approx(float(said - rather), abs=1e-9)


def reads(vlm, run):
    """(rows, positions) of each pass through the decoder's first block."""
    seen = []
    handle = vlm.anatomy.decoder.blocks[0].register_forward_pre_hook(
        lambda _module, args: seen.append(tuple(args[0].shape[:2]))
    )
    try:
        run()
    finally:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", RANDOM)
def test_what_lies_before_the_change_is_read_once_in_causal_models_alone(asked, name):
    vlm, trace = asked(name)
    task = prepared(vlm, trace, "occlusion", tokens="generated")
    count = len(task.layout)
    keep = 1 - torch.eye(count)
    *_, (_, length) = reads(vlm, lambda: token_scores(task, keep, batch=4))
    whole, places = len(trace.tokens) - 1, task.layout.positions
    if name in CAUSAL:
        assert length == whole - np.sort(places)[-((count - 1) % 4 + 1)]
    elif name == "gemma3 whole":
        assert length == whole - places.min()  # the text before the picture may be shared, the picture not
    else:
        assert length == whole


@pytest.mark.parametrize("name", ["llava", "tiny", "gemma3", "qwen3_vl", "gemma4"])
def test_the_photograph_itself_scores_as_its_tokens_do(name):
    vlm = zoo.vlm(name) if name in zoo.NAMES else MODELS[name]()
    trace = vlm.generate(photo(), QUESTION, max_new_tokens=3)
    task = prepared(vlm, trace, "occlusion", tokens="generated")
    whole = token_scores(task, torch.ones(1, len(task.layout)))
    pictures = picture_scores(task, [trace.images[0], photo(seed=1), trace.images[0]], batch=2)
    torch.testing.assert_close(pictures[::2], whole.expand(2, -1), atol=1e-4, rtol=0)
    if name != "tiny":  # which takes noise of either kind for an empty picture
        assert (pictures[1] - whole).abs().max() > 1e-3


# --- what it costs ---


def test_the_tower_runs_once_a_continuation(asked):
    vlm, trace = asked("llava")
    task = prepared(vlm, trace, "occlusion", tokens=trace.prompt_length + 1, contrast="zebra")
    runs = []
    handle = vlm.anatomy.vision.blocks[0].register_forward_hook(lambda *_: runs.append(1))
    token_scores(task, 1 - torch.eye(len(task.layout)), batch=4)
    handle.remove()
    assert len(runs) == len(task.answers) == 2


@pytest.mark.parametrize("options", [{"budget": 8}, {"budget": 10, "window": 3}, {"budget": 37}, {}])
def test_occlusion_keeps_its_budget(asked, options):
    vlm, trace = asked("llava")
    made = []
    seen = reads(vlm, lambda: made.append(lp.attribute(vlm, trace, "occlusion", **options)))
    forwards = made[0].about["forwards"]
    assert forwards <= options.get("budget", 37)
    assert sum(rows for rows, _ in seen) == forwards + TRIAL


@pytest.mark.parametrize("on", ["tokens", "pixels"])
def test_rise_keeps_its_budget(asked, on):
    vlm, trace = asked("llava")
    made = []
    seen = reads(vlm, lambda: made.append(lp.attribute(vlm, trace, "rise", on=on, budget=20)))
    assert made[0].about["forwards"] == 20
    assert sum(rows for rows, _ in seen) == 20 + TRIAL  # on pixels: two pictures beside each other, and each alone


def test_too_small_a_budget_is_refused(asked):
    vlm, trace = asked("llava")
    assert lp.attribute(vlm, trace, "occlusion", budget=2).about["window"] >= 6
    with pytest.raises(lp.BadInput, match="budget=1 passes are too few"):
        lp.attribute(vlm, trace, "occlusion", budget=1)


# --- nothing is left behind ---


def state(vlm):
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return [
        (*(tuple(getattr(module, name)) for name in hooks), "forward" in module.__dict__, module.training)
        for module in vlm.model.modules()
    ] + [parameter.requires_grad for parameter in vlm.model.parameters()]


def test_the_model_is_left_as_it_was(asked, monkeypatch):
    vlm, trace = asked("llava")
    before, logits = state(vlm), vlm.rerun(trace).logits
    task = prepared(vlm, trace, "occlusion", tokens="generated")
    keep = 1 - torch.eye(len(task.layout))
    token_scores(task, keep, batch=8)
    picture_scores(task, [photo(seed=1)] * 2)
    assert state(vlm) == before

    with pytest.raises(lp.NotANumber):
        token_scores(task, keep, baseline=torch.full((64,), float("nan")))
    assert state(vlm) == before

    last = vlm.anatomy.decoder.blocks[-1]
    calls = []

    def breaks(*args, **kwargs):
        calls.append(1)
        if len(calls) > 5:  # after the trial
            raise RuntimeError("out of memory")
        return type(last).forward(last, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(last, "forward", breaks)
        with pytest.raises(RuntimeError, match="out of memory"):
            token_scores(task, keep, batch=4)
        with pytest.raises(RuntimeError, match="out of memory"):
            picture_scores(task, [photo(seed=1)] * 2)
    last.__dict__.pop("forward", None)  # monkeypatch puts the bound method back as an attribute
    assert state(vlm) == before
    assert torch.equal(vlm.rerun(trace).logits, logits)


def test_pictures_are_drawn_when_they_are_read():
    drawn = []

    def draw(number):
        drawn.append(number)
        return photo(seed=number)

    pictures = Pictures(10**6, draw)
    assert len(pictures) == 10**6 and not drawn
    assert len(pictures[4:8]) == 4 and drawn == [4, 5, 6, 7]
    assert pictures[9].tobytes() == photo(seed=9).tobytes()


# --- occlusion ---


def grid_forward(vlm, trace):
    """Scores [n] of the first generated token, of masks [n, 6, 6] over the token grid."""
    return lambda masks: plain_scores(vlm, trace, masks.flatten(1))[:, 0]


def test_a_window_of_one_is_feature_ablation(asked):
    vlm, trace = asked("llava")
    found = lp.attribute(vlm, trace, "occlusion", tokens=trace.prompt_length)
    ablated = FeatureAblation(grid_forward(vlm, trace)).attribute(torch.ones(1, 6, 6, dtype=torch.float64))
    np.testing.assert_allclose(found.grid(0), ablated[0], atol=1e-6)  # a map holds float32


@pytest.mark.parametrize(("window", "budget", "stride"), [(3, None, 1), (3, 10, 2), (4, 5, 2)])
def test_larger_windows_are_captums_occlusion(asked, window, budget, stride):
    vlm, trace = asked("llava")
    found = lp.attribute(vlm, trace, "occlusion", tokens=trace.prompt_length, window=window, budget=budget)
    assert (found.about["window"], found.about["stride"]) == (window, stride)
    occluded = Occlusion(grid_forward(vlm, trace)).attribute(
        torch.ones(1, 6, 6, dtype=torch.float64), (window, window), strides=(stride, stride), baselines=0
    )
    np.testing.assert_allclose(found.grid(0), occluded[0], atol=1e-6)


@pytest.mark.parametrize("baseline", ["mean", "zero"])
def test_occlusion_of_pixels_is_feature_ablation_of_the_photograph(tiny_vlm, baseline):
    scene = tiny.scene(3)
    trace = tiny_vlm.generate(scene.image, scene.questions[0].question)
    found = lp.attribute(tiny_vlm, trace, "occlusion", tokens="answer", on="pixels", cells=3, baseline=baseline)
    ids = [token.id for token in trace.generated]
    spoken = [step for step, token in enumerate(trace.generated) if not token.text.startswith("<")]

    def score(photographs):
        values = []
        for pixels in photographs:
            image = Image.fromarray(pixels.numpy().astype(np.uint8))
            logits = tiny_vlm.score(image, prompt=trace.request.prompt, answer=ids).logits.double().log_softmax(-1)
            values.append(sum(logits[step, ids[step]] for step in spoken))
        return torch.stack(values)

    pixels = torch.from_numpy(np.asarray(trace.images[0], dtype=np.float64).copy())[None]
    height, width = pixels.shape[1:3]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    blocks = (y + 0.5).mul(3 / height).long() * 3 + (x + 0.5).mul(3 / width).long()
    colour = pixels.mean((1, 2), keepdim=True).round() if baseline == "mean" else torch.zeros(1, 1, 1, 3)
    ablated = FeatureAblation(score).attribute(
        pixels, baselines=colour.double().expand_as(pixels).clone(), feature_mask=blocks[None, :, :, None]
    )
    np.testing.assert_allclose(found.pixels(0), ablated[0, ..., 0], atol=2e-4)


@pytest.mark.parametrize("name", ["llava", "llava_next", "gemma3"])
def test_windows_cover_every_token_and_stay_in_their_tile(asked, name):
    _, trace = asked(name)
    layout = trace.layouts[0]
    for window in (1, 2, 3, 50):
        for stride in range(1, window + 1):
            windows = token_windows(layout, window, stride)
            assert windows.any(0).all() and windows.any(1).all()
            assert all(len(np.unique(layout.tiles[one.numpy()])) == 1 for one in windows)
    for budget in range(2 + len(np.unique(layout.tiles)), 2 * len(layout)):
        side, stride = within(layout, 1, budget)
        assert len(token_windows(layout, side, stride)) + 1 <= budget and side >= stride


# --- RISE ---


@pytest.mark.parametrize("baseline", ["mean", "zero"])
def test_rise_is_its_formula(asked, baseline):
    vlm, trace = asked("llava")
    found = lp.attribute(
        vlm, trace, "rise", tokens="generated", budget=24, cells=3, keep=0.4, seed=5, baseline=baseline
    )
    boxes = trace.layouts[0].boxes
    centres = torch.from_numpy((boxes[:, :2] + boxes[:, 2:]) / 2 / np.array(trace.images[0].size))
    masks = random_masks(centres, 24, 3, 0.4, 5)
    scores = plain_scores(vlm, trace, masks, baseline)
    mean = scores.mean(0)
    for row in range(len(scores[0])):
        total = torch.zeros(masks.shape[1], dtype=torch.float64)
        for mask, score in zip(masks.double(), scores, strict=True):
            total += (score[row] - mean[row]) * mask
        np.testing.assert_allclose(found.values[row], total / (24 * masks.double().mean()), atol=1e-6)


def test_rise_of_pixels_is_its_formula(tiny_vlm):
    scene = tiny.scene(3)
    trace = tiny_vlm.generate(scene.image, scene.questions[0].question)
    found = lp.attribute(tiny_vlm, trace, "rise", tokens=trace.prompt_length, on="pixels", budget=6, cells=2)
    boxes, (width, height) = found.layout.boxes, trace.images[0].size
    centres = torch.from_numpy((boxes[:, :2] + boxes[:, 2:]) / 2 / np.array([width, height]))
    masks = random_masks(centres, 6, 2, 0.5, 0)
    pixels = np.asarray(trace.images[0], dtype=np.float64)
    ids, scores = [token.id for token in trace.generated], []
    for mask in masks:
        shown = found.layout.to_pixels(mask)[..., None]
        blended = shown * pixels + (1 - shown) * pixels.mean((0, 1)).round()
        again = tiny_vlm.score(
            Image.fromarray(blended.round().astype(np.uint8)), prompt=trace.request.prompt, answer=ids
        )
        scores.append(float(again.logits[0].double().log_softmax(-1)[ids[0]]))
    scores = torch.tensor(scores, dtype=torch.float64)
    naive = ((scores - scores.mean())[:, None] * masks.double()).sum(0) / (6 * masks.double().mean())
    # a mask has 256 shades here, and a pixel of the blend may be off by one
    np.testing.assert_allclose(found.values[0], naive, atol=0.02 * float(naive.abs().max()))


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("cells", [1, 4, 7])
def test_random_masks_show_their_share(cells, keep):
    steps = torch.linspace(0, 1, 13)
    centres = torch.cartesian_prod(steps, steps)
    masks = random_masks(centres, 2000, cells, keep, seed=1)
    assert masks.min() >= 0 and masks.max() <= 1
    assert masks.mean() == pytest.approx(keep, abs=0.03)
    assert (masks.mean(0) - keep).abs().max() < 0.08  # everywhere alike
    by_x = masks.view(-1, 13, 13)
    assert (by_x.diff(dim=1).abs().max() <= cells / 12 + 1e-5) and by_x.diff(dim=2).abs().max() <= cells / 12 + 1e-5
    assert torch.equal(masks, random_masks(centres, 2000, cells, keep, seed=1))
    assert not torch.equal(masks, random_masks(centres, 2000, cells, keep, seed=2))
