"""Yes or no, read from what was said and from what was likely, and how often that is right.

The reading of the text is that of POPE's own evaluator (Li et al. 2023, arXiv 2305.10355), rule by rule: of the answer
up to its first full stop, without commas, parted at single spaces, "No", "no" or "not" among the words means no;
everything else means yes, an answer without either too. Those are counted (``hedged``), since a model that says "The
image shows a kitchen" has not said yes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from llava_probe.arrays import BoolArray, FloatArray, IntArray
from llava_probe.signals.measured import Estimate, ratio

#: As they stand, and in no other case.
_NO = {"No", "no", "not"}
_EITHER = re.compile(r"\b(yes|no|not)\b", re.IGNORECASE)


def says_yes(answer: str) -> bool:
    """POPE's own reading of an answer."""
    sentence = answer.split(".")[0].replace(",", "")
    return not _NO & set(sentence.split(" "))


def says_neither(answer: str) -> bool:
    """Whether there is neither a yes nor a no in it, in whatever case, so that ``says_yes`` is a guess."""
    return _EITHER.search(answer) is None


@dataclass(frozen=True)
class Verdicts:
    """Yes and no against the truth; "yes" is the positive class. Intervals are 95 % over pictures.

    Attributes:
        accuracy: the share that is right; ``precision``: of the yeses, of which it is NaN without any; ``recall``: of
            what is there; ``f1``: their harmonic mean; ``yes_ratio``: the share of yeses.
        true_yes, false_yes, true_no, false_no: how many of each.
    """

    accuracy: Estimate
    precision: Estimate
    recall: Estimate
    f1: Estimate
    yes_ratio: Estimate
    true_yes: int
    false_yes: int
    true_no: int
    false_no: int

    @property
    def measures(self) -> dict[str, Estimate]:
        """Its five measures by name."""
        return {name: getattr(self, name) for name in ("accuracy", "precision", "recall", "f1", "yes_ratio")}


def judged(said: BoolArray, truth: BoolArray, pictures: IntArray, count: int) -> Verdicts:
    """What comes of answers, each [n].

    Args:
        said: whether yes was said; ``truth``: whether it should have been.
        pictures: the number of each one's picture; ``count``: how many there are.
    """
    counted = (said & truth, said & ~truth, ~said & ~truth, ~said & truth)
    tp, fp, tn, fn = (each.astype(np.float64) for each in counted)
    every = np.ones(len(said))

    def share(above: FloatArray, below: FloatArray) -> Estimate:
        return ratio(above, below, pictures, count)

    return Verdicts(
        share(tp + tn, every),
        share(tp, tp + fp),
        share(tp, tp + fn),
        share(2 * tp, 2 * tp + fp + fn),
        share(tp + fp, every),
        *(int(each.sum()) for each in counted),
    )
