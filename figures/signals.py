"""Do the signals of the literature tell a word that is made up? ``figures/signals.md``, on scenes made hard to see.

    python figures/signals.py                       # 600 scenes; some minutes on two cores

The models that ship are right about clean scenes, so scenes are blurred, covered with noise, or have one object hidden,
until some of what a description names is not there. Whether it is, is known to the pixel.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from PIL import Image
from PIL.ImageDraw import Draw
from PIL.ImageFilter import GaussianBlur

import llava_probe as lp
from llava_probe import tiny
from llava_probe.tiny.plan import SHAPES

#: Held out, and none of those that anything else was chosen or scored on.
FIRST = 700_000
OBJECTS = [*SHAPES, "stop sign"]
GREY = (128, 128, 128)
WAYS = ("blurred", "noisy", "one object hidden")


def spoilt(scene: tiny.Scene, way: str, drawing: np.random.Generator) -> tuple[Image.Image, set[str]]:
    """A scene made hard to see, and the kinds of objects that are still on it."""
    kinds = [thing.kind for thing in scene.objects]
    if way == "blurred":
        return scene.image.filter(GaussianBlur(float(drawing.uniform(3, 8)))), set(kinds)
    if way == "noisy":
        pixels = np.asarray(scene.image, dtype=np.float64)
        noise = drawing.normal(0, drawing.uniform(60, 140), pixels.shape)
        return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8)), set(kinds)
    hidden = int(drawing.integers(len(kinds)))
    covered = scene.image.copy()
    Draw(covered).rectangle(scene.objects[hidden].box, fill=GREY)
    return covered, {kind for number, kind in enumerate(kinds) if number != hidden}


def described(vlm: lp.VLM, count: int) -> dict[str, list[tuple[lp.Hallucination, list[bool], int]]]:
    """Of each way: what is said of each word of a description, whether it is made up, and which scene it is."""
    drawing = np.random.default_rng(0)
    found: dict[str, list[tuple[lp.Hallucination, list[bool], int]]] = {way: [] for way in WAYS}
    for number in range(count):
        way = WAYS[number % len(WAYS)]
        image, there = spoilt(tiny.scene(FIRST + number), way, drawing)
        trace = vlm.generate(image, "Describe the image.", max_new_tokens=96)
        try:
            told = lp.hallucination(vlm, trace, OBJECTS)
        except lp.OutOfRange:  # it names nothing
            continue
        found[way].append((told, [thing not in there for thing in told.objects], number))
    return found


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=600)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--dtype")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    vlm = lp.load(options.model, **({"dtype": options.dtype} if options.dtype else {}))
    found = described(vlm, options.scenes)
    parts = {"all of them": [each for way in WAYS for each in found[way]], **found}
    page = [
        f"# Do the signals tell a word that is made up? ({options.model})",
        "",
        f"Descriptions of {options.scenes} held-out scenes, a third each {', '.join(WAYS)}; a word is made up where no",
        "such object is on the picture. AUROC with 95 % intervals over pictures, and the difference from the baseline",
        "that tells most on the same words. Made by",
        "",
        f"    python figures/signals.py --model {options.model} --scenes {options.scenes}"
        + (f" --dtype {options.dtype}" if options.dtype else ""),
    ]
    for name, some in parts.items():
        truths = [truth for _, truth, _ in some]
        wrong = sum(map(sum, truths))
        page += ["", f"## Scenes: {name}", ""]
        if not 0 < wrong < sum(map(len, truths)):
            page.append(f"{wrong} words made up: nothing to tell.")
            continue
        table = lp.signal_table([told for told, _, _ in some], truths, [number for _, _, number in some])
        page += ["```", str(table), "```"]
        print("\n".join(page[-4:]), flush=True)
    page += ["", "## What each is", "", "| signal | formula | source | made up when |", "|---|---|---|---|"]
    page += [
        f"| {name} | {kind.formula} | {kind.source or ('baseline' if not kind.looks else '')} | {kind.made_up_when} |"
        for name, kind in lp.SIGNALS.items()
    ]
    options.out.write_text("\n".join(page) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
