"""Means of cases with intervals over pictures: equal to a loop, covering what they say, and paired."""

import numpy as np
import pytest

import llava_probe as lp
from llava_probe.evaluate import difference, summary


def looped(values, pictures, times, seed):
    """A bootstrap by the book: draw pictures, put their cases one after the other, take the mean."""
    generator = np.random.default_rng(seed)
    names = list(dict.fromkeys(pictures))
    cases = {
        name: [value for value, picture in zip(values, pictures, strict=True) if picture == name] for name in names
    }
    means = []
    for _ in range(times):
        drawn = generator.integers(0, len(names), len(names))
        means.append(np.mean([value for number in drawn for value in cases[names[number]]]))
    return np.quantile(means, [0.025, 0.975])


def test_the_interval_is_that_of_a_loop_over_pictures():
    generator = np.random.default_rng(0)
    pictures = [f"picture {number}" for number in generator.integers(0, 30, 100)]
    values, others = generator.random((2, 100))
    found = summary(values, pictures, times=300, seed=5)
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(tuple(looped(values, pictures, 300, 5)))
    assert (found.cases, found.pictures) == (100, len(set(pictures)))
    apart = difference(values, others, pictures, times=300, seed=5)
    assert apart.mean == pytest.approx((values - others).mean())
    assert (apart.low, apart.high) == pytest.approx(tuple(looped(values - others, pictures, 300, 5)))
    assert (apart.cases, apart.pictures) == (found.cases, found.pictures)


def test_the_interval_covers_the_truth_and_one_over_cases_would_not():
    """Pictures of different numbers of hits that mostly stand or fall together, of mean 0.6."""
    generator = np.random.default_rng(0)
    covered, over_cases, simulations = 0, 0, 300
    for _ in range(simulations):
        sizes = generator.integers(1, 8, 60)
        hits = np.repeat(generator.beta(0.6, 0.4, 60), sizes)
        values = (generator.random(len(hits)) < hits).astype(float)
        pictures = np.repeat(np.arange(60), sizes).tolist()
        found = summary(values, pictures, times=400)
        covered += found.low <= 0.6 <= found.high
        alone = summary(values, list(range(len(values))), times=400)
        over_cases += alone.low <= 0.6 <= alone.high
    assert 0.91 <= covered / simulations <= 0.98
    assert over_cases / simulations < 0.85


def test_a_paired_difference_is_seen_where_two_intervals_overlap():
    """Pictures differ much, the two methods little and always the same way."""
    generator = np.random.default_rng(0)
    pictures = np.repeat(np.arange(50), 3).tolist()
    hard = np.repeat(generator.random(50), 3)
    one, other = hard + 0.02 + 0.01 * generator.random(150), hard
    apart = difference(one, other, pictures)
    assert summary(one, pictures).low < summary(other, pictures).high
    assert 0.02 < apart.low < apart.mean < apart.high < 0.03
    assert apart.p < 0.001
    back = difference(other, one, pictures)
    assert (back.mean, back.p) == (pytest.approx(-apart.mean), apart.p)
    same = difference(one, one, pictures)
    assert (same.mean, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_without_a_difference_p_is_small_as_rarely_as_it_says():
    generator = np.random.default_rng(1)
    pictures = np.repeat(np.arange(40), 3).tolist()
    small = 0
    for _ in range(300):
        one, other = np.repeat(generator.exponential(size=(2, 40)), 3, axis=1)
        small += difference(one, other, pictures, times=1).p <= 0.05
    assert small / 300 == pytest.approx(0.05, abs=3 * np.sqrt(0.05 * 0.95 / 300))


def test_one_picture_has_no_interval():
    found = summary([True, False], ["a", "a"])
    assert found.mean == 0.5
    assert np.isnan([found.low, found.high]).all()
    assert str(summary([0.5, 0.5], [1, 2])) == "0.500 [0.500, 0.500] over 2 cases of 2 pictures"
    assert str(difference([0.5, 0.5], [0.0, 0.0], [1, 2])).startswith("+0.500 [+0.500, +0.500], p = 0.5")


def test_scores_that_do_not_pair_are_refused():
    for scores, pictures in (([], []), ([1.0], ["a", "b"])):
        with pytest.raises(lp.BadInput, match="one score and one picture"):
            summary(scores, pictures)
    with pytest.raises(lp.BadInput, match=r"summary\(scores=...\) takes a list"):
        summary([[1.0]], ["a"])
    with pytest.raises(lp.BadInput, match="score 1 is nan"):
        summary([1.0, float("nan")], ["a", "b"])
    with pytest.raises(lp.BadInput, match="2 and 1 scores"):
        difference([1.0, 2.0], [1.0], ["a", "b"])
