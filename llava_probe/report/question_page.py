"""Answers to yes-or-no questions in words: what is said, how far its probability can be believed, what to look at.

Every sentence with a figure in it is made from the numbers, so the page cannot say what was not measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from llava_probe.escaping import in_markdown, markdown_table
from llava_probe.report.questions import AskedQuestions
from llava_probe.signals.calibration import Calibration
from llava_probe.view.calibration_figures import reliability, risk_coverage
from llava_probe.view.canvas import Canvas

#: Wrong answers that are shown, the surest first.
_SHOWN = 12
_KEPT = (0.9, 0.8, 0.5)
#: Inches of the diagram of a split.
_PANEL = (3.25, 4.2)


def question_figures(found: AskedQuestions) -> dict[str, Figure]:
    """The figures of the page by their files."""
    width, height = _PANEL
    whole = Canvas(width * len(found.present), height)
    axes = whole.subplots(1, len(found.present), squeeze=False)[0]
    for axis, (name, each) in zip(axes, found.present.items(), strict=True):
        reliability(each, ax=axis, title=f"{in_figure(name)}: ECE {float(each.ece):.3f}, floor {each.ece.floor:.3f}")
    return {"reliability.png": whole, "risk_coverage.png": risk_coverage(_named(found.right), width="page")}


def question_page(found: AskedQuestions, figures: Sequence[str]) -> list[str]:
    """The parts of the page, as Markdown.

    Args:
        found: the answers; ``figures``: the files of ``question_figures``.
    """
    pictures = len({line["image"] for line in found.lines})
    splits = ", ".join(in_markdown(name) for name in found.pope.splits)
    bins, curve = (f"![]({name})" for name in figures)
    return [
        f"{len(found.lines):,} questions about {pictures:,} pictures ({splits}). Each answer is read twice: its *text* "
        "as POPE's own evaluator reads it (no, No or not in the first sentence is no, anything else yes), and the "
        "*probability* of all tokens that spell yes against all that spell no. Intervals are 95 %, over pictures.",
        "## What it says",
        _said(found),
        "\n".join(f"- {in_markdown(note)}" for note in found.pope.notes()),
        "## Is the object there as often as it says?",
        "The share of yes among yes and no, against whether yes is right. Calibration errors are biased upwards, so "
        "beside each stands its floor: what a perfectly calibrated model shows with as many answers, on average and in "
        "95 % of draws.",
        _calibrated(found.present),
        "\n".join(f"- {_verdict(name, each)}" for name, each in found.present.items()),
        bins,
        "## Which answers can be kept?",
        "The share of the answer that is likelier, against whether that answer is right: what is gained where the "
        "least sure answers are left out. AUROC is the chance that a right answer is surer than a wrong one.",
        _kept(found.right),
        curve,
        *_wrong(found.lines),
    ]


def in_figure(name: str) -> str:
    """A split's name as words of a figure, where dollars begin formulae."""
    return name.replace("$", r"\$")


def _named(found: Mapping[str, Calibration]) -> dict[str, Calibration]:
    return {in_figure(name): each for name, each in found.items()}


def _said(found: AskedQuestions) -> str:
    rows = []
    for name, split in found.pope.splits.items():
        for reading, verdicts in (("text", split.text), ("probability", split.weighed)):
            if verdicts is not None:
                cells = [str(measure) for measure in verdicts.measures.values()]
                rows.append([in_markdown(name), reading, *cells, f"{len(split.labels):,}"])
    return markdown_table(["split", "reading", "accuracy", "precision", "recall", "F1", "says yes", "questions"], rows)


def _calibrated(found: Mapping[str, Calibration]) -> str:
    names = {"ece": "ECE", "ece_mass": "ECE, equal mass", "brier": "Brier", "nll": "NLL", "auroc": "AUROC"}
    rows = [[in_markdown(name), *(str(each.measures[key]) for key in names)] for name, each in found.items()]
    return markdown_table(["split", *names.values()], rows)


def _verdict(name: str, each: Calibration) -> str:
    error, floor = (f"{number:.3f}" for number in (float(each.ece), each.ece.floor_high or 0.0))
    if float(error) <= float(floor):  # as they are read: certain answers that are all right have neither
        return f"{in_markdown(name)}: an ECE of {error} is no evidence against it (95 % of the floor: {floor})."
    yes, there = float(each.confidence), float(each.accuracy)
    return (
        f"{in_markdown(name)}: not calibrated, {error} where 95 % of the floor are under {floor}. The share of yes is "
        f"{yes:.3f} on average and {there:.3f} of the objects are there: it is too {'high' if yes > there else 'low'}."
    )


def _kept(found: Mapping[str, Calibration]) -> str:
    rows = [
        [
            in_markdown(name),
            str(each.accuracy),
            *(str(each.accuracy_at(share)) for share in _KEPT),
            str(each.auroc) if each.auroc.value == each.auroc.value else "",
            str(each.risk_area),
        ]
        for name, each in found.items()
    ]
    head = ["split", "right", *(f"of the surest {share:.0%}" for share in _KEPT), "AUROC", "area under the risk"]
    return markdown_table(head, rows)


def _wrong(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The surest answers that are wrong, to look at."""
    scored = [(line, line["yes"] / (line["yes"] + line["no"])) for line in lines if line["yes"] + line["no"] > 0]
    wrong = [(line, share) for line, share in scored if (share > 0.5) != (line["label"] == "yes")]
    if not wrong:
        return []
    wrong.sort(key=lambda pair: -abs(pair[1] - 0.5))
    rows = [
        [*(in_markdown(line[name]) for name in ("category", "image", "question", "label", "answer")), f"{share:.3f}"]
        for line, share in wrong[:_SHOWN]
    ]
    told = f"{len(wrong):,} answers are wrong by probability" + f"; the {_SHOWN} surest of them" * (len(wrong) > _SHOWN)
    table = markdown_table(["split", "picture", "question", "right", "said", "share of yes"], rows)
    return ["## Surest and wrong", f"{told}:", table]
