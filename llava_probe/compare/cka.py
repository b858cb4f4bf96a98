"""How alike two sets of states are, whatever their bases: unbiased CKA, and the overlap of their main directions.

    alikeness(x, y)      # cka with its interval, beside the same of shuffled rows and the biased value

With K = XXᵀ and L = YYᵀ, their diagonals set to 0 (Song et al. 2012, JMLR 13, equation 5):

    HSIC₁(K, L) = [tr(KL) + (1ᵀK1)(1ᵀL1)/((n−1)(n−2)) − 2/(n−2) · 1ᵀKL1] / (n(n−3))
    CKA = HSIC₁(K, L) / √(HSIC₁(K, K) · HSIC₁(L, L))            (Kornblith et al. 2019, arXiv 1905.00414)

The usual, biased CKA says 0.88 of two sets of independent Gaussians with 576 rows of 4,096 numbers; this one says 0.
Neither is any good where a few rows hold all of the energy (six sink tokens that both sets share give 1.00 either way):
leave those out, and give rows that are independent of each other, one a picture.

The interval is the jackknife's. A bootstrap draws a picture twice, and the two of it are alike in both sets: that would
be taken for agreement.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from llava_probe.arrays import FloatArray
from llava_probe.signals.measured import Estimate

#: Fewer rows than this have no unbiased estimate.
FEWEST_ROWS = 4
#: Shuffles of the rows that tell what chance gives.
SHUFFLES = 100
#: Main directions that are compared at most; of few rows no more than half as many.
DIRECTIONS = 10
#: Standard errors to either side of a 95 % interval.
_ERRORS = 1.96


@dataclass(frozen=True)
class Similarity:
    """How alike two sets of states are.

    Attributes:
        cka: unbiased, with its 95 % jackknife interval over rows; NaN where there are too few.
        shuffled: what 95 % of shuffles of the rows stay under: chance.
        biased: what the biased estimate says.
        overlap: share of the main directions of one set that lies in those of the other, 0 to 1; NaN where the two have
            other widths.
        chance: the overlap that random directions have.
        rows: how many there were.
    """

    cka: Estimate
    shuffled: float
    biased: float
    overlap: float
    chance: float
    rows: int


def alikeness(x: FloatArray, y: FloatArray, seed: int = 0) -> Similarity:
    """Compare two sets of states of the same things.

    Args:
        x, y: [n, D] and [n, D'], a row for each thing.
        seed: of the shuffles.
    """
    rows = len(x)
    if rows < FEWEST_ROWS:
        return Similarity(Estimate(math.nan), math.nan, math.nan, math.nan, math.nan, rows)
    one, other = _gram(x), _gram(y)
    scale = _scale(one, other)
    value = hsic(one, other) / scale if scale else math.nan
    generator = np.random.default_rng(seed)
    orders = [generator.permutation(rows) for _ in range(SHUFFLES)] if scale else []
    shuffled = [hsic(one, other[np.ix_(order, order)]) / scale for order in orders]
    overlap, chance = _overlap(x, y)
    return Similarity(
        Estimate(value, *_jackknife(one, other, value)),
        float(np.quantile(shuffled, 0.95)) if shuffled else math.nan,
        biased_cka(x, y),
        overlap,
        chance,
        rows,
    )


def unbiased_cka(x: FloatArray, y: FloatArray) -> float:
    """CKA by HSIC₁ of states [n, D] and [n, D']; NaN for fewer than four rows or rows that are all the same."""
    if len(x) < FEWEST_ROWS:
        return math.nan
    one, other = _gram(x), _gram(y)
    scale = _scale(one, other)
    return hsic(one, other) / scale if scale else math.nan


def biased_cka(x: FloatArray, y: FloatArray) -> float:
    """The usual CKA, ‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖) of centred columns: near 1 wherever rows are few beside columns."""
    x, y = (np.asarray(each, dtype=np.float64) - np.mean(each, axis=0, dtype=np.float64) for each in (x, y))
    one, other = x @ x.T, y @ y.T
    scale = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float((one * other).sum()) / scale if scale else math.nan


def hsic(one: FloatArray, other: FloatArray) -> float:
    """HSIC₁ of two matrices [n, n] whose diagonals are 0."""
    n = len(one)
    return float(_hsic_of(n, (one * other).sum(), one.sum(), other.sum(), one.sum(1) @ other.sum(1)))


def _scale(one: FloatArray, other: FloatArray) -> float:
    return math.sqrt(max(0.0, hsic(one, one)) * max(0.0, hsic(other, other)))


def _hsic_of(n: int, product: FloatArray, one: FloatArray, other: FloatArray, rows: FloatArray) -> FloatArray:
    """The same from its sums: of the product, of each matrix, and of the products of their rows' sums."""
    return (product + one * other / ((n - 1) * (n - 2)) - 2 / (n - 2) * rows) / (n * (n - 3))  # type: ignore[return-value]


def _gram(x: FloatArray) -> FloatArray:
    """[n, n] inner products without the diagonal.

    HSIC₁ is the same for x less anything that all rows share; without their mean its sums lose fewer digits.
    """
    x = np.asarray(x, dtype=np.float64)
    x = x - x.mean(0)
    gram = x @ x.T
    np.fill_diagonal(gram, 0.0)
    return gram  # type: ignore[no-any-return]


def _jackknife(one: FloatArray, other: FloatArray, value: float) -> tuple[float, float]:
    """Ends of the 95 % interval, from the estimates without each row in turn."""
    n = len(one)
    if n - 1 < FEWEST_ROWS or math.isnan(value):
        return math.nan, math.nan
    between, first, second = (_without_each(*pair) for pair in ((one, other), (one, one), (other, other)))
    with np.errstate(invalid="ignore", divide="ignore"):
        left = between / np.sqrt(first * second)
    left = left[np.isfinite(left)]
    if len(left) < FEWEST_ROWS:
        return math.nan, math.nan
    error = math.sqrt((len(left) - 1) / len(left) * float(((left - left.mean()) ** 2).sum()))
    return max(-1.0, value - _ERRORS * error), min(1.0, value + _ERRORS * error)


def _without_each(one: FloatArray, other: FloatArray) -> FloatArray:
    """[n] HSIC₁ without each row in turn, from the sums of all."""
    product, first, second = one * other, one.sum(1), other.sum(1)
    crossed = first @ second - first * second - one @ second - other @ first + product.sum(1)
    return _hsic_of(
        len(one) - 1,
        product.sum() - 2 * product.sum(1),
        first.sum() - 2 * first,
        second.sum() - 2 * second,
        crossed,
    )


def _overlap(x: FloatArray, y: FloatArray) -> tuple[float, float]:
    """‖UᵀV‖² / k of the k main directions of each, and what random ones have: k / D."""
    count = min(DIRECTIONS, (len(x) - 1) // 2, x.shape[1])
    if x.shape[1] != y.shape[1] or not count:
        return math.nan, math.nan
    one, other = _directions(x, count), _directions(y, count)
    if one is None or other is None:
        return math.nan, math.nan
    return float(np.square(one @ other.T).sum() / count), count / x.shape[1]


def _directions(x: FloatArray, count: int) -> FloatArray | None:
    """[k, D] orthonormal; None where the rows span fewer."""
    x = np.asarray(x, dtype=np.float64)
    _, sizes, found = np.linalg.svd(x - x.mean(0), full_matrices=False)
    spans = sizes[count - 1] > sizes[0] * np.finfo(np.float64).eps * max(x.shape) if sizes[0] else False
    return found[:count] if spans else None  # type: ignore[no-any-return]
