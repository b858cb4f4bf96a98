"""Confidences mended: a temperature, Platt's line or a staircase, fitted on some answers and judged on others.

    calibrator = lp.fit_calibrator(confidence, correct, of=traces, kind="platt", groups=pictures)
    print(calibrator)                            # ECE, Brier, NLL of the answers held out, before and after
    calibrator.apply(confidence, of=new_traces)  # refused for another model, dtype, prompt or version
    calibrator.save("yes.json"); lp.Calibrator.load("yes.json") == calibrator

With z = log(p / (1 - p)): temperature 1 / (1 + exp(-z / T)) (Guo et al. 2017, arXiv 1706.04599); Platt
1 / (1 + exp(-a z - b)), its targets drawn in from 0 and 1 as in Platt 1999; isotonic: the rising staircase nearest to
correctness, whose ends may be 0 and 1: where it then errs, the NLL is infinite but for rounding. Only fitting needs
scikit-learn (``pip install 'llava_probe[probes]'``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from llava_probe import __version__
from llava_probe.analyzers.table import Table
from llava_probe.arrays import FloatArray
from llava_probe.border import Limits, Numeric, Seed, checked
from llava_probe.described import Stored
from llava_probe.errors import BadFile, BadInput
from llava_probe.signals.binding import Binding
from llava_probe.signals.calibration import calibration
from llava_probe.signals.measured import grouped
from llava_probe.signals.ordered import paired
from llava_probe.stored import read_json, write_text

CALIBRATOR_FORMAT = 1

FitKind = Literal["temperature", "platt", "isotonic"]
HeldOut = Annotated[float, Limits(above=0, most=0.9)]

#: What float32, in which softmaxes are made, tells apart below 1: a confidence of 1 is no infinite log-odds.
_STEP = 2.0**-24
#: What is told of the answers held out.
_TOLD = ("ece", "ece_mass", "brier", "nll", "auroc")
#: The parameters of each kind.
_PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "temperature": ("temperature",),
    "platt": ("slope", "offset"),
    "isotonic": ("at", "gives"),
}


@checked
@dataclass(frozen=True)
class Calibrator:
    """A function from confidences to better ones, for the model and the prompt that it was fitted on.

    Attributes:
        kind: ``"temperature"``, ``"platt"`` or ``"isotonic"``.
        parameters: by name: ``temperature``; ``slope`` and ``offset``; of a staircase ``at`` which confidences it gives
            which (``gives``), straight lines between them.
        binding: what it was fitted on.
        about: plain data: how many answers and groups it was fitted on and judged on, and what was found on the latter
            ``before`` and ``after``.
    """

    kind: FitKind
    parameters: Mapping[str, tuple[float, ...]]
    binding: Binding
    about: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def apply(self, confidence: Numeric, of: Any) -> FloatArray:
        """[n] the confidences as they should have been.

        Args:
            confidence: [n] probabilities of the same kind as those that it was fitted on.
            of: the trace or traces that they were read from, or what ``lp.multiple_choice`` or ``lp.pope`` made of
                them.

        Raises:
            BadInput: they are of another model, dtype, prompt or version; or no probabilities.
        """
        self.binding.check(Binding.of(of), "this calibrator")
        stated, _ = paired(confidence, np.zeros(np.shape(confidence)))
        return _APPLIED[self.kind](stated, self.parameters)

    def save(self, path: str | Path) -> Path:
        """Write it as JSON.

        Raises:
            BadFile: it cannot be written there.
        """
        return write_text("calibrator", path, json.dumps({"format": CALIBRATOR_FORMAT, **asdict(self)}, indent=1))

    @classmethod
    def load(cls, path: str | Path) -> Calibrator:
        """Read a saved one.

        Raises:
            BadFile: it is not there, damaged, no calibrator, or was written by a newer version.
        """
        told = read_json("calibrator", path, _StoredCalibrator)
        if told.format > CALIBRATOR_FORMAT:
            raise BadFile(f"{path} was written by a newer llava_probe (format {told.format})")
        _check(path, told.kind, told.parameters)
        return cls(told.kind, told.parameters, Binding(**msgspec.structs.asdict(told.binding)), told.about)

    def __str__(self) -> str:
        single = ", ".join(f"{name} {values[0]:.3g}" for name, values in self.parameters.items() if len(values) == 1)
        shown = {moment: self.about.get(moment, {}) for moment in ("before", "after")}
        columns: dict[str, list[Any]] = {"measure": [name for name in _TOLD if name in shown["before"]]}
        for moment, found in shown.items():
            columns[moment] = [_cell(found[name]) for name in columns["measure"]]
        told = f"{self.kind}{': ' * bool(single)}{single}, fitted on {self.about.get('fitted')} answers, "
        return f"{told}judged on {self.about.get('held_out')} others\n{Table(columns).text()}"


@checked
def fit_calibrator(
    confidence: Numeric,
    correct: Numeric,
    of: Any,
    *,
    kind: FitKind = "temperature",
    groups: Sequence[Hashable] | None = None,
    held_out: HeldOut = 0.5,
    seed: Seed = 0,
) -> Calibrator:
    """Fit confidences to correctness on one part of the answers and judge the fit on the other.

    Args:
        confidence, correct, groups: as for ``calibration``; a group is in one part only.
        of: the trace or traces that they were read from, or what ``lp.multiple_choice`` or ``lp.pope`` made of them:
            the fit holds for that model, dtype, prompt and those versions alone. Where prompts differ, how all of them
            begin and end is what counts.
        kind: ``"temperature"`` (one number, keeps the order), ``"platt"`` (two) or ``"isotonic"`` (a staircase, wants
            some hundred answers).
        held_out: the share of groups that the fit does not see.
        seed: of the parting.

    Raises:
        BadInput: scikit-learn is not installed; too few answers, or all of them right or wrong; the surer ones are more
            often wrong.
    """
    if find_spec("sklearn") is None:
        raise BadInput("fitting needs scikit-learn: pip install 'llava_probe[probes]'; applying a saved fit does not")
    stated, right = paired(confidence, correct)
    numbers, count = grouped(groups, len(stated), "answers")
    binding = Binding.of(of)
    apart = np.random.default_rng(seed).permutation(count)[: max(1, round(count * held_out))]
    judged = np.isin(numbers, apart)
    if judged.all() or len(np.unique(right[~judged])) < 2:
        raise BadInput(
            f"a fit needs right and wrong answers; the part to fit on has {int((~judged).sum())}, of which "
            f"{int(right[~judged].sum())} are right"
        )
    parameters = _FITTED[kind](stated[~judged], right[~judged])
    after = _APPLIED[kind](stated[judged], parameters)
    about = {
        "fitted": int((~judged).sum()),
        "held_out": int(judged.sum()),
        "groups": [count - len(apart), len(apart)],
        "seed": seed,
        "before": _judged(stated[judged], right[judged], numbers[judged]),
        "after": _judged(after, right[judged], numbers[judged]),
        "llava_probe": __version__,
    }
    return Calibrator(kind, parameters, binding, about)


def _judged(stated: FloatArray, right: FloatArray, numbers: Any) -> dict[str, Any]:
    found = calibration(stated, right, numbers.tolist()).measures
    return {name: found[name].to_dict() for name in _TOLD}


# --- each kind ---

_Parameters = Mapping[str, tuple[float, ...]]


def _odds(stated: FloatArray) -> FloatArray:
    inside = np.clip(stated, _STEP, 1 - _STEP)
    found: FloatArray = np.log(inside) - np.log1p(-inside)
    return found


def _sigmoid(odds: FloatArray) -> FloatArray:
    found: FloatArray = 1 / (1 + np.exp(-np.clip(odds, -700, 700)))
    return found


def _fit_temperature(stated: FloatArray, right: FloatArray) -> dict[str, tuple[float, ...]]:
    odds, sides = _odds(stated), np.where(right == 1, 1, -1)
    if (odds * sides > 0).all():
        raise BadInput(
            "every confidence is on the right side of one half, so the lower a temperature the better it fits; "
            "kind='platt' has a best one"
        )
    slope, _ = _line(odds, right, intercept=False)
    return {"temperature": (1 / slope,)}


def _fit_platt(stated: FloatArray, right: FloatArray) -> dict[str, tuple[float, ...]]:
    odds, good = _odds(stated), right.sum()
    bad = len(right) - good
    target = np.where(right == 1, (good + 1) / (good + 2), 1 / (bad + 2))
    twice, labels = np.tile(odds, 2), np.repeat([1, 0], len(odds))
    slope, offset = _line(twice, labels, intercept=True, weights=np.concatenate([target, 1 - target]))
    return {"slope": (slope,), "offset": (offset,)}


def _fit_isotonic(stated: FloatArray, right: FloatArray) -> dict[str, tuple[float, ...]]:
    from sklearn.isotonic import IsotonicRegression

    steps = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(stated, right)
    return {"at": tuple(map(float, steps.X_thresholds_)), "gives": tuple(map(float, steps.y_thresholds_))}


def _line(odds: FloatArray, right: Any, *, intercept: bool, weights: FloatArray | None = None) -> tuple[float, float]:
    """Slope and offset of the logistic regression of correctness on log-odds, without a penalty."""
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=np.inf, fit_intercept=intercept, solver="newton-cholesky", tol=1e-10, max_iter=1000)
    fitted.fit(odds[:, None], right, sample_weight=weights)
    slope = float(fitted.coef_[0, 0])
    if not slope > 0:
        raise BadInput(
            "the surer answers are not more often right, so that no rising fit makes them better; look at "
            "lp.calibration(...).auroc"
        )
    return slope, float(fitted.intercept_[0]) if intercept else 0.0


_FITTED: Mapping[str, Callable[[FloatArray, FloatArray], dict[str, tuple[float, ...]]]] = {
    "temperature": _fit_temperature,
    "platt": _fit_platt,
    "isotonic": _fit_isotonic,
}

_APPLIED: Mapping[str, Callable[[FloatArray, _Parameters], FloatArray]] = {
    "temperature": lambda stated, told: _sigmoid(_odds(stated) / told["temperature"][0]),
    "platt": lambda stated, told: _sigmoid(_odds(stated) * told["slope"][0] + told["offset"][0]),
    "isotonic": lambda stated, told: np.interp(stated, told["at"], told["gives"]),
}


# --- as a file ---


class _StoredBinding(Stored, frozen=True):
    model: dict[str, Any]
    prompt: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=2)]
    versions: dict[str, str]


class _StoredCalibrator(Stored, frozen=True):
    format: int
    kind: FitKind
    parameters: dict[str, tuple[float, ...]]
    binding: _StoredBinding
    about: dict[str, Any]


def _check(path: Any, kind: str, parameters: _Parameters) -> None:
    """Refuse parameters that no fit of this kind has.

    Raises:
        BadFile: others than its own, none, no finite numbers, no positive slope, or a staircase that falls.
    """
    wanted, lengths = _PARAMETERS[kind], {len(values) for values in parameters.values()}
    numbers = {name: np.array(values) for name, values in parameters.items()}
    rising = kind != "isotonic" or all(bool((np.diff(each) >= 0).all()) for each in numbers.values())
    positive = kind == "isotonic" or parameters.get(wanted[0], (0.0,))[0] > 0
    finite = all(bool(np.isfinite(each).all()) for each in numbers.values())
    whole = lengths == {1} if kind != "isotonic" else len(lengths) == 1 and 0 not in lengths
    if {*parameters} != {*wanted} or not (whole and finite and rising and positive):
        raise BadFile(f"{path} is damaged: its parameters are none of a fit of the kind {kind!r}")


def _cell(told: Mapping[str, float | None]) -> str:
    value, low, high = (told.get(name) for name in ("value", "low", "high"))
    if value is None:
        return "not defined"
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"
