"""What interventions find in the tiny model, on held-out scenes: ``figures/interventions.md``, and its figures.

    python figures/interventions.py                 # 200 scenes of each kind; some minutes on two cores

Does the answer rest on the asked object's own tokens; where along the layers is what distinguishes two pictures; which
cuts of attention take it away; and do first-order patches order as exact ones do.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np

import llava_probe as lp
from llava_probe import tiny
from llava_probe.sweeps.sweeping import over_samples, told_with

KINDS = {"shape": 6, "colour": 8, "text": 16}
#: Held out, and none of those that chose anything.
FIRST = 2_000
TRACED = ("changed", "picture", "question", "last")
LITTLE = lp.Capture(attention=False, hidden_states=False, scores=False)


def scenes(kind: str, count: int):
    """Scenes with one question of a kind about one object, and others beside it."""
    found = []
    for seed in range(FIRST, FIRST + 60 * count):
        scene = tiny.scene(seed)
        asked = [each for each in scene.questions if each.kind == kind and len(each.objects) == 1]
        if asked:
            found.append((scene, asked[0]))
        if len(found) == count:
            break
    return found


def pairs(kind: str, count: int):
    """Counterfactual pairs of a kind."""
    found = []
    for seed in range(FIRST, FIRST + 60 * count):
        try:
            found.append(tiny.counterfactual(seed, kind))
        except lp.OutOfRange:
            continue
        if len(found) == count:
            break
    return found


def right(vlm, scene, question, **ablation) -> bool:
    """Whether the answer is the true one."""
    ask = {"image": scene.image, "question": question.question, "max_new_tokens": 4, "capture": LITTLE}
    if not ablation:
        return vlm.generate(**ask).answer.strip() == question.answer
    with lp.ablate(vlm, **ablation):
        return vlm.generate(**ask).answer.strip() == question.answer


def necessity(vlm, count: int) -> list[str]:
    """Accuracy without the asked object's tokens, and without as many others."""
    lines = [
        "| kind | chance | plain | its tokens gone | with a ring | as many others gone | scenes |",
        "|---|---|---|---|---|---|---|",
    ]
    drawing = np.random.default_rng(0)
    for kind, answers in KINDS.items():
        rows = []
        for scene, question in scenes(kind, count):
            own = scene.objects[question.objects[0]]
            layout = vlm.lay_out(scene.image, question.question)[0]
            ringed = lp.Region(own, ring=1).tokens(layout)
            rest = np.setdiff1d(np.arange(len(layout)), layout.around(ringed, 1))
            others = layout.positions[drawing.choice(rest, len(ringed), replace=False)].tolist()
            rows.append(
                [
                    right(vlm, scene, question),
                    right(vlm, scene, question, tokens=lp.Region(own)),
                    right(vlm, scene, question, tokens=lp.Region(own), ring=1),
                    right(vlm, scene, question, tokens=others),
                ]
            )
        mean, low, high = over_samples(np.array(rows, dtype=np.float64))
        cells = [f"{m:.2f} [{a:.2f}, {b:.2f}]" for m, a, b in zip(mean, low, high, strict=True)]
        lines.append(f"| {kind} | {1 / answers:.2f} | {' | '.join(cells)} | {len(rows)} |")
        print(lines[-1], flush=True)
    return lines


def traces(vlm, count: int, folder: Path) -> list[str]:
    """Share of the logit difference by group and hidden state."""
    lines = []
    for kind in KINDS:
        found = pairs(kind, count)
        cleans = [(each.clean.image, each.question) for each in found]
        traced = lp.causal_trace(vlm, cleans, [each.corrupt.image for each in found], mode="both")
        lp.figures.save(lp.figures.causal_trace(traced), folder / f"causal_trace_{kind}.png")
        mean, low, high = traced.interval()
        lines += ["", f"{kind}, {len(found)} pairs, denoising:", ""]
        lines += [f"| hidden state | {' | '.join(TRACED)} |", "|---" * (len(TRACED) + 1) + "|"]
        for column, layer in enumerate(traced.layers):
            at = [(0, traced.groups.index(group), 0, column) for group in TRACED]
            cells = [told_with(mean[place], low[place], high[place], ".2f") for place in at]
            lines.append(f"| {layer} | {' | '.join(cells)} |")
        print("\n".join(lines[-len(traced.layers) :]), flush=True)
    return lines


def approximations(vlm, count: int, folder: Path) -> list[str]:
    """Rank correlations of first-order patches with exact ones."""
    lines = ["| kind | part | corrected (AtP*) | first order | pairs |", "|---|---|---|---|---|"]
    for kind in KINDS:
        found = pairs(kind, count)
        cleans = [(each.clean.image, each.question) for each in found]
        patched = lp.attribution_patching(vlm, cleans, [each.corrupt.image for each in found], exact=count)
        if kind == "colour":
            lp.figures.save(lp.figures.attribution_patching(patched), folder / "attribution_patching.png")
        for part in patched.parts:
            own, plain = (patched.correlation(part, corrected=corrected) for corrected in (True, False))
            lines.append(f"| {kind} | {part} | {own:.2f} | {plain:.2f} | {len(found)} |")
            print(lines[-1], flush=True)
    return lines


def flows(vlm, count: int, folder: Path) -> list[str]:
    """Where each cut takes most."""
    lines = []
    for kind in KINDS:
        asked = [(scene.image, question.question) for scene, question in scenes(kind, count)]
        flow = lp.information_flow(vlm, asked)
        lp.figures.save(lp.figures.information_flow(flow, "difference"), folder / f"information_flow_{kind}.png")
        lines += ["", f"{kind}, {len(asked)} scenes:", "", "```", flow.table("difference"), "```"]
        print(flow.table("difference"), flush=True)
    return lines


def main() -> None:
    """Write the table and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--few", type=int, default=30, help="samples of flows and of exact sweeps")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    vlm = lp.load()
    arguments.out.mkdir(parents=True, exist_ok=True)
    page = [
        "# What interventions find in the tiny model",
        "",
        "Made by `make interventions`, on held-out scenes; brackets are 95 % intervals over scenes.",
        "",
        "## Does the answer rest on the asked object's own tokens?",
        "",
        "Share of right answers; tokens are replaced by the mean of the picture's.",
        "",
        *necessity(vlm, arguments.scenes),
        "",
        "## Where is what distinguishes two pictures?",
        "",
        "Counterfactual pairs (one object otherwise); share of the logit difference that the clean states of a group",
        "bring back into the other run. *changed*: visual tokens with pixels that differ; *picture*: the others.",
        *traces(vlm, arguments.pairs, arguments.out),
        "",
        "## Which cuts of attention take it away?",
        "",
        "Relative change of the logit difference where each cut takes most; beside it the controls there.",
        *flows(vlm, arguments.few, arguments.out),
        "",
        "## Do first-order patches order as exact ones?",
        "",
        "Spearman's rank correlation over all groups and layers with the exact sweep, mean over pairs.",
        "",
        *approximations(vlm, arguments.few, arguments.out),
        "",
    ]
    (arguments.out / "interventions.md").write_text("\n".join(page), encoding="utf-8")


if __name__ == "__main__":
    main()
