"""How sure the model was of each token it generated.

    c = lp.confidence(trace)
    print(c.table())                 # a line for each token
    print(c.words().table())         # the same for whole words
    c.choices(["yes", "no"])         # the first token's probability of each, however it is spelled
    c.perplexity

Everything is the model's own distribution, softmax of the raw logits, in nats; ``sampled_probability`` alone is what
the token was drawn with, after temperature, top-p and the other processors. Tools that read ``generate``'s scores and
call them the model's confidence report the sampler's. Under beam search a trace is already in the order of
``beam_indices``.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from llava_probe.analyzers.choices import Choices, weigh
from llava_probe.analyzers.table import Table, Tabular, rounded
from llava_probe.border import Count, checked
from llava_probe.errors import BadInput, NotANumber, NotCaptured
from llava_probe.trace.explained import At
from llava_probe.trace.tokens import Token, divided
from llava_probe.trace.trace import Trace

#: What is told of a word, besides its text and places.
_OF_WORDS = ("probability", "logprob", "lowest", "entropy")
#: Steps whose distributions are in float64 at once: bounds the extra memory.
_BLOCK = 16


@dataclass(frozen=True)
class Candidate:
    """One token that might have come at some step."""

    id: int
    text: str
    probability: float
    logprob: float


@dataclass(frozen=True)
class Word:
    """One word of the answer and the tokens that spell it.

    Attributes:
        text: without the spaces around it; ``positions``: of its tokens in the sequence.
        logprob: the sum over its tokens, in nats; ``probability``: its exponential.
        lowest: the probability of its least likely token; ``entropy``: the mean over its tokens.
    """

    text: str
    positions: tuple[int, ...]
    logprob: float
    probability: float
    lowest: float
    entropy: float


class Words(tuple[Word, ...], Tabular):
    """The words of an answer: a tuple that is a table too."""

    __slots__ = ()

    def to_dict(self) -> dict[str, list[Any]]:
        """Plain lists by name, ready for JSON."""
        return self._columns().data

    def table(self) -> str:
        """A line for each word, to print."""
        return self._columns().without("positions").text()

    def _repr_html_(self) -> str:
        return self._columns().without("positions").html()

    def _columns(self) -> Table:
        return Table(
            {
                "word": [word.text for word in self],
                "positions": [list(word.positions) for word in self],
                **{name: [getattr(word, name) for word in self] for name in _OF_WORDS},
            }
        )


@checked
@dataclass(frozen=True, eq=False)
class Confidence(Tabular):
    """How sure the model was, each [T] float32; entry t of generated token t, an ending EOS included.

    Attributes:
        logprob: of the token that was taken, in nats; ``probability`` is its exponential.
        entropy: of the whole distribution, in nats.
        rank: how many tokens were likelier; 0 for the likeliest. Whole numbers.
        trace: what was read.
    """

    logprob: Tensor
    entropy: Tensor
    rank: Tensor
    trace: Trace = field(repr=False)

    # --- each token ---

    @property
    def tokens(self) -> tuple[Token, ...]:
        """The generated tokens."""
        return self.trace.generated

    @property
    def probability(self) -> Tensor:
        """[T] of the token that was taken."""
        return self.logprob.exp()

    @cached_property
    def margin(self) -> Tensor:
        """[T] probability of the taken token less that of the best other one; negative where it was not the best.

        Raises:
            NotCaptured: only the top 1 of the logits was kept.
        """
        if self.trace.kept("logits"):
            others = torch.cat([_best_other(*block) for block in _blocks(self.trace.logits, self.trace.generated_ids)])
        else:
            top = self.trace.top()
            if top.values.shape[1] < 2 and bool((self.rank == 0).any()):
                raise NotCaptured("the margin needs the runner-up, and only the top 1 was kept; pass Capture(logits=2)")
            ahead = (top.ids[:, 0] == self.trace.generated_ids).long()
            others = (top.values.gather(1, ahead[:, None]).squeeze(1) - top.logsumexp).exp()
        return self.probability - others

    @cached_property
    def sampled_probability(self) -> Tensor | None:
        """[T] what each token was drawn with, from the processed scores; None for a scored answer, which was not.

        Raises:
            NotCaptured: the scores were not kept.
            NotANumber: a score is NaN.
        """
        if self.trace.scored:
            return None
        if self.trace.kept("scores.values"):
            top = self.trace.top("scores")
            return _finite((top.chosen - top.logsumexp).exp(), "scores")
        blocks = _blocks(self.trace.scores, self.trace.generated_ids)
        return _finite(torch.cat([_chosen(*block) for block in blocks]).exp(), "scores")

    def top(self, k: Count = 5) -> tuple[tuple[Candidate, ...], ...]:
        """The ``k`` likeliest tokens of each step, best first.

        Raises:
            NotCaptured: fewer were kept.
            BadInput: k is not a number of tokens.
        """
        try:
            k = operator.index(k)
        except TypeError:
            raise BadInput(f"top(k) takes a whole number of at least 1; got {k!r}") from None
        if k < 1:
            raise BadInput(f"top(k) takes a whole number of at least 1; got {k}")
        if self.trace.kept("logits"):
            parts = [_likeliest(rows, k) for rows, _ in _blocks(self.trace.logits, self.trace.generated_ids)]
            logprobs, ids = (torch.cat(part) for part in zip(*parts, strict=True))
        else:
            kept = self.trace.top()
            if k > kept.values.shape[1]:
                raise NotCaptured(f"only the top {kept.values.shape[1]} were kept; pass Capture(logits={k})")
            logprobs, ids = (kept.values - kept.logsumexp[:, None])[:, :k], kept.ids[:, :k]
        return tuple(
            tuple(
                Candidate(token, self.trace.spellings.text(token), math.exp(logprob), logprob)
                for token, logprob in zip(*step, strict=True)
            )
            for step in zip(ids.tolist(), logprobs.tolist(), strict=True)
        )

    def choices(self, names: str | Sequence[str], at: At | None = None) -> Choices:
        """The probability of each of a few one-word answers at one step; see ``choices.weigh``.

        Args:
            names: the answers, each counted in every spelling that is one token.
            at: the token in whose place they are weighed, by position or word; the first generated one when None.
        """
        return weigh(self.trace, names, at)

    # --- words and the whole answer ---

    def words(self) -> Words:
        """The answer's words, as spaces divide it; EOS and other special tokens are not among them."""
        return Words(self._word(steps) for steps in divided(self.tokens, self.trace.ends))

    @property
    def sum(self) -> float:
        """Log-probability of the whole answer, its EOS included, in nats."""
        return float(self.logprob.double().sum())

    @property
    def mean(self) -> float:
        """Log-probability a token, in nats."""
        return self.sum / len(self.logprob)

    @property
    def perplexity(self) -> float:
        """Exponential of minus the mean: how many equally likely tokens it was like choosing from; or infinity."""
        return float(torch.tensor(-self.mean, dtype=torch.float64).exp())

    # --- as data, as text ---

    def to_dict(self) -> dict[str, Any]:
        """Plain lists by name, ready for JSON; what was not kept is left out."""
        return {**self._columns().data, "sum": self.sum, "mean": self.mean, "perplexity": self.perplexity}

    def table(self) -> str:
        """A line for each token, to print; its names are those of ``to_dict`` and ``to_pandas``."""
        return self._shown().text()

    def __repr__(self) -> str:
        return f"Confidence({self.trace.answer[:40]!r}, {len(self.tokens)} tokens, perplexity {self.perplexity:.3f})"

    def __str__(self) -> str:
        whole = f"log-probability {rounded(self.sum, 3)} nats, perplexity {rounded(self.perplexity, 3)}"
        return f"{self.table()}\nanswer: {whole}"

    def _repr_html_(self) -> str:
        return self._shown().html(f"perplexity {rounded(self.perplexity, 3)}")

    # --- details ---

    def _columns(self) -> Table:
        columns = {name: getattr(self, name) for name in ("probability", "logprob", "entropy", "rank")}
        for name in ("margin", "sampled_probability"):
            try:
                columns[name] = getattr(self, name)
            except NotCaptured:
                continue
        return Table(
            {
                "token": [token.text for token in self.tokens],
                "id": [token.id for token in self.tokens],
                "position": [token.position for token in self.tokens],
                **{name: column.tolist() for name, column in columns.items() if column is not None},
            }
        )

    def _shown(self) -> Table:
        return self._columns().without("id", "position")

    def _word(self, steps: Sequence[int]) -> Word:
        logprob = float(self.logprob[list(steps)].double().sum())
        return Word(
            text="".join(self.tokens[step].text for step in steps).strip(),
            positions=tuple(self.tokens[step].position for step in steps),
            logprob=logprob,
            probability=math.exp(logprob),
            lowest=float(self.probability[list(steps)].min()),
            entropy=float(self.entropy[list(steps)].mean()),
        )


@checked
def confidence(trace: Trace) -> Confidence:
    """How sure the model was of each generated token, from its raw logits.

    Raises:
        NotCaptured: the trace was made with ``Capture(logits=False)``.
        NotANumber: a logit is NaN.
    """
    if trace.kept("logits.values"):
        top = trace.top()
        logprob, entropy, rank = top.chosen - top.logsumexp, top.entropy, top.rank
    else:
        blocks = [_measured(*block) for block in _blocks(trace.logits, trace.generated_ids)]
        logprob, entropy, rank = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    return Confidence(_finite(logprob, "logits"), entropy.float(), rank, trace)


def _blocks(distribution: Tensor, ids: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Log-probabilities [block, V] in float64, and the ids taken."""
    for rows, taken in zip(distribution.split(_BLOCK), ids.split(_BLOCK), strict=True):
        yield torch.log_softmax(rows.double(), dim=1), taken


def _measured(logprobs: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    taken = logprobs.gather(1, ids[:, None])
    entropy = torch.special.entr(logprobs.exp()).sum(1)
    return taken.squeeze(1).float(), entropy.float(), (logprobs > taken).sum(1)


def _chosen(logprobs: Tensor, ids: Tensor) -> Tensor:
    return logprobs.gather(1, ids[:, None]).squeeze(1).float()


def _best_other(logprobs: Tensor, ids: Tensor) -> Tensor:
    return logprobs.scatter(1, ids[:, None], -math.inf).amax(1).exp().float()


def _likeliest(logprobs: Tensor, k: int) -> tuple[Tensor, Tensor]:
    if k > logprobs.shape[1]:
        raise BadInput(f"asked for the top {k} of a vocabulary of {logprobs.shape[1]}")
    values, ids = logprobs.topk(k, dim=1)
    return values, ids


def _finite(numbers: Tensor, what: str) -> Tensor:
    wrong = torch.isnan(numbers).nonzero().flatten().tolist()
    if wrong:
        raise NotANumber(f"the {what} of generated token {wrong[0]} are not numbers (NaN or infinite)")
    return numbers.float()
