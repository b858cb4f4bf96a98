"""Fits of confidences against scikit-learn's, bound to the model and prompt that they were made with."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

import llava_probe as lp
from llava_probe import tiny
from llava_probe.signals import Binding
from tests.synthetic import synthetic_trace

ASKED = [f"USER: <image>\nIs there a {thing} in the image? ASSISTANT:" for thing in ("dog", "red cat", "doll")]
MADE = {"class": "Llava", "dtype": "bfloat16", "weights": "abc", "versions": {"torch": "2.13", "transformers": "5.23"}}


def trace_of(prompt=ASKED[0], **provenance):
    trace = synthetic_trace()
    return replace(trace, request=replace(trace.request, prompt=prompt), provenance={**MADE, **provenance})


def answers(n=2000, seed=0):
    """Confidences that are too far from one half: the log-odds are twice the true ones, and moved."""
    generator = np.random.default_rng(seed)
    odds = generator.normal(0.5, 1.5, n)
    right = generator.random(n) < 1 / (1 + np.exp(-odds))
    return 1 / (1 + np.exp(-(2 * odds + 0.4))), right.astype(int)


def parts(n, held_out=0.5, seed=0):
    """What is fitted and what is held out, where each answer is a group of its own."""
    apart = np.random.default_rng(seed).permutation(n)[: round(n * held_out)]
    return np.setdiff1d(np.arange(n), apart), apart


@cache
def fitted(kind):
    stated, right = answers()
    return lp.fit_calibrator(stated, right, of=trace_of(), kind=kind), stated, right


def test_a_temperature_has_the_least_loss_of_all():
    calibrator, stated, right = fitted("temperature")
    fit, _ = parts(len(stated))
    odds = np.log(stated[fit] / (1 - stated[fit]))

    def loss(temperature):
        return np.logaddexp(0, -odds / temperature * np.where(right[fit], 1, -1)).mean()

    found = minimize_scalar(loss, bounds=(0.1, 10), method="bounded", options={"xatol": 1e-9}).x
    assert calibrator.parameters["temperature"][0] == pytest.approx(found, rel=1e-5)
    assert calibrator.parameters["temperature"][0] == pytest.approx(2, abs=0.25), "the log-odds are twice the true"
    assert calibrator.apply(stated, of=trace_of()) == pytest.approx(1 / (1 + (1 / stated - 1) ** (1 / found)), rel=1e-4)


def test_platt_equals_scikit_learns_sigmoid():
    calibrator, stated, right = fitted("platt")
    fit, _ = parts(len(stated))
    odds = np.log(stated / (1 - stated))[:, None]
    identity = LogisticRegression().fit([[-1.0], [1.0]], [0, 1])
    identity.coef_[:], identity.intercept_[:] = 1, 0
    theirs = CalibratedClassifierCV(FrozenEstimator(identity), method="sigmoid", cv=2, ensemble=False)
    theirs.fit(odds[fit], right[fit])
    assert calibrator.apply(stated, of=trace_of()) == pytest.approx(theirs.predict_proba(odds)[:, 1], abs=1e-4)


def test_isotonic_equals_scikit_learns():
    calibrator, stated, right = fitted("isotonic")
    fit, _ = parts(len(stated))
    theirs = IsotonicRegression(out_of_bounds="clip").fit(stated[fit], right[fit])
    assert calibrator.apply(stated, of=trace_of()) == pytest.approx(theirs.predict(stated))


@pytest.mark.parametrize("kind", ["temperature", "platt", "isotonic"])
def test_what_is_told_is_of_the_answers_held_out(kind):
    calibrator, stated, right = fitted(kind)
    _, judged = parts(len(stated))
    for moment, values in (("before", stated), ("after", calibrator.apply(stated, of=trace_of()))):
        c = lp.calibration(values[judged], right[judged], draws=2, times=2)
        for name in ("ece", "brier", "nll", "auroc"):
            assert calibrator.about[moment][name]["value"] == pytest.approx(float(getattr(c, name)))
    before, after = calibrator.about["before"], calibrator.about["after"]
    better = "brier" if kind == "isotonic" else "nll"  # a staircase may say 0 or 1, which costs 36 nats where it errs
    assert after[better]["value"] < before[better]["value"]
    assert after["ece"]["value"] < before["ece"]["value"], "the planted temperature is taken away"
    assert "judged on 1000 others" in str(calibrator)


def test_a_group_is_in_one_part_only():
    stated, right = answers(400)
    groups = np.arange(400) // 40
    calibrator = lp.fit_calibrator(stated, right, of=trace_of(), groups=groups, held_out=0.3)
    assert calibrator.about["fitted"] == 280 and calibrator.about["groups"] == [7, 3]


@pytest.mark.parametrize("kind", ["temperature", "platt", "isotonic"])
def test_a_saved_fit_comes_back_equal(kind, tmp_path):
    calibrator, stated, _ = fitted(kind)
    loaded = lp.Calibrator.load(calibrator.save(tmp_path / "fit.json"))
    assert loaded == calibrator
    assert (loaded.apply(stated, of=trace_of()) == calibrator.apply(stated, of=trace_of())).all()


OTHERS = {
    "weights": ({"weights": "xyz"}, 'weights: "abc" | "xyz"'),
    "dtype": ({"dtype": "float32"}, 'dtype: "bfloat16" | "float32"'),
    "adapter": ({"adapter": {"active": "lora"}}, "adapter"),
    "versions": ({"versions": {"torch": "2.14", "transformers": "5.23"}}, "other versions (torch"),
    "prompt": ({"prompt": "USER: <image>\nWhat? ASSISTANT:"}, "was fitted on the prompt"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_fit_is_refused_elsewhere(case):
    calibrator, stated, _ = fitted("temperature")
    changes, told = OTHERS[case]
    with pytest.raises(lp.BadInput) as refused:
        calibrator.apply(stated, of=trace_of(**changes))
    assert told in str(refused.value)


def test_a_real_model_is_itself_and_no_other(tiny_vlm, tmp_path):
    """What a trace tells of a model is what a fit is bound to: kept in a file, asked again, in another precision."""
    image, little = tiny.scene(3).image, lp.Capture(attention=False, hidden_states=False)
    ask = {"question": "Is there a star?", "max_new_tokens": 1, "capture": little}
    trace, again = (tiny_vlm.generate(image, **ask) for _ in range(2))
    stated, right = answers(60)
    calibrator = lp.Calibrator.load(
        lp.fit_calibrator(stated, right, of=trace, kind="platt").save(tmp_path / "fit.json")
    )
    calibrator.apply(stated, of=[again, lp.Trace.load(again.save(tmp_path / "a.trace"))])
    with pytest.raises(lp.BadInput, match=r'dtype: "float32" \| "bfloat16"'):
        calibrator.apply(stated, of=lp.load("tiny", dtype="bfloat16").generate(image, **ask))
    with (
        lp.knock_out(tiny_vlm, keys="image", queries="last", layers=[0]),
        pytest.raises(lp.BadInput, match="knock_out"),
    ):
        calibrator.apply(stated, of=tiny_vlm.generate(image, **ask))
    with pytest.raises(lp.BadInput, match="no fit for"):
        calibrator.apply(stated, of=tiny_vlm.generate(image, **{**ask, "question": "Is there a ring?"}))


def test_an_intervention_makes_another_model():
    calibrator, stated, _ = fitted("temperature")
    with pytest.raises(lp.BadInput, match="interventions"):
        calibrator.apply(stated, of=replace(trace_of(), interventions=({"kind": "knock_out"},)))


def test_prompts_that_differ_in_a_word_are_one_form():
    binding = Binding.of(map(trace_of, ASKED))
    assert binding.prompt == ("USER: <image>\nIs there a ", " in the image? ASSISTANT:")
    binding.check(Binding.of(trace_of(ASKED[0].replace("dog", "very old bus"))), "it")
    binding.check(Binding.of([trace_of(text) for text in ASKED[1:]]), "it")
    for other in ("USER: <image>\nIs there a dog? ASSISTANT:", "USER: <image>\nIs there a image? ASSISTANT:"):
        with pytest.raises(lp.BadInput, match="no fit for"):
            binding.check(Binding.of(trace_of(other)), "it")


def test_traces_of_two_models_bind_to_none():
    with pytest.raises(lp.BadInput, match="number 1 differs in dtype"):
        Binding.of([trace_of(), trace_of(dtype="float32")])


WRONG = {
    "one kind of answers": ([0.2, 0.3, 0.9, 0.8], [1, 1, 1, 1], {}, "of which"),
    "upside down": ([0.1, 0.2, 0.8, 0.9] * 20, [1, 1, 0, 0] * 20, {}, "surer answers are not more often right"),
    "parted": ([0.1, 0.2, 0.8, 0.9] * 20, [0, 0, 1, 1] * 20, {}, "kind='platt' has a best one"),
    "no trace": ([0.1, 0.9], [0, 1], {"of": []}, "got none"),
    "a text": ([0.1, 0.9], [0, 1], {"of": "x"}, "got str"),
    "other things": ([0.1, 0.9], [0, 1], {"of": [1]}, "number 0 is a int"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_fitted_is_refused(case):
    stated, right, options, told = WRONG[case]
    with pytest.raises(lp.BadInput) as refused:
        lp.fit_calibrator(stated, right, **{"of": trace_of(), **options})
    assert told in str(refused.value)


DAMAGES = {
    "no JSON": lambda told: None,
    "another kind": lambda told: told | {"kind": "spline"},
    "no parameters": lambda told: told | {"parameters": {}},
    "a falling staircase": lambda told: told | {"parameters": {"at": [0.1, 0.2], "gives": [0.5, 0.4]}},
    "a negative temperature": lambda told: told | {"kind": "temperature", "parameters": {"temperature": [-1.0]}},
    "no prompt": lambda told: told | {"binding": told["binding"] | {"prompt": []}},
    "a newer format": lambda told: told | {"format": 99},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused(damage, tmp_path):
    calibrator, _, _ = fitted("isotonic")
    path = calibrator.save(tmp_path / "fit.json")
    changed = DAMAGES[damage](json.loads(path.read_text()))
    path.write_text("{" if changed is None else json.dumps(changed))
    with pytest.raises(lp.BadFile, match=r"fit\.json"):
        lp.Calibrator.load(path)
