"""How much of a direction does what: effect against strength, beside what it costs and what any direction would do.

    found = lp.dose_response(vlm, lp.Direction.of_probe(probe, "red"), samples, layers=4, scales=(-2, -1, 0, 1, 2))
    print(found.table())

A push that is strong enough changes any answer. So beside the answer's probability and logit difference stand the
perplexity of what was said, as the model without the push reads it, and its length: where these run off, the model is
broken and not steered. And beside the direction stand random ones of the same length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from llava_probe.arrays import FloatArray
from llava_probe.border import Count, CountFromZero, Finite, Seed, checked
from llava_probe.errors import BadInput
from llava_probe.interventions.directions import Direction
from llava_probe.interventions.intervention import acting
from llava_probe.interventions.places import Phase
from llava_probe.interventions.steer import Steering
from llava_probe.model import VLM
from llava_probe.sweeps.answers import SweepSamples, asked_of, watched, way_of
from llava_probe.sweeps.sweeping import aligned, over_samples, sample_name, swept, told_with
from llava_probe.trace.capture import Capture
from llava_probe.trace.explained import At
from llava_probe.trace.trace import Trace

SCALES = (-4.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0)
DOSE_MEASURES = ("probability", "difference", "perplexity", "length")


@checked
@dataclass(frozen=True, eq=False)
class DoseResponse:
    """What pushes of several strengths do.

    Attributes:
        scales: in typical norms of each hidden state; ``norms``: these, by hidden state.
        values: by name, [samples, directions, scales]: the watched word's ``"probability"`` and its logit's
            ``"difference"`` to the other's, the answer's ``"perplexity"`` and its ``"length"`` in tokens. Direction 0
            is the given one, the rest are random.
        said: [samples][directions][scales] the answers.
        answers: for each sample what is watched, and what it is weighed against.
    """

    scales: tuple[float, ...]
    norms: Mapping[int, float]
    values: Mapping[str, FloatArray]
    said: tuple[Any, ...]
    answers: tuple[tuple[str, str], ...]

    def __len__(self) -> int:
        return len(self.answers)

    def __repr__(self) -> str:
        return f"DoseResponse({len(self)} samples; scales {', '.join(f'{scale:g}' for scale in self.scales)})"

    def interval(self, of: str) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Mean over samples of one of ``DOSE_MEASURES`` and the ends of its 95 % interval, each [2, scales].

        The second row is of the random directions, of which each sample's mean is taken.
        """
        if of not in self.values:
            raise BadInput(f"of= takes one of {', '.join(self.values)}; got {of!r}")
        own = self.values[of]
        random = own[:, 1:].mean(1, keepdims=True) if own.shape[1] > 1 else np.full_like(own[:, :1], np.nan)
        return over_samples(np.concatenate([own[:, :1], random], 1))

    def table(self) -> str:
        """A line for each strength: each measure with its interval, and of random directions."""
        lines = [["scale", *(f"{name}{beside}" for name in DOSE_MEASURES for beside in ("", " (random)"))]]
        found = {name: self.interval(name) for name in DOSE_MEASURES}
        for column, scale in enumerate(self.scales):
            cells = []
            for name in DOSE_MEASURES:
                mean, low, high = found[name]
                cells.append(told_with(mean[0, column], low[0, column], high[0, column], ".3g"))
                cells.append(f"{mean[1, column]:.3g}")
            lines.append([f"{scale:+g}", *cells])
        return aligned(lines)

    def __str__(self) -> str:
        return self.table()


@checked
def dose_response(
    vlm: VLM,
    direction: Direction | Tensor,
    samples: SweepSamples,
    *,
    layers: int | Sequence[int],
    scales: Sequence[Finite] = SCALES,
    at: At | None = None,
    phase: Phase = "both",
    random: CountFromZero = 3,
    max_new_tokens: Count = 16,
    answer: str | None = None,
    against: str | None = None,
    folder: str | Path | None = None,
    seed: Seed = 0,
) -> DoseResponse:
    """Push along a direction by several strengths, and see what becomes of the answer.

    Args:
        vlm: the model.
        direction: as for ``steer``.
        samples: a trace, several, or pairs of a picture and a question.
        layers, at, phase: as for ``steer``.
        scales: the strengths.
        random: so many random directions beside it.
        max_new_tokens: of each answer.
        answer, against: words to watch; what each plain run says first, and the best other, when None.
        folder: where to keep what is through, to go on there.
        seed: of the random directions.

    Raises:
        BadInput: no sample, no scale, a direction of another width.
    """
    if not len(scales):
        raise BadInput("scales=[] names no strength")
    given = direction if isinstance(direction, Direction) else Direction(direction)
    directions = [given, *(given.random(seed + number) for number in range(random))]
    pushed = partial(_pushed, vlm, layers, at, phase)
    whole = pushed(given, 1.0)
    norms, told = dict(whole.norms), dict(whole.told())
    settings = {
        "push": told,
        "scales": [float(scale) for scale in scales],
        "random": [random, seed],
        "max_new_tokens": max_new_tokens,
        "answer": answer,
        "against": against,
    }

    def measure(trace: Trace) -> Callable[[Callable[[int], None]], Mapping[str, Any]]:
        return lambda done: _measured(
            vlm, trace, directions, partial(pushed, norms=norms), scales, (answer, against), max_new_tokens, done
        )

    traces = asked_of(vlm, samples)
    jobs = [(sample_name(trace), len(directions) * len(scales), measure(trace)) for trace in traces]
    found = swept("dose response", vlm, settings, jobs, folder)
    return DoseResponse(
        tuple(map(float, scales)),
        norms,
        {name: np.array([each[name] for each in found], dtype=np.float64) for name in DOSE_MEASURES},
        tuple(each["said"] for each in found),
        tuple((each["answer"], each["against"]) for each in found),
    )


def _measured(
    vlm: VLM,
    trace: Trace,
    directions: Sequence[Direction],
    pushed: Callable[..., Steering],
    scales: Sequence[float],
    words: tuple[str | None, str | None],
    max_new_tokens: int,
    done: Callable[[int], None],
) -> Mapping[str, Any]:
    """The numbers of one sample."""
    little = Capture(attention=False, hidden_states=False, scores=False)
    ask: dict[str, Any] = {"image": list(trace.images), **way_of(trace), "capture": little}
    plain = vlm.generate(**ask, max_new_tokens=max_new_tokens)
    watch = watched(vlm, plain.logits[0].double(), *words)
    read: dict[tuple[int, ...], float] = {}
    rows: dict[str, list[list[Any]]] = {name: [] for name in (*DOSE_MEASURES, "said")}
    for direction in directions:
        row: dict[str, list[Any]] = {name: [] for name in rows}
        for scale in scales:
            with acting(pushed(direction, scale)):
                trace = vlm.generate(**ask, max_new_tokens=max_new_tokens)
            said = tuple(trace.generated_ids.tolist())
            if said not in read:  # many pushes end in the same words
                logits = vlm.score(**ask, answer=said).logits.double().log_softmax(-1)
                read[said] = math.exp(-float(logits[range(len(said)), said].mean()))
            first = trace.logits[0].double()
            row["probability"].append(float(watch.probability(first)))
            row["difference"].append(float(watch.difference(first)))
            row["perplexity"].append(read[said])
            row["length"].append(len(said))
            row["said"].append(trace.answer)
            done(1)
        for name, values in row.items():
            rows[name].append(values)
    return {**rows, "answer": watch.text, "against": watch.other_text}


def _pushed(
    vlm: VLM,
    layers: int | Sequence[int],
    at: At | None,
    phase: Phase,
    direction: Direction,
    scale: float,
    norms: Mapping[int, float] | None = None,
) -> Steering:
    return Steering(vlm, direction, layers, scale, at, False, phase, True, norms)
