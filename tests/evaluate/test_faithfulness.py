"""Maps judged by the model: curves against one plain pass a step, captum's measures on the same perturbations."""

import re
from dataclasses import replace
from importlib import import_module

import captum.metrics
import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

import llava_probe as lp
from llava_probe import ImageMap, tiny
from llava_probe.evaluate import centre_prior, removing, tiny_cases
from llava_probe.evaluate.faithfulness import comprehensiveness, deletion_insertion, sufficiency
from llava_probe.evaluate.infidelity import infidelity, random_removals
from llava_probe.evaluate.removing import Removal, Step, removal_of
from llava_probe.evaluate.sensitivity import noisy, sensitivity
from tests.evaluate.drawn_maps import grid_layout, map_on, tiled_layout
from tests.models import llava_processor, photo, random_llava
from tests.plain_passes import plain_logits, plain_scores

# The package has functions of these names.
infidelity_file = import_module("llava_probe.evaluate.infidelity")
sensitivity_file = import_module("llava_probe.evaluate.sensitivity")


@pytest.fixture(scope="module")
def vlm():
    """A random LLaVA in float64."""
    return lp.VLM(random_llava().double(), llava_processor())


@pytest.fixture(scope="module")
def trace(vlm):
    return vlm.generate(photo(), "What is it?", max_new_tokens=4)


@pytest.fixture(scope="module")
def scored(tiny_vlm):
    """A scene, and what the trained model says of it."""
    scene = tiny.scene(3)
    return scene, tiny_vlm.generate(scene.image, scene.questions[0].question)


def drawn(trace, values=None, tokens=None, layout=None) -> ImageMap:
    """A map of random values, or of these, on the trace's picture, a row for each generated token by default."""
    tokens = trace.generated if tokens is None else tokens
    layout = layout or trace.layouts[0]
    if values is None:
        values = np.random.default_rng(0).permuted(np.tile(np.arange(len(layout)), (len(tokens), 1)), axis=1)
    return ImageMap(torch.as_tensor(np.asarray(values)), layout, trace.images[0], tuple(tokens), "drawn")


def order(row):
    return np.argsort(-row.numpy())


def first_kept(row, count):
    keep = torch.zeros(len(row))
    keep[order(row)[:count].copy()] = 1
    return keep


# --- deletion and insertion ---


@pytest.mark.parametrize("baseline", ["mean", "zero"])
@pytest.mark.parametrize("batch", [1, 5])
def test_curves_equal_one_plain_pass_a_step(vlm, trace, baseline, batch):
    m = drawn(trace)
    curves = deletion_insertion(vlm, trace, m, baseline=baseline, steps=5, batch=batch)
    counts = [0, 7, 14, 22, 29, 36]  # fifths of 36 tokens
    np.testing.assert_allclose(curves.shares, np.array(counts) / 36)
    for number, row in enumerate(m.values):
        kept = torch.stack([first_kept(row, count) for count in counts])
        inserted = plain_scores(vlm, trace, kept, baseline)[:, number].exp()
        deleted = plain_scores(vlm, trace, 1 - kept, baseline)[:, number].exp()
        np.testing.assert_allclose(curves.insertion[number], inserted, atol=1e-9)
        np.testing.assert_allclose(curves.deletion[number], deleted, atol=1e-9)
        np.testing.assert_allclose(curves.deletion_auc[number], torch.trapezoid(deleted, torch.tensor(curves.shares)))


@pytest.mark.parametrize("baseline", ["mean", "zero", "blur"])
def test_curves_of_pixels_equal_one_plain_score_a_step(tiny_vlm, scored, baseline):
    _, trace = scored
    m = drawn(trace, tokens=trace.generated[:1])
    side = trace.layouts[0].grid[0]
    curves = deletion_insertion(tiny_vlm, trace, m, on="pixels", baseline=baseline, steps=4)
    photograph = trace.images[0]
    pixels = np.asarray(photograph)
    behind = {
        "mean": np.broadcast_to(pixels.mean((0, 1)).round(), pixels.shape),
        "zero": np.zeros_like(pixels),
        "blur": np.asarray(photograph.filter(ImageFilter.GaussianBlur(0.05 * photograph.width))),
    }[baseline]
    ids, cell = [token.id for token in trace.generated], photograph.size[0] // side
    for step in range(5):
        kept = first_kept(m.values[0], step * side * side // 4).reshape(side, side).bool().numpy()
        inside = np.kron(kept, np.ones((cell, cell), dtype=bool))[..., None]
        for curve, shown in ((curves.insertion, inside), (curves.deletion, ~inside)):
            image = Image.fromarray(np.where(shown, pixels, behind).astype(np.uint8))
            logits = tiny_vlm.score(image, prompt=trace.request.prompt, answer=ids).logits
            assert curve[0, step] == pytest.approx(float(logits[0].softmax(-1)[ids[0]]), abs=1e-4)


def test_the_ends_are_the_whole_and_the_empty_picture_whatever_the_map(vlm, trace):
    own = trace.logits.double().log_softmax(-1)[range(4), trace.generated_ids].exp()
    empty = plain_scores(vlm, trace, torch.zeros(1, 36)).exp()[0]
    for m in (drawn(trace), drawn(trace, -drawn(trace).values), drawn(trace, np.zeros((4, 36)))):
        curves = deletion_insertion(vlm, trace, m, steps=2)
        np.testing.assert_allclose(curves.deletion[:, 0], own, atol=1e-6)
        np.testing.assert_allclose(curves.insertion[:, -1], own, atol=1e-6)
        np.testing.assert_allclose(curves.deletion[:, -1], empty, atol=1e-9)
        np.testing.assert_allclose(curves.insertion[:, 0], empty, atol=1e-9)


def test_the_area_of_a_known_curve(vlm, trace, monkeypatch):
    def squared(task, keep, **_):  # the probability is the square of the share that is shown
        return (2 * keep.double().mean(1).clamp(min=1e-200).log())[:, None].expand(-1, len(task.targets))

    monkeypatch.setattr(removing, "token_scores", squared)
    curves = deletion_insertion(vlm, trace, drawn(trace), steps=100)
    assert curves.shares.shape == (37,)  # at most one a token
    np.testing.assert_allclose(curves.insertion[0], curves.shares**2, atol=1e-12)
    trapezoids = 1 / 3 + 1 / (6 * 36**2)  # what straight lines overshoot a parabola by
    np.testing.assert_allclose(curves.insertion_auc, trapezoids)
    np.testing.assert_allclose(curves.deletion_auc, trapezoids)


def test_the_true_object_beats_everything_else(tiny_vlm):
    ahead = []
    for case in tiny_cases(range(8), ["colour"]):
        trace = tiny_vlm.generate(case.image, case.question)
        true = torch.from_numpy(trace.layouts[0].to_tokens(case.mask()))[None]
        m = drawn(trace, true, trace.generated[:1])
        right, wrong = (
            deletion_insertion(tiny_vlm, trace, one, steps=8) for one in (m, drawn(trace, -true, trace.generated[:1]))
        )
        ahead.append(
            (wrong.deletion_auc - right.deletion_auc).item() > 0
            and (right.insertion_auc - wrong.insertion_auc).item() > 0
        )
    assert len(ahead) >= 6 and all(ahead)


def test_forwards_count_what_the_decoder_reads(vlm, trace):
    rows = []
    block = vlm.anatomy.decoder.blocks[0]
    handle = block.register_forward_pre_hook(lambda _module, args: rows.append(len(args[0])))
    curves = deletion_insertion(vlm, trace, drawn(trace), steps=5)
    handle.remove()
    assert curves.forwards == 2 + 4 * 2 * 4  # both ends once; four rows of four steps, there and back
    assert sum(rows) == curves.forwards + 4  # and the trial of the cache


# --- which words, and against what ---


def test_rows_alone_are_the_same_as_together(vlm, trace):
    m = drawn(trace, np.zeros((4, 36)))  # ties are broken by row, not by how many there are
    whole = deletion_insertion(vlm, trace, m, steps=4)
    for row in (0, 2, -1):
        alone = deletion_insertion(vlm, trace, m, row=row, steps=4)
        np.testing.assert_allclose(alone.deletion[0], whole.deletion[row], atol=1e-9)
        np.testing.assert_allclose(alone.insertion_auc[0], whole.insertion_auc[row], atol=1e-9)


@pytest.mark.parametrize("tokens", ["answer", "generated"])
def test_a_map_knows_its_own_words(vlm, trace, tokens):
    m = lp.attribute(vlm, trace, "gradient", tokens=tokens)
    read, told = (deletion_insertion(vlm, trace, m, steps=3, tokens=given) for given in (None, tokens))
    np.testing.assert_array_equal(read.deletion, told.deletion)


def test_a_word_of_several_tokens_has_their_joint_probability(vlm, trace):
    first = trace.prompt_length
    m = lp.attribute(vlm, trace, "gradient", tokens=[[first + 1, first + 2]])
    curves = deletion_insertion(vlm, trace, m, steps=1)
    joint = plain_scores(vlm, trace, torch.ones(1, 36))[0, 1:3].sum().exp()
    assert curves.deletion[0, 0] == pytest.approx(float(joint), abs=1e-9)


def test_tokens_that_do_not_stand_together_are_told(vlm, trace):
    first = trace.prompt_length
    apart = [[first, first + 3]]
    m = lp.attribute(vlm, trace, "gradient", tokens=apart)
    both = plain_scores(vlm, trace, torch.ones(1, 36))[0, [0, 3]].sum().exp()
    assert deletion_insertion(vlm, trace, m, steps=1).deletion[0, 0] == pytest.approx(float(both), abs=1e-9)
    forgotten = replace(centre_prior(m), about={})  # a map that no longer says which tokens it explains
    with pytest.raises(lp.BadInput, match="tokens= where the map no longer tells a row's tokens"):
        deletion_insertion(vlm, trace, forgotten, steps=1)
    curves = deletion_insertion(vlm, trace, forgotten, steps=1, tokens=apart)
    assert curves.deletion[0, 0] == pytest.approx(float(both), abs=1e-9)


def test_a_row_that_tells_no_positions_is_of_its_one_token(vlm, trace):
    assert trace.generated[2].text == ""  # a byte that its neighbour shows
    m = centre_prior(drawn(trace, tokens=trace.generated[1:2]))
    place = trace.prompt_length + 1
    read, one, two = (
        deletion_insertion(vlm, trace, m, steps=1, tokens=spelled) for spelled in (None, [place], [[place, place + 1]])
    )
    assert read.deletion[0, 0] == one.deletion[0, 0] > two.deletion[0, 0]


def test_under_a_contrast_it_is_the_share_of_both_words(vlm, trace):
    m = drawn(trace, tokens=trace.generated[:1])
    curves = deletion_insertion(vlm, trace, m, contrast="zebra", steps=2)
    removal = removal_of(vlm, trace, m, contrast="zebra")
    own, *others = removal.task.answers
    other = others[0] if others else [term.token for term in removal.task.targets[0].terms if term.sign < 0]
    keep = 1 - first_kept(m.values[0], 18)
    said = plain_logits(vlm, trace, keep, "mean", own).log_softmax(-1)[0, own[0]].exp()
    might = plain_logits(vlm, trace, keep, "mean", other).log_softmax(-1)[range(len(other)), other].sum().exp()
    assert curves.deletion[0, 1] == pytest.approx(float(said / (said + might)), abs=1e-9)


# --- the order ---


def test_a_constant_map_has_no_favourites(vlm, trace):
    m = drawn(trace, np.zeros((4, 36)))
    ranks = np.stack([removal_of(vlm, trace, m, seed=seed).ranks(row) for seed in range(300) for row in range(2)])
    mean, spread = 17.5, np.sqrt((36**2 - 1) / 12 / len(ranks))  # of a uniform rank
    assert np.abs(ranks.mean(0) - mean).max() < 4.5 * spread
    first, second = (removal_of(vlm, trace, m, seed=1).ranks(row) for row in (0, 1))
    assert not np.array_equal(first, second)
    assert np.array_equal(first, removal_of(vlm, trace, m, seed=1).ranks(0))


def removal_on(m, seed=0) -> Removal:
    """Its pixels, of a map that no model made."""
    return Removal(None, m, tuple(range(len(m))), "pixels", "mean", 1, seed)


def test_pixels_of_a_constant_map_have_no_favourites():
    m = map_on(tiled_layout(), np.zeros((1, 13)))  # cells of many sizes
    ranks = np.stack([removal_on(m, seed).ranks(0) for seed in range(1000)]).reshape(-1, 24, 40)
    middle = (24 * 40 - 1) / 2
    for rows in (slice(0, 12), slice(12, 24)):
        for columns in (slice(0, 7), slice(7, 20), slice(20, 40)):
            assert ranks[:, rows, columns].mean() == pytest.approx(middle, abs=0.05 * middle)


def test_pixels_go_cell_by_cell_and_unseen_ones_last():
    layout = grid_layout((40, 24), 3, 4, (8, 0, 32, 24))  # a crop hid both sides
    values = np.array([[3.0, 1, 1, -5, 0, 2, 7, 1, -1, 4, 4, 4]])
    m = map_on(layout, values)
    ranks = removal_on(m).ranks(0).reshape(24, 40)
    painted = m.pixels(0)
    seen = ~np.isnan(painted)
    assert sorted(ranks.ravel()) == list(range(960))
    assert ranks[seen].max() < ranks[~seen].min()
    in_turn = painted[seen][np.argsort(ranks[seen])]
    assert (np.diff(in_turn) <= 0).all()
    for cell in range(12):
        own = ranks[layout.to_pixels(np.eye(12)[cell]) == 1]
        assert own.max() - own.min() == len(own) - 1


def test_a_finer_map_orders_tokens_by_its_mean_over_them(vlm, trace):
    m = lp.attribute(vlm, trace, "occlusion", tokens="generated", on="pixels", cells=9)
    assert len(m.layout) != 36
    boxes, painted = trace.layouts[0].boxes.round().astype(int), [m.pixels(row) for row in range(4)]
    means = [[p[y0:y1, x0:x1].astype(float).mean() for x0, y0, x1, y1 in boxes] for p in painted]
    curves = deletion_insertion(vlm, trace, m, steps=6)
    same = deletion_insertion(vlm, trace, drawn(trace, np.argsort(np.argsort(means))), steps=6)
    np.testing.assert_allclose(curves.deletion, same.deletion, atol=1e-9)
    cells = deletion_insertion(vlm, trace, m, on="pixels", steps=1)
    np.testing.assert_allclose(cells.deletion[:, 0], curves.deletion[:, 0], atol=1e-9)


# --- sufficiency and comprehensiveness ---


@pytest.mark.parametrize("measure", [comprehensiveness, sufficiency])
def test_drops_equal_a_plain_loop(vlm, trace, measure):
    m = drawn(trace)
    found = measure(vlm, trace, m, batch=7)
    assert found.shares == (0.01, 0.05, 0.1, 0.2, 0.5)
    for number, row in enumerate(m.values):
        kept = torch.stack([first_kept(row, count) for count in (1, 2, 4, 8, 18)])  # of 36, rounded up
        shown = 1 - kept if measure is comprehensiveness else kept
        left = plain_scores(vlm, trace, shown)[:, number].exp()
        whole = plain_scores(vlm, trace, torch.ones(1, 36))[0, number].exp()
        assert found.whole[number] == pytest.approx(float(whole), abs=1e-9)
        np.testing.assert_allclose(found.left[number], left, atol=1e-9)
        assert found.mean[number] == pytest.approx(float((whole - left).mean()), abs=1e-9)
    assert found.forwards == 1 + 4 * 5


def test_all_parts_at_once(vlm, trace):
    m = drawn(trace)
    assert sufficiency(vlm, trace, m, shares=[1.0]).mean == pytest.approx(0, abs=1e-12)
    empty = plain_scores(vlm, trace, torch.zeros(1, 36)).exp()[0]
    np.testing.assert_allclose(comprehensiveness(vlm, trace, m, shares=[1]).left[:, 0], empty, atol=1e-9)


# --- infidelity ---


@pytest.mark.parametrize("scaled", [False, True])
def test_infidelity_is_captums_on_the_same_removals(vlm, trace, scaled):
    values = np.random.default_rng(2).normal(size=(4, 36))
    found = infidelity(vlm, trace, drawn(trace, values), samples=12, seed=3, scaled=scaled)
    removed = random_removals(36, 12, 3).double()
    for row in range(4):
        (theirs,) = captum.metrics.infidelity(
            lambda masks, row=row: plain_scores(vlm, trace, masks)[:, row],
            lambda masks: (removed, masks - removed),
            torch.ones(1, 36, dtype=torch.float64),
            torch.from_numpy(values[row].astype(np.float32)).double()[None],
            n_perturb_samples=12,
            normalize=scaled,
        )
        assert found.values[row] == pytest.approx(float(theirs), rel=1e-9)
    whole, less = (plain_scores(vlm, trace, keep) for keep in (torch.ones(1, 36), 1 - removed))
    np.testing.assert_allclose(found.variance, ((whole - less) ** 2).mean(0), atol=1e-9)
    assert found.forwards == 13


def test_a_map_that_adds_up_to_what_is_lost_is_faithful(vlm, trace, monkeypatch):
    weights = np.random.default_rng(0).integers(-5, 6, (4, 36)).astype(float)

    def linear(task, keep, **_):
        return keep.double() @ torch.from_numpy(weights).T

    monkeypatch.setattr(infidelity_file, "token_scores", linear)
    assert infidelity(vlm, trace, drawn(trace, weights), scaled=False).values == pytest.approx(0, abs=1e-12)
    larger = drawn(trace, 8 * weights)
    found = infidelity(vlm, trace, larger)
    assert found.values == pytest.approx(0, abs=1e-12) and found.scale == pytest.approx(1 / 8)
    assert (infidelity(vlm, trace, larger, scaled=False).values > found.variance).all()
    nothing = infidelity(vlm, trace, drawn(trace, np.zeros((4, 36))))
    np.testing.assert_allclose(nothing.values, nothing.variance)


def test_pixels_of_a_token_add_up(vlm, trace):
    fine = lp.attribute(vlm, trace, "input_x_gradient", tokens="generated", on="pixels")
    sums = np.zeros((4, 36))
    for values, position in zip(fine.values.T.double().numpy(), fine.layout.positions, strict=True):
        sums[:, np.flatnonzero(trace.layouts[0].positions == position)[0]] += values
    found, same = (infidelity(vlm, trace, m, samples=5) for m in (fine, drawn(trace, sums)))
    np.testing.assert_allclose(found.values, same.values, rtol=1e-4)
    blocks = lp.attribute(vlm, trace, "occlusion", tokens="generated", on="pixels", cells=3)
    with pytest.raises(lp.BadInput, match='belong to none; make it with on="tokens"'):
        infidelity(vlm, trace, blocks)


def test_removals_take_any_number_as_often():
    removed = random_removals(10, 4000, seed=1)
    assert removed.any(1).all()
    counts = np.bincount(removed.sum(1).numpy(), minlength=11)[1:]
    assert np.abs(counts / 4000 - 0.1).max() < 0.025
    assert (removed.float().mean(0) - 0.55).abs().max() < 0.03
    assert torch.equal(removed, random_removals(10, 4000, seed=1))


# --- sensitivity ---


def test_sensitivity_is_captums_under_the_same_noise(tiny_vlm, scored):
    _, trace = scored
    found = sensitivity(tiny_vlm, trace, "gradient", tokens=trace.prompt_length, radius=0.05, samples=3, seed=4)
    ids = [token.id for token in trace.generated]
    generator = np.random.default_rng(4)

    def explain(photographs):
        photographs = photographs[0] if isinstance(photographs, tuple) else photographs
        maps = []
        for pixels in photographs:
            image = Image.fromarray(pixels.numpy().astype(np.uint8))
            again = tiny_vlm.score(image, prompt=trace.request.prompt, answer=ids)
            maps.append(lp.attribute(tiny_vlm, again, "gradient", tokens=again.prompt_length).values[0])
        return (torch.stack(maps).double(),)

    def perturb(photographs):
        noised = (noisy(Image.fromarray(one.numpy().astype(np.uint8)), 0.05, generator) for one in photographs)
        return torch.stack([torch.from_numpy(np.asarray(one).copy()).double() for one in noised])

    pixels = torch.from_numpy(np.asarray(trace.images[0]).copy()).double()[None]
    with torch.enable_grad():  # captum turns gradients off
        (theirs,) = captum.metrics.sensitivity_max(explain, pixels, perturb, n_perturb_samples=3)
    assert found.largest[0] == pytest.approx(float(theirs), rel=1e-4)
    assert found.each.shape == (3, 1) and found.each.max() == found.largest[0]
    assert (found.forwards, found.backwards) == (4, 4)


def test_noisy_pictures_are_asked_for_the_same_words(vlm, monkeypatch):
    trace = vlm.generate([photo(), photo(seed=1)], "What is it?", max_new_tokens=4)
    seen = []

    def keeping(vlm, given, *args, **options):
        seen.append(given)
        return lp.attribute(vlm, given, *args, **options)

    monkeypatch.setattr(sensitivity_file, "attribute", keeping)
    found = sensitivity(vlm, trace, "gradient", 1, "generated", radius=0.5, samples=2)
    assert found.each.shape == (2, 4) and (found.each > 0).all()
    for one in seen[1:]:
        assert torch.equal(one.generated_ids, trace.generated_ids)
        np.testing.assert_array_equal(one.images[0], trace.images[0])
        change = np.asarray(one.images[1]).astype(int) - np.asarray(trace.images[1])
        assert 100 < np.abs(change).max() <= 128
    assert np.abs(np.asarray(seen[1].images[1]).astype(int) - np.asarray(seen[2].images[1])).max() > 100


def test_a_map_that_looks_at_nothing_is_steady(vlm, trace, monkeypatch):
    nothing = replace(drawn(trace, np.zeros((4, 36))), about={"forwards": 0, "backwards": 0})
    monkeypatch.setattr(sensitivity_file, "attribute", lambda *_, **__: nothing)
    assert (sensitivity(vlm, trace, tokens="generated", samples=2).largest == 0).all()


# --- what is refused ---


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"on": "patches"}, 'on= takes "tokens" or "pixels"; got \'patches\''),
        ({"baseline": "blur"}, "on tokens, baseline= takes 'mean' or 'zero'; got 'blur'"),
        ({"on": "pixels", "baseline": "noise"}, "on pixels, baseline= takes 'mean' or 'zero' or 'blur'; got 'noise'"),
        ({"steps": 0}, "(steps=...) takes a whole number from 1 to 1,000,000; got 0"),
        ({"steps": 2.5}, "(steps=...) takes a whole number from 1 to 1,000,000; got 2.5"),
        ({"batch": 0}, "(batch=...) takes a whole number from 1 to 1,000,000; got 0"),
        ({"tokens": "answer"}, "tokens='answer' names those at"),
        ({"row": 4}, "row 4 is not there"),
        ({"image": 1}, "picture 1 is not there"),
    ],
)
def test_wrong_options_are_told(vlm, trace, options, sentence):
    with pytest.raises(lp.ProbeError, match=re.escape(sentence)):
        deletion_insertion(vlm, trace, drawn(trace), **options)


def test_a_map_of_something_else_is_told(vlm, trace):
    m = drawn(trace)
    of_another = vlm.generate(photo(seed=5), "What is it?", max_new_tokens=4)
    larger = vlm.generate(photo(96, 72), "What is it?", max_new_tokens=4)
    for other in (of_another, larger):
        with pytest.raises(lp.BadInput, match="of another picture"):
            deletion_insertion(vlm, other, m)
        with pytest.raises(lp.BadInput, match="of another picture"):
            infidelity(vlm, other, m)
    answer = vlm.score(photo(), "What is it?", "a dog")
    with pytest.raises(lp.BadInput, match="where this trace says"):
        comprehensiveness(vlm, answer, m)
    asked = drawn(trace, tokens=trace.tokens[trace.prompt_length - 2 : trace.prompt_length])
    with pytest.raises(lp.OutOfRange, match="in the prompt; only what the model said"):
        sufficiency(vlm, trace, asked)


@pytest.mark.parametrize("shares", [[], [0], [0.5, 1.1], [-0.1]])
def test_shares_are_shares(vlm, trace, shares):
    with pytest.raises(lp.BadInput, match="above 0 and at most 1"):
        sufficiency(vlm, trace, drawn(trace), shares=shares)


def test_wrong_options_of_the_others_are_told(vlm, trace):
    m = drawn(trace)
    for options, sentence in (
        ({"samples": 0}, "samples=.* takes"),
        ({"of": "chance"}, "of= takes"),
        ({"baseline": "blur"}, "baseline= takes"),
    ):
        with pytest.raises(lp.BadInput, match=sentence):
            infidelity(vlm, trace, m, **options)
    for options, sentence in (
        ({"samples": 0}, "samples=.* takes"),
        ({"radius": 0}, "radius=.* takes"),
        ({"method": "magic"}, "magic"),
        ({"options": {"stride": 2}}, "no option stride="),
    ):
        with pytest.raises(lp.BadInput, match=sentence):
            sensitivity(vlm, trace, **options)
    inputs, asked = vlm.model_inputs(photo(), "What is it?")
    ready = vlm.generate(asked.images, inputs=inputs, max_new_tokens=2)
    with pytest.raises(lp.BadInput, match="ready-made inputs"):
        sensitivity(vlm, ready)
    with pytest.raises(lp.BadInput, match="ready-made inputs"):
        deletion_insertion(vlm, ready, drawn(ready), on="pixels")


def test_steps_name_the_whole_and_the_empty_picture_once(vlm, trace):
    removal = removal_of(vlm, trace, drawn(trace))
    removal.probabilities(
        [Step(row, count, removed) for row in range(4) for count in (0, 36) for removed in (True, False)]
    )
    assert removal.forwards == 2
