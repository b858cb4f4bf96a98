"""Each kind of intervention does in every family what it says, in the prompt and in the answer.

Where a family carries something past what a kind reaches, it is in a list here and its sentence is asserted; a family
in no list is one that must hold.
"""

from __future__ import annotations

import warnings
from contextlib import ExitStack, contextmanager
from functools import cache

import pytest
import torch

import llava_probe as lp
from tests import torchvision_half, zoo
from tests.models import photo

QUESTION = "what is the text"
NEW = {"max_new_tokens": 2, "min_new_tokens": 2}
LOGITS = lp.Capture(attention=False, hidden_states=False, scores=False)
PHASES = ("prompt", "answer")

#: Families whose attention has a kernel of its own, and whose pictures are no tokens of the text.
OWN_KERNEL = ("blip", "git")

#: Families that have no MLP as a module of its own.
NO_MLP = ("blip", "blip-2", "git")

#: Families that look at their picture past the visual tokens.
CROSS = ("idefics", "mllama")

#: Families with one visual token, which is its own mean.
ONE_TOKEN = ("idefics", "inkling2", "inkling_mm_model", "mllama")

#: Families in which more than a hidden state goes from block to block: features of the picture that are added again,
#: keys or states of earlier blocks, pictures that are none of the tokens.
CARRIES_MORE = (
    *("blip", "cohere_compass", "cosmos3_omni", "gemma4", "granite4_vision", "granite_docling", "granite_docling fine"),
    *("git", "idefics", "inkling2", "mllama", "qwen3_omni_moe_thinker", "qwen3_vl", "qwen3_vl_moe"),
)

#: Families whose last blocks run for the end of a prompt only, and whose runs differ in the last bits.
ENDS_ONLY = ("gemma4",)
#: Of their logits, which are of size 1.
CLOSE = 1e-5

#: Families whose blocks carry several streams side by side.
STREAMS = ("qwen4_exp",)

pytestmark = [
    pytest.mark.skipif(not torchvision_half.present(), reason="the processors of most families need torchvision"),
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*carries something", "ignore:.*carries more", "ignore:.*past the visual"),
]

every_family = pytest.mark.parametrize("name", zoo.NAMES)


built = zoo.unplaced


def answered(name, seed=0):
    vlm = built(name)
    words = {"suppress_tokens": vlm.processor.tokenizer.all_special_ids, **NEW}
    return vlm.generate(photo(seed=seed), QUESTION, capture=LOGITS, **words)


@cache
def plain(name, seed=0):
    return answered(name, seed)


@contextmanager
def acting(context):
    """The context; something was done in it."""
    with context as force:
        yield force
        assert force.acts
    assert all(act.count > 0 for act in force.acts)


def check_changed(name, phase, context):
    """The run is another one, in the answer's phase from the second step on, and the acts are of that phase."""
    with acting(context) as force:
        trace = answered(name)
    before = plain(name)
    assert not torch.equal(trace.logits, before.logits)
    if phase == "answer":
        assert torch.equal(trace.logits[0], before.logits[0])
        assert not torch.equal(trace.logits[1], before.logits[1]) or len(before.logits) == 1
    steps = {act.step for act in force.acts}
    assert steps == {0} if phase == "prompt" else 0 not in steps


def feeds(vlm):
    """Blocks that have an MLP."""
    return sorted(set(vlm.anatomy.decoder.feeds.values()))


def heads(vlm):
    """Blocks that have attention over the sequence."""
    return sorted(vlm.anatomy.head_counts)


def check_layers(force, layers):
    """It acted in all of them and nowhere else, in every step."""
    assert {act.layer for act in force.acts} == set(layers)
    assert {act.step for act in force.acts} == {0, 1}


@contextmanager
def refused(name):
    """A sentence on the kernel, where a family has one of its own."""
    with pytest.raises(lp.errors.BadModel, match="kernel of its own, past transformers' attention interface"):
        yield


# --- ablation ---


@every_family
def test_without_its_tokens_an_answer_does_not_depend_on_the_picture(name):
    vlm = built(name)
    instead = torch.randn(vlm.anatomy.width, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(plain(name).logits, plain(name, 1).logits)
    gone = lp.ablate(vlm, tokens=lp.IMAGE, with_=instead)
    if name in OWN_KERNEL:
        with pytest.raises(lp.NotActed, match="no pass computed a token that tokens='image' names"), gone:
            answered(name)
        return
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with acting(gone):
            one, two = answered(name), answered(name, 1)
    assert not torch.equal(one.logits, plain(name).logits)
    assert torch.equal(one.logits, two.logits) == (name not in CROSS)
    assert any("past the visual tokens as well" in str(each.message) for each in said) == (name in CROSS)


@pytest.mark.parametrize("with_", ["mean", "resample"])
@pytest.mark.parametrize("name", [name for name in zoo.NAMES if name not in (*OWN_KERNEL, *ONE_TOKEN)])
def test_tokens_are_replaced_by_others_of_the_picture(name, with_):
    visual = [token.position for token in plain(name).tokens if token.role == "image"]
    with acting(lp.ablate(built(name), tokens=visual[:3], with_=with_)) as cut:
        trace = answered(name)
    assert not torch.equal(trace.logits, plain(name).logits)
    assert [(act.layer, act.step, act.count) for act in cut.acts] == [(0, 0, min(3, len(visual)))]


@pytest.mark.parametrize("name", [name for name in ONE_TOKEN if name in zoo.NAMES])
def test_a_picture_of_one_token_has_no_others(name):
    drawn = lp.ablate(built(name), tokens=lp.IMAGE, with_="resample")
    with pytest.raises(lp.BadInput, match="nothing left to draw from"), drawn:
        answered(name)


@pytest.mark.parametrize("phase", PHASES)
@every_family
def test_heads_are_taken_away_in_each_phase(name, phase):
    vlm = built(name)
    for layer, with_ in ((heads(vlm)[0], "zero"), (heads(vlm)[-1], "mean")):
        gone = lp.ablate(vlm, heads={layer: 0}, with_=with_, phase=phase)
        if name in OWN_KERNEL:
            with refused(name), gone:
                pass
        elif name in ENDS_ONLY and with_ == "mean":
            with pytest.raises(lp.BadInput, match="runs for the end of a prompt only"), gone:
                answered(name)
            check_changed(name, phase, lp.ablate(vlm, heads={layer: 0}, with_="zero", phase=phase))
        else:
            check_changed(name, phase, gone)


@pytest.mark.parametrize("phase", PHASES)
@every_family
def test_mlps_are_taken_away_in_each_phase(name, phase):
    vlm = built(name)
    if name in NO_MLP:
        none = pytest.raises(lp.errors.BadModel, match="has no MLP that is a module of its own")
        with none, lp.ablate(vlm, mlp=0):
            pass
        return
    check_changed(name, phase, lp.ablate(vlm, mlp=feeds(vlm)[0], phase=phase))


@pytest.mark.parametrize("phase", PHASES)
@every_family
def test_blocks_are_taken_away_in_each_phase(name, phase):
    vlm = built(name)
    last = vlm.anatomy.layers - 1
    check_changed(name, phase, lp.ablate(vlm, layers=0, with_="zero", phase=phase))
    if name in ENDS_ONLY:
        with pytest.raises(lp.BadInput, match="runs for the end of a prompt only"), lp.ablate(vlm, layers=last):
            answered(name)
        check_changed(name, phase, lp.ablate(vlm, layers=last, with_="zero", phase=phase))
    else:
        check_changed(name, phase, lp.ablate(vlm, layers=last, phase=phase))


# --- patches ---


@every_family
def test_a_run_patched_with_itself_is_itself(name):
    vlm, before = built(name), plain(name)
    count = vlm.anatomy.layers
    parts = {
        "residual": [0, count // 2, count],
        "attention": heads(vlm)[:1],
        "mlp": feeds(vlm)[:1],
        "head": heads(vlm)[:1],
    }
    with ExitStack() as every:
        for part, layers in parts.items():
            put = lp.patch(vlm, source=before, at=lp.ALL, layers=layers, part=part)
            if part == "mlp" and name in NO_MLP:
                assert not layers
            elif part == "head" and name in OWN_KERNEL:
                with refused(name), put:
                    pass
            else:
                force = every.enter_context(acting(put))
                every.callback(check_layers, force, layers)
        trace = answered(name)
    torch.testing.assert_close(trace.logits, before.logits, atol=CLOSE if name in ENDS_ONLY else 0, rtol=0)


@every_family
def test_all_positions_of_a_hidden_state_are_the_sources_run(name):
    vlm, other = built(name), plain(name, 1)
    close = CLOSE if name in ENDS_ONLY else 0
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = {}
        for layer in (vlm.anatomy.layers // 2, vlm.anatomy.layers):
            with acting(lp.patch(vlm, source=other, at=lp.ALL, layers=layer, align="position")):
                found[layer] = answered(name)
    middle, last = found.values()
    assert any("carries more from block to block" in str(each.message) for each in said) == (name in CARRIES_MORE)
    torch.testing.assert_close(last.logits, other.logits, atol=close, rtol=0)
    assert torch.equal(middle.logits, other.logits) == (name not in CARRIES_MORE)


@pytest.mark.parametrize("part", ["attention", "mlp", "head"])
@every_family
def test_what_a_part_added_elsewhere_changes_the_run(name, part):
    vlm = built(name)
    if (part == "mlp" and name in NO_MLP) or (part == "head" and name in OWN_KERNEL):
        pytest.skip("it has none that is reached; what is said of it is asserted above")
    layer = {"mlp": feeds, "attention": heads, "head": heads}[part](vlm)[-1]
    with acting(lp.patch(vlm, source=plain(name, 1), at=lp.ALL, layers=layer, part=part, align="position")):
        trace = answered(name)
    assert not torch.equal(trace.logits, plain(name).logits)


# --- steering and weights ---


@pytest.mark.parametrize("phase", PHASES)
@every_family
def test_hidden_states_are_pushed_in_each_phase(name, phase):
    vlm = built(name)
    push = lp.steer(vlm, torch.ones(vlm.anatomy.width), layers=vlm.anatomy.layers // 2, phase=phase)
    if name in STREAMS:
        with pytest.raises(lp.BadInput, match="its blocks carry several streams side by side"), push:
            answered(name)
        return
    check_changed(name, phase, push)


@pytest.mark.parametrize("phase", PHASES)
@every_family
def test_attention_on_the_picture_is_weighed_otherwise_in_each_phase(name, phase):
    for how in ("logits", "weights", "move"):
        more = lp.reweight(built(name), keys=lp.IMAGE, by=0.5, how=how, phase=phase)
        if name in OWN_KERNEL:
            with refused(name), more:
                pass
        else:
            check_changed(name, phase, more)


@pytest.mark.parametrize("phase", PHASES)
@every_family
def test_attention_on_the_picture_is_spread_in_each_phase(name, phase):
    spread = lp.knock_out(built(name), keys=lp.IMAGE, uniform=True, phase=phase)
    if name in OWN_KERNEL:
        with refused(name), spread:
            pass
    else:
        check_changed(name, phase, spread)
