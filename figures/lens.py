"""What lenses read at the patches of objects in the tiny model: ``figures/lens.md`` and its figures.

    python figures/lens.py                 # 300 scenes, and a tuned lens fitted to 600 others

At how many of an object's patches does the likeliest word name it (its kind or its colour), layer by layer? Beside it
what says whether that is about the place: at how many the word names another object of the same scene instead. The same
of the likeliest colour among the colours, and of the likeliest kind among the kinds, where a lens must choose. And how
near the tuned lens comes to what the model says at last, on pictures that it was not fitted to.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np

import llava_probe as lp
from llava_probe import tiny
from llava_probe.resampling import interval, resamples, weighed
from llava_probe.tiny import plan
from llava_probe.view.canvas import finished, on_axes, paper

#: Held out, none of those that chose anything, and others to fit the tuned lens to.
FIRST, FITTED = 3_000, 10_000
TIMES = 2_000
#: What is counted of an object's patches: whether their word, their colour and their kind are its own or another's.
COUNTED = ("it", "another", "its colour", "another's colour", "its kind", "another's kind", "all")
ALL = COUNTED.index("all")
SHOWN = 34
COLOURS, KINDS = list(plan.COLOURS), [*plan.SHAPES, plan.SIGN]


def names(thing: tiny.SceneObject) -> set[str]:
    """What would be a right word for it."""
    return {thing.colour, thing.kind, f"{thing.kind}s", *thing.kind.split()}


def counted(vlm: lp.VLM, count: int, lenses: Mapping[str, lp.TunedLens | None]) -> dict[str, np.ndarray]:
    """By lens, [scenes, layers, COUNTED] patches of objects."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in lenses}
    keep = lp.Capture(positions=["image"], attention=False, scores=False)
    for seed in range(FIRST, FIRST + count):
        scene = tiny.scene(seed)
        trace = vlm.generate(scene.image, "Describe the image.", max_new_tokens=1, capture=keep)
        for name, tuned in lenses.items():
            said = lp.lens(vlm, trace, top=1, words=[*COLOURS, *KINDS], tuned=tuned)
            found[name].append(patches(scene, trace, said))
    return {name: np.stack(rows) for name, rows in found.items()}


def patches(scene: tiny.Scene, trace: lp.Trace, said: lp.Lens) -> np.ndarray:
    """[layers, COUNTED] of one scene."""
    layout, sums = trace.layouts[0], np.zeros((len(said.layers), len(COUNTED)))
    chances = said.word_probability.numpy()
    colours = np.array(COLOURS)[chances[: len(COLOURS)].argmax(0)]  # [layers, N]
    kinds = np.array(KINDS)[chances[len(COLOURS) :].argmax(0)]
    for thing in scene.objects:
        others = [each for each in scene.objects if each is not thing]
        columns = [said.positions.index(position) for position in layout.tokens_in(thing.mask).tolist()]
        for layer, texts in enumerate(said.texts):
            for column in columns:
                word = texts[column][0].strip().casefold()
                read = (
                    (word, names(thing), set().union(*map(names, others))),
                    (colours[layer, column], {thing.colour}, {each.colour for each in others}),
                    (kinds[layer, column], {thing.kind}, {each.kind for each in others}),
                )
                sums[layer] += [*(each for told, own, rest in read for each in (told in own, told in rest - own)), 1]
    return sums


def shares(sums: np.ndarray, which: int, seed: int = 0) -> Iterator[tuple[float, float, float]]:
    """Of each layer the share and its 95 % interval over scenes."""
    draws = weighed(resamples(len(sums), TIMES, seed), sums.reshape(len(sums), -1)).reshape(-1, *sums.shape[1:])
    for layer in range(sums.shape[1]):
        low, high = interval(draws[:, layer, which] / draws[:, layer, ALL])
        yield float(sums[:, layer, which].sum() / sums[:, layer, ALL].sum()), low, high


def table(sums: Mapping[str, np.ndarray], columns: Sequence[str]) -> list[str]:
    """A line a layer."""
    heads = [f"{name}: {column}" for name in sums for column in columns]
    lines = [f"| layer | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    cells = [list(shares(each, COUNTED.index(column))) for each in sums.values() for column in columns]
    for layer, told in enumerate(zip(*cells, strict=True)):
        lines.append(f"| {layer} | {' | '.join(f'{s:.3f} [{a:.3f}, {b:.3f}]' for s, a, b in told)} |")
    return lines


def drawn(sums: Mapping[str, np.ndarray], path: Path) -> Path:
    """The shares by layer, bands over scenes."""
    with paper():
        axes = on_axes(None, "column", 2.3)
        for number, (name, each) in enumerate(sums.items()):
            for column, style in (("it", "o-"), ("another", "--")):
                share, low, high = np.array(list(shares(each, COUNTED.index(column)))).T
                axes.plot(range(len(share)), share, style, color=f"C{number}", label=f"{name}: {column}")
                axes.fill_between(range(len(share)), low, high, color=f"C{number}", alpha=0.15, lw=0)
        axes.set(xlabel="hidden state", ylabel="share of an object's patches", ylim=(0, None))
        axes.legend()
        return lp.figures.save(finished(axes, True, "patches whose likeliest word names it"), path)


def main() -> None:
    """Write the table and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--fitted", type=int, default=600, help="scenes that the tuned lens is fitted to")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    vlm = lp.load()
    fitting = map(tiny.scene, range(FITTED, FITTED + arguments.fitted))
    rows = [{"image": each.image, "question": each.questions[each.seed % 6].question} for each in fitting]
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        tuned = lp.fit_lens(vlm, rows, folder, epochs=arguments.epochs, tokens=64)
        sums = counted(vlm, arguments.scenes, {"logit lens": None, "tuned lens": tuned})
        scene = tiny.scene(SHOWN)
        trace = vlm.generate(scene.image, "Describe the image.", max_new_tokens=1)
        shown = lp.lens(vlm, trace, tuned=tuned)
        lp.figures.save(lp.figures.words_on(shown, 3), arguments.out / "lens_words.png", 150)
        lp.figures.save(lp.figures.tuned_lens(tuned.report), arguments.out / "lens_held_out.png")
        drawn(sums, arguments.out / "lens_truth.png")
        page = [
            "# What lenses read at the patches of objects, in the tiny model",
            "",
            f"Made by `make lens`, on {arguments.scenes} held-out scenes; brackets are 95 % intervals over scenes.",
            "",
            "## Does the likeliest word at a patch of an object name it?",
            "",
            "Share of the patches that an object covers by half or more whose likeliest word is its kind or its colour",
            "(*it*), or the kind or colour of another object of the scene, and not its own (*another*).",
            "",
            *table(sums, ("it", "another")),
            "",
            "![By layer](lens_truth.png)",
            "",
            "## Where it must choose among the colours, or among the kinds?",
            "",
            f"Chance is {1 / len(COLOURS):.3f} of a colour and {1 / len(KINDS):.3f} of a kind.",
            "",
            *table(sums, ("its colour", "another's colour")),
            "",
            *table(sums, ("its kind", "another's kind")),
            "",
            "## How near does a tuned lens come to the model's last word?",
            "",
            f"KL in nats a position on {tuned.report.pictures} pictures that were held out of its",
            f"{arguments.fitted}, by layer and kind of position; the gain with its 95 % interval over pictures.",
            "",
            "```",
            tuned.report.table(),
            "```",
            "",
            "![Held out](lens_held_out.png)",
            "",
        ]
    (arguments.out / "lens.md").write_text("\n".join(page), encoding="utf-8")
    print("\n".join(page))


if __name__ == "__main__":
    main()
