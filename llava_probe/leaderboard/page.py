"""The leaderboard in words: which methods find the right place, which beat what knows nothing, and what each costs.

Every sentence with a figure in it is made from the scores, so the page cannot say what was not measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from llava_probe.escaping import in_markdown, markdown_table, visible
from llava_probe.leaderboard.board import is_description
from llava_probe.leaderboard.entries import BASELINES
from llava_probe.leaderboard.figures import SPOKEN
from llava_probe.smol import SHIPPED

if TYPE_CHECKING:
    from llava_probe.evaluate.summary import Difference, Score
    from llava_probe.leaderboard.board import Leaderboard


def leaderboard_page(board: Leaderboard, model: str, command: str, figures: Mapping[str, str] | None = None) -> str:
    """The page, as Markdown.

    Args:
        board: the scores.
        model: what was explained; ``command``: what makes the page again.
        figures: what to say under each figure, by its file name, the leaderboard first.
    """
    shown = [f"![]({name})" + f"\n\n{told}" * bool(told) for name, told in (figures or {}).items()]
    title = f"# Which explanation finds the right place? ({in_markdown(model)})"
    if not board.seen:
        return "\n\n".join([title, _opening(board, model, command)]) + "\n"
    parts = [
        title,
        _opening(board, model, command),
        *shown[:1],
        "## Where each method points",
        _places(board),
        _intervals(board),
        "## Which beat what knows nothing",
        _verdicts(board),
        *_section("## With the language model's layers random", _random(board)),
        *_section("## Does what it marks matter to the model?", _curves(board)),
        *_descriptions(board),
        "## Where they disagree",
        _disagreement(board),
        *shown[1:],
        "## What each costs",
        _costs(board),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(heading: str, told: str) -> list[str]:
    """Nothing where nothing was measured."""
    return [heading, told] if told else []


def _opening(board: Leaderboard, model: str, command: str) -> str:
    pictures = len({line["picture"] for line in board.lines})
    blind = [line for line in board.right if line["blind"]]
    shipped = (
        "**A ranking on a small model is no evidence for a 7B one.** It shows which methods can find a place that is "
        "known to the pixel, on one small model with habits of its own. Whether they show it where a model goes by "
        "something else is in another table, `figures/cheats.md`. The ranking of your model on your pictures:\n\n"
        "    llava-probe leaderboard --model llava-hf/llava-1.5-7b-hf --dtype bfloat16 --device-map auto \\\n"
        "        --cases mine.jsonl --out leaderboard/\n\n"
        if model in SHIPPED
        else ""
    )
    apart = (
        f" {len(blind)} of these get the same answer about a blank grey picture: they are left out of every table here "
        "and told apart below."
        if blind
        else ""
    )
    return (
        f"{shipped}{len(board.lines)} questions about {pictures} pictures; {len(board.right)} were answered right and "
        f"are scored.{apart}{_chosen(board)} An entry's *top token touches* where the token with its largest value "
        "overlaps the object, its *peak is inside* where that token's centre is on the object, *average precision* "
        "ranks all pixels. Intervals are 95 %, from drawing pictures again 2,000 times; where all cases agree, one has "
        "no width. Made by\n\n"
        f"    {visible(command)}"
    )


def _chosen(board: Leaderboard) -> str:
    """What was not scored, because it chose the localisation heads."""
    if "entries" not in board.made_with:
        return ""
    found = board.heads
    if found is None:
        return " No localisation heads could be chosen, so there are none."
    heads = ", ".join(f"layer {layer} head {head}" for layer, head in found["chosen"])
    return f" {found['samples']} other questions chose the localisation heads: {heads}."


def _named(kind: str) -> str:
    return SPOKEN.get(kind, in_markdown(kind) or "asked")


def _share(score: Score | None) -> str:
    return "" if score is None else f"{score.mean:.2f}"


def _places(board: Leaderboard) -> str:
    named = [*(_named(kind) for kind in board.kinds), "all"]
    head = ["", *(f"{kind}: touches / inside / AP" for kind in named), "cases"]
    rows = []
    for name in board.names:
        cells = [
            " / ".join(_share(board.score(name, measure, kind)) for measure in ("touches", "inside", "precision"))
            for kind in (*board.kinds, None)
        ]
        score = board.score(name, "inside")
        rows.append([f"*{name}*" if name in BASELINES else name, *cells, str(score.cases) if score else ""])
    most = max((score.cases for name in board.names if (score := board.score(name, "inside"))), default=0)
    counts = ", ".join(
        f"{score.cases} {_named(kind)}"
        for kind in board.kinds
        if board.names and (score := board.score(board.names[0], "inside", kind))
    )
    some = [name for name in board.methods if (score := board.score(name, "inside")) and score.cases < most]
    fewer = (
        f" Scored on fewer of the same questions: {', '.join(some)}; differences between two methods are always over "
        "the questions that both have."
        if some
        else ""
    )
    return f"{markdown_table(head, rows)}\n\nCases: {counts}. Baselines in italics.{fewer}"


def _intervals(board: Leaderboard) -> str:
    rows = [
        [name, *(_interval(board.score(name, "inside", kind)) for kind in board.kinds)]
        for name in board.names
        if name not in BASELINES
    ]
    told = markdown_table(["peak inside", *(_named(kind) for kind in board.kinds)], rows)
    blind = [
        f"{name} {score.mean:.2f} ({score.cases})"
        for name in board.names
        if (score := board.score(name, "inside", blind=True)) is not None
    ]
    apart = f"\n\nPeak inside where a blank picture gets the same answer: {', '.join(blind)}." if blind else ""
    best = "; ".join(f"{_named(kind)} {_best(board, kind)}" for kind in board.kinds)
    return f"{told}\n\nThe best of each kind: {best}.{apart}"


def _best(board: Leaderboard, kind: str) -> str:
    """The method that puts its peak inside most often, or those that share that place."""
    means = {name: _mean(board.score(name, "inside", kind)) for name in board.methods}
    first = [name for name, mean in means.items() if mean == max(means.values())]
    if not first:
        return "none"
    who = first[0] if len(first) == 1 else f"{len(first)} methods alike, {first[0]} and {first[1]} among them"
    return f"{who} ({_interval(board.score(first[0], 'inside', kind))})"


def _mean(score: Score | None) -> float:
    return float("-inf") if score is None else score.mean


def _interval(score: Score | None) -> str:
    if score is None:
        return ""
    return f"{score.mean:.2f}" + f" [{score.low:.2f}, {score.high:.2f}]" * (score.low == score.low)


def _verdicts(board: Leaderboard) -> str:
    head = [
        "average precision",
        "minus centre prior",
        "minus edges",
        "minus raw attention",
        "peak inside minus attention",
    ]
    rows: list[list[str]] = []
    above: list[str] = []
    below: list[str] = []
    better: list[str] = []
    for name in board.methods:
        centre, edge, attention = (
            board.beside(name, other, "precision") for other in ("centre prior", "edges", "attention")
        )
        inside = board.beside(name, "attention", "inside")
        rows.append(
            [
                name,
                _apart(centre),
                _apart(edge),
                *((_apart(attention), _apart(inside)) if name != "attention" else ("", "")),
            ]
        )
        if centre is not None and not math.isnan(centre.low):
            (above if centre.low > 0 else below).append(name)
        if name != "attention" and inside is not None and inside.low > 0:
            better.append(name)
    sentences = [
        f"{len(above)} of {len(board.methods)} methods beat the centre prior in average precision (paired interval)."
    ]
    if below:
        sentences.append(f"These do not: {', '.join(below)}.")
    sentences.append(
        f"Better than raw attention at putting the peak inside, by a paired interval: {', '.join(better)}."
        if better
        else "Nothing puts its peak inside more often than raw attention, by a paired interval."
    )
    sentences.append(
        "Every interval on this page is 95 % by itself: of twenty comparisons in which nothing differs one excludes 0."
    )
    return " ".join(sentences) + "\n\n" + markdown_table(head, rows) + _removal(board)


def _apart(found: Difference | None) -> str:
    if found is None:
        return ""
    interval = f" [{found.low:+.2f}, {found.high:+.2f}]" * (found.low == found.low)
    return f"{found.mean:+.2f}{interval}".replace("-", "−")


def _removal(board: Leaderboard) -> str:
    """What a method on visual tokens could find at all."""
    rows = []
    for kind in board.kinds:
        found = board.removal(kind)
        if found:
            rows.append([_named(kind), *(f"{value:.2f}" for value in found.values())])
            names = list(found)
    if not rows:
        return ""
    return (
        "\n\nWhat there is to find: the word's probability with the whole picture, with the object's own visual tokens "
        "replaced by the mean token, with these alone left, with as many other tokens replaced, and with the object's "
        "pixels painted over in the photograph.\n\n" + markdown_table(["", *names], rows)
    )


def _random(board: Leaderboard) -> str:
    rows, stay, salient = [], [], []
    for name in board.methods:
        trained, drawn = board.trained(name, "precision"), board.random(name, "precision")
        if drawn is None:
            continue
        rows.append(
            [
                name,
                _share(board.trained(name, "inside")),
                _interval(board.random(name, "inside")),
                _share(trained),
                _interval(drawn),
            ]
        )
        for measure in ("inside", "precision"):
            floors = [board.random_beside(name, other, measure) for other in ("centre prior", "random")]
            if all(floor is not None and floor.low > 0 for floor in floors):
                stay.append(f"{name} ({measure}: {_interval(board.random(name, measure))})")
                edge = board.random_beside(name, "edges", measure)
                salient += [name] * (edge is not None and edge.low > 0)
    if not rows:
        return ""
    for other in ("centre prior", "random", "edges"):
        rows.append(
            [f"*{other}*", _share(board.trained(other, "inside")), "", _interval(board.trained(other, "precision")), ""]
        )
    verdict = (
        "These stay above the centre prior and the random map without the model's knowledge (paired intervals): "
        f"{', '.join(stay)}. "
        + (f"Above edges too: {', '.join(dict.fromkeys(salient))}." if salient else "None of them stays above edges.")
        if stay
        else "Every method falls to the level of the centre prior or of the random map."
    )
    count = board.random(board.methods[0], "inside")
    return (
        f"All weights of the language model's blocks drawn anew (Adebayo et al. 2018), the same words explained on "
        f"{count.cases if count else 0} questions; a map that is still right never came from the model. {verdict}\n\n"
        + markdown_table(
            ["", "inside", "inside, random layers", "average precision", "average precision, random layers"], rows
        )
    )


def _curves(board: Leaderboard) -> str:
    rows = []
    for name in board.names:
        deletion, insertion = board.curve(name, "deletion"), board.curve(name, "insertion")
        if deletion is not None:
            rows.append([f"*{name}*" if name in BASELINES else name, _interval(deletion), _interval(insertion)])
    if not rows:
        return ""
    count = board.curve(board.names[0], "deletion")
    return (
        f"Visual tokens replaced by their mean in the map's order, and put back in it ({count.cases if count else 0} "
        "questions): the area under the word's probability. Deletion should be low, insertion high.\n\n"
        + markdown_table(["", "deletion", "insertion"], rows)
    )


def _descriptions(board: Leaderboard) -> list[str]:
    rows = [
        [f"*{name}*" if name in BASELINES else name, *(f"{value:.2f}" for value in found)]
        for name in board.names
        if (found := board.words(name)) is not None
    ]
    if not rows:
        return []
    count = sum(is_description(line) for line in board.seen)
    return [
        "## The words of a description",
        f"{count} descriptions, each object's word against that object, three function words against darkness (TAM's "
        "measures: IoU at Otsu's threshold, share of pixels darker than nouns are on average, their harmonic mean).",
        markdown_table(["", "Obj-IoU", "Func-IoU", "F1-IoU"], rows),
    ]


def _disagreement(board: Leaderboard) -> str:
    found = board.agreement()
    if found is None:
        return ""
    names, values = found
    pairs = [
        (values[i, j], names[i], names[j])
        for i in range(len(names))
        for j in range(i)
        if names[i] not in BASELINES and names[j] not in BASELINES and not np.isnan(values[i, j])
    ]
    pairs.sort()
    low = "; ".join(f"{one} and {other} ({value:.2f})".replace("-0", "−0") for value, one, other in pairs[:4])
    high = "; ".join(f"{one} and {other} ({value:.2f})" for value, one, other in pairs[::-1][:4])
    return f"Mean rank correlation of two methods' maps over the visual tokens. Least alike: {low}. Most alike: {high}."


def _costs(board: Leaderboard) -> str:
    rows = [
        [name, _run_as(board, name), f"{cost[0]:.2f}", f"{cost[1]:.0f}", f"{cost[2]:.0f}"]
        for name in board.methods
        if (cost := board.cost(name)) is not None
    ]
    found = {name: board.refused(name) for name in dict.fromkeys(_all_entries(board))}
    refused = [f"{name}: {in_markdown(why)}" for name, why in found.items() if why]
    told = markdown_table(["", "run as", "seconds a word (median)", "forward passes", "backward passes"], rows)
    return told + ("\n\nNot run: " + "; ".join(refused) + "." if refused else "")


def _run_as(board: Leaderboard, name: str) -> str:
    """An entry's method with the options that are not its defaults."""
    entry = dict(board.made_with.get("entries", {}).get(name, {}))
    method = entry.pop("method", "")
    told = ", ".join(f"{option}={value!r}" for option, value in entry.items() if option != "heads")
    return f"`{method}`" + f" {told}" * bool(told) if method else ""


def _all_entries(board: Leaderboard) -> list[str]:
    return [name for line in board.right[:1] for name in line["entries"]]
