"""A lens that knows the truth is always right, one that knows nothing as often as its words fit by chance."""

import numpy as np
import pytest

import llava_probe as lp
from llava_probe import tiny
from llava_probe.evaluate.right_words import names_of, right_words

SEEDS = range(3)


def patches(trace, seed):
    """The objects under the visual tokens that they cover by half, by column of the layout."""
    layout = trace.layouts[0]
    shares = [(shown, layout.to_tokens(shown.mask)) for shown in tiny.scene(seed).objects]
    return [(shown, column) for shown, share in shares for column in np.flatnonzero(share >= 0.5)]


@pytest.fixture(scope="module")
def looked(tiny_vlm):
    """What a truth-telling, a half-right and an always-red lens score, and the scenes' own figures."""
    seeds, under = iter(SEEDS), []

    def says(trace):
        truth = ["?"] * len(trace.layouts[0])
        found = patches(trace, next(seeds))
        for shown, column in found:
            truth[column] = f" {shown.colour.title()}."
        under.append(found)
        half = [word if column % 2 else "?" for column, word in enumerate(truth)]
        return {0: truth, 1: ["red"] * len(truth), 2: ["?"] * len(truth), 3: half}

    return right_words(tiny_vlm, SEEDS, says, times=50), under


def test_shares_are_those_of_a_count_by_hand(looked):
    table, under = looked
    flat = [pair for scene in under for pair in scene]
    right, red, nothing, half = table.rows
    assert (right.share, right.low, right.high, right.patches, right.scenes) == (1, 1, 1, len(flat), 3)
    reds = np.mean(["red" in names_of(shown) for shown, _ in flat])
    assert red.share == pytest.approx(reds) and red.chance == pytest.approx(reds)
    assert nothing.share == nothing.chance == 0
    assert half.share == pytest.approx(np.mean([column % 2 for _, column in flat]))
    assert half.low <= half.share <= half.high


def test_chance_is_what_the_same_words_score_when_they_are_dealt_anew(looked):
    table, under = looked
    shown = [one for scene in under for one, _ in scene]
    generator = np.random.default_rng(0)
    dealt = [
        np.mean([one.colour in names_of(other) for one, other in zip(shown, generator.permutation(shown), strict=True)])
        for _ in range(400)
    ]
    assert table.rows[0].chance == pytest.approx(np.mean(dealt), abs=0.02)
    assert "layer  patches  scenes" in str(table)


def test_no_scene_is_refused(tiny_vlm):
    with pytest.raises(lp.BadInput, match="names no scene"):
        right_words(tiny_vlm, [], lambda trace: {})
