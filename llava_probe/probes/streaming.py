"""The same read-outs where one layer's features do not fit in memory: every fit reads them a block at a time.

All three are exact: ridge and the class means from running sums, the logistic read-out by lbfgs on scikit-learn's own
objective, summed block by block. (Stochastic gradient descent, which reads the data less often, was tried: under
strong regularisation its intercept drowned the weights and it stayed at chance.) Each fit reads the features anew,
twice for ridge and once for each step of lbfgs: slow, in the memory of one block and one [D, D] matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llava_probe.arrays import FloatArray
from llava_probe.probes.instances import Instances, Mask
from llava_probe.probes.readouts import (
    ITERATIONS,
    SOLVER_TOLERANCE,
    Linear,
    Readout,
    class_means,
    constant,
    from_class_means,
    per_class,
    unstandardised,
)

#: As scikit-learn calls lbfgs: the least relative gain of a step, and the most line searches in it.
_NO_PROGRESS, _LINE_SEARCHES = 64 * np.finfo(float).eps, 50


def fit_stream(
    how: Readout, data: Instances, mask: Mask, targets: Sequence[npt.NDArray[Any]], strengths: Sequence[float]
) -> list[list[Linear]]:
    """As ``fit.fit``."""
    if how.kind == "mean_difference":
        return [[each] for each in _mean_differences(how, data, mask, targets)]
    scaler = _scaler(data, mask)
    fitted = []
    for target in targets:
        present = np.unique(target[mask])
        if how.classes is not None and len(present) < 2:
            solutions = [constant(data.width, how.classes, int(present[0]))] * len(strengths)
        elif how.kind == "ridge":
            solutions = _ridge(how, data, mask, target, strengths, scaler)
        else:
            solutions = _likeliest(how, data, mask, target, strengths, scaler)
        fitted.append([unstandardised(*solution, scaler.mean_, scaler.scale_) for solution in solutions])
    return fitted


def _mean_differences(how: Readout, data: Instances, mask: Mask, targets: Sequence[npt.NDArray[Any]]) -> list[Linear]:
    classes = how.classes or 0
    sums = np.zeros((len(targets), classes, data.width))
    counts = np.zeros((len(targets), classes))
    for numbers, features in data.blocks(mask):
        for place, target in enumerate(targets):
            block_sums, block_counts = class_means(features, target[numbers], classes)
            sums[place] += block_sums
            counts[place] += block_counts
    return [from_class_means(*each) for each in zip(sums, counts, strict=True)]


def _scaler(data: Instances, mask: Mask) -> Any:
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    for _, features in data.blocks(mask):
        scaler.partial_fit(features)
    return scaler


def _weights(how: Readout, target: npt.NDArray[Any], mask: Mask) -> FloatArray:
    """[m] of each instance: scikit-learn's ``"balanced"``, rows / (classes × rows of the class), or one."""
    if how.classes is None or not how.balance:
        return np.ones(len(target))
    counts = np.bincount(target[mask], minlength=how.classes)
    weight = mask.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1))
    weighed: FloatArray = weight[target]
    return weighed


def _ridge(
    how: Readout, data: Instances, mask: Mask, target: npt.NDArray[Any], strengths: Sequence[float], scaler: Any
) -> list[tuple[FloatArray, FloatArray]]:
    """Weighted normal equations of standardised features, centred by their weighted means for the intercept."""
    from scipy.linalg import solve

    weights = _weights(how, target, mask)
    coded = target if how.classes is None else 2 * np.eye(how.classes)[target] - 1
    total, outputs = 0.0, coded.shape[1]
    mean_x, mean_y = np.zeros(data.width), np.zeros(outputs)
    square, cross = np.zeros((data.width, data.width)), np.zeros((data.width, outputs))
    for numbers, features in data.blocks(mask):
        x, y, w = scaler.transform(features), coded[numbers], weights[numbers]
        total += w.sum()
        mean_x += w @ x
        mean_y += w @ y
        weighed = x * w[:, None]
        square += weighed.T @ x
        cross += weighed.T @ y
    mean_x, mean_y = mean_x / total, mean_y / total
    square -= total * np.outer(mean_x, mean_x)
    cross -= total * np.outer(mean_x, mean_y)
    solutions = []
    for strength in strengths:
        solved = solve(square + strength * np.eye(data.width), cross, assume_a="pos")
        bias = mean_y - mean_x @ solved
        if how.classes is not None:
            bias[np.bincount(target[mask], minlength=how.classes) == 0] = -np.inf
        solutions.append((solved, bias))
    return solutions


def _likeliest(
    how: Readout, data: Instances, mask: Mask, target: npt.NDArray[Any], strengths: Sequence[float], scaler: Any
) -> list[tuple[FloatArray, FloatArray]]:
    """The objective of ``LogisticRegression(C)``, value and gradient summed block by block, each minimised by lbfgs.

    Two classes are told by one vector z, as scikit-learn has it: scores ∓z/2.
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    weights, present = _weights(how, target, mask), np.unique(target[mask])
    place = np.searchsorted(present, target)
    spread = np.array([[-0.5, 0.5]]) if len(present) == 2 else np.eye(len(present))
    total = weights[mask].sum()

    def objective(flat: FloatArray, strength: float) -> tuple[float, FloatArray]:
        free = flat.reshape(data.width + 1, -1)  # the last row is the intercept
        coefficients, loss = free @ spread, 0.0
        slope = np.zeros_like(coefficients)
        for numbers, features in data.blocks(mask):
            x, w, rows = scaler.transform(features), weights[numbers], np.arange(len(numbers))
            logs = log_softmax(x @ coefficients[:-1] + coefficients[-1], axis=1)
            loss -= w @ logs[rows, place[numbers]]
            apart = np.exp(logs)
            apart[rows, place[numbers]] -= 1
            apart *= w[:, None]
            slope[:-1] += x.T @ apart
            slope[-1] += apart.sum(0)
        penalty = 1 / (strength * total)
        gradient = slope @ spread.T / total
        gradient[:-1] += penalty * free[:-1]
        return float(loss / total + penalty / 2 * (free[:-1] ** 2).sum()), gradient.ravel()

    flat, solutions = np.zeros((data.width + 1) * len(spread)), []
    limits = {"gtol": SOLVER_TOLERANCE, "ftol": _NO_PROGRESS, "maxiter": ITERATIONS, "maxls": _LINE_SEARCHES}
    for strength in strengths:  # each starts from the stronger one's solution
        flat = minimize(objective, flat, (strength,), method="L-BFGS-B", jac=True, options=limits).x
        coefficients = flat.reshape(data.width + 1, -1) @ spread
        solutions.append(per_class(coefficients[:-1].T, coefficients[-1], present, how.classes or 0, 1.0))
    return solutions
