"""The leaderboard as a folder: every method scored on pictures whose truth is known, a page and figures.

    leaderboard.md               which methods find the right place, beside what knows nothing
    leaderboard.png              their scores by kind of question, with intervals
    leaderboard_agreement.png    who agrees with whom
    leaderboard_maps.png         one word of one picture under each method

Scores go to a folder of their own first, a line a question, so a run that was cut off goes on where it was, and several
machines can share the questions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llava_probe.attribution import LocalisationHeads, explained_by, find_heads, prepared
from llava_probe.errors import BadInput, ProbeError
from llava_probe.evaluate.cases import Case, read_cases
from llava_probe.evaluate.tiny_cases import one_question_a_scene
from llava_probe.leaderboard.board import Leaderboard, is_description
from llava_probe.leaderboard.entries import ENTRIES, ScoringPlan
from llava_probe.leaderboard.figures import agreement_figure, leaderboard_figure, methods_figure
from llava_probe.leaderboard.page import leaderboard_page
from llava_probe.leaderboard.scoring import score_cases, spans_of
from llava_probe.model import VLM
from llava_probe.pictures.images import open_image
from llava_probe.stored import write_text
from llava_probe.view.canvas import save
from llava_probe.view.folder import made

#: Scenes that choose the localisation heads: held out like the scored ones, and none of them.
CHOOSING = range(900_000, 900_120)
#: Questions that get deletion, insertion, agreement and random layers too.
CLOSER = 44


@dataclass(frozen=True)
class BoardSettings:
    """What a leaderboard is made of.

    Attributes:
        cases: a data set (``evaluate.read_cases``); None for the tiny model's scenes.
        scenes: how many scenes, where there is no file.
        heads: how many pictures of a file choose the localisation heads; none of these is scored.
        closer: how many questions are looked at closely.
        quick: whether to leave out methods that take tens of passes a word.
        reading: how ``cases`` is read: ``question``, ``prompt``, ``columns``, ``images``, ``box_format`` of
            ``read_cases``.
    """

    cases: Path | None = None
    scenes: int = 500
    heads: int = 60
    closer: int = CLOSER
    quick: bool = False
    reading: Mapping[str, Any] = field(default_factory=dict)

    def read(self) -> tuple[list[dict[str, Any]], Iterable[Case]]:
        """Pictures and questions that choose the heads, and the cases that are scored.

        Raises:
            BadInput: a file with too few cases.
        """
        if self.cases is None:
            choosing = [{"image": case.image, **case.asking} for case in one_question_a_scene(CHOOSING, described=0)]
            return choosing, one_question_a_scene(range(self.scenes))
        found = list(read_cases(self.cases, **self.reading))
        pictures = list(dict.fromkeys(case.picture for case in found))
        chosen = set(pictures[: min(self.heads, len(pictures) // 3)])
        scored = [case for case in found if case.picture not in chosen]
        if not scored:
            raise BadInput(f"{self.cases} holds no cases")
        return [{"image": open_image(case.image), **case.asking} for case in found if case.picture in chosen], scored


def score(vlm: VLM, wanted: BoardSettings, scores: str | Path, part: tuple[int, int] = (1, 1)) -> Path:
    """Score one part of the questions; what ``scores`` holds already is not done again.

    Raises:
        BadInput, BadFile: as for ``score_cases``.
    """
    choosing, cases = wanted.read()
    entries = {name: entry for name, entry in ENTRIES.items() if not (wanted.quick and entry.costly)}
    plan = ScoringPlan(entries, _heads(vlm, choosing), closer=wanted.closer, random=wanted.closer)
    return score_cases(vlm, cases, scores, plan, part=part)


def write_leaderboard(
    vlm: VLM, wanted: BoardSettings, scores: str | Path, out: str | Path, *, model: str, command: str
) -> list[Path]:
    """Write page and figures of all parts that are in ``scores``.

    Args:
        vlm: draws the one picture under each method.
        wanted: as it was scored.
        scores: the folder of scores.
        out: the page, if it ends in .md; else the folder of a ``leaderboard.md``. Figures stand beside it by its name.
        model: its name on the page; ``command``: what made it.

    Raises:
        BadInput: no scores there.
        BadFile: the folder cannot be written to.
    """
    cases = list(wanted.read()[1])
    board = Leaderboard.read(scores).only(case.id for case in cases)
    page = Path(out) if Path(out).suffix == ".md" else Path(out) / "leaderboard.md"
    stem = made(page.parent) / page.stem
    figures: dict[Path, str] = {}
    if board.seen:
        figures[save(leaderboard_figure(board), Path(f"{stem}.png"))] = ""
    if board.agreement() is not None:
        figures[save(agreement_figure(board), Path(f"{stem}_agreement.png"))] = ""
    example = _example(vlm, cases, board)
    if example is not None:
        figures[save(example[0], Path(f"{stem}_maps.png"))] = example[1]
    text = leaderboard_page(board, model, command, {path.name: told for path, told in figures.items()})
    return [write_text("page", Path(f"{stem}.md"), text), *figures]


def _heads(vlm: VLM, choosing: Sequence[Mapping[str, Any]]) -> LocalisationHeads | None:
    """The model's localisation heads; None where none can be chosen, and that entry is left out."""
    try:
        return find_heads(vlm, choosing)
    except ProbeError:
        return None


def _example(vlm: VLM, cases: Iterable[Case], board: Leaderboard) -> tuple[Any, str] | None:
    """The first question that was answered right, under every entry that runs, and what is shown; None without one."""
    right = {line["question"] for line in board.seen if not is_description(line)}
    case = next((case for case in cases if case.id in right), None)
    if case is None:
        return None
    trace = vlm.generate(case.image, **case.asking)
    spans, _ = spans_of(trace, [case])
    if not spans:  # not what it answered when it was scored
        return None
    task = prepared(vlm, trace, "attention", tokens=spans)
    plan = ScoringPlan(heads=board.heads and board.heads["chosen"])
    maps = {}
    for name, entry in plan.runs():
        if name in board.names:
            with suppress(ProbeError):  # the table says why
                maps[name] = explained_by(task, entry.method, plan.options(entry))
    word = task.targets[0].token.text.strip()
    told = (
        f"{word!r} in the answer to {case.question!r}, under each of them; outlined: the right place, cross: the peak."
    )
    return (methods_figure(maps, case.mask()), told) if maps else None
