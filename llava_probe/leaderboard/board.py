"""What the scores of ``scoring.py`` come to: each entry's means with intervals, and differences on the same cases.

    board = Leaderboard.read("scores/")
    board.score("relevance", "inside", kind="colour")
    board.beside("relevance", "centre prior", "inside")          # a paired difference
    board.random("relevance", "inside")                          # with the language model's layers random

Questions whose answer is the same about a blank picture are kept apart (``blind=True`` reads them). Intervals draw
pictures again, not cases.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from llava_probe.arrays import FloatArray
from llava_probe.border import checked
from llava_probe.errors import BadInput
from llava_probe.evaluate.summary import Difference, Score, difference, summary
from llava_probe.leaderboard.entries import BASELINES, ENTRIES
from llava_probe.leaderboard.lines import CaseScores, read_scores
from llava_probe.leaderboard.run import made_with
from llava_probe.stored import place

#: Measures of one case, all better when larger.
MEASURES = tuple(CaseScores.__annotations__)


@checked
@dataclass(frozen=True, eq=False)
class Leaderboard:
    """The scored questions of a data set.

    Attributes:
        lines: one for each question, as ``score_cases`` wrote them.
        made_with: the model and the plan, as it noted them.
    """

    lines: tuple[Mapping[str, Any], ...]
    made_with: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: str | Path) -> Leaderboard:
        """The questions that all parts in ``folder`` have finished.

        Raises:
            BadInput: there are none.
            BadFile: a line of them is damaged.
        """
        source = place("folder of scores", folder)
        found = {line["question"]: line for line in read_scores(sorted(source.glob("scores-*.jsonl")))}
        if not found:
            raise BadInput(f"{source} holds no scores; make them with llava-probe leaderboard")
        return cls(tuple(found.values()), made_with(source))

    def only(self, questions: Iterable[str]) -> Leaderboard:
        """The same of some questions alone, by their ids, in their order; ids without scores are passed over."""
        found = {line["question"]: line for line in self.lines}
        return replace(self, lines=tuple(found[name] for name in dict.fromkeys(questions) if name in found))

    # --- what there is ---

    @property
    def right(self) -> list[Mapping[str, Any]]:
        """Questions answered right."""
        return [line for line in self.lines if line["right"]]

    @cached_property
    def seen(self) -> list[Mapping[str, Any]]:
        """Questions answered right that need the picture for it."""
        return [line for line in self.right if not line["blind"]]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Entries that scored anything, methods first."""
        there = {name for line in self.right for name, found in line["entries"].items() if "cases" in found}
        order = [*ENTRIES, *BASELINES]
        return tuple(sorted(there, key=lambda name: order.index(name) if name in order else len(order)))

    @property
    def methods(self) -> list[str]:
        """The names that are no baseline."""
        return [name for name in self.names if name not in BASELINES]

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of question, descriptions left out."""
        return tuple(dict.fromkeys(line["kind"] for line in self.right if not is_description(line)))

    @property
    def heads(self) -> Mapping[str, Any] | None:
        """The localisation heads (``chosen``) and how many ``samples`` chose them; None where none could be."""
        found: Mapping[str, Any] | None = self.made_with.get("entries", {}).get("localisation heads", {}).get("heads")
        return found

    def refused(self, name: str) -> str | None:
        """Why an entry could not be run, where it could not."""
        return next(
            (found["refused"] for line in self.right if "refused" in (found := line["entries"].get(name, {}))), None
        )

    # --- scores ---

    def score(self, name: str, measure: str, kind: str | None = None, *, blind: bool = False) -> Score | None:
        """An entry's mean; None where it has no case of the kind.

        Args:
            name: of the entry.
            measure: one of ``MEASURES``.
            kind: of question; all but descriptions when None.
            blind: those answered alike about a blank picture, in place of the others.
        """
        values, pictures = self._column(name, measure, kind, blind)
        return summary(values, pictures) if values else None

    def beside(self, name: str, other: str, measure: str, kind: str | None = None) -> Difference | None:
        """The paired difference of two entries on the cases that both have."""
        pairs = [
            (first, second, line["picture"])
            for line in self._lines(kind, False)
            for first, second in zip(_cases(line, name, measure), _cases(line, other, measure), strict=False)
        ]
        if not pairs:
            return None
        ones, others, pictures = zip(*pairs, strict=True)
        return difference(ones, others, pictures)

    def random(self, name: str, measure: str) -> Score | None:
        """An entry's mean with random language layers, over the questions that were explained so."""
        rows = [(each[measure], line["picture"]) for line in self.seen for each in line.get("random", {}).get(name, [])]
        return summary(*map(list, zip(*rows, strict=True))) if rows else None  # type: ignore[arg-type]

    def random_beside(self, name: str, other: str, measure: str) -> Difference | None:
        """What an entry scores with random language layers, less what another scores with the model as it is."""
        pairs = [
            (drawn[measure], plain, line["picture"])
            for line in self.seen
            for drawn, plain in zip(line.get("random", {}).get(name, ()), _cases(line, other, measure), strict=False)
        ]
        return difference(*map(list, zip(*pairs, strict=True))) if pairs else None  # type: ignore[arg-type]

    def trained(self, name: str, measure: str) -> Score | None:
        """An entry's mean over the same questions with the model as it is."""
        rows = [
            (value, line["picture"]) for line in self.seen if "random" in line for value in _cases(line, name, measure)
        ]
        return summary(*map(list, zip(*rows, strict=True))) if rows else None  # type: ignore[arg-type]

    def curve(self, name: str, which: str) -> Score | None:
        """Area under the ``"deletion"`` (low is good) or ``"insertion"`` curve."""
        rows = [
            (found[which], line["picture"]) for line in self.seen if which in (found := line["entries"].get(name, {}))
        ]
        return summary(*map(list, zip(*rows, strict=True))) if rows else None  # type: ignore[arg-type]

    def words(self, name: str) -> tuple[float, float, float] | None:
        """(Obj-IoU, Func-IoU, F1-IoU) over the descriptions, TAM's measures."""
        rows = [found["tam"] for line in self.seen if "tam" in (found := line["entries"].get(name, {}))]
        if not rows:
            return None
        objects, functions = (float(value) for value in np.nanmean(np.array(rows, dtype=np.float64), axis=0))
        total = objects + functions
        return objects, functions, 2 * objects * functions / total if total else 0.0

    def cost(self, name: str) -> tuple[float, float, float] | None:
        """(seconds a word, forward passes, backward passes of a question): a median, and two means."""
        rows = [
            (found["seconds"], found["forwards"], found["backwards"])
            for line in self._lines(None, False)
            if "seconds" in (found := line["entries"].get(name, {}))
        ]
        if not rows:
            return None
        seconds, forwards, backwards = zip(*rows, strict=True)
        return statistics.median(seconds), statistics.fmean(forwards), statistics.fmean(backwards)

    def agreement(self) -> tuple[list[str], FloatArray] | None:
        """Names, and the mean rank correlation of their maps [names, names]."""
        found = [line["agreement"] for line in self.seen if "agreement" in line]
        names = [name for name in self.names if all(name in each["names"] for each in found)]
        if not found:
            return None
        parts = []
        for each in found:
            index = [each["names"].index(name) for name in names]
            parts.append(np.array(each["values"], dtype=np.float64)[np.ix_(index, index)])
        stack = np.stack(parts)
        count = (~np.isnan(stack)).sum(0)
        return names, np.divide(np.nansum(stack, axis=0), count, out=np.full(count.shape, np.nan), where=count > 0)

    def removal(self, kind: str) -> dict[str, float]:
        """Mean probability of the word with the right place taken away or alone, over one kind of question."""
        rows = [line["removal"] for line in self.seen if "removal" in line and line["kind"] == kind]
        return {name: statistics.fmean(row[name] for row in rows) for name in rows[0]} if rows else {}

    # --- details ---

    def _lines(self, kind: str | None, blind: bool) -> Iterator[Mapping[str, Any]]:
        for line in self.right:
            wanted = not is_description(line) if kind is None else line["kind"] == kind
            if wanted and bool(line["blind"]) == blind:
                yield line

    def _column(self, name: str, measure: str, kind: str | None, blind: bool) -> tuple[list[float], list[str]]:
        if measure not in MEASURES:
            raise BadInput(f"a measure is one of {', '.join(MEASURES)}; got {measure!r}")
        rows = [(value, line["picture"]) for line in self._lines(kind, blind) for value in _cases(line, name, measure)]
        return [value for value, _ in rows], [picture for _, picture in rows]


def is_description(line: Mapping[str, Any]) -> bool:
    """Whether a question is a description, whose words are scored among themselves."""
    return any("tam" in found for found in line.get("entries", {}).values())


def _cases(line: Mapping[str, Any], name: str, measure: str) -> Sequence[float]:
    return [each[measure] for each in line["entries"].get(name, {}).get("cases", ())]
