"""Descriptions in words: what they make up, what that depends on, and which signal would have told.

Every sentence with a figure in it is made from the numbers, so the page cannot say what was not measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from matplotlib.figure import Figure

from llava_probe.escaping import in_markdown, markdown_table
from llava_probe.report.captions import DescribedPictures
from llava_probe.signals.chair import Chair
from llava_probe.signals.hallucination import SIGNALS
from llava_probe.signals.signal_table import TOGETHER, SignalScore, SignalTable
from llava_probe.view.signal_figures import signal_scores

#: Objects that are told, those first that are made up most often.
_SHOWN = 12
_SPOKEN = {
    "chair_i": "CHAIR_i: mentions of objects that are not there",
    "chair_s": "CHAIR_s: captions with one of them",
    "recall": "recall: objects there that are named",
    "words": "words a caption",
}


def caption_figures(found: DescribedPictures) -> dict[str, Figure]:
    """The figures of the page by their files; none without signals."""
    return {} if found.table is None else {"signals.png": signal_scores(found.table)}


def caption_page(found: DescribedPictures, figures: Sequence[str]) -> list[str]:
    """The parts of the page, as Markdown.

    Args:
        found: the captions; ``figures``: the files of ``caption_figures``.
    """
    pictures = len({report.picture for report in found.whole.captions})
    return [
        f"{len(found.whole.captions):,} captions of {pictures:,} pictures. Intervals are 95 %, over pictures.",
        "## What is made up",
        _chair(found),
        "A caption that says less makes less up: compare only at like recall and words. All of this changes the "
        "figures by points, so a figure without it says little:",
        markdown_table(["setting", ""], [[name, in_markdown(told)] for name, told in found.whole.settings.items()]),
        _objects(found.whole),
        "## Which signal tells a word that is made up?",
        *(_table(found.table, figures) if found.table is not None else [f"Not scored: {in_markdown(found.untold)}."]),
    ]


def _chair(found: DescribedPictures) -> str:
    ways = (
        {"": found.whole} if found.dropped is None else {"as they are": found.whole, "cut end left out": found.dropped}
    )
    rows = [
        [told.replace("_", r"\_"), *(str(way.measures[name]) for way in ways.values())]
        for name, told in _SPOKEN.items()
    ]
    return markdown_table(["", *ways], rows)


def _objects(found: Chair) -> str:
    """Which objects are made up, and how often they are named and are there."""
    made_up = Counter(mention.object for report in found.captions for mention in report.made_up)
    if not made_up:
        return "Nothing was made up."
    named = Counter(mention.object for report in found.captions for mention in report.mentions)
    there = Counter(thing for report in found.captions for thing in report.there)
    rows = [
        [in_markdown(thing), str(times), str(named[thing]), str(there[thing])]
        for thing, times in made_up.most_common(_SHOWN)
    ]
    more = f"\n\n{len(made_up) - _SHOWN} more objects are made up." if len(made_up) > _SHOWN else ""
    table = markdown_table(["object", "made up", "of mentions", "captions of pictures that have it"], rows)
    return f"Made up most often:\n\n{table}{more}"


def _table(table: SignalTable, figures: Sequence[str]) -> list[str]:
    rows = []
    for score in table.scores:
        kind = SIGNALS.get(score.name)
        formula = in_markdown(kind.formula if kind else f"logistic regression of {', '.join(TOGETHER[score.name])}")
        source = in_markdown(kind.source) if kind else "fitted on other pictures"
        name = score.name.replace("_", " ")
        cells = [f"*{name}*" if score.baseline else name, str(score.auroc), str(score.less_baseline), str(score.words)]
        rows.append([*cells, formula, source, kind.made_up_when if kind else "high"])
    head = ["signal", "AUROC", f"less {table.best_baseline}", "words", "formula", "source", "made up when"]
    return [
        f"{table.made_up:,} of {table.words:,} words for objects are made up. AUROC is the chance that one of these "
        "stands behind one that is not (0.5: tells nothing); which end means made up was fixed beforehand. In italics: "
        "what knows nothing of the picture.",
        verdicts(table),
        *(f"![]({name})" for name in figures),
        markdown_table(head, rows),
    ]


def verdicts(table: SignalTable) -> str:
    """Which signals tell more than the best baseline, and which less, beyond the intervals; a sentence each."""
    single = [score for score in table.scores if score.name in SIGNALS and not score.baseline]
    more = [score for score in single if score.less_baseline.low > 0]
    less = [score for score in single if score.less_baseline.high < 0]
    best = table[table.best_baseline]
    told = [f"Of what knows nothing of the picture, *{best.name}* tells most: {best.auroc}."]
    told.append(f"More than that, on the same words: {_listed(more) or 'no signal'}.")
    if less:
        told.append(f"Less: {_listed(less)}.")
    if together := [f"{score.name} {score.auroc}" for score in table.scores if score.name in TOGETHER]:
        told.append(f"Taken together, by a regression fitted on other pictures: {'; '.join(together)}.")
    return " ".join(told)


def _listed(scores: Sequence[SignalScore]) -> str:
    return ", ".join(f"{score.name.replace('_', ' ')} ({score.auroc.value:.2f})" for score in scores)
