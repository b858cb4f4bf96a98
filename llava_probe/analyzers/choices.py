"""A few answers weighed against each other at one step: how much of the distribution is "yes", how much "no".

The first token's probability of "yes" alone is too low where the model would as soon write " Yes" or "YES". Here every
single token that spells an answer counts, with or without a space, in whatever case; the texts come with the trace, so
no tokenizer is needed. Both numbers are given: the share of the whole distribution, and the share among the answers.

    lp.confidence(trace).choices(["yes", "no"])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llava_probe.analyzers.table import Table, Tabular
from llava_probe.errors import BadInput, NotANumber, NotCaptured, OutOfRange
from llava_probe.trace.explained import At
from llava_probe.trace.trace import Trace


@dataclass(frozen=True)
class Choices(Tabular):
    """Some answers weighed against each other at one step.

    Attributes:
        names: as they were given; ``position``: of the token in whose place they stand.
        probability: share of the whole distribution, all spellings summed.
        normalised: the same as shares of their sum.
        ids: the spellings that were summed.
    """

    names: tuple[str, ...]
    position: int
    probability: tuple[float, ...]
    normalised: tuple[float, ...]
    ids: tuple[tuple[int, ...], ...]

    @property
    def best(self) -> str:
        """The likeliest of them."""
        return self.names[self.probability.index(max(self.probability))]

    def to_dict(self) -> dict[str, Any]:
        """Plain lists by name, ready for JSON."""
        return {**self._columns().data, "position": self.position, "best": self.best}

    def table(self) -> str:
        """A line for each answer, to print."""
        return self._columns().without("ids").text()

    def _repr_html_(self) -> str:
        return self._columns().without("ids").html()

    def _columns(self) -> Table:
        shares = {"probability": list(self.probability), "normalised": list(self.normalised)}
        return Table({"answer": list(self.names), **shares, "ids": [list(ids) for ids in self.ids]})

    def __getitem__(self, name: str) -> float:
        """The probability of one of them."""
        if name not in self.names:
            raise BadInput(f"{name!r} was not weighed, only {list(self.names)}")
        return self.probability[self.names.index(name)]


def weigh(trace: Trace, names: Sequence[str], at: At | None = None) -> Choices:
    """The probability of each of a few one-word answers at one step, from the raw logits.

    Where only the top k were kept, a spelling outside them counts as nothing: it is less likely than the least of them.

    Args:
        trace: with logits, all or the top k.
        names: the answers.
        at: the token in whose place they are weighed, by position or word; the first generated one when None.

    Raises:
        BadInput: an answer that no single token spells, or two that are the same but for case.
        NotCaptured: only the top k were kept and an answer is not among them.
        OutOfRange: ``at`` is not a generated token.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    if not names:
        raise BadInput("choices takes the answers to weigh, such as ['yes', 'no']; got none")
    step = _step(trace, at)
    ids = tuple(_spelled(trace, name, step) for name in names)
    if len({token for spelled in ids for token in spelled}) < sum(map(len, ids)):
        raise BadInput(f"choices takes answers that differ in more than their case; got {list(names)}")
    probability = tuple(_together(trace, step, spelled) for spelled in ids)
    total = sum(probability)
    if total != total:
        raise NotANumber(f"the logits of generated token {step} are not numbers (NaN or infinite)")
    shares = tuple(each / total if total else 1 / len(names) for each in probability)
    return Choices(names, trace.prompt_length + step, probability, shares, ids)


def _step(trace: Trace, at: At | None) -> int:
    if at is None:
        return 0
    places = trace.positions(at)
    if not places:
        raise BadInput(f"at={at!r} names no token; name one of the answer, or leave it out for the first")
    step = places[0] - trace.prompt_length
    if step < 0:
        raise OutOfRange(
            f"at={at!r} is in the prompt; generated tokens are at {trace.prompt_length} to {len(trace.tokens) - 1}"
        )
    return step


def _spelled(trace: Trace, name: str, step: int) -> tuple[int, ...]:
    """Ids of the spellings of ``name``; under top-k logits those that were kept at this step."""
    found = trace.spellings.of(name)
    if not trace.kept("logits.values"):
        if not found:
            raise BadInput(
                f"no single token spells {name!r} in this vocabulary; weigh longer answers with vlm.score(...)"
            )
        return found
    top = trace.top()
    kept = set(top.ids[step].tolist())
    there = tuple(token for token in found if token in kept)
    if not there:
        least = float((top.values[step, -1] - top.logsumexp[step]).exp())
        raise NotCaptured(
            f"{name!r} is not among the top {len(kept)} that were kept: no spelling is likelier than {least:.2g}; "
            "pass Capture(logits=True)"
        )
    return there


def _together(trace: Trace, step: int, ids: Sequence[int]) -> float:
    if not trace.kept("logits.values"):
        return float(torch.softmax(trace.logits[step].double(), 0)[list(ids)].sum())
    top = trace.top()
    wanted = torch.isin(top.ids[step], torch.tensor(ids))
    return float((top.values[step][wanted] - top.logsumexp[step]).double().exp().sum())
