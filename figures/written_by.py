"""Which parts of the tiny model write a colour, and whether they read it off the object: ``figures/written_by.md``.

    python figures/written_by.py                    # 200 held-out scenes; a minute or two on two cores

For each question about the colour of one object that the model answers rightly, the lead of the colour over the next
likely one is split. Of what heads read for it on the picture, the share that lies on the object (positive values; the
sum of all may be less) stands beside the share of the picture's tokens that the object covers.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch

import llava_probe as lp
from llava_probe import tiny
from llava_probe.sweeps.sweeping import over_samples, told_with

#: Held out, and none of those that chose anything.
FIRST = 2_000
#: Parts that are listed, of those that write most.
LISTED = 8
LITTLE = lp.Capture(attention=False, hidden_states=False, scores=False)


def asked(vlm, count: int):
    """Scenes with a colour that is asked of one object and answered rightly: what was written, and the object's mask."""
    found = 0
    for seed in range(FIRST, FIRST + 60 * count):
        scene = tiny.scene(seed)
        for question in scene.questions:
            if question.kind != "colour" or len(question.objects) != 1 or found == count:
                continue
            trace = vlm.generate(scene.image, question.question, max_new_tokens=4, capture=LITTLE)
            if trace.answer.strip() != question.answer:
                continue
            found += 1
            second = int(trace.logits[0].topk(2).indices[1])
            yield lp.written_by(vlm, trace, trace.prompt_length, second), scene.objects[question.objects[0]].mask
            break


def shares(m: lp.ImageMap, inside: torch.Tensor) -> float:
    """The share of a map's positive values on the object."""
    positive = m.row(0).clamp(min=0)
    return float((positive * inside).sum() / positive.sum().clamp(min=1e-9))


def main() -> None:
    """Print the tables and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    vlm = lp.load()
    rows, gave, on_object, areas, sources, residual = [], [], [], [], [], 0.0
    for written, mask in asked(vlm, arguments.count):
        layout = written.layouts[0]
        inside = torch.as_tensor(layout.to_tokens(mask)).float()
        rows.append([(part.kind, part.layer, part.head) for part in written.parts()])
        gave.append([part.value for part in written.parts()])
        heads = [(layer, head) for layer in written.layers for head in range(written.heads.shape[1])]
        on_object.append([shares(written.map(*each), inside) for each in heads] + [shares(written.map(), inside)])
        areas.append(float(inside.mean()))
        sources.append([*written.read().values(), written.logit])
        residual = max(residual, written.residual)
    assert all(row == rows[0] for row in rows)
    lines = _page(heads, rows[0], np.array(gave), np.array(on_object), np.array(areas)[:, None], np.array(sources))
    lines += ["", f"Largest distance of the parts' sum from the logit, relative to the largest part: {residual:.1e}."]
    print("\n".join(lines))
    (arguments.out / "written_by.md").write_text("\n".join([*_HEAD, *lines]) + "\n", encoding="utf-8")


def _page(heads, parts, gave, on_object, areas, sources) -> list[str]:
    names = [*_SOURCES, "the lead"]
    mean, low, high = over_samples(sources)
    total = mean[-1]
    lines = [f"{len(gave)} scenes; means with 95 % intervals over scenes.", "", "| of all heads, read from | logits |"]
    lines += ["|---|---|", *(f"| {each} | {told_with(*at, '.2f')} |" for each, *at in zip(names, mean, low, high, strict=True))]
    mean, low, high = over_samples(gave)
    order = np.argsort(-np.abs(mean))[:LISTED]
    shared = over_samples(on_object)
    area = told_with(*(each[0] for each in over_samples(areas)), ".3f")
    lines += ["", "| part | logits | share of the lead | positive map on the object |", "|---|---|---|---|"]
    for place in order:
        kind, layer, head = parts[place]
        name = " ".join(str(each) for each in (f"layer {layer}" if layer is not None else "", kind, head) if each not in ("", None))
        on = told_with(*(each[heads.index((layer, head))] for each in shared), ".2f") if kind == "head" else ""
        cells = told_with(mean[place], low[place], high[place], ".2f"), f"{mean[place] / total:.0%}", on
        lines.append(f"| {name} | {' | '.join(cells)} |")
    both = told_with(*(each[-1] for each in shared), ".2f")
    return [*lines, "", f"All heads' map together: {both} of its positive part on the object, which covers {area} of the picture."]


_SOURCES = ["the picture", "the question", "the template", "the first token", "the answer so far", "sinks"]
_HEAD = [
    "# Who writes the colour",
    "",
    "Of the tiny model's colour answers on held-out scenes: the lead of the colour over the next likely word, split by",
    "`lp.written_by`. Made by `make written`.",
    "",
]


if __name__ == "__main__":
    main()
