"""Interventions beside one another, in threads, in compiled passes and under whatever runs the model."""

from __future__ import annotations

import contextvars
import threading

import pytest
import torch

import llava_probe as lp
from llava_probe.inside.passes import visiting
from llava_probe.interventions.patch import Keeper
from tests.interventions.by_hand import layers_of, projection_of
from tests.models import llava_processor, photo, random_llava

QUESTION = "what is the text on the stop sign"
NEW = {"max_new_tokens": 3, "min_new_tokens": 3, "suppress_tokens": [3]}


@pytest.fixture(scope="module")
def vlm():
    return lp.VLM(random_llava(), llava_processor())


@pytest.fixture(scope="module")
def plain(vlm):
    return vlm.generate(photo(), QUESTION, **NEW)


@pytest.fixture(scope="module")
def other(vlm):
    return vlm.generate(photo(seed=1), QUESTION, **NEW)


def contexts(vlm, other):
    """One of each kind, made anew each time."""
    return {
        "knock_out": lambda: lp.knock_out(vlm, keys="image", queries="last", layers=[1, 2]),
        "uniform": lambda: lp.knock_out(vlm, keys="image", queries="last", uniform=True),
        "reweight": lambda: lp.reweight(vlm, keys="image", by=0.5, how="move"),
        "tokens": lambda: lp.ablate(vlm, tokens=lp.Region((10, 0, 40, 40))),
        "heads": lambda: lp.ablate(vlm, heads={1: [0, 1]}),
        "mlp": lambda: lp.ablate(vlm, mlp=2),
        "layers": lambda: lp.ablate(vlm, layers=1),
        "patch": lambda: lp.patch(vlm, source=other, at="image", layers=2),
        "steer": lambda: lp.steer(vlm, torch.ones(64), layers=2),
    }


KINDS = ("knock_out", "uniform", "reweight", "tokens", "heads", "mlp", "layers", "patch", "steer")


@pytest.mark.parametrize("name", KINDS)
def test_another_thread_runs_as_it_is_and_so_does_what_comes_behind(name, vlm, plain, other):
    found = {}

    def run():
        found["thread"] = vlm.generate(photo(), QUESTION, **NEW)

    with contexts(vlm, other)[name]() as cut:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        changed = vlm.generate(photo(), QUESTION, **NEW)
        inside = threading.Thread(target=contextvars.copy_context().run, args=(run,))
        copied = dict(found)
        inside.start()
        inside.join()
    assert torch.equal(copied["thread"].logits, plain.logits) and not torch.equal(changed.logits, plain.logits)
    assert torch.equal(found["thread"].logits, changed.logits)  # a copy of the context is inside it
    assert cut.acts and vlm.generate(photo(), QUESTION, **NEW) == plain


@pytest.mark.parametrize("name", KINDS)
def test_an_error_inside_leaves_the_model_as_it_was_to_the_bit(name, vlm, plain, other):
    class Mine(Exception):
        """Raised in the middle of decoding."""

    def late(_batch, _ids):
        raise Mine

    with pytest.raises(Mine), contexts(vlm, other)[name]():
        vlm.generate(photo(), QUESTION, **NEW, prefix_allowed_tokens_fn=late)
    assert vlm.generate(photo(), QUESTION, **NEW) == plain


@pytest.mark.parametrize(
    ("one", "two"), [("knock_out", "mlp"), ("heads", "mlp"), ("tokens", "knock_out"), ("layers", "heads")]
)
def test_what_commutes_may_be_written_in_either_order(one, two, vlm, plain, other):
    found = []
    for outer, inner in ((one, two), (two, one)):
        with contexts(vlm, other)[outer](), contexts(vlm, other)[inner]():
            found.append(vlm.rerun(plain, answer=plain.generated_ids))
    assert torch.equal(found[0].logits, found[1].logits)
    assert [each["kind"] for each in found[0].interventions] != [] and found[0].interventions == found[1].interventions[
        ::-1
    ]


def test_what_does_not_commute_holds_in_the_order_written(vlm, plain, other):
    """A state that is patched and then pushed is the source's and the push; the other way round only the source's."""
    push = torch.ones(64)
    with lp.patch(vlm, source=other, at="last", layers=2), lp.steer(vlm, push, layers=2, at="last") as steered:
        pushed = vlm.generate(photo(), QUESTION, max_new_tokens=1)
    with lp.steer(vlm, push, layers=2, at="last"), lp.patch(vlm, source=other, at="last", layers=2):
        patched = vlm.generate(photo(), QUESTION, max_new_tokens=1)
    source = other.hidden(layer=2)[0]
    assert torch.equal(patched.hidden(layer=2)[0], source)
    expected = source + steered.norms[2] * push / push.norm()
    torch.testing.assert_close(pushed.hidden(layer=2)[0], expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_a_compiled_pass_is_changed_too(name, plain, other):
    fresh = lp.VLM(random_llava(), llava_processor())
    with contexts(fresh, other)[name]():
        expected = fresh.generate(photo(), QUESTION, **NEW)
    fresh.model.forward = torch.compile(fresh.model.forward, backend="eager")
    compiled = fresh.generate(photo(), QUESTION, **NEW)
    torch.testing.assert_close(compiled.logits, plain.logits, atol=1e-4, rtol=1e-4)
    if name == "mlp":  # inside a block that was traced before
        with pytest.raises(lp.NotActed, match=r"torch\.compiler\.reset"), contexts(fresh, other)[name]():
            fresh.generate(photo(), QUESTION, **NEW)
        torch.compiler.reset()
    with contexts(fresh, other)[name]() as cut:
        changed = fresh.generate(photo(), QUESTION, **NEW)
    torch.testing.assert_close(changed.logits, expected.logits, atol=1e-4, rtol=1e-4)
    assert cut.acts


@pytest.mark.parametrize("name", KINDS)
def test_methods_measures_and_stores_see_the_changed_model(name, vlm, plain, other, tmp_path):
    pytest.importorskip("pyarrow")
    row = [{"image": photo(), "question": QUESTION, "answer": "stop"}]
    where = {"layers": [4], "positions": ["last_prompt"]}
    untouched = lp.extract(vlm, row, tmp_path / "plain", **where)
    first = [plain.prompt_length]
    before = lp.attribute(vlm, plain, "occlusion", tokens=first).values
    with contexts(vlm, other)[name]():
        after = lp.attribute(vlm, plain, "occlusion", tokens=first).values
        store = lp.extract(vlm, row, tmp_path / "cut", **where)
        scored = vlm.score(photo(), QUESTION, "stop", capture=lp.Capture(positions="all"))
        pixels = lp.evaluate.deletion_insertion(
            vlm, plain, lp.attribute(vlm, plain, "attention", tokens=first), row=0, tokens=first, steps=2
        )
    assert not torch.allclose(before, after)
    last = scored.hidden(layer=4, at="last")[0]
    torch.testing.assert_close(store["layer_4", "last_prompt"][0], last, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(store["layer_4", "last_prompt"][0], untouched["layer_4", "last_prompt"][0])
    ablations = ("tokens", "heads", "mlp", "layers")
    kind = "knock_out" if name == "uniform" else "ablate" if name in ablations else name
    assert store.interventions[0]["kind"] == kind
    untaken = lp.evaluate.deletion_insertion(
        vlm, plain, lp.attribute(vlm, plain, "attention", tokens=first), row=0, tokens=first, steps=2
    )
    assert float(pixels.deletion_auc[0]) != float(untaken.deletion_auc[0])


def test_what_heads_give_adds_up_to_what_attention_adds(vlm, plain):
    """Through the columns of the output projection that are a head's own."""
    places, kept = list(range(plain.prompt_length)), {}
    for part in ("head", "attention"):
        keeper = Keeper(part, [2], places)
        with visiting(vlm.anatomy, keeper, alone=False):
            vlm.rerun(plain, answer=plain.generated_ids)
        kept[part] = keeper.states()[2, 1]
    weight = projection_of(layers_of(vlm)[2]).weight
    parts = [kept["head"][:, head] @ weight[:, 16 * head : 16 * (head + 1)].T for head in range(4)]
    torch.testing.assert_close(torch.stack(parts).sum(0), kept["attention"], atol=1e-5, rtol=1e-5)
