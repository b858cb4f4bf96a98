"""An ablation is the model with the part truly gone: columns zeroed, blocks removed, vectors replaced by hand."""

from __future__ import annotations

import copy

import pytest
import torch

import llava_probe as lp
from llava_probe import tiny
from tests.interventions.by_hand import feed_of, layers_of, passed, projection_of, steps
from tests.models import llava_processor, photo, random_llava

QUESTION = "what is the text on the stop sign"
NEW = {"max_new_tokens": 4, "min_new_tokens": 4, "suppress_tokens": [3]}


@pytest.fixture(scope="module")
def vlm():
    return lp.VLM(random_llava().double(), llava_processor())


@pytest.fixture(scope="module")
def plain(vlm):
    return vlm.generate(photo(), QUESTION, **NEW)


def visual(trace):
    return [token.position for token in trace.tokens if token.role == "image"]


def same(trace, out, close=1e-9):
    torch.testing.assert_close(trace.logits.double(), steps(trace, out).double(), atol=max(close, 1e-5), rtol=1e-5)


def under(vlm, plain, **given):
    """The answer's logits under an ablation, in one pass; generated they are the same."""
    with lp.ablate(vlm, **given) as cut:
        scored = vlm.rerun(plain, answer=plain.generated_ids)
    assert cut.acts
    assert not torch.equal(scored.logits, plain.logits)
    return scored


# --- heads ---


def test_heads_are_gone_as_if_their_columns_of_the_output_projection_were_zero(vlm, plain):
    scored = under(vlm, plain, heads={1: [0, 3], 2: 1}, with_="zero")
    other = lp.VLM(copy.deepcopy(vlm.model), vlm.processor)
    for layer, heads in ((1, (0, 3)), (2, (1,))):
        weight = projection_of(layers_of(other)[layer]).weight
        for head in heads:
            weight.data[:, 16 * head : 16 * (head + 1)] = 0
    cut = other.rerun(plain, answer=plain.generated_ids)
    assert torch.equal(scored.logits, cut.logits)
    assert torch.equal(scored.hidden(), cut.hidden())


def test_the_mean_of_a_head_is_of_what_it_gives_in_the_prompt(vlm, plain):
    scored = under(vlm, plain, heads=[(1, 2)])

    def mean(heads):
        heads = heads.clone()
        heads[..., 32:48] = heads[:, : plain.prompt_length, 32:48].mean(1, keepdim=True)
        return heads

    same(scored, passed(vlm, plain, [(projection_of(layers_of(vlm)[1]), "in", mean)]))


def test_heads_at_some_positions_alone(vlm, plain):
    scored = under(vlm, plain, heads={1: 2}, with_="zero", at="last")

    def last(heads):
        heads = heads.clone()
        heads[:, plain.prompt_length - 1, 32:48] = 0
        return heads

    same(scored, passed(vlm, plain, [(projection_of(layers_of(vlm)[1]), "in", last)]))


# --- MLPs and blocks ---


def test_a_block_with_nothing_in_its_place_is_a_model_without_it(vlm, plain):
    scored = under(vlm, plain, layers=[0, 2], with_="zero")
    model = copy.deepcopy(vlm.model)
    blocks = model.model.language_model.layers
    model.model.language_model.layers = torch.nn.ModuleList([blocks[1], blocks[3]])
    model.model.language_model.config.num_hidden_layers = 2
    shorter = lp.VLM(model, vlm.processor)
    same(scored, passed(shorter, plain))


@pytest.mark.parametrize("what", ["mlp", "layers"])
def test_means_of_parts_are_the_dense_ones(what, vlm, plain):
    scored = under(vlm, plain, **{what: 1})
    block, held = layers_of(vlm)[1], {}

    def keep(entered):
        held["entered"] = entered
        return entered

    def mean(output):
        entered = held["entered"] if what == "layers" else 0
        added = (output - entered)[:, : plain.prompt_length].mean(1, keepdim=True)
        return (entered + added).expand_as(output)

    changes = [(block, "in", keep), (block, "out", mean)] if what == "layers" else [(feed_of(block), "out", mean)]
    same(scored, passed(vlm, plain, changes))


def test_a_resampled_part_is_one_that_it_gave_elsewhere_and_a_seed_gives_it_again(vlm, plain):
    block = layers_of(vlm)[2]
    gave, stands = [], []
    passed(vlm, plain, [(feed_of(block), "out", lambda out: gave.append(out[0]) or out)])
    with lp.ablate(vlm, mlp=2, with_="resample", seed=3):
        one = vlm.rerun(plain, answer=plain.generated_ids)
        passed(vlm, plain, [(feed_of(block), "out", lambda out: stands.append(out[0]) or out)])
    with lp.ablate(vlm, mlp=2, with_="resample", seed=3):
        again = vlm.rerun(plain, answer=plain.generated_ids)
    with lp.ablate(vlm, mlp=2, with_="resample", seed=4):
        other = vlm.rerun(plain, answer=plain.generated_ids)
    assert torch.equal(one.logits, again.logits) and not torch.equal(one.logits, other.logits)


# --- tokens ---


def test_tokens_are_replaced_where_they_enter(vlm, plain):
    places = visual(plain)[5:12]
    new = torch.randn(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for with_, make in {
        "zero": lambda entry: torch.zeros(64, dtype=torch.float64),
        "mean": lambda entry: entry[0, visual(plain)].mean(0),
        "given": lambda entry: new,
    }.items():
        scored = under(vlm, plain, tokens=places, with_=new if with_ == "given" else with_)

        def replaced(entry, make=make):
            entry = entry.clone()
            entry[0, places] = make(entry)
            return entry

        same(scored, passed(vlm, plain, [(layers_of(vlm)[0], "in", replaced)]))


def test_the_mean_for_a_word_is_of_the_words_and_each_picture_has_its_own(vlm):
    plain = vlm.generate([photo(), photo(50, 60, 2)], "what is the difference", **NEW)
    first, second = (layout.positions.tolist() for layout in plain.layouts)
    word = list(plain.find("difference", "prompt"))
    scored = under(vlm, plain, tokens=[*first[:3], *second[:2], *word])
    text = [place for place in range(plain.prompt_length) if place not in (*first, *second)]

    def replaced(entry):
        new = entry.clone()
        for places, own in ((first[:3], first), (second[:2], second), (word, text)):
            new[0, places] = entry[0, own].mean(0)
        return new

    same(scored, passed(vlm, plain, [(layers_of(vlm)[0], "in", replaced)]))


def test_drawn_tokens_are_others_of_the_picture(vlm, plain):
    entries = []
    places = visual(plain)[:8]
    decoder = layers_of(vlm)[0]
    passed(vlm, plain, [(decoder, "in", lambda entry: entries.append(entry[0]) or entry)])
    inputs, _ = vlm.model_inputs(photo(), prompt=plain.request.prompt)
    with lp.ablate(vlm, tokens=lp.Region((0, 0, 64, 10)), with_="resample"):
        trace = vlm.generate(photo(), QUESTION, capture=lp.Capture(positions=["image"]), **NEW)
    taken = lp.Region((0, 0, 64, 10)).tokens(trace.layouts[0])
    given = trace.hidden(layer=0, at="image")
    was = entries[0][visual(plain)]
    rest = [index for index in range(len(was)) if index not in taken.tolist()]
    assert len(taken) and torch.equal(given[rest], was[rest])
    for row in given[taken]:
        assert any(torch.equal(row, was[index]) for index in rest)
    assert places and inputs


def test_a_region_and_its_ring_are_the_tokens_under_it(vlm, plain):
    where = lp.Region((20, 10, 40, 30))
    inside = plain.positions(where)
    with lp.ablate(vlm, tokens=where, ring=1) as ringed:
        vlm.generate(photo(), QUESTION, **NEW)
    with lp.ablate(vlm, tokens=lp.Region((20, 10, 40, 30), ring=1)) as same_ring:
        vlm.generate(photo(), QUESTION, **NEW)
    cells = [divmod(visual(plain).index(place), 6) for place in inside]
    around = {(r, c) for r in range(6) for c in range(6) for y, x in cells if max(abs(r - y), abs(c - x)) <= 1}
    assert ringed.acts[0].count == same_ring.acts[0].count == len(around) > len(inside)


def test_the_answer_does_not_depend_on_a_picture_whose_tokens_are_gone(vlm):
    with lp.ablate(vlm, tokens=lp.IMAGE, with_="zero"):
        one, two = (vlm.generate(photo(seed=seed), QUESTION, **NEW) for seed in (0, 1))
    assert torch.equal(one.logits, two.logits)


@pytest.mark.parametrize("position", ["image_mean", "image"])
def test_a_store_gives_the_mean_of_its_visual_tokens(position, vlm, plain, tmp_path):
    pytest.importorskip("pyarrow")
    rows = [{"image": photo(seed=seed), "question": QUESTION} for seed in range(3)]
    store = lp.extract(vlm, rows, tmp_path / "store", layers=[0], positions=[position])
    kept = lp.Capture(positions="prompt")
    traces = [vlm.generate(row["image"], QUESTION, max_new_tokens=1, capture=kept) for row in rows]
    mean = torch.cat([trace.hidden(layer=0, at="image") for trace in traces]).mean(0)
    one, two = (under(vlm, plain, tokens=visual(plain)[:5], with_=with_) for with_ in (store, mean.float()))
    torch.testing.assert_close(one.logits, two.logits, atol=1e-4, rtol=1e-4)


# --- whatever runs in it ---


WAYS = {
    "tokens": {"tokens": "image"},
    "heads": {"heads": {1: [0, 1]}},
    "mlp": {"mlp": [1, 2]},
    "layers": {"layers": 2},
}


@pytest.mark.parametrize("with_", ["mean", "resample"])
@pytest.mark.parametrize("name", WAYS)
def test_a_batch_gives_each_what_it_gives_alone_and_a_cache_what_one_pass_gives(name, with_, vlm):
    given = {**WAYS[name], "with_": with_}
    if name == "tokens":
        given["tokens"] = lp.Region((5, 32, 25, 46))
    asked = [(photo(), QUESTION), (photo(30, 90, 1), "where")]
    with lp.ablate(vlm, **given):
        batch = vlm.generate_batch(asked, **NEW)
        for (image, question), together in zip(asked, batch, strict=True):
            alone = vlm.generate(image, question, **NEW)
            assert together.generated_ids.tolist() == alone.generated_ids.tolist()
            torch.testing.assert_close(together.logits, alone.logits, atol=1e-5, rtol=1e-5)
            if with_ == "mean":
                scored = vlm.rerun(alone, answer=alone.generated_ids)
                torch.testing.assert_close(scored.logits, alone.logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("setting", [{"num_beams": 2}, {"cache_implementation": "static"}, {"use_cache": False}])
@pytest.mark.parametrize("name", WAYS)
def test_every_way_of_decoding(name, setting, vlm, plain):
    with lp.ablate(vlm, **WAYS[name]):
        decoded = vlm.generate(photo(), QUESTION, **NEW, **setting)
        scored = vlm.rerun(plain, answer=decoded.generated_ids)
    torch.testing.assert_close(decoded.logits, scored.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["heads", "mlp", "layers"])
def test_the_prompt_in_chunks_is_refused_where_a_mean_of_it_is_wanted(name, vlm, plain):
    with pytest.raises(lp.BadInput, match="leave out prefill_chunk_size"), lp.ablate(vlm, **WAYS[name]):
        vlm.generate(photo(), QUESTION, **NEW, prefill_chunk_size=16)
    with lp.ablate(vlm, **WAYS[name], with_="zero"):
        chunks = vlm.generate(photo(), QUESTION, **NEW, prefill_chunk_size=16)
        whole = vlm.generate(photo(), QUESTION, **NEW)
    torch.testing.assert_close(chunks.logits, whole.logits, atol=1e-4, rtol=1e-4)
    assert vlm.generate(photo(), QUESTION, **NEW) == plain


def test_phases_are_those_of_the_positions(vlm, plain):
    with lp.ablate(vlm, mlp=1, phase="answer") as later:
        answer = vlm.rerun(plain, answer=plain.generated_ids)
    with lp.ablate(vlm, mlp=1, phase="prompt"):
        prompt = vlm.rerun(plain, answer=plain.generated_ids)
    scored = vlm.rerun(plain, answer=plain.generated_ids)
    assert torch.equal(answer.logits[0], scored.logits[0]) and not torch.equal(answer.logits[1], scored.logits[1])
    assert not torch.equal(prompt.logits[0], scored.logits[0])
    assert [act.count for act in later.acts] == [len(plain.generated_ids) - 1]


def test_methods_that_run_the_model_again_see_it_without_its_tokens(vlm, plain):
    region = lp.Region((0, 0, 30, 48))
    gone = region.tokens(plain.layouts[0])
    with lp.ablate(vlm, tokens=region, with_="zero"):  # a mean would be of the tokens that are taken away too
        for method in ("occlusion", "input_x_gradient", "relevance"):
            values = lp.attribute(vlm, plain, method, tokens=[plain.prompt_length]).values[0]
            if method != "relevance":  # which gives attention's share to whatever stands there
                assert float(values[gone].abs().max()) < 1e-6 < float(values.abs().max())


# --- the trained model ---


def test_without_the_asked_object_the_tiny_model_does_not_know(tiny_vlm):
    known = lost = kept = 0
    for seed in range(100, 130):
        scene = tiny.scene(seed)
        question = next((each for each in scene.questions if each.kind == "shape" and len(each.objects) == 1), None)
        if question is None:
            continue
        own = scene.objects[question.objects[0]]
        other = next((each for each in scene.objects if each is not own), None)
        if other is None:
            continue
        ask = {"image": scene.image, "question": question.question, "max_new_tokens": 2}
        if tiny_vlm.generate(**ask).answer.strip() != question.answer:
            continue
        known += 1
        with lp.ablate(tiny_vlm, tokens=lp.Region(own), ring=1):
            lost += tiny_vlm.generate(**ask).answer.strip() != question.answer
        with lp.ablate(tiny_vlm, tokens=lp.Region(other)):
            kept += tiny_vlm.generate(**ask).answer.strip() == question.answer
    assert known >= 10 and lost > known / 3 and kept > 0.9 * known


# --- what cannot be meant ---


WRONG = {
    "nothing": ({}, lp.BadInput, "got none"),
    "two things": ({"mlp": 1, "layers": 1}, lp.BadInput, "got mlp= and layers="),
    "a head": ({"heads": {1: 9}}, lp.OutOfRange, "block 1 has heads 0 to 3"),
    "a block": ({"layers": 9}, lp.OutOfRange, "blocks 0 to 3"),
    "a block's MLP": ({"mlp": 9}, lp.OutOfRange, "mlp 9 is not there"),
    "blocks the wrong way": ({"layers": range(3, 1)}, lp.BadInput, "runs the other way"),
    "a ring of heads": ({"heads": {1: 0}, "ring": 1}, lp.BadInput, "have no neighbours"),
    "a place of tokens": ({"tokens": "image", "at": "last"}, lp.BadInput, "tokens= says it itself"),
    "NaN": ({"mlp": 1, "with_": torch.tensor([float("nan")])}, lp.NotANumber, "NaN"),
    "a word nobody wrote": ({"tokens": "zebra"}, lp.OutOfRange, "neither a word"),
    "a region elsewhere": ({"tokens": lp.Region((900, 900, 950, 950))}, lp.BadInput, "outside its picture"),
    "another width": ({"mlp": 1, "with_": torch.ones(7)}, lp.BadInput, r"takes a tensor \[64\]"),
    "nothing to draw from": ({"tokens": "image", "with_": "resample"}, lp.BadInput, "nothing left to draw from"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_meant_is_a_sentence_and_leaves_the_model_as_it_was(name, vlm, plain):
    given, kind, why = WRONG[name]
    with pytest.raises(kind, match=why), lp.ablate(vlm, **given):
        vlm.generate(photo(), QUESTION, **NEW)
    assert vlm.generate(photo(), QUESTION, **NEW) == plain


NOTHING = {"tokens": {"tokens": []}, "heads": {"heads": {}}, "mlp": {"mlp": []}, "layers": {"layers": []}}


@pytest.mark.parametrize("name", NOTHING)
def test_nothing_raises_unless_it_is_allowed_and_is_the_plain_run_to_the_bit(name, vlm, plain):
    with pytest.raises(lp.NotActed, match="did nothing"), lp.ablate(vlm, **NOTHING[name]):
        vlm.generate(photo(), QUESTION, **NEW)
    with lp.ablate(vlm, **NOTHING[name], allow_nothing=True):
        trace = vlm.generate(photo(), QUESTION, **NEW)
    assert torch.equal(trace.logits, plain.logits) and torch.equal(trace.hidden(), plain.hidden())


def test_a_plan_spells_out_tokens_and_modules(vlm, plain):
    with pytest.raises(lp.NotActed), lp.ablate(vlm, heads={1: [0, 2]}, at="stop", phase="prompt") as cut:
        told = cut.plan(plain)
    assert "LlamaAttention of blocks 1" in told and "block 1: heads 0, 2" in told
    assert "'stop'" in told and "replaced with mean" in told and "on the prompt" in told
