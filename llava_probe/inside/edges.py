"""Attention along some edges: which queries look at which keys in which heads, and another rule for their weights.

A rule has two moments. ``before`` the softmax it changes logits, ``after`` it the weights themselves. Of several rules
all that come before the softmax go first, so what is hidden stays hidden whatever comes after it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Edges:
    """All pairs of some queries and some keys, in some heads.

    Attributes:
        queries: [B or 1, Q] truth values; ``keys``: [B or 1, K]; ``heads``: [H], None for all.
        own: where a query's own key is none of them, the column of the first query's own key.
    """

    queries: Tensor
    keys: Tensor
    heads: Tensor | None = None
    own: int | None = None

    @cached_property
    def touched(self) -> Tensor:
        """[q] the queries that have any, of whatever row of the batch, by index."""
        return self.queries.any(0).nonzero().flatten()

    def of_row(self, row: slice) -> Edges:
        """The same of some rows of the batch."""
        queries, keys = (part[row] if len(part) > 1 else part for part in (self.queries, self.keys))
        return replace(self, queries=queries, keys=keys)

    def pairs(self, index: Tensor | None = None, heads: Tensor | None = None, end: int | None = None) -> Tensor:
        """Truth values [B or 1, H or 1, queries, keys], of some queries and heads and the first ``end`` keys."""
        queries = self.queries if index is None else self.queries[:, index.to(self.queries.device)]
        keys = self.keys[:, :end]
        found = queries[:, None, :, None] & keys[:, None, None, :]
        if self.own is not None:
            at = torch.arange(self.queries.shape[1], device=keys.device) if index is None else index.to(keys.device)
            found = found & (torch.arange(keys.shape[1], device=keys.device) != at[:, None] + self.own)
        if self.heads is None:
            return found
        chosen = self.heads if heads is None else self.heads[heads]
        return found & chosen[:, None, None]


class Rule:
    """What becomes of attention along edges; each moment leaves it as it is unless a rule says otherwise.

    Attributes:
        hides: whether the keys are not seen any more.
    """

    hides = False

    def before(self, logits: Tensor, _pairs: Tensor) -> Tensor:
        """Logits [B, H, q, K] as they go into the softmax; ``pairs`` broadcast to them and may be seen."""
        return logits

    def after(self, weights: Tensor, _pairs: Tensor) -> Tensor:
        """Weights [B, H, q, K] as they came out of it, in float32 at least."""
        return weights


class Hide(Rule):
    """The keys are not seen: their weights are exactly 0, the rest of a row is what softmax makes of it."""

    hides = True

    def before(self, logits: Tensor, pairs: Tensor) -> Tensor:
        """The lowest number where they were."""
        return logits.masked_fill(pairs, torch.finfo(logits.dtype).min)


@dataclass(frozen=True, eq=False)
class Edit:
    """A rule along edges."""

    edges: Edges
    rule: Rule
