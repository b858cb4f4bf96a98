"""Calibration against scikit-learn, against counting by hand, and against simulations whose truth is known."""

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

import llava_probe as lp
from llava_probe.resampling import each_resample, resamples

FAST = {"times": 20, "draws": 20}


def simulated(n=400, seed=0, off=0.0):
    """Confidences rounded so that some are equal, and answers that are right less often by ``off``."""
    generator = np.random.default_rng(seed)
    stated = generator.beta(4, 2, n).round(2)
    return stated, (generator.random(n) < np.clip(stated - off, 0, 1)).astype(int)


def ece_by_hand(stated, right, bins=15):
    """One answer after the other into (b/B, (b+1)/B], 0 into the first."""
    held = {}
    for p, y in zip(stated, right, strict=True):
        held.setdefault(max(0, math.ceil(round(p * bins, 9)) - 1), []).append((p, y))
    gaps = [(len(each), abs(np.mean([y for _, y in each]) - np.mean([p for p, _ in each]))) for each in held.values()]
    return sum(size * gap for size, gap in gaps) / len(stated), max(gap for _, gap in gaps)


def test_numbers_equal_scikit_learns():
    stated, right = simulated(off=0.1)
    c = lp.calibration(stated, right, **FAST)
    assert float(c.brier) == pytest.approx(brier_score_loss(right, stated))
    assert float(c.nll) == pytest.approx(log_loss(right, stated))
    assert float(c.auroc) == pytest.approx(roc_auc_score(right, stated))
    assert float(c.accuracy) == pytest.approx(right.mean()) and float(c.confidence) == pytest.approx(stated.mean())


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
def test_bins_equal_scikit_learns_calibration_curve(strategy):
    stated, right = simulated(off=0.1)
    c = lp.calibration(stated, right, bins=10, **FAST)
    bins = c.bins if strategy == "uniform" else c.mass_bins
    accuracy, confidence = calibration_curve(right, stated, n_bins=10, strategy=strategy)
    assert bins.accuracy == pytest.approx(accuracy) and bins.confidence == pytest.approx(confidence)
    assert bins.count.sum() == len(stated)
    error = c.ece if strategy == "uniform" else c.ece_mass
    assert float(error) == pytest.approx((bins.count * abs(accuracy - confidence)).sum() / len(stated))


def test_errors_equal_a_hand_count_with_the_ends_inside():
    stated = np.array([0.0, 0.0, 1 / 15, 0.5, 0.5, 0.9, 1.0, 1.0])
    right = np.array([0, 1, 1, 0, 1, 1, 1, 0])
    c = lp.calibration(stated, right, **FAST)
    assert (float(c.ece), float(c.mce)) == pytest.approx(ece_by_hand(stated, right))
    assert c.bins.count[0] == 3, "a confidence of 0 is in the first bin, and 1/15 too"
    assert c.bins.count.sum() == 8


def test_a_certain_answer_that_is_wrong_costs_as_much_as_in_scikit_learn():
    c = lp.calibration([1.0, 0.0, 0.5], [0, 1, 1], **FAST)
    assert float(c.nll) == pytest.approx(log_loss([0, 1, 1], [1.0, 0.0, 0.5])) and math.isfinite(float(c.nll))


def test_risk_is_the_mean_over_all_orders_of_what_is_equally_sure():
    stated, right = np.array([0.9, 0.5, 0.5, 0.5, 0.2, 0.2]), np.array([1, 0, 1, 1, 0, 1])
    areas, risks = [], []
    for order in itertools.permutations(range(6)):
        if sorted(order, key=lambda i: -stated[i]) == list(order):
            wrong = np.cumsum(1 - right[list(order)]) / np.arange(1, 7)
            areas.append(wrong.mean())
            risks.append(wrong)
    c = lp.calibration(stated, right, **FAST)
    assert len(areas) == 12 and float(c.risk_area) == pytest.approx(np.mean(areas))
    for k in range(1, 7):
        assert float(c.accuracy_at(k / 6)) == pytest.approx(1 - np.mean(risks, axis=0)[k - 1])
    assert c.risk[-1] == pytest.approx(1 - right.mean()) and c.coverage[-1] == 1


def test_an_interval_is_that_of_scikit_learns_number_on_the_drawn_pictures():
    stated, right = simulated(120, off=0.1)
    pictures = np.arange(120) // 4
    c = lp.calibration(stated, right, [f"{n}.jpg" for n in pictures], times=40, draws=2, seed=3)
    found, areas = [], []
    for counts in each_resample(30, 40, 3):
        rows = np.concatenate([np.flatnonzero(pictures == n) for n in range(30) for _ in range(counts[n])])
        found.append(roc_auc_score(right[rows], stated[rows]))
        areas.append(float(lp.calibration(stated[rows], right[rows], times=2, draws=2).risk_area))
    assert (c.auroc.low, c.auroc.high) == pytest.approx(tuple(np.quantile(found, [0.025, 0.975])))
    assert (c.risk_area.low, c.risk_area.high) == pytest.approx(tuple(np.quantile(areas, [0.025, 0.975])))
    assert c.groups == 30


def test_resamples_are_the_same_at_once_and_one_by_one():
    assert (resamples(9, 5, seed=2) == np.array(list(each_resample(9, 5, 2)))).all()


@pytest.mark.parametrize("shape", ["spread", "sure", "few"])
def test_a_calibrated_model_lies_under_its_floors_bound_in_95_of_100_draws(shape):
    generator = np.random.default_rng(5)
    stated = {"spread": generator.random(300), "sure": generator.beta(9, 1, 200), "few": generator.random(40)}[shape]
    c = lp.calibration(stated, (stated > 0.5).astype(int), times=2, draws=2000)
    places = np.clip(np.ceil(np.sort(stated) * 15).astype(int) - 1, 0, 14)
    one_hot = np.eye(15)[places]
    right = generator.random((1000, len(stated))) < np.sort(stated)
    found = np.abs((right - np.sort(stated)) @ one_hot).sum(1) / len(stated)
    share = (found <= c.ece.floor_high).mean()
    assert share == pytest.approx(0.95, abs=0.025), "2000 draws tell the bound and 1000 the share: two sigma are 0.017"
    assert found.mean() == pytest.approx(c.ece.floor, rel=0.05)


@pytest.mark.parametrize("off", [0.0, 0.15])
def test_intervals_of_the_error_hold_the_truth(off):
    stated, right = simulated(20_000, seed=99, off=off)
    truth = ece_by_hand(stated, right)[0] if off else 0.0
    errors = [lp.calibration(*simulated(300, seed, off), times=50, draws=50).ece for seed in range(40)]
    held = np.mean([error.low <= truth <= error.high for error in errors])
    assert held >= 0.8, "nominal 0.95 of 40, as measured 0.87 to 0.93; percentiles hold none at off=0"
    assert np.mean([error.low > 0 for error in errors]) == pytest.approx(1 if off else 0.05, abs=0.1)


def test_bins_of_a_model_that_is_off_lie_outside_the_floor():
    c = lp.calibration(*simulated(1000, off=0.3), times=10, draws=200)
    inside = (c.bins.accuracy >= c.bins.floor_low) & (c.bins.accuracy <= c.bins.floor_high)
    assert c.bins.count[inside].sum() < 0.1 * c.count
    assert float(c.ece) > c.ece.floor_high


def test_one_answer_has_numbers_and_no_interval():
    c = lp.calibration([0.5], [True], draws=2)
    assert float(c.ece) == 0.5 and math.isnan(c.ece.low) and math.isnan(float(c.auroc))
    assert json.loads(json.dumps(c.to_dict(), allow_nan=False))["auroc"]["value"] is None
    assert str(c.accuracy_at(1)) == "1.000"


def test_tensors_and_truths_are_taken_and_everything_is_told(tmp_path):
    stated, right = simulated(60)
    as_tensors = lp.calibration(torch.tensor(stated).bfloat16(), torch.tensor(right).bool(), **FAST)
    assert as_tensors.count == 60
    c = lp.calibration(stated, right, **FAST)
    told = json.loads(json.dumps(c.to_dict(), allow_nan=False))
    assert told["ece"]["floor"] == c.ece.floor and len(told["bins"]["count"]) == len(c.bins.count)
    assert f"{float(c.ece):.3f}" in c.table() and "60 answers in 60 groups" in str(c)
    assert c.to_csv(tmp_path / "c.csv").read_text().startswith("measure,value,low,high,floor,floor_high\naccuracy,")
    assert len(c.bins.table().splitlines()) == len(c.bins.count) + 1
    assert "<table" in c._repr_html_() and "<table" in c.bins._repr_html_()


@pytest.mark.parametrize("kind", [torch.tensor, lambda keys: pd.Series(list(map(str, keys)))])
def test_groups_are_by_what_they_hold_however_they_are_kept(kind):
    stated, right = simulated(60)
    pictures = [number // 6 for number in range(60)]
    assert lp.calibration(stated, right, kind(pictures), **FAST).to_dict() == (
        lp.calibration(stated, right, pictures, **FAST).to_dict()
    )


WRONG = {
    "none": (([], []), {}, "one confidence and one correctness for each answer"),
    "lengths": (([0.1], [0, 1]), {}, "got [1] and [2]"),
    "outside": (([0.1, 1.2], [0, 1]), {}, "number 1 is 1.2"),
    "not a number": (([0.1, float("nan")], [0, 1]), {}, "number 1 is nan"),
    "correctness": (([0.1, 0.2], [0, 2]), {}, "number 1 is 2"),
    "groups": (([0.1, 0.2], [0, 1]), {"groups": ["a"]}, "for each of 2 answers; got 1"),
    "a frame": (([0.1, 0.2], [0, 1]), {"groups": pd.DataFrame({"picture": [1, 2]})}, "takes a list of hashable things"),
    "keys": (([0.1, 0.2], [0, 1]), {"groups": list(torch.zeros(2))}, "which is no key; .tolist() gives its numbers"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_numbers_are_refused(case):
    arguments, options, told = WRONG[case]
    with pytest.raises(lp.BadInput) as refused:
        lp.calibration(*arguments, **options)
    assert told in str(refused.value)
