"""What ``lp.compare_models`` found, as data and in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from llava_probe.analyzers.table import Table, Tabular
from llava_probe.border import Count, checked
from llava_probe.compare.cka import Similarity
from llava_probe.compare.comparison import MovedHead, most_moved
from llava_probe.compare.over_pictures import Means
from llava_probe.compare.unrelated import LeftTrace
from llava_probe.compare.weights import MovedWeight
from llava_probe.errors import BadInput
from llava_probe.signals.measured import Estimate, grouped, ratio

#: Lines of what is printed of many.
_TOLD, _ASKED = 5, 12
_NONE = "–"


@dataclass(frozen=True)
class ComparedSample:
    """One sample that both models were asked.

    Attributes:
        id: of its row; ``picture``: its number; ``question``: as asked.
        a, b: the answers; ``right``: what would be, where that is known.
        logprob: change of the log-probability of the first one's answer, in nats over the number of its tokens.
        parting: the first layer from which on each would rather say its own word, where the answers part.
    """

    id: str
    picture: int
    question: str
    a: str
    b: str
    right: str | None
    logprob: float
    parting: int | None

    @property
    def flipped(self) -> bool:
        """Whether the answers differ."""
        return self.a != self.b

    @property
    def correct(self) -> tuple[bool, bool] | None:
        """Whether each answer is right, but for its case and a full stop; None where nobody says what is."""
        if self.right is None:
            return None
        one, other, right = (text.strip().rstrip(".").casefold() for text in (self.a, self.b, self.right))
        return one == right, other == right


@checked
@dataclass(frozen=True, eq=False)
class ModelComparison(Tabular):
    """Two models over a data set; a change is always the second's value less the first's.

    Attributes:
        samples: that were asked of both; ``left_out``: why others were not, a sentence each.
        logprob: mean change of the first one's answers' log-probability a token.
        kl: [layers] KL through the lens, in nats; ``drift``: [layers] of hidden states, by group.
        looked: [layers, heads] share of a head's attention that lies elsewhere; ``shares``: [parts, layers, heads]
            change of each share; ``own``: [layers, heads] what each writes otherwise on the same states.
        attending: the layers and heads that these are of.
        similar: of hidden states by place and layer, one row a picture.
        dropped: how many visual tokens were sinks and left out of these rows, and of how many.
        weights: of each module, those that differ most first.
        unrelated: what was left on unrelated pictures, by place and layer.
        reasons: why a part is missing, by its name; ``seed``: of the draws.
    """

    samples: tuple[ComparedSample, ...]
    left_out: tuple[str, ...]
    logprob: Means | None
    kl: Means | None
    drift: Mapping[str, Means]
    looked: Means | None
    shares: Means | None
    own: Means | None
    attending: tuple[tuple[int, ...], tuple[int, ...]]
    similar: Mapping[str, tuple[Similarity, ...]]
    dropped: tuple[int, int]
    weights: tuple[MovedWeight, ...]
    unrelated: tuple[LeftTrace, ...]
    reasons: Mapping[str, str]
    seed: int = field(repr=False, default=0)

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def pictures(self) -> int:
        """How many there are."""
        return len({each.picture for each in self.samples})

    @property
    def flips(self) -> Estimate:
        """Share of the answers that differ."""
        return self._share([each.flipped for each in self.samples], self.samples)

    @property
    def largest(self) -> dict[str, float]:
        """The largest change of each part: all 0 of a model and itself."""
        found: dict[str, Any] = {
            "flips": float(self.flips),
            "log-probability": self.logprob,
            "KL through the lens": self.kl,
            **{f"drift, {name}": means for name, means in self.drift.items()},
            "attention row": self.looked,
            "attention share": self.shares,
            "what a head writes": self.own,
            "weight": max((each.difference for each in self.weights), default=0.0),
            "unrelated pictures": max((each.length for each in self.unrelated), default=0.0),
        }
        values = {name: means.value if isinstance(means, Means) else means for name, means in found.items()}
        return {name: float(np.abs(value).max()) for name, value in values.items() if value is not None}

    def by_question(self, k: Count | None = None) -> Table:
        """A line for each question: how often it was asked, how often the answers differ, how often either is right.

        Args:
            k: the first of them, those with most other answers; all when None.
        """
        asked: dict[str, list[ComparedSample]] = {}
        for each in self.samples:
            asked.setdefault(each.question, []).append(each)
        rows = sorted(asked.items(), key=lambda item: -float(np.mean([each.flipped for each in item[1]])))[:k]
        columns: dict[str, list[Any]] = {
            "question": [question for question, _ in rows],
            "asked": [len(own) for _, own in rows],
            "other answer": [str(self._share([each.flipped for each in own], own)) for _, own in rows],
        }
        if any(each.correct is not None for each in self.samples):
            for side, name in enumerate("ab"):
                judged = [[each.correct[side] for each in own if each.correct is not None] for _, own in rows]
                columns[f"{name} right"] = [float(np.mean(each)) if each else _NONE for each in judged]
        return Table(columns)

    def flipped(self, k: Count = _TOLD) -> tuple[ComparedSample, ...]:
        """The ``k`` samples whose answers differ and whose first answer lost most in the second model."""
        return tuple(sorted((each for each in self.samples if each.flipped), key=lambda each: each.logprob)[:k])

    def flipped_pictures(self, k: Count = _TOLD) -> Table:
        """The ``k`` pictures with the largest share of other answers; of equal ones those that lost most."""
        own: dict[int, list[ComparedSample]] = {}
        for each in self.samples:
            own.setdefault(each.picture, []).append(each)
        rows = [
            (float(np.mean([each.flipped for each in some])), float(np.mean([each.logprob for each in some])), some)
            for some in own.values()
        ]
        rows = sorted((row for row in rows if row[0]), key=lambda row: (-row[0], row[1]))[:k]
        return Table(
            {
                "rows": [", ".join(each.id for each in some) for _, _, some in rows],
                "asked": [len(some) for _, _, some in rows],
                "other answer": [share for share, _, _ in rows],
                "change of log p": [change for _, change, _ in rows],
            }
        )

    def heads(self, k: Count = _TOLD) -> tuple[MovedHead, ...]:
        """The ``k`` heads that moved most: by what they write on the same states, else by what they looked at."""
        found = self.own if self.own is not None and self.own.value.any() else self.looked
        return () if found is None else most_moved(*self.attending, torch.from_numpy(found.value), k)

    def layers(self) -> Table:
        """A line for each hidden state: how far the two lie apart there, and KL through the lens."""
        measured = {**{f"drift, {name}": means for name, means in self.drift.items()}, "KL": self.kl}
        columns = {
            name: [str(means[layer].estimate) for layer in range(len(means.value))]
            for name, means in measured.items()
            if means is not None
        }
        return _numbered(columns)

    def alike(self, place: str = "image") -> Table:
        """A line for each hidden state: how alike the two are over pictures, beside what chance and bias give.

        Args:
            place: ``"image"``, the mean over a picture's visual tokens, or ``"last"``, the prompt's last position.

        Raises:
            BadInput: there is no such place.
        """
        if place not in self.similar:
            raise BadInput(f"states were compared at {' and '.join(self.similar) or 'no place'}; got {place!r}")
        found = self.similar[place]
        columns: dict[str, list[Any]] = {"CKA": [str(each.cka) for each in found]}
        for name in ("shuffled", "biased", "overlap", "chance"):
            columns[name] = [getattr(each, name) for each in found]
        return _numbered(columns)

    def modules(self, k: Count = _TOLD) -> Table:
        """The ``k`` weights that differ most, the length of the difference over the weight's."""
        moved = [each for each in self.weights if each.difference > 0][:k]
        return Table(
            {
                "weight": [f"{each.module}.{each.weight}".lstrip(".") for each in moved],
                "difference / length": [each.ratio for each in moved],
            }
        )

    def left(self) -> Table:
        """A line for each place and layer: what the mean difference on unrelated pictures would say."""
        shown = [each for each in self.unrelated if each.length]
        return Table(
            {
                "place": [each.place for each in shown],
                "layer": [each.layer for each in shown],
                "length": [each.length for each in shown],
                "steadiness": [each.steadiness for each in shown],
                "words": [" ".join(repr(word.strip()) for word in each.words) for each in shown],
            }
        )

    # --- as data, as text ---

    def to_dict(self) -> dict[str, list[Any]]:
        """Plain lists by name, an entry for each sample, ready for JSON."""
        return self._columns().data

    def __repr__(self) -> str:
        return f"ModelComparison({len(self)} samples of {self.pictures} pictures, other answers {self.flips})"

    def __str__(self) -> str:
        parts = [
            *self._notes(),
            self.by_question(_ASKED).text(),
            f"by hidden state\n{self.layers().text()}",
            *(f"alike over pictures, {place}\n{self.alike(place).text()}" for place in self.similar),
            *self._titled("the pictures that flipped most", self.flipped_pictures()),
            *self._titled("the weights that moved most", self.modules()),
            *self._titled("left on unrelated pictures", self.left()),
        ]
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        return self.layers().html("; ".join(self._notes()))

    @staticmethod
    def _titled(title: str, table: Table) -> list[str]:
        return [f"{title}\n{table.text()}"] if next(iter(table.data.values())) else [f"{title}: none"]

    def _notes(self) -> list[str]:
        lines = [f"{len(self)} samples of {self.pictures} pictures; other answers: {self.flips}"]
        if self.logprob is not None:
            lines.append(f"the first one's answers, change of log p a token: {self.logprob.estimate}")
        if named := ", ".join(str(each) for each in self.heads() if each.moved):
            lines.append(f"heads that moved most: {named}")
        layers = sorted(each.parting for each in self.samples if each.parting is not None)
        if layers:
            told = f"from hidden state {layers[len(layers) // 2]} on (median of {len(layers)})"
            lines.append(f"where answers part, each layer would say its own {told}")
        dropped, visual = self.dropped
        if visual:
            lines.append(f"rows of CKA are pictures; {dropped} of {visual} visual tokens are sinks and left out")
        if self.left_out:
            lines.append(f"{len(self.left_out)} samples could not be asked; the first: {self.left_out[0]}")
        return ["\n".join([*lines, *(f"{name} left out: {why}" for name, why in self.reasons.items())])]

    def _columns(self) -> Table:
        names = ("id", "picture", "question", "a", "b", "right", "logprob", "parting", "flipped")
        return Table({name: [getattr(each, name) for each in self.samples] for name in names})

    def _share(self, held: list[bool], samples: Any) -> Estimate:
        numbers, count = grouped([each.picture for each in samples], len(held), "answers")
        return ratio(np.array(held, dtype=np.float64), np.ones(len(held)), numbers, count, self.seed)


def _numbered(columns: dict[str, list[Any]]) -> Table:
    """A line for each hidden state, from 0."""
    return Table({"layer": list(range(len(next(iter(columns.values()), [])))), **columns})
