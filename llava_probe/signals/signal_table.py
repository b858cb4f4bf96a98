"""How well each signal tells words that are made up, over a data set, beside what knows nothing of the picture.

    found = [lp.hallucination(vlm, trace, objects) for trace in traces]
    table = lp.signal_table(found, made_up)        # made_up: for each answer, for each of its words
    print(table)

AUROC: the chance that a word that is made up stands behind one that is not, 0.5 for a signal that tells nothing. At
which end a word is said to be made up is published, and fixed beforehand, so a signal may score below 0.5. Intervals
and paired differences from the best baseline draw pictures again, since words of one picture are made up together.

All signals, and all baselines, are also put together by a logistic regression that saw none of a word's picture. Words
that two fits told are not compared with each other: their AUROC is over pairs within a fold. A signal that nine words
in ten have takes part, and the words that have all of these are told.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from llava_probe.analyzers.table import Table, Tabular
from llava_probe.arrays import FloatArray, IntArray
from llava_probe.border import Seed, checked
from llava_probe.errors import BadInput, OutOfRange, shortened
from llava_probe.resampling import each_resample, interval
from llava_probe.signals.hallucination import SIGNALS, Hallucination
from llava_probe.signals.measured import RESAMPLED, Estimate, grouped
from llava_probe.signals.ranking import auroc, tied

#: Folds of what is fitted; none parts a picture.
_FOLDS = 5
_PER = 100  # frequency is told for so many words
_MOST = 0.9  # of the words that have to have a signal, for it to be taken together with others

#: What knows nothing of the picture.
_BASELINES = tuple(name for name, kind in SIGNALS.items() if not kind.looks)
_ALL_BASELINES = "all baselines"
#: Signals taken together by a logistic regression, on pictures that it was not fitted on.
TOGETHER = {
    "all signals": tuple(name for name, kind in SIGNALS.items() if kind.looks),
    _ALL_BASELINES: _BASELINES,
}


@checked
@dataclass(frozen=True)
class SignalScore:
    """How well one signal tells.

    Attributes:
        name: of ``lp.SIGNALS``, or of ``signal_table.TOGETHER``.
        auroc: with its interval over pictures.
        less_baseline: AUROC less that of the best baseline, on the words that have both.
        words, made_up: how many have a value, and how many of these are made up.
        baseline: whether it knows nothing of picture and model.
    """

    name: str
    auroc: Estimate
    less_baseline: Estimate
    words: int
    made_up: int
    baseline: bool


@checked
@dataclass(frozen=True)
class SignalTable(Tabular):
    """The scores of all signals, the best first.

    Attributes:
        scores: of each signal.
        best_baseline: the baseline that tells most, chosen on these very words; all of them together may be it.
        words, made_up, pictures: how many there are.
    """

    scores: tuple[SignalScore, ...]
    best_baseline: str
    words: int
    made_up: int
    pictures: int

    def __getitem__(self, name: str) -> SignalScore:
        found = {each.name: each for each in self.scores}
        if name not in found:
            raise OutOfRange(f"there is no score of {name!r}; there are {', '.join(found)}")
        return found[name]

    def __str__(self) -> str:
        return f"{self._columns().text()}\n{self._told()}"

    def __repr__(self) -> str:
        return f"SignalTable({self._told()})"

    def to_dict(self) -> dict[str, list[Any]]:
        """Plain lists by name, an entry for each signal, ready for JSON."""
        columns: dict[str, list[Any]] = {"signal": [each.name for each in self.scores]}
        for name in ("auroc", "less_baseline"):
            for part in ("value", "low", "high"):
                column = [getattr(getattr(each, name), part) for each in self.scores]
                columns[name if part == "value" else f"{name}_{part}"] = column
        for name in ("words", "made_up", "baseline"):
            columns[name] = [getattr(each, name) for each in self.scores]
        return columns

    def _repr_html_(self) -> str:
        return self._columns().html(self._told())

    def _columns(self) -> Table:
        return Table(
            {
                "signal": [f"({each.name})" if each.baseline else each.name for each in self.scores],
                "auroc": [str(each.auroc) for each in self.scores],
                f"less {self.best_baseline}": [str(each.less_baseline) for each in self.scores],
                "words": [each.words for each in self.scores],
            }
        )

    def _told(self) -> str:
        return (
            f"{self.made_up} of {self.words} words made up, {self.pictures} pictures; in brackets: what knows nothing "
            f"of picture and model, of which {self.best_baseline} tells most"
        )


@checked
def signal_table(
    found: Sequence[Hallucination],
    made_up: Sequence[Any],
    pictures: Sequence[Hashable] | None = None,
    *,
    seed: Seed = 0,
) -> SignalTable:
    """Score every signal on words whose truth is known.

    Args:
        found: of ``lp.hallucination``, one for each answer.
        made_up: for each answer, for each of its words: whether what it names is not there.
        pictures: of each answer, anything that tells pictures apart; each its own when None.
        seed: of the resamples and folds.

    Raises:
        BadInput: not as many truths as words, or all words are made up, or none is.
    """
    if not found:
        raise BadInput("signal_table takes what lp.hallucination found in some answers; got none")
    sides = [np.asarray(each) for each in made_up]
    if len(sides) != len(found) or any(side.shape != (len(each),) for side, each in zip(sides, found, strict=True)):
        counts = [len(each) for each in found[:5]]
        raise BadInput(
            f"made_up= takes a list for each answer, with True or False for each of its words; the "
            f"first have {', '.join(map(str, counts))} words"
        )
    numbers, count = grouped(pictures, len(found), "answers")
    told = [one for side in sides for one in side.tolist()]
    if wrong := [one for one in told if one not in (0, 1)]:
        raise BadInput(f"made_up= says True or False of each word; got {shortened(repr(wrong[0]))}")
    truth = np.array(told, dtype=bool)
    if truth.all() or not truth.any():
        raise BadInput(
            f"{'all' if truth.all() else 'none'} of {len(truth)} words are made up: there is nothing to tell"
        )
    owner = np.repeat(numbers, [len(each) for each in found])
    scores = {name: np.concatenate([each.values[name] for each in found]) for name in SIGNALS}
    scores["frequency"] = _frequencies(found, numbers)
    scores = {name: value if SIGNALS[name].made_up_when == "high" else -value for name, value in scores.items()}
    together, folds = _together(scores, truth, owner, seed)
    judged = _Judge(scores | together, dict.fromkeys(together, folds), truth, owner, count, seed)
    scores |= together
    there = [name for name in (*_BASELINES, _ALL_BASELINES) if name in scores and not np.isnan(scores[name]).all()]
    best = max(there, key=judged.value)
    rows = [
        SignalScore(
            name,
            judged.measure(name),
            judged.difference(name, best),
            int((~np.isnan(scores[name])).sum()),
            int(truth[~np.isnan(scores[name])].sum()),
            name in (*_BASELINES, _ALL_BASELINES),
        )
        for name in scores
        if not np.isnan(scores[name]).all()
    ]
    rows.sort(key=lambda each: -each.auroc.value)
    return SignalTable(tuple(rows), best, len(truth), int(truth.sum()), count)


class _Judge:
    """AUROC of scores of the same words, over the same resamples of their pictures.

    Args:
        scores: [words] by name; NaN where there is none.
        folds: [words] of those names of which words are compared within a fold alone.
        truth, owner: [words] whether it is made up, and its picture; ``pictures``: how many.
        seed: of the resamples.
    """

    def __init__(
        self,
        scores: Mapping[str, FloatArray],
        folds: Mapping[str, IntArray],
        truth: np.ndarray,
        owner: IntArray,
        pictures: int,
        seed: int,
    ) -> None:
        self._scores, self._folds, self._truth = scores, folds, truth.astype(np.float64)
        drawn = each_resample(pictures, RESAMPLED, seed) if pictures > 1 else ()
        self._once = np.ones((1, len(truth)), dtype=np.uint16)
        self._weights = np.array([counts[owner].astype(np.uint16) for counts in drawn]).reshape(-1, len(truth))

    def value(self, name: str) -> float:
        """Of the words as they are."""
        return float(self._aurocs(name, self._there(name), self._once, self._folds.get(name))[0])

    def measure(self, name: str) -> Estimate:
        """With its interval."""
        drawn = self._aurocs(name, self._there(name), self._weights, self._folds.get(name))
        return _measured(self.value(name), drawn)

    def difference(self, name: str, other: str) -> Estimate:
        """Of two scores, on the words that have both, and on the same pairs of them."""
        both, folds = self._there(name) & self._there(other), self._folds.get(name, self._folds.get(other))
        now, drawn = (
            self._aurocs(name, both, weights, folds) - self._aurocs(other, both, weights, folds)
            for weights in (self._once, self._weights)
        )
        return _measured(float(now[0]), drawn)

    def _there(self, name: str) -> np.ndarray:
        return ~np.isnan(self._scores[name])

    def _aurocs(self, name: str, words: np.ndarray, weights: npt.NDArray[Any], folds: IntArray | None) -> FloatArray:
        """[times] of [times, words] weights; of several folds the mean, each by its pairs."""
        parts = [words] if folds is None else [words & (folds == fold) for fold in np.unique(folds[words])]
        pairs, right = np.zeros(len(weights)), np.zeros(len(weights))
        for part in map(np.flatnonzero, parts):
            order = part[np.argsort(self._scores[name][part])]
            truth, runs = self._truth[order], tied(self._scores[name][order])
            for number, drawn in enumerate(weights):  # one at a time: all of a large data set's are gigabytes
                here = drawn[order].astype(np.float64)
                count = (here @ truth) * (here @ (1 - truth))
                pairs[number] += count
                right[number] += auroc(here, truth, runs) * count if count else 0
        with np.errstate(invalid="ignore"):
            told: FloatArray = right / pairs
        return told


def _measured(value: float, drawn: FloatArray) -> Estimate:
    drawn = drawn[~np.isnan(drawn)]
    return Estimate(value, *interval(drawn)) if len(drawn) else Estimate(value)


def _frequencies(found: Sequence[Hallucination], pictures: IntArray) -> FloatArray:
    """Of each word, how often answers about other pictures name its object, for a hundred of their words."""
    named = [Counter(each.objects) for each in found]
    words = [len(each.answer.split()) for each in found]
    told: list[float] = []
    for number, each in enumerate(found):
        others = np.flatnonzero(pictures != pictures[number])
        total = sum(words[other] for other in others)
        told += [
            _PER * sum(named[other][thing] for other in others) / total if total else math.nan for thing in each.objects
        ]
    return np.array(told)


def _together(
    scores: Mapping[str, FloatArray], truth: np.ndarray, owner: IntArray, seed: int
) -> tuple[dict[str, FloatArray], IntArray]:
    """Several signals by a logistic regression, each word by one that was not fitted on its picture, and its fold.

    Nothing where scikit-learn is not installed, or pictures are too few.
    """
    fold_of = np.zeros(len(truth), dtype=np.int64)
    groups = [len(set(owner[truth == side].tolist())) for side in (True, False)]
    if find_spec("sklearn") is None or min(groups) < _FOLDS:
        return {}, fold_of
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=seed).split(owner, truth, owner)
    for number, (_, told) in enumerate(folds):
        fold_of[told] = number
    found = {}
    for name, parts in TOGETHER.items():
        taken = [scores[part] for part in parts if (~np.isnan(scores[part])).mean() >= _MOST]
        if not taken:
            continue
        columns = np.stack(taken, axis=1)
        there = ~np.isnan(columns).any(1)
        found[name] = np.full(len(truth), np.nan)
        for number in range(_FOLDS):
            told, fitted = (there & side for side in (fold_of == number, fold_of != number))
            if told.any() and 0 < truth[fitted].sum() < fitted.sum():
                model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1_000))
                found[name][told] = model.fit(columns[fitted], truth[fitted]).decision_function(columns[told])
    return found, fold_of
