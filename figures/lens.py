"""What three lenses read at the patches of objects, where the truth is known: ``figures/lens.md`` and its figures.

    python figures/lens.py                                     # 300 scenes, and a tuned lens fitted to 600 others
    python figures/lens.py --model smol --scenes 40 --fitted 160 --epochs 2 --every 5 --out figures/lens_smol.md

At how many of an object's patches does the nearest or likeliest word name it (its kind or its colour), layer by layer?
Beside it what says how much of that is about the place: how many the same words would name if they were dealt to the
patches at random, and at how many the word names another object of the scene. The same where a lens must choose among
the colours, or among the kinds. And how near the tuned lens comes to what the model says at last, on pictures that it
was not fitted to.
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
from llava_probe import smol, tiny
from llava_probe.evaluate.right_words import SCENE_QUESTION, RightWords, right_words
from llava_probe.tiny import plan
from llava_probe.view.canvas import finished, on_axes, paper

#: Held out, none of those that chose anything; others to fit the tuned lens to, and others that the bank is told of.
FIRST, FITTED, TOLD = 3_000, 10_000, range(1_000, 1_100)
SHOWN = 34
#: The figures beside the page.
PARTS = ("truth", "held_out", "words")
LOGIT, TUNED, CONTEXTUAL = LENSES = ("logit lens", "tuned lens", "contextual words")
#: What is to be known of a model's patches beforehand.
MADE = {
    smol.SMOL: [
        "This model's projector was trained from a start near the embeddings of the words for what a patch shows",
        "(`llava_probe/smol/making/words.py`): that patches lie near words is in part how it was made.",
        "",
    ]
}
#: What a lens chooses among. A kind of two words goes by its first, which is how a model begins it.
ANY, COLOURS, KINDS = "any word", "colours", "kinds"
AMONG = {ANY: [], COLOURS: list(plan.COLOURS), KINDS: [kind.split()[0] for kind in (*plan.SHAPES, plan.SIGN)]}


def sentences() -> Iterator[str]:
    """What is true of some scenes, in the words of their questions, answers and descriptions."""
    for seed in TOLD:
        for each in tiny.scene(seed).questions:
            yield from each.answer.split(". ") if each.kind == "describe" else [f"{each.question} {each.answer}"]


class Lenses:
    """The three lenses of one model, and what each says at every visual token."""

    def __init__(self, vlm: lp.VLM, folder: Path, fitted: int, epochs: int, every: int) -> None:
        self.vlm, last = vlm, vlm.anatomy.layers
        self.layers = sorted({*range(0, last, every), last})
        scenes = map(tiny.scene, range(FITTED, FITTED + fitted))
        rows = [{"image": each.image, "question": each.questions[each.seed % 6].question} for each in scenes]
        fits = [layer for layer in self.layers if layer < last]
        self.tuned = lp.fit_lens(vlm, rows, folder / "tuned", layers=fits, epochs=epochs, tokens=64, progress=True)
        self.bank = lp.word_bank(vlm, list(sentences()), folder / "bank")

    def says(self, trace: lp.Trace) -> Mapping[tuple[str, int], Sequence[str]]:
        """By lens and what it chooses among, and by layer, the word at each visual token."""
        found: dict[tuple[str, int], Sequence[str]] = {}
        for name, tuned in ((LOGIT, None), (TUNED, self.tuned)):
            words = [*AMONG[COLOURS], *AMONG[KINDS]]
            said = lp.lens(self.vlm, trace, layers=self.layers, top=1, words=words, tuned=tuned)
            colours, kinds = said.word_probability.split([len(AMONG[COLOURS]), len(AMONG[KINDS])])
            for row, layer in enumerate(said.layers):
                found[told(name, ANY), layer] = [texts[0] for texts in said.texts[row]]
                for among, chances in ((COLOURS, colours), (KINDS, kinds)):
                    best = chances[:, row].argmax(0).tolist()
                    found[told(name, among), layer] = [AMONG[among][number] for number in best]
        for layer in self.layers:
            for among, words in AMONG.items():
                nearest = self.bank.words(trace, layer, top=1, among=words or None)
                found[told(CONTEXTUAL, among), layer] = [texts[0] for texts in nearest.texts]
        return found


def told(lens: str, among: str) -> str:
    """A name for both."""
    return f"{lens}, {among}"


def table(of: Mapping[tuple[str, int], RightWords], among: str, layers: Sequence[int]) -> list[str]:
    """A line a layer, of each lens the share with its interval, chance, and what names another object."""
    heads = [f"{lens} | chance | another" for lens in LENSES]
    lines = [f"| layer | {' | '.join(heads)} |", "|---" * (1 + 3 * len(heads)) + "|"]
    for layer in layers:
        rows = [of[told(lens, among), layer] for lens in LENSES]
        cells = [
            f"{row.share:.3f} [{row.low:.3f}, {row.high:.3f}] | {row.chance:.3f} | {row.another:.3f}" for row in rows
        ]
        lines.append(f"| {layer} | {' | '.join(cells)} |")
    return lines


def best(of: Mapping[tuple[str, int], RightWords], lens: str, among: str) -> str:
    """Where a lens is furthest above chance, in words."""
    rows = [row for (name, _), row in of.items() if name == told(lens, among)]
    row = max(rows, key=lambda row: row.low - row.chance)
    if row.low <= row.chance:
        return f"{lens} nowhere"
    return f"{lens} {row.share:.2f} [{row.low:.2f}, {row.high:.2f}] at layer {row.layer}, chance {row.chance:.2f}"


def drawn(of: Mapping[tuple[str, int], RightWords], layers: Sequence[int], path: Path) -> Path:
    """The shares by layer, bands over scenes, chance dashed."""
    with paper():
        axes = on_axes(None, "page", 2.4)
        axes.set_axis_off()
        for panel, among in enumerate(AMONG):
            inside = axes.inset_axes((panel * 0.36, 0, 0.28, 1))
            for number, lens in enumerate(LENSES):
                rows = [of[told(lens, among), layer] for layer in layers]
                share, low, high, chance = np.array([(row.share, row.low, row.high, row.chance) for row in rows]).T
                inside.plot(layers, share, "o-", color=f"C{number}", label=lens)
                inside.plot(layers, chance, "--", color=f"C{number}", lw=0.8)
                inside.fill_between(layers, low, high, color=f"C{number}", alpha=0.15, lw=0)
            inside.set(xlabel="hidden state", ylim=(0, None), title=among)
            if not panel:
                inside.set(ylabel="share of objects' patches")
                axes.legend(
                    *inside.get_legend_handles_labels(), ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.12)
                )
        return lp.figures.save(finished(axes, True, None), path)


def page(asked: argparse.Namespace, lenses: Lenses, rows: Sequence[RightWords], named: Mapping[str, str]) -> list[str]:
    """What was measured, line by line."""
    of, report = {(row.lens, row.layer): row for row in rows}, lenses.tuned.report
    return [
        f"# What three lenses read at the patches of objects, in the {asked.model} model",
        "",
        f"{rows[0].patches:,} patches of objects on {rows[0].scenes} held-out scenes, each covered by half or more.",
        "Brackets are 95 % intervals over scenes; *chance* is what the same words would score if dealt to the same",
        "patches at random; *another* the share whose word names another object of the scene and not this one.",
        f"Contextual words: nearest in {len(lenses.bank.features):,} sentences about other scenes. Made by",
        "",
        f"    python figures/lens.py --model {asked.model} --scenes {asked.scenes} --fitted {asked.fitted} "
        f"--epochs {asked.epochs} --every {asked.every} --out figures/{asked.out.name}",
        "",
        *MADE.get(asked.model, []),
        "Above chance, and where most:",
        "",
        *(f"- {among}: {'; '.join(best(of, lens, among) for lens in LENSES)}." for among in AMONG),
        "",
        f"![By layer; dashed: chance]({named['truth']})",
        "",
        "## Does the word at a patch of an object name it?",
        "",
        *table(of, ANY, lenses.layers),
        "",
        f"## Where it must choose among the {len(AMONG[COLOURS])} colours",
        "",
        *table(of, COLOURS, lenses.layers),
        "",
        f"## Where it must choose among the {len(AMONG[KINDS])} kinds",
        "",
        *table(of, KINDS, lenses.layers),
        "",
        "## How near does a tuned lens come to the model's last word?",
        "",
        f"KL in nats a position on {report.pictures} pictures that were held out of its {asked.fitted}, by layer and",
        "kind of position; the gain with its 95 % interval over pictures.",
        "",
        "```",
        report.table(),
        "```",
        "",
        f"![Held out]({named['held_out']})",
        "",
        f"![The tuned lens's likeliest word at each patch]({named['words']})",
        "",
    ]


def main() -> None:
    """Write the page and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="tiny or smol")
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--fitted", type=int, default=600, help="scenes that the tuned lens is fitted to")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--every", type=int, default=1, help="read every so many layers, and the last")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    asked = parser.parse_args()
    vlm = lp.load(asked.model, merge=asked.model == smol.SMOL)
    pictures = {part: asked.out.with_name(f"{asked.out.stem}_{part}.png") for part in PARTS}
    with tempfile.TemporaryDirectory() as folder:
        lenses = Lenses(vlm, Path(folder), asked.fitted, asked.epochs, asked.every)
        counted = right_words(vlm, range(FIRST, FIRST + asked.scenes), lenses.says, times=2_000)
        shown = vlm.generate(tiny.scene(SHOWN).image, SCENE_QUESTION, max_new_tokens=1)
        layer = lenses.layers[len(lenses.layers) // 2]
        found = lp.lens(vlm, shown, layers=[layer], tuned=lenses.tuned)
        lp.figures.save(lp.figures.words_on(found, layer), pictures["words"], 100)
        lp.figures.save(lp.figures.tuned_lens(lenses.tuned.report), pictures["held_out"], 144)
        drawn({(row.lens, row.layer): row for row in counted.rows}, lenses.layers, pictures["truth"])
        written = "\n".join(page(asked, lenses, counted.rows, {part: path.name for part, path in pictures.items()}))
    asked.out.write_text(written, encoding="utf-8")
    print(written)


if __name__ == "__main__":
    main()
