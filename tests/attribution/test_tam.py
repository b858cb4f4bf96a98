"""Token activation maps, against the model's own logits and against sums, fits and filters written out or by scipy."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import generic_filter
from scipy.optimize import minimize_scalar

import llava_probe as lp
from llava_probe import tiny
from llava_probe.attribution import prepared
from llava_probe.attribution.tam import rank_filtered, scaled, tam, without_interference
from llava_probe.layout.geometry import tile_grids
from tests import zoo
from tests.models import llava_processor, photo, random_llava

QUESTION = "what is the text on the stop sign, the red sign"
grids = arrays(np.float64, st.tuples(st.integers(2, 6), st.integers(2, 6)), elements=st.floats(0, 1, width=32))


@pytest.fixture(scope="module")
def vlm():
    return lp.VLM(random_llava(), llava_processor())


@pytest.fixture(scope="module")
def trace(vlm):
    asked = vlm.generate(photo(), QUESTION, max_new_tokens=1)
    return vlm.rerun(asked, answer=" red sign the red", capture=lp.Capture(hidden_states=False, attention=False))


def logits_everywhere(vlm, trace):
    """[P, V] of plain transformers."""
    inputs, _ = vlm.model_inputs(trace.images[0], QUESTION)
    fed = torch.tensor([[token.id for token in trace.tokens[:-1]]])
    with torch.no_grad():
        out = vlm.model(input_ids=fed, pixel_values=inputs["pixel_values"], attention_mask=torch.ones_like(fed))
    return out.logits[0].double().numpy()


def by_hand(vlm, trace, step, interference):
    """The map of one generated token before the filter, and the values of earlier words by their position."""
    logits, start = np.maximum(logits_everywhere(vlm, trace), 0), trace.prompt_length
    image = [token.position for token in trace.tokens if token.role == "image"]
    token = trace.generated[step]
    words = [(t, t.position) for t in trace.tokens[: start - 1] if t.role == "prompt"]
    words += [(t, t.position - 1) for t in trace.generated[:step]]
    m = logits[image, token.id]
    others = [(word, at) for word, at in words if word.text != token.text]
    total = sum(logits[at, token.id] for _, at in others)
    if interference and total > 0:
        explained = sum(logits[at, token.id] / total * logits[image, word.id] for word, at in others)
        x = minimize_scalar(lambda x: ((m - x * explained) ** 2).sum(), tol=1e-14).x
        m = np.maximum(m - x * explained, 0)
    text = {word.position: logits[at, token.id] for word, at in words}
    low, high = min(m.min(), *text.values()), max(m.max(), *text.values())
    return (m - low) / (high - low), {place: (value - low) / (high - low) for place, value in text.items()}


@pytest.mark.parametrize("interference", [False, True])
def test_the_map_is_that_of_the_models_own_logits(vlm, trace, interference):
    found = lp.attribute(vlm, trace, "tam", tokens="generated", interference=interference, rank_filter=False)
    text = {token.position: column for column, token in enumerate(found.text_tokens)}
    for step in range(len(trace.generated)):
        image, words = by_hand(vlm, trace, step, interference)
        np.testing.assert_allclose(found.row(step), image, atol=2e-6)
        for place, column in text.items():
            assert found.text[step, column] == pytest.approx(words.get(place, 0.0), abs=2e-6)


def test_interference_changes_the_map(vlm, trace):
    plain, less = (lp.attribute(vlm, trace, "tam", interference=on, rank_filter=False) for on in (False, True))
    assert (plain.values - less.values).abs().max() > 0.01


def test_each_word_is_read_where_it_was_read_or_predicted(vlm, trace):
    found = lp.attribute(vlm, trace, "tam", tokens="generated")
    start = trace.prompt_length
    for step in range(len(found)):
        earlier = {token.position for token in trace.tokens[: start - 1] if token.role == "prompt"}
        earlier |= {start + before for before in range(step)}
        lit = {token.position for token, value in zip(found.text_tokens, found.text[step], strict=True) if value > 0}
        assert lit <= earlier
        assert lit


def test_a_word_takes_the_largest_of_its_tokens(vlm, trace):
    start = trace.prompt_length
    one, other = (lp.attribute(vlm, trace, "tam", tokens=start + step).values for step in (0, 1))
    both = lp.attribute(vlm, trace, "tam", tokens=[[start, start + 1]]).values
    torch.testing.assert_close(both, torch.maximum(one, other))


@pytest.mark.filterwarnings("ignore:another model made this trace")
def test_the_head_s_offset_counts():
    biased = lp.VLM(random_llava(), llava_processor())
    plain = lp.VLM(random_llava(), llava_processor())
    head = biased.model.lm_head
    head.bias = torch.nn.Parameter(torch.randn(head.out_features))
    trace = plain.generate(photo(), QUESTION, max_new_tokens=3)
    for vlm in (plain, biased):
        found = lp.attribute(vlm, trace, "tam", tokens="generated", rank_filter=False)
        np.testing.assert_allclose(found.row(1), by_hand(vlm, trace, 1, True)[0], atol=2e-6)


# --- what earlier words explain ---


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_the_share_taken_away_is_the_least_squares_one(seed):
    m, maps, weights = parts(seed)
    explained = ((weights / weights.sum())[:, None] * maps).sum(0)
    x = minimize_scalar(lambda x: float(((m - x * explained) ** 2).sum()), tol=1e-14).x
    torch.testing.assert_close(
        without_interference(m, maps, weights), (m - x * explained).clamp(min=0), atol=1e-7, rtol=0
    )


def test_the_order_of_words_and_the_size_of_weights_do_not_matter():
    m, maps, weights = parts(0)
    shuffled = torch.randperm(len(weights))
    once = without_interference(m, maps, weights)
    torch.testing.assert_close(without_interference(m, maps[shuffled], 7 * weights[shuffled]), once)
    torch.testing.assert_close(without_interference(3 * m, maps, weights), 3 * once)


def test_what_is_explained_wholly_vanishes_and_what_is_not_stays():
    m, maps, weights = parts(1)
    assert without_interference(2 * maps[0], maps[:1], weights[:1]).max() < 1e-12
    for nothing in (torch.zeros_like(weights), weights):
        silent = without_interference(m, maps if nothing.sum() == 0 else 0 * maps, nothing)
        torch.testing.assert_close(silent, m)
    torch.testing.assert_close(without_interference(m, maps[:0], weights[:0]), m)


def test_both_parts_are_scaled_by_the_extremes_of_either():
    image, text = scaled(torch.tensor([2.0, 4.0]), torch.tensor([0.0, 8.0]))
    assert (image.tolist(), text.tolist()) == ([0.25, 0.5], [0.0, 1.0])
    image, text = scaled(torch.ones(3), torch.ones(2))
    assert not image.any() and not text.any()


def parts(seed):
    draw = torch.Generator().manual_seed(seed)
    return tuple(torch.rand(*size, generator=draw, dtype=torch.float64) for size in ((30,), (5, 30), (5,)))


# --- the filter ---


def ranked(window):
    """One window's value, its mean where it does not vary."""
    ordered, mean = sorted(window), sum(window) / 9
    spread = (sum((value - mean) ** 2 for value in window) / 9) ** 0.5
    if mean <= 0:
        return 0.0
    if spread < 1e-9 * mean:
        return mean
    weights = [np.exp(-((rank - 4) ** 2) / (2 * (spread / mean) ** 2)) for rank in range(9)]
    return sum(w * value for w, value in zip(weights, ordered, strict=True)) / sum(weights)


@given(grids)
@settings(max_examples=60, deadline=None)
def test_the_filter_is_the_window_by_window_one(grid):
    expected = generic_filter(grid, ranked, size=3, mode="mirror")
    np.testing.assert_allclose(rank_filtered(grid), expected, atol=1e-8)


@given(grids)
@settings(max_examples=40, deadline=None)
def test_the_filter_stays_within_the_values_and_turns_with_the_picture(grid):
    found = rank_filtered(grid)
    assert np.isfinite(found).all() and found.min() >= 0 and found.max() <= grid.max() * (1 + 1e-12)
    np.testing.assert_allclose(rank_filtered(grid.T), found.T, atol=1e-12)
    np.testing.assert_allclose(rank_filtered(grid[::-1, ::-1]), found[::-1, ::-1], atol=1e-12)
    np.testing.assert_allclose(rank_filtered(4 * grid), 4 * found, atol=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0, 1e-30])
def test_a_constant_map_is_kept(value):
    np.testing.assert_allclose(rank_filtered(np.full((4, 5), value)), value)


def test_a_lone_peak_is_noise_and_an_edge_is_kept():
    grid = np.full((7, 7), 0.2)
    grid[3, 3] = 1.0
    assert rank_filtered(grid)[3, 3] < 0.35
    step = np.repeat([[0.1, 0.1, 0.1, 0.9, 0.9, 0.9]], 6, axis=0)
    found = rank_filtered(step)
    assert found[3, 2] < 0.35 and found[3, 3] > 0.65


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (1, 1)])
def test_a_grid_of_one_row_is_filtered_too(shape):
    assert np.isfinite(rank_filtered(np.random.default_rng(0).random(shape))).all()


def test_each_tile_is_filtered_on_its_own_grid():
    vlm = zoo.vlm("llava_next")
    trace = vlm.generate(photo(200, 90), "what is it", max_new_tokens=2)
    plain = lp.attribute(vlm, trace, "tam", tokens="generated", rank_filter=False)
    found = lp.attribute(vlm, trace, "tam", tokens="generated")
    assert found.about["unfiltered"] == 0
    layout = trace.layouts[0]
    assert len(set(layout.tiles.tolist())) > 1
    for tile in set(layout.tiles.tolist()):
        inside = layout.tiles == tile
        rows = len(np.unique(layout.boxes[inside, 1]))
        grid = plain.row(1).numpy()[inside].astype(float).reshape(rows, -1)
        expected = generic_filter(grid, ranked, size=3, mode="mirror")
        np.testing.assert_allclose(found.row(1).numpy()[inside], expected.ravel(), atol=1e-5)


def test_tokens_on_no_grid_are_left_as_they_are(vlm, trace):
    task = prepared(vlm, trace, "tam")
    boxes = task.layout.boxes.copy()
    boxes[5] += 3.0
    loose = replace(task, layout=replace(task.layout, boxes=boxes, grid=None))
    assert [grid for _, grid in tile_grids(loose.layout)] == [None]
    found = tam(loose)
    assert found.about["unfiltered"] == len(task.layout)
    torch.testing.assert_close(found.positions, tam(task, rank_filter=False).positions)


# --- models ---


@pytest.mark.parametrize("seed", [7, 11, 12])
def test_the_map_of_a_colour_is_between_nothing_and_one(tiny_vlm, seed):
    scene = tiny.scene(seed)
    (question, *_) = [question for question in scene.questions if question.kind in ("colour", "where")]
    trace = tiny_vlm.generate(scene.image, question.question)
    found = lp.attribute(tiny_vlm, trace, "tam")
    assert torch.isfinite(found.values).all()
    assert found.values.min() >= 0 and found.values.max() <= 1
    assert found.values.max() > found.values.min()
    assert found.about["forwards"] == 1 and found.about["backwards"] == 0


def test_the_model_is_given_back_as_it_was(vlm, trace):
    lp.attribute(vlm, trace, "tam")
    assert not vlm.anatomy.decoder.owner._forward_hooks


@pytest.mark.filterwarnings("ignore:another model made this trace")
def test_states_that_are_no_numbers_are_refused(trace):
    vlm = lp.VLM(random_llava(), llava_processor())
    vlm.anatomy.decoder.blocks[1].mlp.down_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(lp.NotANumber, match="final norm"):
        lp.attribute(vlm, trace, "tam")


def test_a_head_inside_the_language_model_is_found():
    vlm = zoo.vlm("nemotron_h_omni")
    assert vlm.anatomy.model.get_output_embeddings() is None
    trace = vlm.generate(photo(), "what is it", max_new_tokens=2)
    assert lp.attribute(vlm, trace, "tam", tokens="generated").values.max() > 0


@pytest.mark.filterwarnings("ignore:another model made this trace")
def test_a_quantised_head_reads_its_own_rows(trace):
    """Its logits at every position, in blocks, against the model's own."""
    model = random_llava()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.lm_head = torch.ao.quantization.quantize_dynamic(
            torch.nn.Sequential(model.lm_head), {torch.nn.Linear}, dtype=torch.qint8
        )[0]
    vlm = lp.VLM(model, llava_processor())
    m = lp.attribute(vlm, trace, "tam", tokens=trace.prompt_length, interference=False, rank_filter=False)
    inputs, _ = vlm.model_inputs(trace.images[0], prompt=trace.request.prompt)
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits[0, :, trace.tokens[trace.prompt_length].id].clamp(min=0)
    truth = logits[trace.layouts[0].positions]
    assert float(truth.max()) > 0
    order = m.values[0].argsort()
    assert torch.all(truth[order].diff() >= -0.02 * truth.max())  # scaling keeps the order; rounding is dynamic


def test_a_contrast_is_refused(vlm, trace):
    with pytest.raises(lp.BadInput, match="contrast"):
        lp.attribute(vlm, trace, "tam", tokens="red", contrast="blue")
