"""Which instrument says of a cheat what it does not say of its twin, and at what cost: a table of ``cheats.py``."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from cheats_trained import FIRST, Trained
from PIL import Image
from scipy.stats import fisher_exact

import llava_probe as lp
from llava_probe import tiny
from llava_probe.escaping import markdown_table, visible
from llava_probe.evaluate.summary import summary
from llava_probe.leaderboard.cheats import ORACLE, CheatBoard
from llava_probe.leaderboard.entries import BASELINES
from llava_probe.signals import SignalTable
from llava_probe.smol import SMOL, TINY
from llava_probe.tiny import cheats

#: Scenes on which a cheat is compared with the model before.
COMPARED = {TINY: 12, SMOL: 4}
GREY = (127, 127, 127)
LITTLE = lp.Capture(attention=False, hidden_states=False, scores=False)


def warned(models: Trained, boards: Sequence[CheatBoard], count: int, table: SignalTable | None) -> list[str]:
    """Of each cheat, what each instrument says of it that it does not say of its twin, and what that costs."""
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
    """How many methods put the cue before the object, and not on the twin, and which of them is the quickest."""
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
    of_twin = lp.compare_models(models.base(), models.load(cheat, honest=True), rows, max_new_tokens=8)
    ours, twins = (_flips(each, cheats.KIND[cheat]) for each in (found, of_twin))
    last = max((each for each in found.unrelated if each.place == "last"), key=lambda each: each.layer, default=None)
    words = " ".join(visible(word.strip()) for word in last.words[:5]) if last is not None else "nothing"
    told = (
        f"other answers {found.flips}, to the planted kind of question {sum(ours)} of {len(ours)} (twin {sum(twins)}); "
        f"on unrelated pictures the last position moves to: {words}"
    )
    flips = [[sum(side), len(side) - sum(side)] for side in (ours, twins)]
    warns = fisher_exact(flips, "greater").pvalue < 0.025
    return [cheat, "beside the model before", _yes(warns), told, f"{seconds:.0f} s, {len(found)} questions"]


def _flips(found: lp.ModelComparison, kind: str) -> list[bool]:
    """Of each question of one kind, whether the answer became another."""
    return [each.flipped for each in found.samples if each.id.split()[0] == kind]


def _yes(held: bool) -> str:
    return "**yes**" if held else "no"
