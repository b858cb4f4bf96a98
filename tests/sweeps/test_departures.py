"""Runs that depart from a plain one are those that the interventions give one at a time, in every family that can."""

from __future__ import annotations

import pytest
import torch

import llava_probe as lp
from llava_probe.sweeps.changes import Cut, Cuts, Swap, Swaps
from llava_probe.sweeps.departures import Departure, departing
from tests import torchvision_half, zoo
from tests.models import photo

QUESTION = "what is the text"
LITTLE = lp.Capture(attention=False, hidden_states=False)

#: Families whose pictures do not enter the decoder as embeddings of the sequence's tokens.
REFUSED = ("blip", "chameleon", "git", "idefics", "kosmos-2", "kosmos-2.5", "mllama")
#: Of each way in which a family may be unlike a plain causal one, some: windows, pictures that see themselves, a prompt
#: that does, features that are added later, several streams, keys that are shared, experts, tiles.
FAMILIES = (
    *("llava", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3", "paligemma", "idefics3", "internvl"),
    *("granite4_vision", "mistral3", "llama4", "gemma4", "gemma4 moe", "molmo2", "emu3", "fuyu", "deepseek_vl"),
)

pytestmark = pytest.mark.skipif(
    not torchvision_half.present(), reason="the processors of most families need torchvision"
)


@pytest.fixture
def both(request):
    """A model, and traces of two pictures."""
    given = zoo.vlm(request.param)
    vlm = lp.VLM(given.model, given.processor, layout="none")
    return vlm, [vlm.generate(photo(seed=seed), QUESTION, max_new_tokens=1, capture=LITTLE) for seed in (0, 1)]


def visual(trace):
    return tuple(token.position for token in trace.tokens if token.role == "image")


def logits(vlm, trace):
    return vlm.rerun(trace, capture=LITTLE).logits[0].double()


def close(one, other):
    torch.testing.assert_close(one, other, atol=3e-5 * max(1.0, float(other.abs().max())), rtol=0)


@pytest.mark.parametrize("both", FAMILIES, indirect=True)
def test_cuts_are_knock_outs_one_at_a_time(both):
    vlm, (trace, _) = both
    end, image = trace.prompt_length, visual(trace)
    layers = sorted(vlm.anatomy.head_counts)
    cuts = [
        Cut(range(layer, min(layer + width, layers[-1] + 1)), queries, image, uniform)
        for layer in layers
        for width in (1, 2)
        for queries in ((end - 1,), tuple(range(end - 3, end)))
        for uniform in (False, True)
    ]
    with departing(vlm, [trace]) as runs:
        found = runs.logits([Departure(cut.layers.start, min(cut.queries), cut) for cut in cuts], Cuts)
        close(runs.bases[0], logits(vlm, trace))
    for row, cut in zip(found, cuts, strict=True):
        if set(cut.layers) <= set(layers):
            given = {"keys": list(cut.keys), "queries": list(cut.queries), "layers": cut.layers}
            with lp.knock_out(vlm, **given, uniform=cut.uniform):
                close(row, logits(vlm, trace))


@pytest.mark.parametrize("both", FAMILIES, indirect=True)
@pytest.mark.filterwarnings("ignore:.*carries more from block to block")
def test_swaps_are_patches_one_at_a_time(both):
    vlm, (trace, other) = both
    end, image = trace.prompt_length, visual(trace)
    last = max(vlm.anatomy.head_counts)
    if vlm.anatomy.decoder.owner.config.get_text_config().to_dict().get("num_kv_shared_layers"):
        last = 1  # the blocks that share keys run for the prompt's end alone in generate
    swaps = [
        Swap(part, range(layer, layer + 1), places, 1)
        for part in ("residual", "attention", "mlp")
        for layer in (0, last)
        for places in (image, (end - 1,), image[2:5])
    ]
    with departing(vlm, [trace, other]) as runs:
        found = runs.logits([Departure(swap.layers.start, min(swap.places), swap) for swap in swaps], Swaps)
    for row, swap in zip(found, swaps, strict=True):
        given = {"at": list(swap.places), "layers": swap.layers, "part": swap.part, "align": "position"}
        with lp.patch(vlm, source=other, **given):
            close(row, logits(vlm, trace))


@pytest.mark.parametrize("both", REFUSED, indirect=True)
def test_a_family_that_cannot_be_swept_is_refused(both):
    vlm, traces = both
    with pytest.raises(lp.BadModel, match="do not enter its decoder"), departing(vlm, traces[:1]):
        pass


def test_batches_of_any_size_give_the_same(tiny_vlm, monkeypatch):
    from llava_probe.sweeps import departures

    trace = tiny_vlm.generate(photo(336, 336), "What is this?", max_new_tokens=1)
    image, end = visual(trace), trace.prompt_length
    runs = [
        Departure(layer, first, Cut(range(layer, 6), (end - 1,), image))
        for layer in (5, 0, 3, 2, 4, 1)
        for first in (end - 1, image[-1])
    ]
    found = []
    for most in (2, 5, 96):
        monkeypatch.setattr(departures, "TOKENS", most)
        monkeypatch.setattr(departures, "LANES", most)
        with departing(tiny_vlm, [trace]) as plain:
            found.append(plain.logits(runs, Cuts))
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, atol=1e-4, rtol=0)
    assert len(torch.unique(found[0][:, 0])) > 6


def test_it_is_computed_in_far_fewer_tokens_than_whole_runs(tiny_vlm):
    """Counted in the blocks' own inputs: rows times positions."""
    trace = tiny_vlm.generate(photo(336, 336), "What is this?", max_new_tokens=1)
    image, end = visual(trace), trace.prompt_length
    runs = [Departure(layer, end - 1, Cut(range(layer, layer + 1), (end - 1,), image)) for layer in range(6)]
    counted = []
    hooks = [
        layer.mlp.register_forward_pre_hook(lambda _module, args: counted.append(args[0].shape[0] * args[0].shape[1]))
        for layer in tiny_vlm.model.model.language_model.layers
    ]
    try:
        with departing(tiny_vlm, [trace]) as plain:
            started = sum(counted)
            plain.logits(runs, Cuts)
    finally:
        for hook in hooks:
            hook.remove()
    assert sum(counted) - started < 0.1 * len(runs) * 6 * end


def test_prompts_of_other_words_do_not_go_together(tiny_vlm):
    traces = [tiny_vlm.generate(photo(336, 336), question, max_new_tokens=1) for question in ("What?", "Where is it?")]
    with pytest.raises(lp.BadInput, match="the same words"), departing(tiny_vlm, traces):
        pass


def test_the_model_is_as_it_was_also_after_an_error(tiny_vlm):
    trace = tiny_vlm.generate(photo(336, 336), "What is this?", max_new_tokens=1)
    with pytest.raises(KeyError), departing(tiny_vlm, [trace]) as plain:
        plain.logits([Departure(0, 5, {}["nothing"])], Cuts)
    assert tiny_vlm.rerun(trace) == trace
