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


def colour_beside(seed, shown):
    """The colour of another object of a scene; none where all are of this one's."""
    return next((other.colour for other in tiny.scene(seed).objects if other.colour != shown.colour), "?")


@pytest.fixture(scope="module")
def looked(tiny_vlm):
    """What lenses that tell the truth, or some of it, or that of another place score; and the scenes' own figures."""
    seeds, under = iter(SEEDS), []

    def says(trace):
        seed = next(seeds)
        truth, beside = ["?"] * len(trace.layouts[0]), ["?"] * len(trace.layouts[0])
        found = patches(trace, seed)
        for shown, column in found:
            truth[column] = f" {shown.colour.title()}."
            beside[column] = colour_beside(seed, shown)
        under.append([(seed, *pair) for pair in found])
        half = [word if column % 2 else "?" for column, word in enumerate(truth)]
        told = {"true": truth, "red": ["red"] * len(truth), "nothing": ["?"] * len(truth), "half": half}
        return {(lens, 4): words for lens, words in {**told, "beside": beside}.items()}

    table = right_words(tiny_vlm, SEEDS, says, times=50)
    return {row.lens: row for row in table.rows}, [place for scene in under for place in scene], table


def test_shares_are_those_of_a_count_by_hand(looked):
    of, under, _ = looked
    true = of["true"]
    assert (true.share, true.low, true.high, true.patches, true.scenes, true.layer) == (1, 1, 1, len(under), 3, 4)
    reds = np.mean(["red" in names_of(shown) for _, shown, _ in under])
    assert of["red"].share == pytest.approx(reds) and of["red"].chance == pytest.approx(reds)
    assert of["nothing"].share == of["nothing"].chance == 0
    assert of["half"].share == pytest.approx(np.mean([column % 2 for _, _, column in under]))
    assert of["half"].low <= of["half"].share <= of["half"].high


def test_a_word_of_another_object_is_told_apart(looked):
    of, under, _ = looked
    assert of["true"].another == of["nothing"].another == 0 == of["beside"].share
    assert of["beside"].another == np.mean([colour_beside(seed, shown) != "?" for seed, shown, _ in under]) > 0


def test_chance_is_what_the_same_words_score_when_they_are_dealt_anew(looked):
    of, under, table = looked
    shown = [one for _, one, _ in under]
    generator = np.random.default_rng(0)
    dealt = [
        np.mean([one.colour in names_of(other) for one, other in zip(shown, generator.permutation(shown), strict=True)])
        for _ in range(400)
    ]
    assert of["true"].chance == pytest.approx(np.mean(dealt), abs=0.02)
    assert "lens     layer  patches  scenes" in str(table)


def test_both_numbers_of_a_kind_name_it():
    sign = next(thing for seed in range(20) for thing in tiny.scene(seed).objects if thing.kind == "stop sign")
    assert names_of(sign) == {"stop", "sign", "signs", sign.colour}


def test_no_scene_is_refused(tiny_vlm):
    with pytest.raises(lp.BadInput, match="names no scene"):
        right_words(tiny_vlm, [], lambda trace: {})
