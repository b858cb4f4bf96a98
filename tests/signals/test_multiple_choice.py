"""Answers weighed for many questions: the same as one by one, and a liking for a letter falls out."""

import math

import numpy as np
import pytest
import torch

import llava_probe as lp
from llava_probe import tiny
from tests.synthetic import synthetic_trace

QUESTION = "What colour is the star?"
COLOURS = ["red", "blue", "green"]


class Liking:
    """Stands for a model that gives a letter its liking for it times the worth of what stands behind it."""

    def __init__(self, liking, worth, off=0.0):
        self.liking, self.worth, self.off, self.asked = np.array(liking), worth, off, []

    def generate_batch(self, samples, **settings):
        self.asked += [question for _, question in samples]
        return [self._trace(question) for _, question in samples]

    def _trace(self, question):
        standing = [line.partition(". ")[2] for line in question.splitlines() if line[1:3] == ". "]
        weights = self.liking[: len(standing)] * [self.worth[name] for name in standing]
        shares = np.concatenate([weights / weights.sum() * (1 - self.off), [self.off]])
        texts = {0: "A", 1: " A", 2: "a", 3: "B", 4: "C", 5: "</s>"}
        logits = torch.full((1, 6), -math.inf)
        logits[0, 0] = math.log(shares[0] * 0.25)
        logits[0, 1] = math.log(shares[0] * 0.75)
        for place, share in zip((3, 4)[: len(shares) - 2], shares[1:-1], strict=True):
            logits[0, place] = math.log(share)
        logits[0, 2] = math.log(shares[-1]) if shares[-1] else -math.inf
        trace = synthetic_trace(logits=logits, answer=["A"])
        return lp.Trace(**{**vars(trace), "spellings": type(trace.spellings)(texts, frozenset({5}), True)})


@pytest.fixture
def vlm(monkeypatch, tiny_vlm):
    """The tiny model with its answers replaced by those of a ``Liking``."""

    def liking(*told, **more):
        made = Liking(*told, **more)
        monkeypatch.setattr(tiny_vlm, "generate_batch", made.generate_batch)
        return tiny_vlm, made

    return liking


def test_a_liking_for_a_letter_falls_out(vlm):
    model, made = vlm([6, 3, 1], {"red": 1, "blue": 1, "green": 1})
    found = lp.multiple_choice(model, [(None, QUESTION)] * 2, COLOURS, progress=False)
    assert found.normalised[0] == pytest.approx([1 / 3] * 3)
    assert found.position_bias == pytest.approx([0.6, 0.3, 0.1])
    assert (
        len(made.asked) == 6
        and "A. red\nB. blue\nC. green" in made.asked[0]
        and "A. blue\nB. green\nC. red" in made.asked[1]
    )
    assert "A 0.600, B 0.300, C 0.100" in str(found)


def test_a_choice_is_a_mean_over_its_places(vlm):
    liking, worth = np.array([5.0, 2.0, 1.0]), {"red": 1.0, "blue": 4.0, "green": 2.0}
    model, _ = vlm(liking, worth, off=0.2)
    found = lp.multiple_choice(model, [(None, QUESTION)], COLOURS, progress=False)
    expected = {name: [] for name in COLOURS}
    for turn in range(3):
        standing = [COLOURS[(place + turn) % 3] for place in range(3)]
        weights = [liking[place] * worth[name] for place, name in enumerate(standing)]
        for name, weight in zip(standing, weights, strict=True):
            expected[name].append(0.8 * weight / sum(weights))
    assert found.probability[0] == pytest.approx([np.mean(expected[name]) for name in COLOURS])
    assert pytest.approx(np.array([expected[name] for name in COLOURS])) == found.rotations[0].T
    assert found.best == ("blue",) and found.off_choice == pytest.approx([0.2])


def test_a_small_a_is_no_letter(vlm):
    model, _ = vlm([1, 1], {"yes": 1, "no": 1}, off=0.5)
    found = lp.multiple_choice(model, [(None, "?")], ["yes", "no"], progress=False)
    assert found.off_choice == pytest.approx([0.5]), "what the article has is off choice"


def test_each_sample_may_have_choices_of_its_own(vlm):
    model, _ = vlm([1, 1, 1], {"red": 3, "blue": 1, "yes": 1, "no": 4})
    found = lp.multiple_choice(model, [(None, "?")] * 2, [["red", "blue"], ["yes", "no"]], progress=False)
    assert found.best == ("red", "no") and found.confidence == pytest.approx([0.75, 0.8])


def test_many_are_weighed_as_one_by_one(tiny_vlm):
    samples = [(tiny.scene(seed).image, "Is there a white star?") for seed in (3, 34)]
    found = lp.multiple_choice(tiny_vlm, samples, ["yes", "no"], letters=False, progress=False)
    traces = [tiny_vlm.generate(*sample, max_new_tokens=1) for sample in samples]
    weighed = [lp.confidence(trace).choices(["yes", "no"]) for trace in traces]
    assert np.array(found.probability) == pytest.approx(np.array([each.probability for each in weighed]), abs=1e-5)
    assert found.best == tuple(each.best for each in weighed)
    assert found.off_choice == pytest.approx([1 - sum(each.probability) for each in weighed], abs=1e-5)
    as_they_are = lp.multiple_choice(None, traces, ["yes", "no"], letters=False)
    assert np.array(as_they_are.probability) == pytest.approx(np.array([each.probability for each in weighed]))


def test_letters_of_a_real_model_are_its_logits(tiny_vlm):
    image = tiny.scene(34).image
    trace = tiny_vlm.generate(image, QUESTION, max_new_tokens=1)
    found = lp.multiple_choice(tiny_vlm, [trace], ["red", "blue"], form="{question} {options}", progress=False)
    shares = []
    for options in ("A. red\nB. blue", "A. blue\nB. red"):
        asked = tiny_vlm.generate(image, f"{QUESTION} {options}", max_new_tokens=1)
        probability = torch.softmax(asked.logits[0].double(), 0)
        texts = asked.spellings.texts.items()
        shares.append([float(sum(probability[i] for i, text in texts if text.strip() == letter)) for letter in "AB"])
    (a, b), (c, d) = shares
    assert found.probability[0] == pytest.approx([(a + d) / 2, (b + c) / 2], rel=1e-3)


def test_a_fit_is_bound_to_what_was_asked(tiny_vlm, tmp_path):
    samples = [
        (tiny.scene(seed).image, question) for seed in (3, 34) for question in ("Is there a star?", "Is it red?")
    ]
    found = lp.multiple_choice(tiny_vlm, samples, ["yes", "no"], letters=False, progress=False)
    calibrator = lp.fit_calibrator([0.1, 0.4, 0.6, 0.9] * 9, [0, 1, 0, 1] * 9, of=found, kind="platt")
    assert calibrator.apply(found.confidence, of=found).shape == (4,)
    assert found.to_csv(tmp_path / "m.csv").read_text().startswith("best,share,off_choice,p(yes),p(no)\n")
    assert "<table" in found._repr_html_() and len(found) == 4


WRONG = {
    "one choice": ([(None, "?")], ["yes"], {}, "2 to 26 different answers"),
    "the same twice": ([(None, "?")], ["yes", "Yes "], {}, "2 to 26 different answers"),
    "an empty one": ([(None, "?")], ["yes", " "], {}, "2 to 26 different answers"),
    "27 choices": ([(None, "?")], [f"c{n}" for n in range(27)], {}, "2 to 26 different answers"),
    "other lists": ([(None, "?")], [["a", "b"], ["c", "d"]], {}, "got 2 lists"),
    "no sample": ([], ["yes", "no"], {}, "no question"),
    "no samples": ("x", ["yes", "no"], {}, "got str"),
    "no pair": ([3], ["yes", "no"], {}, "got int"),
    "a dict": ([{"image": None, "question": "?"}], ["yes", "no"], {}, "got dict"),
    "no question": ([(None, None)], ["yes", "no"], {}, "plain words"),
    "a form without its places": ([(None, "?")], ["yes", "no"], {"form": "{question}"}, "{question} and {options}"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_weighed_is_refused(case, tiny_vlm):
    samples, choices, options, told = WRONG[case]
    with pytest.raises(lp.BadInput) as refused:
        lp.multiple_choice(tiny_vlm, samples, choices, progress=False, **options)
    assert told in str(refused.value)


def test_no_model_asks_nothing():
    with pytest.raises(lp.BadInput, match="a model is needed to ask"):
        lp.multiple_choice(None, [(None, "?")], ["yes", "no"])
