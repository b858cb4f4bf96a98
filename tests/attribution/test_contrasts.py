"""A word rather than another of several tokens: two sequences in one graph, one where they are the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import llava_probe as lp
from llava_probe.attribution import explained_by, prepared
from llava_probe.attribution.engine.target import Task, Term
from tests.attribution.test_relevance import dense
from tests.models import llava_processor, photo, random_llava

FEW = {"integrated_gradients": {"steps": 4}, "rise": {"budget": 6}, "occlusion": {"budget": 10}}
RUNS = [(name, FEW.get(name, {})) for name, method in lp.METHODS.items() if method.contrasts] + [
    ("gradient", {"on": "pixels"}),
    ("input_x_gradient", {"on": "pixels"}),
    ("relevance", {"through": "tower"}),
    ("relevance", {"checkpoint": True}),
    ("attnlrp", {"checkpoint": True}),
]
SECOND = 1  # the step that is explained, of three


@pytest.fixture(scope="module")
def vlm() -> lp.VLM:
    return lp.VLM(random_llava(0, kv_heads=2).double(), llava_processor())


@pytest.fixture(scope="module")
def task(vlm) -> Task:
    """The second token of an answer, weighed against nothing."""
    trace = vlm.generate(photo(), "What is this?", max_new_tokens=3, min_new_tokens=3)
    return prepared(vlm, trace, "relevance", tokens=trace.prompt_length + SECOND, of="logit")


def against(task: Task, ids: list[int], *, apart: bool) -> Task:
    """The task weighed against tokens in the second one's place: in a sequence of their own, or in the answer's."""
    own = task.answers[0]
    terms = tuple(Term(int(apart), SECOND + place, token, -1) for place, token in enumerate(ids))
    target = replace(task.targets[0], terms=(*task.targets[0].terms, *terms))
    answers = (own, (*own[:SECOND], *ids)) if apart else (own,)
    return replace(task, targets=(target,), answers=answers)


@pytest.mark.parametrize(("method", "options"), RUNS, ids=str)
@pytest.mark.filterwarnings("ignore")
def test_a_contrast_in_a_sequence_of_its_own_is_the_same(method, options, task):
    token = (task.answers[0][SECOND] + 1) % 300
    inside = explained_by(against(task, [token], apart=False), method, options).values
    apart = explained_by(against(task, [token], apart=True), method, options).values
    torch.testing.assert_close(apart, inside, rtol=1e-5, atol=1e-6 * float(inside.abs().max()))  # norms are in float32


def both_dense(task: Task, ids: list[int]):
    """Ā of each layer over the answer's positions and, behind them, those of the contrast that it does not share."""
    trace, model = task.trace, task.vlm.model
    prompt, own = trace.prompt_length, list(task.answers[0])
    other = own[:SECOND] + ids
    inputs, _ = task.vlm.model_inputs(trace.images[0], prompt=trace.request.prompt)

    def read(answer, terms):
        fed = torch.tensor([[token.id for token in trace.tokens[:prompt]] + answer[:-1]])
        return dense(
            task.vlm, {**inputs, "input_ids": fed, "attention_mask": torch.ones_like(fed)}, terms, "logit"
        ), fed.shape[1]

    at = prompt + SECOND - 1
    mine, length = read(own, {at: own[SECOND]})
    theirs, theirs_length = read(other, {at + place: token for place, token in enumerate(ids)})
    shared = prompt + SECOND
    tail = theirs_length - shared
    for (first, slope), (second, against_it) in zip(mine, theirs, strict=True):
        heads = len(first)
        slope = slope.clone()
        slope[:, :shared, :shared] -= against_it[:, :shared, :shared]
        whole = torch.zeros(heads, length + tail, length + tail, dtype=torch.float64)
        whole[:, :length, :length] = first * slope
        whole[:, length:, :shared] = (second * -against_it)[:, shared:, :shared]
        whole[:, length:, length:] = (second * -against_it)[:, shared:, shared:]
        yield whole.clamp(min=0).mean(0)
    model.zero_grad()


@pytest.mark.parametrize("count", [2, 4])  # a shorter sequence than the answer, and a longer one
def test_relevance_and_attention_gradient_equal_the_dense_rule_over_both_sequences(task, count):
    own = task.answers[0]
    ids = [(own[SECOND] + 7 * place + 1) % 300 for place in range(count)]
    layers = list(both_dense(task, ids))
    at = task.trace.prompt_length + SECOND - 1
    rows = [at, *(task.fed + place for place in range(count - 1))]  # the contrast's own stand behind the answer's
    whole = torch.eye(len(layers[0]), dtype=torch.float64)
    for layer in layers:
        whole = whole + layer @ whole
    weighed = against(task, ids, apart=True)
    found = lp.METHODS["relevance"].run(weighed)
    torch.testing.assert_close(found.positions[0], whole[rows].mean(0)[: task.fed], rtol=1e-6, atol=1e-12)
    assert (found.forwards, found.backwards) == (3, 2)
    looked = torch.stack(layers).mean(0)[rows].mean(0)[: task.fed]
    found = lp.METHODS["attention_gradient"].run(weighed)
    torch.testing.assert_close(found.positions[0], looked, rtol=1e-6, atol=1e-12)


def test_a_special_token_is_a_contrast(tiny_vlm):
    from llava_probe import tiny

    scene = tiny.scene(34)
    trace = tiny_vlm.generate(scene.image, "What colour is the triangle?")
    end = tiny_vlm.processor.tokenizer.eos_token
    (target,) = prepared(tiny_vlm, trace, "relevance", tokens="red", contrast=end).targets
    assert target.terms[1].token == tiny_vlm.processor.tokenizer.eos_token_id
    last = len(trace.tokens) - 1
    (target,) = prepared(tiny_vlm, trace, "relevance", tokens=last, contrast="There").targets
    word = "".join(tiny_vlm.processor.tokenizer.convert_ids_to_tokens([term.token for term in target.terms[1:]]))
    assert word.strip("Ġ▁ ") == "There" and word != "There"


def test_a_map_says_what_it_weighs_against_and_is_judged_by_that(tiny_vlm, tmp_path):
    from llava_probe import tiny

    trace = tiny_vlm.generate(tiny.scene(34).image, "What colour is the triangle?")
    m = lp.attribute(tiny_vlm, trace, "gradient", contrast="blue")
    assert m.about["contrast"] == ["blue"] and m.label(0) == "red rather than blue"
    m.save(tmp_path / "map")
    again = lp.ImageMap.load(tmp_path / "map")
    assert again.label() == "red rather than blue"
    judged = [
        float(lp.evaluate.deletion_insertion(tiny_vlm, trace, each, steps=4, **options).deletion_auc[0])
        for each, options in ((again, {}), (m, {"contrast": "blue"}))
    ]
    plain = lp.attribute(tiny_vlm, trace, "gradient")
    assert plain.about["contrast"] is None and plain.label(0) == "red"
    assert judged[0] == judged[1]


def test_one_contrast_stands_against_one_word(tiny_vlm):
    from llava_probe import tiny

    trace = tiny_vlm.generate(tiny.scene(92).image, "Where is the red circle?")
    assert trace.answer == "bottom left"
    with pytest.raises(lp.BadInput, match=r"this answer has 2 \('bottom', 'left'\); give tokens="):
        lp.attribute(tiny_vlm, trace, "gradient", contrast="bottom right")
    m = lp.attribute(tiny_vlm, trace, "gradient", tokens="bottom left", contrast="bottom right")
    assert m.label(0) == "bottom left rather than bottom right"


def test_an_answer_with_the_image_token_in_it_is_refused_by_what_would_read_it():
    vlm = lp.load()
    others = [token for token in range(vlm.anatomy.vocabulary) if token != vlm.visual_ids[0]]
    trace = vlm.generate(photo(), "what is it", max_new_tokens=2, suppress_tokens=others)
    for method in ("relevance", "gradient", "tam"):
        with pytest.raises(lp.BadInput, match="holds the image token"):
            lp.attribute(vlm, trace, method, tokens="generated")
    with pytest.raises(lp.BadInput, match="holds the image token"):
        vlm.rerun(trace, answer=trace.generated_ids)
    assert vlm.rerun(trace) == trace
