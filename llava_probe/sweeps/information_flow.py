"""Through which layers what flows: attention between groups of tokens cut in sliding windows of layers.

    flow = lp.information_flow(vlm, [(image, question), ...])
    print(flow.table())
    lp.figures.information_flow(flow)

Geva et al. 2023 (arXiv 2304.14767), section 5; for vision-language models Zhang et al. 2024, "Cross-modal Information
Flow in Multimodal Large Language Models" (arXiv 2411.18620): the change of the answer's probability when, in a window
of layers around each, some positions may not look at some others. Three things stand beside it, because the picture
misleads
without them: the change of the answer's logit beside the best other's, since a probability near 1 hides what happens;
the window's width, since a wide one sums what its layers do; and two controls, the same attention spread evenly over
the same keys, and as many other keys drawn for the same queries (from all that these may see, so where the cut keys are
most of the
prompt the two overlap: ``overlap`` tells how much).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llava_probe.arrays import FloatArray
from llava_probe.border import Count, Seed, checked
from llava_probe.errors import BadInput
from llava_probe.interventions.intervention import chosen_layers
from llava_probe.model import VLM
from llava_probe.sweeps.answers import LEAST_GAP, SweepSamples, asked_of, prompt_places, watched, window_around
from llava_probe.sweeps.changes import Cut, Cuts
from llava_probe.sweeps.departures import Departure, departing
from llava_probe.sweeps.sweeping import aligned, over_samples, sample_name, swept
from llava_probe.trace.explained import At
from llava_probe.trace.trace import Trace

#: From what to what, by name: keys → queries.
EDGES = ("image->question", "image->last", "question->last", "last->last")
CONTROLS = ("cut", "uniform", "random")
WINDOWS = (1, 3, 9)


@checked
@dataclass(frozen=True, eq=False)
class InformationFlow:
    """What cutting attention does, by edge, window and layer.

    Attributes:
        edges: names; ``windows``: widths in layers; ``layers``: the middle of each window.
        probability: [samples, controls, edges, windows, layers] of the answer's first word; ``difference``: its logit
            less the best other's. Controls: ``"cut"``, ``"uniform"``, ``"random"``.
        plain: [samples, 2] both in the plain run.
        overlap: [edges] share of the random keys that are among the cut ones.
        answers: for each sample its answer's first word and what it is weighed against.
    """

    edges: tuple[str, ...]
    windows: tuple[int, ...]
    layers: tuple[int, ...]
    probability: FloatArray
    difference: FloatArray
    plain: FloatArray
    overlap: FloatArray
    answers: tuple[tuple[str, str], ...]

    def __len__(self) -> int:
        return len(self.plain)

    def __repr__(self) -> str:
        return f"InformationFlow({len(self)} samples; {', '.join(self.edges)}; windows {self.windows})"

    def change(self, of: str = "probability") -> FloatArray:
        """[samples, controls, edges, windows, layers] relative change in percent.

        NaN for a sample whose plain run has so little of it that shares of it mean nothing: a difference of less than
        half a logit, a probability below 0.01.

        Args:
            of: ``"probability"`` or ``"difference"``.

        Raises:
            BadInput: of something else.
        """
        if of not in ("probability", "difference"):
            raise BadInput(f"of= takes 'probability' or 'difference'; got {of!r}")
        plain = self.plain[:, 0 if of == "probability" else 1][:, None, None, None, None]
        changed, least = (self.probability, 0.01) if of == "probability" else (self.difference, LEAST_GAP)
        there = np.abs(plain) >= least
        return np.where(there, 100 * (changed - plain) / np.where(there, np.abs(plain), 1), np.nan)

    def interval(self, of: str = "probability") -> tuple[FloatArray, FloatArray, FloatArray]:
        """Mean of ``change`` over samples, ends of its 95 % interval, each [controls, edges, windows, layers]."""
        return over_samples(self.change(of))

    def table(self, of: str = "probability") -> str:
        """For each edge and window: at which layer the cut takes most, how much, and the controls there."""
        mean, low, high = self.interval(of)
        lines = [["edge", "window", "layer", f"change of {of}, %", "95 %", "uniform", "random"]]
        for edge, name in enumerate(self.edges):
            for window, width in enumerate(self.windows):
                own = mean[0, edge, window]
                if np.isnan(own).all():
                    continue
                at = int(np.nanargmin(own))
                ends = f"{low[0, edge, window, at]:+.1f} to {high[0, edge, window, at]:+.1f}"
                others = [f"{mean[control, edge, window, at]:+.1f}" for control in (1, 2)]
                lines.append([name, str(width), str(self.layers[at]), f"{own[at]:+.1f}", ends, *others])
        return aligned(lines)

    def __str__(self) -> str:
        return self.table()


@checked
def information_flow(
    vlm: VLM,
    samples: SweepSamples,
    *,
    edges: Sequence[str] | Mapping[str, tuple[At, At]] = EDGES,
    window: Count | Sequence[Count] = WINDOWS,
    layers: int | Sequence[int] | None = None,
    controls: bool = True,
    answer: str | None = None,
    against: str | None = None,
    folder: str | Path | None = None,
    seed: Seed = 0,
) -> InformationFlow:
    """Cut attention between groups of tokens in sliding windows of layers, and see what becomes of the answer.

    What a cut leaves as it was is not computed again (``sweeps/departures.py``).

    Args:
        vlm: the model.
        samples: a trace, several, or pairs of a picture and a question.
        edges: ``"image->question"`` and the like: keys, then queries; or by name, (keys, queries) as ``knock_out``
            takes them. Words that a prompt does not hold are NaN there.
        window: widths in layers.
        layers: the middle of each window; every layer with attention when None.
        controls: also the uniform and the random control.
        answer, against: words to watch in every sample; what each plain run would say, and the best other, when None.
        folder: where to keep what is through, to go on there.
        seed: of the random keys.

    Raises:
        BadInput: no sample, an edge that is none, a folder of another sweep.
    """
    pairs = _read(edges)
    middles = chosen_layers(vlm, layers)
    widths = tuple(dict.fromkeys([window] if isinstance(window, int) else list(window)))
    if not widths or not pairs:
        raise BadInput(f"{'window' if not widths else 'edges'}=[] names none")
    kinds = CONTROLS if controls else CONTROLS[:1]
    spans = [window_around(middle, width, vlm.anatomy.layers) for width in widths for middle in middles]
    settings = {
        "edges": {name: [repr(keys), repr(queries)] for name, (keys, queries) in pairs.items()},
        "window": list(widths),
        "layers": list(middles),
        "controls": list(kinds),
        "answer": answer,
        "against": against,
        "seed": seed,
    }

    def measure(trace: Trace, number: int) -> Callable[[Callable[[int], None]], Mapping[str, Any]]:
        return lambda done: _measured(vlm, trace, pairs, spans, kinds, (answer, against), seed + number, done)

    traces = asked_of(vlm, samples)
    runs = len(pairs) * len(spans) * len(kinds)
    jobs = [(sample_name(trace), runs, measure(trace, number)) for number, trace in enumerate(traces)]
    found = swept("information flow", vlm, settings, jobs, folder)
    shape = (len(found), len(kinds), len(pairs), len(widths), len(middles))
    values = np.array([[each["probability"], each["difference"]] for each in found], dtype=np.float64)
    probability, difference = values[:, 0].reshape(shape), values[:, 1].reshape(shape)
    if not controls:
        nothing = np.full((len(found), 2, *shape[2:]), np.nan)
        probability, difference = (np.concatenate([each, nothing], 1) for each in (probability, difference))
    return InformationFlow(
        tuple(pairs),
        widths,
        middles,
        probability,
        difference,
        np.array([each["plain"] for each in found], dtype=np.float64),
        np.nanmean(np.array([each["overlap"] for each in found], dtype=np.float64), axis=0),
        tuple((each["answer"], each["against"]) for each in found),
    )


def _measured(
    vlm: VLM,
    trace: Trace,
    pairs: Mapping[str, tuple[At, At]],
    spans: Sequence[range],
    kinds: Sequence[str],
    words: tuple[str | None, str | None],
    seed: int,
    done: Callable[[int], None],
) -> Mapping[str, Any]:
    """The numbers of one sample."""
    lanes: list[Departure] = []
    wanted: list[int | None] = []
    overlap: list[float] = []
    drawing = np.random.default_rng(seed)
    found = {name: tuple(prompt_places(trace, at) for at in pair) for name, pair in pairs.items()}
    drawn = {name: _random_keys(keys, queries, drawing) for name, (keys, queries) in found.items()}
    for kind in kinds:
        for name, (keys, queries) in found.items():
            used = drawn[name] if kind == "random" else keys
            if kind == kinds[-1]:
                overlap.append(len(set(drawn[name]) & set(keys)) / len(keys) if keys else float("nan"))
            for layers in spans:
                if used and queries and any(key <= max(queries) for key in used):
                    wanted.append(len(lanes))
                    lanes.append(Departure(layers.start, min(queries), Cut(layers, queries, used, kind == "uniform")))
                else:
                    wanted.append(None)
    with departing(vlm, [trace]) as runs:
        plain = runs.bases[0].cpu()
        watch = watched(vlm, plain, *words)
        logits = runs.logits(lanes, Cuts, done).cpu() if lanes else torch.zeros(0, len(plain))
    values = {"probability": watch.probability(logits), "difference": watch.difference(logits)}
    return {
        **{name: [float("nan") if at is None else float(value[at]) for at in wanted] for name, value in values.items()},
        "plain": [float(watch.probability(plain)), float(watch.difference(plain))],
        "overlap": overlap,
        "answer": watch.text,
        "against": watch.other_text,
    }


def _random_keys(keys: tuple[int, ...], queries: tuple[int, ...], drawing: np.random.Generator) -> tuple[int, ...]:
    """As many keys as these queries may see, drawn from all that the first of them sees but themselves."""
    if not keys or not queries:
        return ()
    open_to = [place for place in range(min(queries)) if place not in queries]
    seen = [key for key in keys if key < min(queries)] or list(keys)
    return tuple(sorted(drawing.choice(open_to, min(len(seen), len(open_to)), replace=False).tolist()))


def _read(edges: Any) -> dict[str, tuple[At, At]]:
    """Keys and queries of each edge, by name."""
    if isinstance(edges, Mapping):
        return {str(name): (pair[0], pair[1]) for name, pair in edges.items()}
    listed = [edges] if isinstance(edges, str) else list(edges)
    pairs: dict[str, tuple[At, At]] = {}
    for name in listed:
        keys, arrow, queries = str(name).replace("→", "->").partition("->")
        if not arrow or not keys.strip() or not queries.strip():
            raise BadInput(f"an edge is written 'image->last', from what is looked at to what looks; got {name!r}")
        pairs[str(name)] = (keys.strip(), queries.strip())
    return pairs
