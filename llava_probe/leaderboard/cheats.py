"""Does a map show what a model cheats by? Each entry on planted pictures, on a cheat and on its honest twin.

    score_cheat(cheat, "frame", seeds, "scores/")                # goes on where it was stopped
    score_cheat(twin, "frame", seeds, "scores/", honest=True)
    board = CheatBoard.read("frame", "scores/")
    board.shows("relevance")                 # how often the top token touches the cue, of the cheat
    board.apart("relevance")                 # cue minus object: the cheat's less the twin's, picture by picture

A map of the cheat should point at the cue and a map of the twin, for the same question about the same picture, at the
object. Only the difference of the two tells that a method reads the model: rollout points at a frame whether or not
the model does. The top token alone is judged, so a method that finds one side of a frame, which is all
that the model needs, has found it. The oracle is what changing the picture says: how much of the answer goes with the
cue, how much with the object.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from llava_probe.attribution import explained_by
from llava_probe.attribution.engine.perturbing import picture_scores
from llava_probe.attribution.engine.target import Task
from llava_probe.border import Seed, checked
from llava_probe.errors import BadInput
from llava_probe.evaluate.summary import Difference, Score, difference, summary
from llava_probe.evaluate.tiny_cases import case_name, cheat_cases
from llava_probe.leaderboard.board import Leaderboard
from llava_probe.leaderboard.entries import ScoringPlan
from llava_probe.leaderboard.scoring import score_cases
from llava_probe.maps.maps import ImageMap
from llava_probe.model import VLM
from llava_probe.stored import place
from llava_probe.tiny import cheats

ORACLE = "oracle"
#: Cheats whose cue is a place of the picture.
SHOWN: tuple[cheats.Cheat, ...] = ("frame", "neighbour", "caption")
#: How often the best method has to show the cue.
WANTED = 0.9


@checked
def score_cheat(
    vlm: VLM,
    cheat: cheats.Cheat,
    seeds: Iterable[Seed],
    scores: str | Path,
    plan: ScoringPlan | None = None,
    *,
    honest: bool = False,
) -> Path:
    """Score every entry on one cheat's planted pictures, or on its twin's.

    Args:
        vlm: the tiny model with the adapter at ``cheats.path(cheat, honest)``, or any other that should cheat so.
        cheat: any but ``"prior"``, whose cue is no place.
        seeds: of the scenes; ``scores``: a folder for all of them.
        plan: which entries; all by default.
        honest: whether it is the twin.

    Raises:
        BadInput, BadFile: as for ``score_cases``.
    """
    drawn = {case_name(cheat, seed, "cue"): seed for seed in seeds}
    chosen = plan or ScoringPlan()
    own = {**chosen.own, ORACLE: lambda task, group: _oracle(task, cheat, drawn[group[0].id])}
    chosen = replace(chosen, own=own)
    folder = place("folder of scores", scores) / cheats.path(cheat, honest).name
    return score_cases(vlm, cheat_cases(cheat, drawn.values(), honest=honest), folder, chosen)


@checked
@dataclass(frozen=True, eq=False)
class CheatBoard:
    """What every entry scored on one cheat and on its twin.

    Every figure raises ``BadInput`` where there is no such entry, or no picture to count.

    Attributes:
        cheat: which.
        planted, honest: the scores of either.
    """

    cheat: str
    planted: Leaderboard
    honest: Leaderboard

    @classmethod
    def read(cls, cheat: cheats.Cheat, scores: str | Path) -> CheatBoard:
        """The scores of ``score_cheat``.

        Raises:
            BadInput: there are none. BadFile: they are damaged.
        """
        source = place("folder of scores", scores)
        return cls(cheat, *(Leaderboard.read(source / cheats.path(cheat, honest).name) for honest in (False, True)))

    def only(self, seeds: Iterable[int]) -> CheatBoard:
        """The same of some scenes alone."""
        questions = [case_name(self.cheat, seed, "cue") for seed in seeds]
        return replace(self, planted=self.planted.only(questions), honest=self.honest.only(questions))

    @property
    def names(self) -> tuple[str, ...]:
        """Of all entries, baselines and the oracle."""
        return tuple(name for name in self.planted.names if name in self.honest.names)

    @checked
    def shows(self, name: str, *, honest: bool = False, what: Literal["cue", "object"] = "cue") -> Score:
        """How often the top token of a map touches the cue, or the ``"object"``."""
        points = _points(self.honest if honest else self.planted, name)
        return summary([each[what] for each in points.values()], list(points))

    def margin(self, name: str, *, honest: bool = False) -> Score:
        """Cue minus object: the mean over pictures of touching the cue less touching the object."""
        points = _points(self.honest if honest else self.planted, name)
        return summary([_margin(each) for each in points.values()], list(points))

    def apart(self, name: str) -> Difference:
        """Cue minus object on the cheat less that on its twin, over the pictures where both answered as expected."""
        ours, theirs = (_points(board, name) for board in (self.planted, self.honest))
        both = [picture for picture in ours if picture in theirs]
        if not both:
            raise BadInput("there is no picture on which cheat and twin both answered as expected")
        return difference([_margin(ours[each]) for each in both], [_margin(theirs[each]) for each in both], both)

    def tells(self, name: str) -> bool:
        """Whether the whole interval of ``apart`` is above 0."""
        return self.apart(name).low > 0

    def warns(self, name: str) -> bool:
        """Whether one who has no twin would be warned: on the cheat alone, cue minus object is above 0."""
        return self.margin(name).low > 0


def _points(board: Leaderboard, name: str) -> dict[str, dict[str, float]]:
    """By picture, how far a map's top token touches the cue and the object.

    Raises:
        BadInput: no picture was answered as was expected of the model, or there is no such entry.
    """
    if not board.right:
        raise BadInput(f"none of {len(board.lines)} pictures was answered as a model that goes by this would")
    if name not in board.names:
        raise BadInput(f"no entry is called {name!r}; there are {', '.join(board.names)}")
    found = {}
    for line in board.right:
        cases = line["entries"].get(name, {}).get("cases", ())  # none where it could not be run
        if cases:
            cue, other = (case["touches"] for case in cases)
            found[line["picture"]] = {"cue": cue, "object": other}
    return found


def _margin(point: Mapping[str, float]) -> float:
    return point["cue"] - point["object"]


def _oracle(task: Task, cheat: cheats.Cheat, seed: int) -> ImageMap:
    """How much less the answer scores with another cue, on the cue's tokens; with another object, on the object's."""
    planted = cheats.planted(cheat, seed)
    pictures = [planted.image, *(cheats.changed(cheat, seed, what).image for what in ("cue", "object"))]
    scores = picture_scores(task, pictures)  # [3, rows]
    values = torch.zeros(len(task.targets), len(task.layout))
    for number, mask in ((2, planted.object), (1, planted.cue)):
        covered = torch.from_numpy(task.layout.to_tokens(mask) > 0)
        values[:, covered] = (scores[0] - scores[number])[:, None].float()
    like: Any = explained_by(task, "attention")
    return replace(like, values=values, method=ORACLE, marked=None, about={"positions": like.about["positions"]})
