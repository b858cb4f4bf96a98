"""A causal trace is single patches, measured as a share of what there is to win; a corruption is told."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import llava_probe as lp
from llava_probe import tiny
from llava_probe.sweeps.causal_trace import default_groups

LITTLE = lp.Capture(attention=False, hidden_states=False)


def pairs(count, change="colour"):
    found = []
    for seed in range(400):
        try:
            found.append(tiny.counterfactual(seed, change))
        except lp.OutOfRange:
            continue
        if len(found) == count:
            return found
    raise AssertionError


@pytest.fixture(scope="module")
def pair():
    return pairs(1)[0]


@pytest.fixture(scope="module")
def traced(tiny_vlm, pair):
    return lp.causal_trace(tiny_vlm, (pair.clean.image, pair.question), pair.corrupt.image)


@pytest.fixture(scope="module")
def runs(tiny_vlm, pair):
    return [tiny_vlm.generate(each.image, pair.question, max_new_tokens=1) for each in (pair.clean, pair.corrupt)]


def test_each_effect_is_that_of_one_patch(tiny_vlm, pair, traced, runs):
    clean, corrupt = runs
    logits = [each.logits[0].double() for each in runs]
    token, other = (int(each.argmax()) for each in logits)
    high, low = (float(each[token] - each[other]) for each in logits)
    assert traced.differences[0] == pytest.approx([high, low], abs=1e-3)
    groups = default_groups(clean, corrupt, 0)
    ways = (("denoise", pair.corrupt.image, clean), ("noise", pair.clean.image, corrupt))
    for mode, (name, image, source) in enumerate(ways):
        for group in ("changed", "question", "last"):
            for part in ("residual", "attention", "mlp"):
                for layer in (0, 3):
                    at = list(groups[group])
                    with lp.patch(tiny_vlm, source=source, at=at, layers=layer, part=part):
                        moved = tiny_vlm.generate(image, pair.question, max_new_tokens=1, capture=LITTLE)
                    found = float(moved.logits[0].double()[token] - moved.logits[0].double()[other])
                    share = ((found - low) if name == "denoise" else (high - found)) / (high - low)
                    here = traced.effects[0, mode, traced.groups.index(group), traced.parts.index(part), layer]
                    assert here == pytest.approx(share, abs=1e-3)


def test_all_that_there_is_to_win_is_on_the_changed_object_first_and_on_the_last_token_in_the_end(traced):
    first, end = traced.effects[0, 0, :, 0, 0], traced.effects[0, 0, :, 0, -1]
    assert first[traced.groups.index("changed")] > 0.8 and abs(first[traced.groups.index("last")]) < 0.1
    assert end[traced.groups.index("last")] > 0.5


def test_the_groups_are_every_token_once_and_the_changed_ones_lie_on_what_differs(pair, runs):
    groups = default_groups(*runs, 0)
    listed = sorted(place for places in groups.values() for place in places)
    assert listed == list(range(runs[0].prompt_length))
    layout = runs[0].layouts[0]
    touched = {int(place) for place, share in zip(layout.positions, layout.to_tokens(pair.mask), strict=True) if share}
    assert set(groups["changed"]) == touched
    wider = default_groups(*runs, 1)
    assert touched < set(wider["changed"]) and len(wider["changed"]) < len(layout)


def test_several_samples_give_intervals_and_one_may_have_nothing_to_win(tiny_vlm):
    several = pairs(3)
    cleans = [(each.clean.image, each.question) for each in several]
    corrupted = [several[0].corrupt.image, several[1].corrupt.image, several[2].clean.image]
    found = lp.causal_trace(tiny_vlm, cleans, corrupted, parts=["residual"], layers=[0, 5], mode="denoise")
    assert np.isnan(found.effects[2]).all() and not np.isnan(found.effects[:2, 0, 0]).any()
    assert np.isnan(found.effects[:, 1]).all()
    assert repr(found).startswith("CausalTrace(2 of 3 samples")
    mean, low, high = found.interval()
    assert mean[0, 0, 0, 0] == pytest.approx(found.effects[:2, 0, 0, 0, 0].mean())
    assert low[0, 0, 0, 0] <= mean[0, 0, 0, 0] <= high[0, 0, 0, 0]
    assert "changed" in found.table() and f"{mean[0, 0, 0, 0]:.2f}" in found.table()


@pytest.mark.parametrize("corruption", ["blur", "grey", "noise"])
def test_other_corruptions_are_made_and_told(corruption, tiny_vlm, pair):
    found = lp.causal_trace(
        tiny_vlm, (pair.clean.image, pair.question), corruption, parts=["residual"], layers=[0], mode="denoise"
    )
    assert found.corruption == corruption
    picture = found.effects[0, 0, :2, 0, 0]  # all of the picture differs, so all is "changed"
    assert np.isnan(picture[1]) and (np.isnan(picture[0]) or picture[0] > 0.9)


def test_windows_replace_several_layers_at_once(tiny_vlm, pair, runs):
    found = lp.causal_trace(
        tiny_vlm, (pair.clean.image, pair.question), pair.corrupt.image, parts=["mlp"], layers=[2], window=3
    )
    last = runs[0].prompt_length - 1
    with lp.patch(tiny_vlm, source=runs[0], at=last, layers=[1, 2, 3], part="mlp"):
        moved = (
            tiny_vlm.generate(pair.corrupt.image, pair.question, max_new_tokens=1, capture=LITTLE).logits[0].double()
        )
    token, other = (int(each.logits[0].argmax()) for each in runs)
    high, low = found.differences[0]
    share = (float(moved[token] - moved[other]) - low) / (high - low)
    assert found.effects[0, 0, found.groups.index("last"), 0, 0] == pytest.approx(share, abs=1e-3)


def test_every_token_is_no_finding(tiny_vlm, pair):
    with pytest.raises(lp.BadInput, match="every token of the prompt"):
        lp.causal_trace(
            tiny_vlm, (pair.clean.image, pair.question), pair.corrupt.image, groups={"all": lp.ALL}, layers=[0]
        )


WRONG = {
    "another size": ({"corrupt": Image.new("RGB", (50, 60))}, "keep its size"),
    "other words": ({"corrupt": "trace"}, "other tokens"),
    "no part": ({"parts": []}, "parts= takes some of"),
    "another part": ({"parts": ["head"]}, "parts= takes some of"),
    "too few": ({"corrupt": []}, "1 clean samples and 0 corrupted"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_traced_is_a_sentence(name, tiny_vlm, pair):
    given, why = WRONG[name]
    if given.get("corrupt") == "trace":
        given = {"corrupt": tiny_vlm.generate(pair.clean.image, "What is this?", max_new_tokens=1)}
    with pytest.raises(lp.BadInput, match=why):
        lp.causal_trace(tiny_vlm, (pair.clean.image, pair.question), **{"corrupt": pair.corrupt.image, **given})


def test_layers_that_are_not_there_are_a_sentence(tiny_vlm, pair):
    with pytest.raises(lp.OutOfRange, match="there are layers 0 to 5"):
        lp.causal_trace(tiny_vlm, (pair.clean.image, pair.question), pair.corrupt.image, layers=[6])
