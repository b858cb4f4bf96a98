"""Each kind of intervention is, in families of five makes, what plain hooks and a dense attention make of the model.

In float64: a LLaVA, tiles with a newline feature (LLaVA-OneVision), features that are added again between blocks
(Qwen3-VL), windows and a mask in which a picture sees itself (Gemma 3), tiles in a row (Idefics 3).
"""

from __future__ import annotations

from functools import cache

import pytest
import torch

import llava_probe as lp
from tests import torchvision_half, zoo
from tests.interventions import by_hand
from tests.interventions.by_hand import feed_of, layers_of, passed, projection_of, steps
from tests.models import photo

FAMILIES = ("llava", "llava_onevision", "qwen3_vl", "gemma3", "idefics3")
QUESTION = "what is the text"
NEW = {"max_new_tokens": 3, "min_new_tokens": 3}
#: Logits are recorded in float32; they are of size 1.
CLOSE = {"atol": 1e-5, "rtol": 1e-5}

pytestmark = [
    pytest.mark.skipif(not torchvision_half.present(), reason="the processors of most families need torchvision"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:.*carries more"),
]


@pytest.fixture(scope="module", params=FAMILIES)
def vlm(request):
    model, processor = zoo.build(request.param)
    return lp.VLM(model.double(), processor, layout="none")


@cache
def plain(vlm, seed=0):
    words = {"suppress_tokens": vlm.processor.tokenizer.all_special_ids, **NEW}
    return vlm.generate(photo(seed=seed), QUESTION, **words)


def visual(trace):
    return [token.position for token in trace.tokens if token.role == "image"]


def check(vlm, context, changes):
    """One pass under the intervention gives the logits of one with the changes, which are not those of neither."""
    trace = plain(vlm)
    with context as force:
        found = vlm.rerun(trace, answer=trace.generated_ids)
    truth = steps(trace, passed(vlm, trace, changes))
    assert force.acts
    assert not torch.allclose(found.logits, vlm.rerun(trace, answer=trace.generated_ids).logits, **CLOSE)
    torch.testing.assert_close(found.logits.float(), truth, **CLOSE)


def with_places(places, make):
    """A change of some positions alone: ``make`` gives what stands there of all that does."""

    def change(values):
        values = values.clone()
        values[0, places] = make(values)
        return values

    return change


# --- ablation ---


@pytest.mark.parametrize("with_", ["mean", "zero", "given"])
def test_tokens_are_replaced_where_they_enter_and_where_features_of_them_are_added_again(vlm, with_):
    places, every, left = visual(plain(vlm))[1:6], visual(plain(vlm)), {}
    given = torch.randn(vlm.model.get_input_embeddings().embedding_dim, dtype=torch.float64)
    make = {
        "mean": lambda entry: entry[0, every].mean(0),
        "zero": lambda entry: 0,
        "given": lambda entry: given,
    }[with_]

    def keep(number):
        return lambda output: left.update({number: output}) or output

    def enter(number):
        def change(entry):
            added = entry - left[number - 1]
            own = added[0, every].mean(0) if with_ == "mean" else 0
            return with_places(places, lambda _: left[number - 1][0, places] + own)(entry)

        return change

    blocks = layers_of(vlm)
    changes = [(blocks[0], "in", with_places(places, make))]
    for number in range(1, len(blocks)):
        changes += [(blocks[number - 1], "out", keep(number - 1)), (blocks[number], "in", enter(number))]
    check(vlm, lp.ablate(vlm, tokens=places, with_=given if with_ == "given" else with_), changes)


@pytest.mark.parametrize("with_", ["mean", "zero"])
def test_heads_are_replaced_before_the_output_projection(vlm, with_):
    projection = projection_of(layers_of(vlm)[1])
    size = layers_of(vlm)[1].self_attn.head_dim

    def change(given):
        given = given.clone()
        own = given[:, : plain(vlm).prompt_length, size : 2 * size].mean(1, keepdim=True)
        given[..., size : 2 * size] = own if with_ == "mean" else 0
        return given

    check(vlm, lp.ablate(vlm, heads={1: 1}, with_=with_), [(projection, "in", change)])


@pytest.mark.parametrize("with_", ["mean", "zero"])
@pytest.mark.parametrize("what", ["mlp", "layers"])
def test_mlps_and_blocks_are_replaced_where_they_are_added(vlm, what, with_):
    block, held = layers_of(vlm)[1], {}

    def change(output):
        entered = held["entered"] if what == "layers" else 0
        added = (output - entered)[:, : plain(vlm).prompt_length].mean(1, keepdim=True)
        return (entered + (added if with_ == "mean" else 0)) + torch.zeros_like(output)

    changes = [(block, "in", lambda entered: held.update(entered=entered) or entered), (block, "out", change)]
    check(
        vlm,
        lp.ablate(vlm, **{what: 1}, with_=with_),
        changes if what == "layers" else [(feed_of(block), "out", change)],
    )


# --- patches and pushes ---


@pytest.mark.parametrize("part", ["residual", "attention", "mlp", "head"])
def test_states_of_another_run_stand_in_place(vlm, part):
    block = layers_of(vlm)[1]
    side, module = {
        "residual": ("out", layers_of(vlm)[0]),  # ahead of what is added between blocks
        "attention": ("out", block.self_attn),
        "mlp": ("out", feed_of(block)),
        "head": ("in", projection_of(block)),
    }[part]
    places, held = visual(plain(vlm)), []
    passed(vlm, plain(vlm, 1), [(module, side, lambda value: held.append(value) or value)])
    put_in = with_places(places, lambda _: held[0][0, places])
    put = lp.patch(vlm, source=plain(vlm, 1), at="image", layers=1, part=part)
    check(vlm, put, [(module, side, put_in)])


@pytest.mark.parametrize("project_out", [False, True])
def test_hidden_states_are_pushed(vlm, project_out):
    vector = torch.randn(vlm.model.get_input_embeddings().embedding_dim, generator=torch.Generator().manual_seed(0))
    unit = (vector / vector.norm()).double()
    places = [*visual(plain(vlm)), plain(vlm).prompt_length - 1]
    given = {"layers": 1, "scale": 0.8, "at": ["image", "last"], "project_out": project_out}
    with lp.steer(vlm, vector, **given, allow_nothing=True) as push:
        (norm,) = push.norms.values() or (0,)

    def make(states):
        own = states[0, places]
        return own - 0.8 * (own @ unit)[:, None] * unit if project_out else own + 0.8 * norm * unit

    check(vlm, lp.steer(vlm, vector, **given), [(layers_of(vlm)[0], "out", with_places(places, make))])


# --- attention ---

KINDS = {
    "knock out": (lp.knock_out, {}, by_hand.hidden),
    "spread": (lp.knock_out, {"uniform": True}, by_hand.spread),
    "logits": (lp.reweight, {"by": 0.4, "how": "logits"}, by_hand.more_logits(0.4)),
    "weights": (lp.reweight, {"by": 0.4, "how": "weights"}, by_hand.more_weight(0.4)),
    "move": (lp.reweight, {"by": 0.4, "how": "move"}, by_hand.moved(0.4)),
    "move back": (lp.reweight, {"by": -0.4, "how": "move"}, by_hand.moved(-0.4)),
}


@pytest.mark.parametrize("where", ["last", "everywhere", "a head"])
@pytest.mark.parametrize("name", KINDS)
def test_attention_under_a_rule_is_the_dense_one(vlm, name, where):
    kind, given, rule = KINDS[name]
    trace = plain(vlm)
    count, keys = len(trace.tokens) - 1, visual(trace)
    queries = [trace.prompt_length - 1] if where == "last" else [p for p in range(count) if p not in keys]
    pairs = torch.zeros(count, count, dtype=torch.bool)
    pairs[torch.tensor(queries)[:, None], torch.tensor(keys)] = True
    every = range(len(layers_of(vlm)))
    more = {"queries": "last"} if where == "last" else {"layers": [1], "heads": [0, 2]} if where == "a head" else {}
    under = by_hand.ruled(vlm, rule, pairs, more.get("layers", every), more.get("heads"))
    with kind(vlm, keys=lp.IMAGE, **given, **more) as force:
        found = vlm.rerun(trace, answer=trace.generated_ids)
    with under:
        truth = steps(trace, passed(vlm, trace))
    assert {act.layer for act in force.acts} == set(more.get("layers", every))
    assert not torch.allclose(found.logits, vlm.rerun(trace, answer=trace.generated_ids).logits, **CLOSE)
    torch.testing.assert_close(found.logits.float(), truth, **CLOSE)


def test_the_dense_attention_without_a_rule_is_the_models_own(vlm):
    trace = plain(vlm)
    with by_hand.ruled(vlm, None, None, ()):
        truth = steps(trace, passed(vlm, trace))
    torch.testing.assert_close(vlm.rerun(trace, answer=trace.generated_ids).logits.float(), truth, **CLOSE)
