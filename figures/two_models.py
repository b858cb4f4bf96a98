"""Which findings hold on both models that ship: ``figures/two_models.md``, and its figure.

    python figures/two_models.py                    # 40 scenes of each kind; half an hour on two cores

The tiny model learnt all that it knows from drawn scenes; the smol one sees through the same tower, but its language
model was pretrained on text. Each claim is put to the same held-out scenes on both, and holds where the interval of
what was measured says so.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import matplotlib.pyplot as plt
import numpy as np
from interventions import KINDS, LITTLE, pairs, right, scenes
from PIL import Image

import llava_probe as lp
from llava_probe import smol, tiny
from llava_probe.analyzers.heads import PARTS
from llava_probe.sweeps.sweeping import over_samples, told_with
from llava_probe.view.canvas import paper

MODELS = ("tiny", "smol")
#: Pictures of what probes are fitted on, and what is called a high accuracy.
PROBED, HIGH = 150, 0.8


@dataclass(frozen=True)
class Found:
    """What was measured on one model, in words, and whether the claim holds there."""

    told: str
    holds: bool


def mean_told(values: Sequence[float] | np.ndarray, form: str = ".2f") -> str:
    """A mean and its interval over samples."""
    return told_with(*map(float, over_samples(np.asarray(values, dtype=np.float64))), form)


def above(values: Sequence[float] | np.ndarray, bound: float = 0.0) -> bool:
    """Whether the mean's interval lies above a bound."""
    return bool(over_samples(np.asarray(values, dtype=np.float64))[1] > bound)


class Subject:
    """One of the models and what is asked of it again and again."""

    def __init__(self, name: str, count: int) -> None:
        self.vlm = lp.load(name, merge=name == smol.SMOL)
        self.asked = {}
        for kind in KINDS:
            tried = scenes(kind, count)
            self.asked[kind] = [each for each in tried if right(self.vlm, *each)]
        capture = lp.Capture(positions=["predicting", "image", 0])
        some = [each for kind in KINDS for each in self.asked[kind][: max(1, count // 3)]]
        self.traces = [
            self.vlm.generate(scene.image, question.question, max_new_tokens=4, capture=capture)
            for scene, question in some
        ]
        heads = [lp.heads(trace) for trace in self.traces]
        #: [traces, layers] of each part of the sequence, means over heads and the answer's tokens.
        self.shares = {part: np.array([shares.part(part).mean((0, 2)).numpy() for shares in heads]) for part in PARTS}
        self.sinks = [lp.sinks(trace) for trace in self.traces]
        self._name = name

    @cached_property
    def probes(self) -> list[lp.Sweep]:
        """Of the model, and of what it was before training: smol's language model with a projector from a seed."""
        before = lp.load(random_weights=0) if self._name == "tiny" else lp.load(str(smol.base()))
        return [colour_probes(vlm) for vlm in (self.vlm, before)]

    def still_right(self, kind: str, around: Callable[[], object]) -> np.ndarray:
        """Of the questions answered right, which still are inside a context."""
        with around():
            return np.array([right(self.vlm, *each) for each in self.asked[kind]], dtype=np.float64)


def first_token(model: Subject) -> Found:
    """Attention that has nothing to do rests on the first token."""
    first, image = model.shares["first"].mean(1), model.shares["image"].mean(1)
    return Found(f"first token {mean_told(first)}, picture {mean_told(image)}", above(first - image))


def massive(model: Subject) -> Found:
    """Few dimensions of the first token's state hold most of its energy."""
    there = [bool(each.dimensions) for each in model.sinks]
    dimensions = sorted({dimension for each in model.sinks for dimension in each.dimensions})
    layers = range(2, model.vlm.anatomy.layers)
    states = np.array([trace.hidden(layer=list(layers), at=[0])[0].float().numpy() for trace in model.traces])
    phi = np.abs(states).max(-1) / np.sqrt((states**2).mean(-1))
    most = states.shape[-1] ** 0.5
    told = f"its largest value is {phi.max(1).mean():.1f} times its root mean square (√D = {most:.1f} at most)"
    told += f"; massive in dimension {', '.join(map(str, dimensions))}" if dimensions else "; none is massive"
    return Found(told, above(np.array(there, dtype=np.float64), 0.9))


def visual_sinks(model: Subject) -> Found:
    """Some visual tokens are sinks as well."""
    counts = [len(each) for each in model.sinks]
    return Found(f"{mean_told(counts, '.1f')} of {len(model.sinks[0].marked)} visual tokens", above(counts, 0.5))


def without_first(model: Subject) -> Found:
    """Without sight of the first token it answers as before."""
    kept = np.concatenate([model.still_right(kind, lambda: lp.knock_out(model.vlm, keys=0)) for kind in KINDS])
    return Found(f"{mean_told(kept)} still right", above(kept, 0.9))


def own_tokens(model: Subject) -> Found:
    """An answer rests on the tokens of the object asked about, and those around them."""
    told, holds = [], []
    drawing = np.random.default_rng(0)
    for kind, asked in model.asked.items():
        rows = []
        for scene, question in asked:
            own = lp.Region(scene.objects[question.objects[0]], ring=1)
            layout = model.vlm.lay_out(scene.image, question.question)[0]
            ringed = own.tokens(layout)
            rest = np.setdiff1d(np.arange(len(layout)), layout.around(ringed, 1))
            others = layout.positions[drawing.choice(rest, len(ringed), replace=False)].tolist()
            rows.append([right(model.vlm, scene, question, tokens=each) for each in (own, others)])
        gone, other = np.array(rows, dtype=np.float64).T
        told.append(f"{kind}: {mean_told(gone)} without them, {mean_told(other)} without as many others")
        holds.append(above(other - gone))
    return Found("; ".join(told), all(holds))


def moved(model: Subject) -> Found:
    """What tells two pictures apart is on the changed object's tokens first, on the last position in the end."""
    told, holds = [], []
    last = model.vlm.anatomy.layers - 1
    layers = sorted({(last + 1) * sixths // 6 for sixths in (0, 2, 4, 5)} | {last})
    for kind in KINDS:
        found = [each for each in pairs(kind, max(4, len(model.asked[kind]) // 3)) if both_right(model.vlm, each)]
        cleans, corrupts = [(each.clean.image, each.question) for each in found], [each.corrupt.image for each in found]
        traced = lp.causal_trace(model.vlm, cleans, corrupts, parts=["residual"], layers=layers, mode="denoise", ring=1)
        changed, end = (traced.effects[:, 0, traced.groups.index(group), 0] for group in ("changed", "last"))
        course = ", ".join(
            f"{at}: {a:.2f} / {b:.2f}" for at, a, b in zip(layers, changed.mean(0), end.mean(0), strict=True)
        )
        told.append(f"{kind}, {len(found)} pairs, {course}")
        holds.append(above(changed[:, 0] - end[:, 0]) and above(end[:, -1] - changed[:, -1]))
    return Found("share by state, changed / last: " + "; ".join(told), all(holds))


def both_right(vlm: lp.VLM, pair: tiny.Counterfactual) -> bool:
    """Whether both pictures of a pair are answered right."""
    shown = ((pair.clean.image, pair.answer), (pair.corrupt.image, pair.other))
    return all(
        vlm.generate(image, pair.question, max_new_tokens=4, capture=LITTLE).answer.strip() == answer
        for image, answer in shown
    )


def cut(model: Subject, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """What is still right without attention picture → last, and without picture → question, in all layers."""
    last, question = (
        model.still_right(kind, lambda to=to: lp.knock_out(model.vlm, keys=lp.IMAGE, queries=to))
        for to in (lp.LAST, lp.QUESTION)
    )
    return last, question


def straight(kind: str) -> Callable[[Subject], Found]:
    """Whether an answer of a kind reaches the last position straight from the picture."""

    def found(model: Subject) -> Found:
        last, question = cut(model, kind)
        told = f"right without picture → last {mean_told(last)}, without picture → question {mean_told(question)}"
        return Found(told, above(question - last))

    found.__doc__ = (
        f"The {kind} reaches the last position straight from the picture rather than by the question's words."
    )
    return found


def colour_probes(vlm: lp.VLM) -> lp.Sweep:
    """Probes of the colour of an object, in the first and in a late state: on its own tokens, and on the last."""
    rows = []
    for seed in range(PROBED):
        scene = tiny.scene(seed)
        kinds = [thing.kind for thing in scene.objects]
        for thing in scene.objects:
            if thing.kind != "stop sign" and kinds.count(thing.kind) == 1:
                row = {"image": scene.image, "question": f"What colour is the {thing.kind}?", "colour": thing.colour}
                rows.append({**row, "boxes": [thing.box]})
    layers, positions = [0, late(vlm)], ["image_in_mask_mean", "last_prompt"]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = lp.extract(vlm, rows, Path(folder) / "store", layers=layers, positions=positions, box_format="xyxy")
        return lp.fit_probe(store, label="colour", draws=1)


def late(vlm: lp.VLM) -> int:
    """The hidden state that enters the last block."""
    return vlm.anatomy.layers - 1


def own_colour(model: Subject) -> Found:
    """A probe reads an object's colour from its own tokens, and did so before training."""
    trained, before = (sweep["layer_0", "image_in_mask_mean"] for sweep in model.probes)
    return Found(f"accuracy {scored(trained)}, before {scored(before)}", min(trained.low, before.low) > HIGH)


def asked_colour(model: Subject) -> Found:
    """At the last prompt position a probe reads the colour of the object asked about, and did not before training."""
    trained, before = (sweep[f"layer_{late(model.vlm)}", "last_prompt"] for sweep in model.probes)
    told = f"state {late(model.vlm)}: accuracy {scored(trained)}, before {scored(before)}"
    return Found(told, trained.low > max(HIGH, before.high))


def scored(cell: lp.Cell) -> str:
    """An accuracy with its interval."""
    return told_with(cell.score, cell.low, cell.high, ".2f")


def blind(model: Subject) -> Found:
    """Of a grey picture it is less sure of what it says."""
    kept = lp.Capture(attention=False, hidden_states=False)
    sure = []
    for scene, question in (each for kind in KINDS for each in model.asked[kind]):
        grey = Image.new("RGB", scene.image.size, (128, 128, 128))
        asked = [
            model.vlm.generate(image, question.question, max_new_tokens=1, capture=kept)
            for image in (scene.image, grey)
        ]
        sure.append([float(lp.confidence(trace).probability[0]) for trace in asked])
    seen, unseen = np.array(sure).T
    told = f"probability of the first word {mean_told(seen)}, of grey {mean_told(unseen)}"
    return Found(told, above(seen - unseen))


CLAIMS = (
    first_token, massive, visual_sinks, without_first, own_tokens, moved,
    *(straight(kind) for kind in KINDS), own_colour, asked_colour, blind,
)  # fmt: skip


def by_layer(models: dict[str, Subject]) -> plt.Figure:
    """Where the attention of the answer's words goes, layer by layer, and how massive the first token is."""
    figure, axes = plt.subplots(2, len(models), figsize=(7, 4), layout="constrained", sharey="row", sharex="col")
    for (name, model), (above_, below) in zip(models.items(), axes.T, strict=True):
        layers = np.arange(model.vlm.anatomy.layers)
        above_.stackplot(layers, *(model.shares[part].mean(0) for part in PARTS), labels=PARTS)
        above_.set(ylim=(0, 1), ylabel="share of attention" if name == MODELS[0] else "")
        above_.set_title(name)
        states = [trace.hidden(layer=list(layers[1:]), at=[0])[0].float() for trace in model.traces]
        phi = np.mean([(each.abs().amax(-1) / each.square().mean(-1).sqrt()).numpy() for each in states], axis=0)
        below.plot(layers[1:], phi, label="largest value over root mean square")
        below.axhline(states[0].shape[-1] ** 0.5, color="grey", lw=0.8, ls=":", label="√D, the most there can be")
        below.set(xlabel="layer", ylabel="first token" if name == MODELS[0] else "")
    for row in axes[:, -1]:
        row.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def main() -> None:
    """Write the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=40, help="of each kind of question")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    models = {name: Subject(name, arguments.scenes) for name in MODELS}
    with paper():
        lp.figures.save(by_layer(models), arguments.out / "two_models.png", 150)
    both, tables = ["| finding | tiny | smol |", "|---|---|---|"], []
    for claim in CLAIMS:
        found = {name: claim(model) for name, model in models.items()}
        said = " ".join((claim.__doc__ or "").split())
        both.append(f"| {said} | {' | '.join('holds' if each.holds else 'does not' for each in found.values())} |")
        tables += ["", f"**{said}**", "", *(f"- {name}: {each.told}." for name, each in found.items())]
        print("\n".join([both[-1], *tables[-2:]]), flush=True)
    asked = "; ".join(
        f"{name} {', '.join(f'{len(found)} of {arguments.scenes} {kind}' for kind, found in model.asked.items())}"
        for name, model in models.items()
    )
    page = [
        "# Which findings hold on both models",
        "",
        "Made by `make two-models` on held-out scenes. The tiny model learnt all that it knows from drawn scenes; the",
        "smol one's language model was pretrained on text, and its tower is the tiny one's. A claim holds where the",
        "95 % interval (over scenes) of what was measured says so; questions that a model answers right are asked:",
        f"{asked}.",
        "",
        "![Attention of the answer by layer, and how massive the first token is](two_models.png)",
        "",
        *both,
        "",
        "## What was measured",
        *tables,
        "",
    ]
    (arguments.out / "two_models.md").write_text("\n".join(page), encoding="utf-8")


if __name__ == "__main__":
    main()
