"""The linear read-outs: what is fitted (``fit.py`` fits it).

- ``logistic``: standardised features, multinomial logistic regression with an l2 penalty, strength C.
- ``ridge``: standardised features, ridge regression on the numbers or on ±1 codes of the classes, strength alpha.
- ``mean_difference``: nearest class mean on the raw features; with two classes the mass-mean direction (Marks and
  Tegmark 2023, arXiv:2310.06824), with more each class mean against the mean of them all. No strength.

Whatever the kind, what comes out is one ``Linear`` in the space of the raw hidden states.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llava_probe.arrays import FloatArray
from llava_probe.errors import BadInput
from llava_probe.probes.instances import Instances, Mask

#: Candidate strengths, the strongest regularisation first: of equal scores the first is taken.
STRENGTHS: dict[str, tuple[float, ...]] = {
    "logistic": (1e-4, 1e-3, 1e-2, 1e-1, 1.0),  # C: beyond 1, standardised states of a thousand features are separable
    "ridge": (1e5, 1e4, 1e3, 1e2, 1e1, 1.0),
    "mean_difference": (math.nan,),
}
#: The largest entry of lbfgs's gradient at the end: ten times finer than scikit-learn's default, at 1.4 times the time.
SOLVER_TOLERANCE = 1e-5
ITERATIONS = 5000


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear read-out of raw hidden states: ``hidden @ weights + bias``.

    Attributes:
        weights: [D, outputs] float64; bias: [outputs], minus infinity for a class that training never showed.
    """

    weights: FloatArray
    bias: FloatArray

    def __call__(self, hidden: FloatArray) -> FloatArray:
        """[n, outputs] for hidden states [n, D]."""
        return hidden @ self.weights + self.bias


@dataclass(frozen=True)
class Readout:
    """Which read-out, and of what.

    Attributes:
        kind: one of ``STRENGTHS``; ``classes``: how many, None for numbers.
        balance: whether each class weighs the same, however many rows it has.
        strengths: the candidates, strongest regularisation first.
    """

    kind: str
    classes: int | None
    balance: bool
    strengths: tuple[float, ...]


def readout(kind: str | None, classes: int | None, balance: bool, strengths: Sequence[float] | None) -> Readout:
    """The read-out of a sweep, checked.

    Raises:
        BadInput: an unknown kind, one that does not predict numbers, strengths that are not positive.
    """
    kind = kind or ("ridge" if classes is None else "logistic")
    if kind not in STRENGTHS:
        raise BadInput(f"kind is one of {', '.join(STRENGTHS)}; got {kind!r}")
    if classes is None and kind != "ridge":
        raise BadInput(
            f"kind={kind!r} predicts classes and these labels are numbers; pass kind='ridge', or task='classification'"
        )
    candidates = STRENGTHS[kind] if strengths is None or kind == "mean_difference" else tuple(map(float, strengths))
    if kind != "mean_difference" and not (candidates and all(0 < s < math.inf for s in candidates)):
        raise BadInput(f"strengths are positive numbers, C or alpha; got {strengths!r}")
    ordered = sorted(candidates, reverse=kind == "ridge")
    return Readout(kind, classes, balance, tuple(ordered))


def apply(data: Instances, mask: Mask, readouts: Sequence[Linear]) -> FloatArray:
    """[readouts, instances in mask, outputs]."""
    weights = np.concatenate([each.weights for each in readouts], axis=1)
    parts = [features @ weights for _, features in data.blocks(mask)]
    together = np.concatenate(parts).reshape(int(mask.sum()), len(readouts), -1).swapaxes(0, 1)
    return together + np.stack([each.bias for each in readouts])[:, None]


def per_class(
    coefficients: FloatArray, intercepts: FloatArray, present: npt.NDArray[Any], classes: int, share: float
) -> tuple[FloatArray, FloatArray]:
    """A column for each class from scikit-learn's rows, of which there is one where there are two classes."""
    coefficients, intercepts = np.atleast_2d(coefficients), np.atleast_1d(intercepts)
    if len(coefficients) == 1:
        coefficients = share * np.concatenate([-coefficients, coefficients])
        intercepts = share * np.concatenate([-intercepts, intercepts])
    weights, bias = np.zeros((coefficients.shape[1], classes)), np.full(classes, -np.inf)
    weights[:, present] = coefficients.T
    bias[present] = intercepts
    return weights, bias


def constant(width: int, classes: int, only: int) -> tuple[FloatArray, FloatArray]:
    """Always the one class that training showed."""
    bias = np.full(classes, -np.inf)
    bias[only] = 0.0
    return np.zeros((width, classes)), bias


def unstandardised(weights: FloatArray, bias: FloatArray, mean: FloatArray, scale: FloatArray) -> Linear:
    """The same read-out on features before ``(features - mean) / scale``."""
    raw = weights / scale[:, None]
    return Linear(raw, bias - mean @ raw)


def class_means(features: FloatArray, labels: npt.NDArray[Any], classes: int) -> tuple[FloatArray, FloatArray]:
    """Sums [classes, D] and counts [classes]."""
    chosen = np.eye(classes)[labels]
    return chosen.T @ features, chosen.sum(0)


def from_class_means(sums: FloatArray, counts: FloatArray) -> Linear:
    """Nearest class mean as a linear read-out: μ_c·x - |μ_c|²/2, with the mean of the class means as the origin."""
    seen = counts > 0
    means = sums / np.maximum(counts, 1)[:, None]
    centre = means[seen].mean(0)
    apart = np.where(seen[:, None], means - centre, 0)
    bias = np.where(seen, -apart @ centre - (apart**2).sum(1) / 2, -np.inf)
    return Linear(apart.T, bias)
