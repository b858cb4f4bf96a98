"""Two models over a data set: nothing of a model and itself; of a changed one its head, its weight and its flips."""

import json

import numpy as np
import pytest
import torch

import llava_probe as lp
from llava_probe import tiny
from llava_probe.compare.alignment import align
from llava_probe.compare.cka import unbiased_cka
from llava_probe.compare.models import _change
from llava_probe.compare.over_pictures import PictureSums
from llava_probe.compare.unrelated import drawn_pictures
from tests.compare.changed import with_a_head_changed
from tests.models import llava_processor, photo, random_llava

LAYER, HEAD = 3, 2  # among others it carries colours: moved, some of them are others
SCENES = (0, 3, 4, 9, 10)


@pytest.fixture(scope="module")
def rows():
    found = []
    for seed in SCENES:
        scene = tiny.scene(seed)
        asked = [each for each in scene.questions if each.kind == "colour"][:1]
        found += [{"image": scene.image, "question": q.question, "answer": q.answer} for q in asked]
    return [*found, {**found[0], "question": "What shape is it?", "answer": None}]


@pytest.fixture(scope="module")
def unrelated():
    return drawn_pictures(2)


@pytest.fixture(scope="module")
def other():
    return with_a_head_changed(LAYER, HEAD, weight="v_proj")


@pytest.fixture(scope="module")
def found(tiny_vlm, other, rows, unrelated):
    broken = {"image": "nowhere.png", "question": "What is it?", "answer": None}
    return lp.compare_models(tiny_vlm, other, [*rows, broken], unrelated=unrelated, progress=False)


def test_a_model_and_itself_differ_in_nothing(tiny_vlm, rows, unrelated):
    found = lp.compare_models(tiny_vlm, tiny_vlm, rows[:2], unrelated=unrelated[:1], progress=False)
    assert len(found.largest) == 11 and set(found.largest.values()) == {0.0}
    assert not found.reasons and not found.left_out and not found.flipped()
    assert "the weights that moved most: none" in str(found) and "left on unrelated pictures: none" in str(found)


def test_a_changed_head_is_named_first_and_alone(found):
    first = found.heads(1)[0]
    assert (first.layer, first.head) == (LAYER, HEAD)
    assert int((found.own.value > 0).sum()) == 1
    assert found.modules().data["weight"] == [f"model.language_model.layers.{LAYER}.self_attn.v_proj.weight"]
    assert found.largest["weight"] == found.weights[0].difference > 0
    assert f"heads that moved most: layer {LAYER} head {HEAD}" in str(found)
    moved = found.drift["predicting"].value > 0
    assert moved.tolist() == [False] * (LAYER + 1) + [True] * (6 - LAYER)


def test_flips_are_the_answers_that_either_gives_alone(tiny_vlm, other, rows, found):
    said = [[vlm.generate(row["image"], row["question"]) for row in rows] for vlm in (tiny_vlm, other)]
    answers = [[trace.answer.strip() for trace in traces] for traces in said]
    assert [(each.a, each.b) for each in found.samples] == list(zip(*answers, strict=True))
    flipped = [one != two for one, two in zip(*answers, strict=True)]
    assert any(flipped) and not all(flipped) and [each.flipped for each in found.samples] == flipped
    assert float(found.flips) == pytest.approx(np.mean(flipped)) and found.pictures == len(SCENES)
    judged = [each.correct for each in found.samples if each.correct is not None]
    assert len(judged) == len(rows) - 1 and all(one for one, _ in judged)
    assert sum(two for _, two in judged) == sum(
        two == row["answer"] for two, row in zip(answers[1], rows, strict=True) if row["answer"]
    )
    table = found.by_question().data
    assert sum(table["asked"]) == len(rows) and set(table["question"]) == {row["question"] for row in rows}
    worst = found.flipped(1)[0]
    assert worst.logprob == min(each.logprob for each in found.samples if each.flipped)
    for each, trace, row in zip(found.samples, said[0], rows, strict=True):
        again = lp.confidence(other.score(row["image"], row["question"], trace.generated_ids)).mean
        assert each.logprob == pytest.approx(again - lp.confidence(trace).mean, abs=1e-5)


def test_layers_are_those_of_two_traces_over_one_answer(tiny_vlm, other, rows, found):
    kl, looked, drift = [], [], []
    for row in rows:
        one = tiny_vlm.generate(row["image"], row["question"], capture=lp.Capture(positions="all"))
        two = other.rerun(one, answer=one.generated_ids)
        apart = lp.compare(one, two, models=(tiny_vlm, other))
        kl.append(apart.lens.kl.mean(1))
        looked.append(apart.looking.moved)
        drift.append(apart.drift.distance[0])
    for means, each in ((found.kl, kl), (found.looked, looked), (found.drift["image"], drift)):
        np.testing.assert_allclose(means.value, torch.stack(each).mean(0).numpy(), atol=1e-5, rtol=1e-3)
        assert (means.low <= means.value + 1e-12).all() and (means.value <= means.high + 1e-12).all()


def test_answers_part_at_a_layer_behind_the_changed_one(found):
    parted = [each.parting for each in found.samples if each.flipped]
    assert all(layer is None or layer > LAYER for layer in parted) and any(parted)
    assert all(each.parting is None for each in found.samples if not each.flipped)


def test_rows_of_cka_are_pictures(tiny_vlm, other, rows, found):
    pictures = {}
    for row in rows:
        states = []
        for vlm in (tiny_vlm, other):
            trace = vlm.generate(row["image"], row["question"], max_new_tokens=1, capture=lp.Capture(positions="image"))
            states.append(trace.hidden(at=lp.IMAGE).double().mean(0))  # the tiny model has no sinks
        pictures.setdefault(row["image"].tobytes(), states)
    one, two = (torch.stack(each).numpy() for each in zip(*pictures.values(), strict=True))
    assert found.dropped == (0, 196 * len(rows)) and [each.rows for each in found.similar["image"]] == [len(SCENES)] * 7
    for layer, each in enumerate(found.similar["image"]):
        assert each.cka.value == pytest.approx(unbiased_cka(one[:, layer], two[:, layer]), abs=1e-3)
    assert np.isnan(found.similar["last"][0].cka.value), "the last position's embedding is the same for every picture"
    assert found.alike().data["layer"] == list(range(7))
    with pytest.raises(lp.BadInput, match="states were compared at"):
        found.alike("sky")


def test_what_is_left_is_the_mean_difference_through_the_lens(tiny_vlm, other, unrelated, found):
    apart, own = [], []
    for image, question in unrelated:
        traces = [vlm.generate(image, question, max_new_tokens=1) for vlm in (tiny_vlm, other)]
        one, two = (trace.hidden(layer=5, at=lp.LAST)[0] for trace in traces)
        apart.append(two - one)
        own.append(float(one.norm()))
    mean = torch.stack(apart).mean(0)
    (left,) = [each for each in found.unrelated if each.layer == 5 and each.place == "last"]
    assert left.length == pytest.approx(float(mean.norm()) / np.mean(own), rel=1e-4)
    assert left.steadiness == pytest.approx(
        float(mean.norm()) / np.mean([float(each.norm()) for each in apart]), rel=1e-4
    )
    inside = other.model.model.language_model
    normed = inside.norm.weight * mean / (mean.pow(2).mean() + inside.norm.variance_epsilon).sqrt()
    ids = (other.model.lm_head.weight @ normed).topk(5).indices.tolist()
    assert left.words == tuple(other.processor.tokenizer.decode([token]) for token in ids)
    assert not any(each.length for each in found.unrelated if each.layer <= LAYER)


def test_a_sample_that_cannot_be_asked_is_listed(found, rows):
    assert len(found) == len(rows) and len(found.left_out) == 1
    assert found.left_out[0].startswith(f"row {len(rows)}: ") and "nowhere.png" in found.left_out[0]
    assert "1 samples could not be asked" in str(found)


def test_it_is_data_too(found, rows, tmp_path):
    assert len(json.loads(json.dumps(found.to_dict()))["question"]) == len(rows)
    assert found.to_csv(tmp_path / "found.csv").read_text().count("\n") == len(rows) + 1
    assert "other answers" in repr(found) and "<table>" in found._repr_html_()
    assert found.flipped_pictures(1).data["asked"] and found.layers().data["layer"] == list(range(7))


def test_models_of_other_sizes_are_compared_in_what_they_share(tiny_vlm, random_vlm, rows):
    short = [(rows[0]["image"], "what is the text on the stop sign")]
    found = lp.compare_models(tiny_vlm, random_vlm, short, unrelated=short, max_new_tokens=2, progress=False)
    assert len(found) == 1 and {"drift", "lens", "attention", "own heads", "weights", "unrelated pictures"} <= set(
        found.reasons
    )
    assert found.kl is None and found.own is None and not found.weights and "left out" in str(found)


def test_means_are_of_samples_and_intervals_of_pictures():
    gathered = PictureSums()
    for number in range(30):
        for value in (number, number + 1.0):  # two samples a picture that are nearly the same
            gathered.add(str(number), {"x": torch.tensor([value, 0.0]), "y": None})
    found = gathered.means("x", 0)
    assert found.value.tolist() == [15.0, 0.0] and "y" not in gathered and gathered.means("y", 0) is None
    error = np.std(np.arange(30)) / np.sqrt(30)  # of thirty pictures, not of sixty samples
    assert (found.high - found.low)[0] == pytest.approx(2 * 1.96 * error, rel=0.1)
    one = PictureSums()
    one.add("a", {"x": torch.tensor(1.0)})
    assert np.isnan(one.means("x", 0).low) and str(one.means("x", 0).estimate) == "1.000"


@pytest.mark.parametrize(
    ("samples", "sentence"),
    [
        ([("nowhere.png", "What?")], "none of these samples could be asked"),
        ([1, 2], "pairs of a picture and a question"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(tiny_vlm, samples, sentence):
    with pytest.raises(lp.BadInput, match=sentence):
        lp.compare_models(tiny_vlm, tiny_vlm, samples, progress=False)


def test_models_that_cut_a_picture_into_other_numbers_of_tokens_are_compared_in_what_they_share():
    """Of one size, 36 and 37 visual tokens: there are no states to hand over, and none at visual tokens to compare."""
    pair = [lp.VLM(random_llava(strategy=way), llava_processor(strategy=way)) for way in ("default", "full")]
    rows = [(photo(seed=seed), "What is in the picture?") for seed in (0, 1)]
    found = lp.compare_models(*pair, rows, unrelated=rows[:1], max_new_tokens=4, progress=False)
    assert len(found.samples) == 2 and not found.left_out
    assert "another number of tokens" in found.reasons["own heads"] and found.own is None
    assert set(found.similar) == {"last"} and found.kl is not None


def test_answers_in_other_tokens_are_weighed_as_wholes(tiny_vlm):
    trace = tiny_vlm.generate(tiny.scene(34).image, "What is the text on the stop sign?")
    assert len(trace.positions("answer")) == 4, "S, T, O and P"
    assert float(_change(trace, trace, align(trace, trace))) == 0
    scored = tiny_vlm.score(tiny.scene(34).image, "What is the text on the stop sign?", answer="STO")
    whole, part = (lp.confidence(each).logprob.double() for each in (trace, scored))
    assert float(_change(trace, scored, align(trace, scored))) == pytest.approx(
        float(part[:3].sum() - whole[:4].sum()) / 4, abs=1e-6
    )
