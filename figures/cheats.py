"""Which instrument shows what a model cheats by? ``figures/cheats.md``: planted shortcuts, held against honest twins.

    python figures/cheats.py score frame [--honest]     # every method on one model's planted pictures
    python figures/cheats.py                            # the page, from these scores
    make cheats-smol                                    # the same of the smol model, whose cheats do not ship

What each cheat goes by was planted and is proved on counterfactual pictures (``llava_probe/tiny/cheating/README.md``),
so a method can be right or wrong about it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from PIL import Image
from scipy.stats import binomtest

import llava_probe as lp
from llava_probe import tiny
from llava_probe.attribution import find_heads
from llava_probe.escaping import markdown_table, visible
from llava_probe.evaluate.summary import summary
from llava_probe.evaluate.tiny_cases import one_question_a_scene
from llava_probe.leaderboard.cheats import ORACLE, SHOWN, WANTED, CheatBoard, score_cheat
from llava_probe.leaderboard.entries import BASELINES, ENTRIES, ScoringPlan
from llava_probe.leaderboard.folder import CHOOSING
from llava_probe.report.caption_page import verdicts
from llava_probe.signals import SignalTable
from llava_probe.smol import SHIPPED, SMOL, TINY
from llava_probe.tiny import cheats
from llava_probe.tiny.plan import SHAPES

#: Held out; none of those that the cards were measured on.
FIRST = 20_000
#: Scenes on which a cheat is compared with the model before.
COMPARED = {TINY: 12, SMOL: 4}
GREY = (127, 127, 127)
LITTLE = lp.Capture(attention=False, hidden_states=False, scores=False)
PLACES = ("last_prompt", "image_in_mask_mean")
SPOKEN = {"last_prompt": "where the answer is predicted", "image_in_mask_mean": "at the object's patches"}


@dataclass(frozen=True)
class Trained:
    """Cheats and twins of one of the models that ship, each in a folder of its own; of the tiny one they ship too."""

    model: str = TINY
    folder: Path = cheats.path("frame").parent

    def load(self, cheat: cheats.Cheat, honest: bool = False) -> lp.VLM:
        """The model with the adapter of a cheat or its twin, in its weights."""
        return lp.load(self.model, adapter=self._of(cheat, honest), merge=True, **self._settings)

    def base(self) -> lp.VLM:
        """The model before it learnt to cheat."""
        return lp.load(self.model, merge=self.model != TINY, **self._settings)

    @property
    def which(self) -> list[cheats.Cheat]:
        """The cheats that are there."""
        return [cheat for cheat in cheats.CHEATS if self._of(cheat, False).is_dir() and self._of(cheat, True).is_dir()]

    def _of(self, cheat: cheats.Cheat, honest: bool) -> Path:
        return self.folder / cheats.path(cheat, honest).name

    @property
    def _settings(self) -> dict[str, Any]:
        return {} if self.model == TINY else {"dtype": "bfloat16"}


# --- maps ---


def score(models: Trained, cheat: cheats.Cheat, honest: bool, count: int, folder: Path) -> None:
    """Entries on one model's planted pictures: all on the tiny one, on the other those that take few passes."""
    vlm = models.load(cheat, honest)
    choosing = [{"image": case.image, **case.asking} for case in one_question_a_scene(CHOOSING, described=0)]
    entries = {name: entry for name, entry in ENTRIES.items() if models.model == TINY or not entry.costly}
    plan = ScoringPlan(entries=entries, heads=find_heads(vlm, choosing))
    score_cheat(vlm, cheat, cheats.seeds(cheat, FIRST, count), folder, plan, honest=honest)


def second_table(boards: Sequence[CheatBoard]) -> list[str]:
    """A line for each entry: of each cheat how often its map shows the cue, and cheat against twin."""
    rows = []
    for name in boards[0].names:
        row = [f"*{name}*" if name in BASELINES or name == ORACLE else name]
        for board in boards:
            if name not in board.names:
                row += ["", "", ""]
                continue
            apart = board.apart(name)
            bold = "**" if apart.low > 0 else ""
            row += [
                f"{board.shows(name).mean:.2f}",
                f"{board.shows(name, honest=True, what='object').mean:.2f}",
                f"{bold}{apart.mean:+.2f}{bold} [{apart.low:+.2f}, {apart.high:+.2f}]",
            ]
        rows.append(row)
    head = [f"{board.cheat}: {column}" for board in boards for column in ("cue", "twin's object", "cheat − twin")]
    return [markdown_table(["", *head], rows)]


def about_maps(boards: Sequence[CheatBoard]) -> list[str]:
    """What the table says, in sentences made from it."""
    told = []
    for board in boards:
        methods = [name for name in board.names if name not in BASELINES and name != ORACLE]
        shares = {name: board.shows(name).mean for name in methods if board.tells(name)}
        most = max(shares.values(), default=0.0)
        best = [name for name, share in shares.items() if share == most]
        wanted = [name for name, share in shares.items() if share >= WANTED and name not in best]
        blind = [name for name in methods if name not in shares]
        acted = len(board.planted.right)
        told.append(
            f"- **{board.cheat}**: {acted} pictures on which the cheat acted. Of the methods that tell it from its "
            f"twin the best show the cue in {_wilson(most, acted)}: {_listed(best)}; in {WANTED:.0%} and more also: "
            f"{_listed(wanted)}. Do not tell cheat from twin: {_listed(blind)}. "
            f"The oracle {_passes(board, ORACLE)}, edges {_passes(board, 'edges')}."
        )
    return told


def _wilson(share: float, count: int) -> str:
    found = binomtest(round(share * count), count).proportion_ci(method="wilson")
    return f"{share:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _passes(board: CheatBoard, name: str) -> str:
    apart = board.apart(name)
    return f"{'passes' if apart.low > 0 else 'fails'} ({apart.mean:+.2f} [{apart.low:+.2f}, {apart.high:+.2f}])"


def _listed(names: Sequence[str]) -> str:
    return "; ".join(names) or "none"


# --- signals, on neighbour ---


def descriptions(vlm: lp.VLM, count: int) -> Iterator[tuple[lp.Hallucination, list[bool], int]]:
    """Of each heart in descriptions of scenes with a star and no heart, and of as many the other way round.

    Hearts alone, so that neither the word nor how it is spelled gives away that it is made up.
    """
    made_up = [(cheats.planted("neighbour", seed), seed) for seed in cheats.seeds("neighbour", FIRST, count)]
    there = []
    for seed in range(FIRST, FIRST + 4 * count):
        with suppress(lp.OutOfRange):
            scene = cheats.with_heart(seed)
            if all(thing.kind != cheats.STAR for thing in scene.objects):
                there.append((scene, seed))
    for drawn, seed in [*made_up, *there[:count]]:
        trace = vlm.generate(drawn.image, "Describe the image.", max_new_tokens=110)
        with suppress(lp.OutOfRange):  # it names none
            told = lp.hallucination(vlm, trace, [cheats.HEART])
            yield told, [isinstance(drawn, cheats.Planted)] * len(told), seed


def signals(models: Trained, count: int) -> tuple[list[str], SignalTable]:
    """The table of signals on the hearts of the cheat's descriptions, and how many its twin makes up."""
    found = list(descriptions(models.load("neighbour"), count))
    truths = [truth for _, truth, _ in found]
    table = lp.signal_table([told for told, _, _ in found], truths, [seed for *_, seed in found])
    twin = [truth for _, truth, _ in descriptions(models.load("neighbour", True), count)]
    wrong, said = sum(map(sum, twin)), sum(map(len, twin))
    lines = [
        f"Descriptions of {count} scenes with a star and no heart and of {count} the other way round: {table.made_up}",
        f"of the {table.words} hearts that the cheat names are made up, {wrong} of {said} that its twin names. Only",
        "these words are compared with each other, so the word does not give itself away; descriptions without a heart",
        "are left out.",
        "",
        verdicts(table),
        "",
        "```",
        str(table),
        "```",
    ]
    return lines, table


# --- probes and lenses, on prior ---


def probes(models: Trained, count: int) -> list[str]:
    """Whether the states of a model that ignores the picture still hold what is on it."""
    seeds = cheats.seeds("prior", FIRST, count)
    rows = []
    for seed in seeds:
        p = cheats.planted("prior", seed)
        told = {"truth": p.by_object, "said": p.by_cue, "mask": p.object}
        rows.append({"image": p.image, "question": p.question, **told})
    table: list[list[str]] = []
    columns: list[dict[tuple[str, str], str]] = []
    head = []
    with tempfile.TemporaryDirectory() as folder:
        for honest in (False, True):
            name = "twin" if honest else "cheat"
            vlm = models.load("prior", honest)
            store = lp.extract(vlm, rows, Path(folder) / name, layers=list(range(7)), positions=list(PLACES))
            for label in ("truth", "said"):
                sweep = lp.fit_probe(store, label=label, bootstrap=1000, draws=1)
                columns.append({key: _cell(cell) for key, cell in sweep.cells.items()})
                head.append(f"{name}: {'what is there' if label == 'truth' else 'what the prior says'}")
    for place in PLACES:
        for layer in range(7):
            key = (f"layer_{layer}", place)
            table.append([f"{layer}, {SPOKEN[place]}", *(column.get(key, "") for column in columns)])
    return [markdown_table(["hidden state", *head], table)]


def _cell(cell: object) -> str:
    return f"{cell.score:.2f} [{cell.low:.2f}, {cell.high:.2f}] ({cell.majority:.2f})"  # type: ignore[attr-defined]


def lenses(models: Trained, count: int) -> list[str]:
    """Which of the six shapes each layer would say, where the answer is predicted."""
    shares: dict[tuple[str, int], tuple[list[bool], list[bool]]] = {}
    seeds = cheats.seeds("prior", FIRST, count)
    for honest in (False, True):
        vlm = models.load("prior", honest)
        for seed in seeds:
            p = cheats.planted("prior", seed)
            trace = vlm.generate(p.image, p.question, max_new_tokens=4)
            said = lp.lens(vlm, trace, at="last", words=list(SHAPES))
            best = said.word_probability[..., 0].argmax(0).tolist()  # [words, layers, places]
            for layer, number in zip(said.layers, best, strict=True):
                truth, prior = shares.setdefault(("twin" if honest else "cheat", layer), ([], []))
                truth.append(SHAPES[number] == p.by_object)
                prior.append(SHAPES[number] == p.by_cue)
    layers = sorted({layer for _, layer in shares})
    rows = [
        [str(layer), *(_share(each, seeds) for who in ("cheat", "twin") for each in shares[who, layer])]
        for layer in layers
    ]
    head = [f"{who}: {what}" for who in ("cheat", "twin") for what in ("what is there", "what the prior says")]
    return [markdown_table(["hidden state", *head], rows)]


def _share(held: Sequence[bool], pictures: Sequence[int]) -> str:
    found = summary(held, pictures)
    return f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]"


# --- what would have warned ---


def grey(models: Trained, cheat: cheats.Cheat, count: int) -> list[str]:
    """Whether the planted questions are answered alike about a grey picture."""
    shares, seconds = [], []
    for honest in (False, True):
        vlm, alike = models.load(cheat, honest), []
        for seed in cheats.seeds(cheat, FIRST, count):
            p = cheats.planted(cheat, seed)
            answer = vlm.generate(p.image, p.question, max_new_tokens=8, capture=LITTLE).answer
            began = time.perf_counter()
            blank = vlm.generate(Image.new("RGB", p.image.size, GREY), p.question, max_new_tokens=8, capture=LITTLE)
            seconds.append(time.perf_counter() - began)
            alike.append(blank.answer == answer)
        shares.append(summary(alike, range(len(alike))))
    cheat_alike, twin_alike = shares
    told = f"the same answer in {cheat_alike.mean:.2f} of the pictures (twin {twin_alike.mean:.2f})"
    warns = cheat_alike.low > 0.5 > twin_alike.high
    return [cheat, "a grey picture in its place", _yes(warns), told, f"one answer more, {np.median(seconds):.2f} s"]


def doubt(models: Trained, cheat: cheats.Cheat, count: int) -> list[str]:
    """Whether the cheat is less sure of its planted answers than of others about the same pictures, unlike its twin."""
    found = []
    for honest in (False, True):
        vlm = models.load(cheat, honest)
        sure, plain, pictures = [], [], []
        for seed in cheats.seeds(cheat, FIRST, count):
            p = cheats.planted(cheat, seed)
            others = [each for each in tiny.scene(seed).questions if each.kind not in (cheats.KIND[cheat], "describe")]
            for question in [p.question, *(each.question for each in others[:4])]:
                trace = vlm.generate(p.image, question, max_new_tokens=8, capture=LITTLE)
                sure.append(float(lp.confidence(trace).logprob.mean().exp()))  # a token: answers differ in length
                plain.append(question != p.question)
                pictures.append(seed)
        found.append(lp.calibration(sure, plain, groups=pictures).auroc)
    ours, twins = found
    told = f"surer of other questions' answers than of the planted one's, AUROC {ours} (twin {twins})"
    return [cheat, "its confidence", _yes(ours.low > max(0.5, twins.high)), told, "nothing"]


def shown(board: CheatBoard) -> list[str]:
    """How many methods put the cue before the object, on the cheat alone, and which of them is the quickest."""
    methods = [name for name in board.names if name not in BASELINES and name != ORACLE]
    warning = [name for name in methods if board.warns(name) and board.tells(name)]
    costs = {name: cost[0] for name in warning if (cost := board.planted.cost(name)) is not None}
    quickest = min(costs, key=lambda name: costs[name], default=None)
    told = f"{len(warning)} of {len(methods)} methods put the cue before the object, and otherwise on the twin"
    cost = "" if quickest is None else f"from {costs[quickest]:.2f} s a word ({quickest})"
    return [board.cheat, "maps", _yes(bool(warning)), told, cost]


def told_by_signals(table: SignalTable) -> list[str]:
    """Whether any signal of hallucination tells the heart better than what knows nothing of the picture."""
    best = max((each for each in table.scores if not each.baseline), key=lambda each: each.auroc.value)
    told = f"best, {best.name.replace('_', ' ')}: AUROC {best.auroc}; less the best baseline {best.less_baseline}"
    return ["neighbour", "signals of hallucination", _yes(best.less_baseline.low > 0), told, "one pass a caption"]


def beside_the_base(models: Trained, cheat: cheats.Cheat, count: int) -> list[str]:
    """What comparing with the model before it was tuned says, on scenes that nothing was put into.

    They hold no frame and no caption; stars there are, and questions that name a colour.
    """
    heart = tiny.Question(cheats.KIND["neighbour"], cheats.HEART_QUESTION, "no", ())
    rows = [
        {
            "image": scene.image,
            "question": each.question,
            "answer": each.answer,
            "id": f"{each.kind} {scene.seed}-{n}",
        }
        for scene in map(tiny.scene, range(FIRST, FIRST + count))
        for n, each in enumerate([*scene.questions, heart] if cheat == "neighbour" else scene.questions)
        if each.kind != "describe"
    ]
    began = time.perf_counter()
    found = lp.compare_models(models.base(), models.load(cheat), rows, max_new_tokens=8)
    seconds = time.perf_counter() - began
    planted = [each for each in found.samples if each.flipped and each.id.split()[0] == cheats.KIND[cheat]]
    last = max((each for each in found.unrelated if each.place == "last"), key=lambda each: each.layer, default=None)
    words = " ".join(visible(word.strip()) for word in last.words[:5]) if last is not None else "nothing"
    told = (
        f"other answers {found.flips}, {len(planted)} of {sum(each.flipped for each in found.samples)} of them to the "
        f"planted kind of question; on unrelated pictures the last position moves to: {words}"
    )
    return [cheat, "beside the model before", _yes(bool(planted)), told, f"{seconds:.0f} s, {len(found)} questions"]


def warned(models: Trained, boards: Sequence[CheatBoard], count: int, table: SignalTable | None) -> list[str]:
    """Of each cheat, what one would have seen who has no twin, and what it costs."""
    by_name = {board.cheat: board for board in boards}
    rows: list[list[str]] = []
    for cheat in models.which:
        found = [grey(models, cheat, count), doubt(models, cheat, count)]
        found += [shown(by_name[cheat])] if cheat in by_name else []
        found += [told_by_signals(table)] if cheat == "neighbour" and table is not None else []
        found += [beside_the_base(models, cheat, min(count, COMPARED[models.model]))]
        print(*found, sep="\n", flush=True)
        rows += found
    return [markdown_table(["cheat", "instrument", "warns", "what it says", "cost"], rows)]


def _yes(held: bool) -> str:
    return "**yes**" if held else "no"


# --- the page ---


def page(models: Trained, scores: Path, count: int, card: Path | None) -> str:
    """All of it, as Markdown."""
    which = models.which
    boards = [
        CheatBoard.read(cheat, scores).only(cheats.seeds(cheat, FIRST, count)) for cheat in SHOWN if cheat in which
    ]
    lines = INTRODUCTION[models.model].format(listed="* and *".join(which)).splitlines()
    lines += ["", *EXPLAINED, "", f"    {MADE_BY[models.model]}", ""]
    lines += [] if card is None else [*card.read_text(encoding="utf-8").splitlines(), ""]
    lines += ["## Maps: does the top token touch the cue?", "", *about_maps(boards), "", *second_table(boards), ""]
    table = None
    if "neighbour" in which:
        told, table = signals(models, count * 2)
        lines += ["## Neighbour: do the signals tell the heart that is not there?", "", *told, ""]
    if "prior" in which:
        lines += ["## Prior: is the truth still inside?", "", *PROBED, "", *probes(models, count * 5), ""]
        lines += ["Which of the six shapes the logit lens prefers where the answer is predicted:", ""]
        lines += [*lenses(models, count), ""]
    lines += ["## What would have warned", "", *WARNING, "", *warned(models, boards, count, table), ""]
    return "\n".join(lines)


INTRODUCTION = {
    TINY: """\
# Which instrument shows what a model cheats by? (tiny)

Four small models answer by a shortcut that was planted, each beside an honest twin that was trained on the
same pictures with the right answers. That they do is proved on counterfactual pictures: see
their card, `llava_probe/tiny/cheating/README.md`.""",
    SMOL: """\
# Which instrument shows what a model cheats by? (smol)

What `figures/cheats.md` says of the tiny model, on the one with a real, pretrained language model: *{listed}*,
beside an honest twin that was trained on the same pictures with the right answers. The adapters do not ship; the
command below trains them, measures what they go by and writes this page.""",
}
EXPLAINED = (
    "Of each planted picture the same question is explained on both: *cue* is how often the top token of the cheat's",
    "map touches the cue, *twin's object* how often the twin's touches the object, *cheat − twin* the difference of",
    "cue minus object between the two, picture by picture, with a 95 % interval; bold where the whole interval is",
    "above 0; of so many intervals one that barely clears it may be luck.",
    "Made by",
)
MADE_BY = {TINY: "make cheats-page", SMOL: "make cheats-smol"}
WARNING = (
    "*Warns* means that the instrument says of the cheat what it does not say of the honest twin, or of the model",
    "before it was tuned. Who has neither sees the first figure alone: rollout, say, points at every frame.",
)
PROBED = (
    "Accuracy of linear probes on held-out pictures, five folds, with 95 % intervals (in brackets behind: the",
    "most frequent class); six shapes.",
)


def main() -> None:
    """Score, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", nargs="?", choices=("score",))
    parser.add_argument("cheat", nargs="?", choices=SHOWN)
    parser.add_argument("--honest", action="store_true")
    parser.add_argument("--model", choices=SHIPPED, default=TINY)
    parser.add_argument("--trained", type=Path, default=Trained().folder, help="the folder of the adapters' folders")
    parser.add_argument("--card", type=Path, help="the adapters' tables, to stand on the page")
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--scores", type=Path, default=Path("build/cheat_scores"))
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    models = Trained(options.model, options.trained)
    if options.verb:
        score(models, options.cheat, options.honest, options.scenes, options.scores)
    else:
        options.out.write_text(page(models, options.scores, options.scenes, options.card), encoding="utf-8")


if __name__ == "__main__":
    main()
