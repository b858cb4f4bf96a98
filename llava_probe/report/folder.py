"""When not to believe a model as a folder: what it was asked and said, the measures, and one page with its figures.

    report.md             what it says, how far that can be believed, what would have told
    reliability.png ...   its figures
    measures.json         every number of it
    answers.jsonl         of questions: each with its answer and the probabilities of yes and no
    captions.jsonl        of pictures: each caption, with every signal of every word for an object
    run.json              with what they were made

Lines come first, so a run that was cut off goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llava_probe.escaping import in_markdown, visible
from llava_probe.report.asking import Failure
from llava_probe.report.caption_page import caption_figures, caption_page
from llava_probe.report.captions import DescribedPictures
from llava_probe.report.question_page import question_figures, question_page
from llava_probe.report.questions import AskedQuestions
from llava_probe.stored import made_folder, write_text
from llava_probe.view.canvas import save

#: Rows that failed, of which the page tells.
_FAILED = 20
#: Dots per inch of the page's figures.
_DPI = 150


def write_report(
    found: AskedQuestions | DescribedPictures,
    folder: str | Path,
    *,
    model: str,
    command: str,
    failed: Sequence[Failure] = (),
) -> list[Path]:
    """Write page, figures and measures.

    Args:
        found: what came of the answers.
        folder: where to; made where there is none.
        model: its name on the page; ``command``: what made it.
        failed: the rows that are missing.

    Raises:
        BadFile: the folder cannot be written to.
    """
    target = made_folder("folder of a report", folder)
    figures: dict[str, Any]
    if isinstance(found, AskedQuestions):
        title, figures = "Does it say yes to what is not there?", question_figures(found)
        parts = question_page(found, list(figures))
    else:
        title, figures = "What does it make up?", caption_figures(found)
        parts = caption_page(found, list(figures))
    first, *rest = parts
    page = [
        f"# {title} ({in_markdown(model)})",
        f"{first} Made by\n\n    {visible(command)}",
        *rest,
        *_missing(failed),
        "Every number is in `measures.json`, every answer beside it.",
    ]
    measures = json.dumps(_defined(found.to_dict()), indent=1, ensure_ascii=False)
    return [
        write_text("page", target / "report.md", "\n\n".join(part for part in page if part) + "\n"),
        write_text("measures", target / "measures.json", measures + "\n"),
        *(save(figure, target / name, _DPI) for name, figure in figures.items()),
    ]


def _missing(failed: Sequence[Failure]) -> list[str]:
    if not failed:
        return []
    told = [f"- {in_markdown(each)}" for each in failed[:_FAILED]]
    more = [f"- {len(failed) - _FAILED:,} more"] if len(failed) > _FAILED else []
    return [f"## {len(failed):,} rows are missing", "\n".join([*told, *more])]


def _defined(told: Any) -> Any:
    """Without NaN, which is no JSON."""
    if isinstance(told, dict):
        return {name: _defined(value) for name, value in told.items()}
    if isinstance(told, list):
        return [_defined(value) for value in told]
    return None if isinstance(told, float) and told != told else told
