"""Whether what a map marks matters to the model: parts are taken away, or put in, in the map's order.

    curves = deletion_insertion(vlm, trace, m)       # a curve for each row, and the areas under them
    curves.deletion_auc, curves.insertion_auc        # low, and high, for a map that knows what the word rests on
    comprehensiveness(vlm, trace, m).mean            # how much is lost without the highest parts: high
    sufficiency(vlm, trace, m).mean                  # how much is lost with these alone: low

Deletion and insertion: Petsiuk, Das & Saenko 2018 (RISE, arXiv 1806.07421). Sufficiency and comprehensiveness: DeYoung
et al. 2020 (ERASER, arXiv 1911.03429), averaged over shares (AOPC) as in the authors' code, which leaves out the empty
share. All are of the explained word's probability, of several tokens their joint one; under a contrast it is the word's
share of both.

They judge the map and the way of taking away together: a picture with holes is none that the model was trained on, so
compare maps under one baseline, and look at a second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Unpack

import numpy as np

from llava_probe.arrays import FloatArray
from llava_probe.border import Count, Limits, checked
from llava_probe.errors import BadInput
from llava_probe.evaluate.removing import Options, Step, removal_of
from llava_probe.maps.maps import ImageMap
from llava_probe.model import VLM
from llava_probe.trace.trace import Trace

#: Parts of the picture: more than none of it.
Shares = Sequence[Annotated[float, Limits(above=0, most=1)]]
#: Points of a curve where nobody says.
CURVE_STEPS = 32
#: Of the parts, as in ERASER.
SHARES = (0.01, 0.05, 0.1, 0.2, 0.5)
#: 0.1 of 30 parts are 3, not 4.
_ROUNDING = 1e-9


@checked
@dataclass(frozen=True, eq=False)
class Curves:
    """The explained words' probability as their pictures go and come.

    Attributes:
        deletion: [rows, steps + 1] after taking away each share of the parts, the highest first.
        insertion: [rows, steps + 1] after putting each share into a picture of nothing but baseline.
        shares: [steps + 1] of the parts changed, 0 to 1.
        deletion_auc, insertion_auc: [rows] areas under them, 0 to 1, by trapezoids.
        forwards: passes through the model.
    """

    deletion: FloatArray
    insertion: FloatArray
    shares: FloatArray
    deletion_auc: FloatArray
    insertion_auc: FloatArray
    forwards: int


@checked
@dataclass(frozen=True, eq=False)
class Drops:
    """How much probability the explained words lose.

    Attributes:
        whole: [rows] the probability with the whole picture.
        left: [rows, K] with each share of the parts taken away, or kept.
        shares: [K] of the parts.
        forwards: passes through the model.
    """

    whole: FloatArray
    left: FloatArray
    shares: tuple[float, ...]
    forwards: int

    @property
    def mean(self) -> FloatArray:
        """[rows] whole - left, averaged over the shares."""
        mean: FloatArray = (self.whole[:, None] - self.left).mean(1)
        return mean


@checked
def deletion_insertion(
    vlm: VLM, trace: Trace, m: ImageMap, *, steps: Count = CURVE_STEPS, **options: Unpack[Options]
) -> Curves:
    """Deletion and insertion curves of each row of a map.

    Args:
        vlm, trace: the model, and the answer that the map explains; of another text, ``vlm.score``'s trace.
        m: of any layout on the trace's picture; a finer one orders visual tokens by its mean over their boxes.
        steps: equal steps from nothing to everything; at most one a part.
        **options: which rows, and how parts are taken away: ``row``, ``image``, ``tokens``, ``contrast``, ``on``,
            ``baseline``, ``batch`` and ``seed`` of ``removing.Options``.

    Raises:
        BadInput: a map of another picture or of other tokens, or an unknown option.
        OutOfRange: a row, word or picture that is not there.
    """
    removal = removal_of(vlm, trace, m, **options)
    counts = np.linspace(0, removal.parts, min(steps, removal.parts) + 1).round().astype(int)
    wanted = [
        Step(row, int(count), removed)
        for row in range(len(removal.rows))
        for removed in (True, False)
        for count in counts
    ]
    found = removal.probabilities(wanted).reshape(-1, 2, len(counts))
    shares = counts / removal.parts
    areas = np.asarray(np.trapezoid(found, shares, axis=-1))
    return Curves(found[:, 0], found[:, 1], shares, areas[:, 0], areas[:, 1], removal.forwards)


@checked
def comprehensiveness(
    vlm: VLM, trace: Trace, m: ImageMap, *, shares: Shares = SHARES, **options: Unpack[Options]
) -> Drops:
    """What is lost when the highest parts are taken away: high where the map found all that the word rests on.

    Args:
        vlm, trace, m, **options: as for ``deletion_insertion``.
        shares: of the parts, above 0 and at most 1; each is rounded up to whole parts.

    Raises:
        BadInput: as for ``deletion_insertion``, or shares out of range.
        OutOfRange: a row, word or picture that is not there.
    """
    return _drops(vlm, trace, m, shares, options, removed=True)


@checked
def sufficiency(vlm: VLM, trace: Trace, m: ImageMap, *, shares: Shares = SHARES, **options: Unpack[Options]) -> Drops:
    """What is lost when the highest parts alone are kept: low where they are enough for the word.

    Args, errors: as for ``comprehensiveness``.
    """
    return _drops(vlm, trace, m, shares, options, removed=False)


def _drops(vlm: VLM, trace: Trace, m: ImageMap, shares: Sequence[float], options: Options, *, removed: bool) -> Drops:
    given = tuple(float(share) for share in shares)
    if not given or not all(0 < share <= 1 for share in given):
        raise BadInput(f"shares= takes shares of the picture above 0 and at most 1; got {list(given)}")
    removal = removal_of(vlm, trace, m, **options)
    counts = [math.ceil(share * removal.parts - _ROUNDING) for share in given]
    rows = range(len(removal.rows))
    wanted = [Step(row, 0, True) for row in rows] + [Step(row, count, removed) for row in rows for count in counts]
    found = removal.probabilities(wanted)
    return Drops(found[: len(rows)], found[len(rows) :].reshape(len(rows), -1), given, removal.forwards)
