"""Which parts of the tiny model write a colour, and whether they read it off the object: ``figures/written_by.md``.

    python figures/written_by.py                    # 200 held-out scenes; two or three minutes on two cores

For each question about the colour of one object that the model answers rightly, the lead of the colour over the next
likely word is split. Of what heads read for it off the picture, the share that lies on the tokens that the object
touches (of positive values) stands beside raw attention's share there, and beside these tokens' share of the picture.
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
READ = ("the picture", "the question", "the template", "the first token", "the answer so far", "sinks", "the lead")
TITLE = """# Who writes the colour

Of the tiny model's colour answers about held-out scenes: the lead of the colour over the next likely word, split by
`lp.written_by` (`python figures/written_by.py`).
"""


def asked(vlm, count: int):
    """Scenes with a colour that is asked of one object and answered rightly: the trace, and the object's mask."""
    found = 0
    for seed in range(FIRST, FIRST + 60 * count):
        scene = tiny.scene(seed)
        questions = [each for each in scene.questions if each.kind == "colour" and len(each.objects) == 1]
        if not questions:
            continue
        trace = vlm.generate(scene.image, questions[0].question, max_new_tokens=4)
        if trace.answer.strip() == questions[0].answer:
            found += 1
            yield trace, scene.objects[questions[0].objects[0]].mask
        if found == count:
            return


def split(vlm, trace: lp.Trace):
    """The colour's lead over the next likely word."""
    second = int(trace.logits[0].topk(2).indices[1])
    return lp.written_by(vlm, trace, trace.prompt_length, second)


def on_the_object(written, trace: lp.Trace, mask) -> dict[object, float]:
    """Of positive values, the share on its tokens: by head, of all of them, of attention; and the tokens' own."""
    inside = torch.as_tensor(written.layouts[0].to_tokens(mask)) > 0
    maps = {
        (part.layer, part.head): written.map(part.layer, part.head) for part in written.parts() if part.kind == "head"
    }
    maps |= {"all": written.map(), "attention": lp.attention_map(trace, tokens=trace.prompt_length)}
    positive = {name: m.row(0).clamp(min=0) for name, m in maps.items()}
    shares = {name: float(values[inside].sum() / values.sum().clamp(min=1e-9)) for name, values in positive.items()}
    return shares | {"area": float(inside.float().mean())}


def cells(values: list[list[float]], form: str = ".2f") -> list[str]:
    """A mean and its interval over scenes for each column."""
    return [told_with(*each, form) for each in zip(*over_samples(np.array(values)), strict=True)]


def main() -> None:
    """Print the tables and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    vlm = lp.load()
    found = []
    for trace, mask in asked(vlm, arguments.count):
        written = split(vlm, trace)
        found.append((written, on_the_object(written, trace, mask)))
    read = cells([[*written.read().values(), written.logit] for written, _ in found])
    gave = [[part.value for part in written.parts()] for written, _ in found]
    means, lead = np.mean(gave, axis=0), np.mean([written.logit for written, _ in found])
    names = [*found[0][1]]
    shares = dict(zip(names, cells([[each[name] for name in names] for _, each in found]), strict=True))
    lines = [
        f"{len(found)} scenes; means with 95 % intervals over scenes.",
        "",
        "| heads read from | logits |",
        "|---|---|",
    ]
    lines += [f"| {name} | {cell} |" for name, cell in zip(READ, read, strict=True)]
    lines += ["", "| part | logits | of the lead | of its positive map, on the object |", "|---|---|---|---|"]
    parts, own = found[0][0].parts(), cells(gave)
    for place in np.argsort(-np.abs(means))[:LISTED]:
        on = shares.get((parts[place].layer, parts[place].head), "")
        lines.append(f"| {parts[place]} | {own[place]} | {means[place] / lead:.0%} | {on} |")
    off = max(written.residual for written, _ in found)
    lines += [
        "",
        f"The object touches {shares['area']} of the picture's tokens. On these lie {shares['all']} of the positive",
        f"values of all heads' map together, and {shares['attention']} of raw attention on the picture.",
        f"The parts' sum is off the logit by {off:.0e} of the largest part at most.",
    ]
    print("\n".join(lines))
    (arguments.out / "written_by.md").write_text("\n".join([TITLE, *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
