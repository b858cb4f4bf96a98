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
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from cheats_trained import FIRST, Trained
from cheats_warned import warned
from scipy.stats import binomtest

import llava_probe as lp
from llava_probe.attribution import find_heads
from llava_probe.escaping import markdown_table
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

PLACES = ("last_prompt", "image_in_mask_mean")
SPOKEN = {"last_prompt": "where the answer is predicted", "image_in_mask_mean": "at the object's patches"}


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
