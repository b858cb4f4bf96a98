"""Fits the read-outs of ``readouts.py``: by scikit-learn where the features fit in memory, else a block at a time.

With fewer rows than features the l2-penalised solution lies in the span of the rows, so the fit is made in an
orthonormal basis of it (QR of the standardised rows) and turned back: the same solution, at the cost of as many
features as there are rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from llava_probe.probes.streaming import fit_stream


def fit(
    how: Readout, data: Instances, mask: Mask, targets: Sequence[npt.NDArray[Any]], strengths: Sequence[float]
) -> list[list[Linear]]:
    """Fit every target with every strength on the instances in ``mask``.

    Args:
        how: the read-out.
        data: the instances; ``mask``: [m] those to train on.
        targets: each [m] class numbers or [m, outputs].
        strengths: strongest regularisation first.

    Returns:
        For each target a read-out for each strength.
    """
    if data.held is None:
        return fit_stream(how, data, mask, targets, strengths)
    features = data.held[mask]
    wanted = [target[mask] for target in targets]
    if how.kind == "mean_difference":
        return [[from_class_means(*class_means(features, labels, how.classes or 0))] for labels in wanted]
    return _fit_penalised(how, features, wanted, strengths)


def _fit_penalised(
    how: Readout, features: FloatArray, targets: Sequence[npt.NDArray[Any]], strengths: Sequence[float]
) -> list[list[Linear]]:
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(features)
    standardised = scaler.transform(features)
    basis = None
    if len(standardised) < standardised.shape[1]:
        basis, triangle = np.linalg.qr(standardised.T)
        standardised = triangle.T
    fitted = []
    for labels in targets:
        found = []
        for weights, bias in _solved(how, standardised, labels, strengths):
            spread = weights if basis is None else basis @ weights
            found.append(unstandardised(spread, bias, scaler.mean_, scaler.scale_))
        fitted.append(found)
    return fitted


def _solved(
    how: Readout, features: FloatArray, labels: npt.NDArray[Any], strengths: Sequence[float]
) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Weights and bias in the given features, a pair for each strength."""
    from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier

    if how.classes is not None and len(present := np.unique(labels)) < 2:
        yield from [constant(features.shape[1], how.classes, int(present[0]))] * len(strengths)
        return
    weighting = "balanced" if how.balance else None
    if how.kind == "logistic":  # each strength starts from the stronger one's solution
        model: Any = LogisticRegression(
            class_weight=weighting, tol=SOLVER_TOLERANCE, max_iter=ITERATIONS, warm_start=len(strengths) > 1
        )
    else:
        model = Ridge() if how.classes is None else RidgeClassifier(class_weight=weighting)
    for strength in strengths:
        model.set_params(**{"C" if how.kind == "logistic" else "alpha": strength}).fit(features, labels)
        if how.classes is None:
            yield np.atleast_2d(model.coef_).T, np.atleast_1d(model.intercept_)
        else:
            share = 0.5 if how.kind == "logistic" else 1.0  # of two classes each gets half of the log-odds
            yield per_class(model.coef_, model.intercept_, model.classes_, how.classes, share)
