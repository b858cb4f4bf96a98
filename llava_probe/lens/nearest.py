"""The nearest of many states by cosine: found by products in bfloat16, told in float32.

A bank of a 7B model lies in bfloat16, where the processor multiplies several times faster, and a product is rounded to
8 bits. So the rough products only say which rows can be among the best, by more than rounding can move them; those are
multiplied again in float32. What is found is what float32 alone would find. States of other dtypes are multiplied in
float32 at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: How far bfloat16 moves a product when it rounds it to 8 bits: relative to it, to either side.
_ROUNDED = 2.0**-8
#: And how far a sum in float32 moves with each term.
_SUMMED = 2.0**-24
#: Queries whose candidates are multiplied again together: neighbours have many in common.
_TOGETHER = 64
#: Products held at once, and rows of a layer multiplied at once.
_HELD, _ROWS = 2**25, 2**13


@dataclass(frozen=True, eq=False)
class Nearest:
    """Best first, for each of N queries.

    Attributes:
        rows: [N, top] which rows; ``layers``: [N, top] in which of the layers each came nearest.
        similarity: [N, top] float32 cosines.
    """

    rows: Tensor
    layers: Tensor
    similarity: Tensor


def nearest(
    queries: Tensor, states: Sequence[Tensor], lengths: Tensor, top: int, among: Tensor | None = None
) -> Nearest:
    """The rows whose state in any layer is nearest to each query.

    Args:
        queries: [N, D].
        states: [R, D] of each layer, as they lie in a file, all of one dtype.
        lengths: [layers, R] float32 of each state, as ``lengths_of`` measures them.
        top: how many rows; fewer where there are fewer.
        among: [R] bool, those that may be found; all when None.
    """
    among = torch.ones(lengths.shape[1], dtype=torch.bool) if among is None else among
    top = min(top, int(among.sum()))
    held = max(_TOGETHER, _HELD // lengths.numel())
    parts = [_nearest(some, states, lengths, top, among) for some in queries.split(held)]
    return Nearest(*(torch.cat(part) for part in zip(*parts, strict=True)))


def lengths_of(states: Tensor) -> Tensor:
    """[R] float32 Euclidean lengths of [R, D] states; the smallest number in place of nothing."""
    found = [torch.linalg.vector_norm(part.float(), dim=1) for part in _blocks(states)]
    return torch.cat(found).clamp_min(torch.finfo(torch.float32).tiny)


def similarity(queries: Tensor, states: Tensor, lengths: Tensor) -> Tensor:
    """[N, R] float32 cosines of [N, D] queries and [R, D] states of known lengths."""
    return (_directions(queries) @ states.float().T) / lengths


def _nearest(
    queries: Tensor, states: Sequence[Tensor], lengths: Tensor, top: int, among: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    rough = queries.dtype == states[0].dtype == torch.bfloat16
    wide, found = _directions(queries), []
    products = [_products(queries if rough else wide, layer) for layer in states]  # [layers] of [N, R]
    own = torch.linalg.vector_norm(queries.float(), dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    for some in torch.arange(len(queries)).split(_TOGETHER):
        scores = torch.stack([layer[some].float() for layer in products], dim=1) / lengths  # [n, layers, R]
        scores.masked_fill_(~among, -torch.inf)
        if rough:
            scores = _again(scores / own[some, None, None], wide[some], states, lengths, top)
        best, layer = scores.max(1)
        values, rows = best.topk(top)
        found.append((rows, layer.gather(1, rows), values.clamp(-1, 1)))
    return tuple(torch.cat(part) for part in zip(*found, strict=True))  # type: ignore[return-value]


def _again(scores: Tensor, wide: Tensor, states: Sequence[Tensor], lengths: Tensor, top: int) -> Tensor:
    """Of rough cosines [n, layers, R] those exactly that can be among the best; nothing of the others."""
    least = scores.amax(1).topk(top).values[:, -1:, None]
    rounding = 2 * (_ROUNDED * least.abs() + _SUMMED * wide.shape[1])
    wanted = (scores >= least - rounding).any(0)
    exact = torch.full_like(scores, -torch.inf)
    for layer, chosen in enumerate(wanted):
        rows = chosen.nonzero()[:, 0]
        exact[:, layer, rows] = wide @ states[layer][rows].float().T / lengths[layer, rows]
    return exact


def _products(queries: Tensor, states: Tensor) -> Tensor:
    """[N, R] in the dtype of the queries."""
    found = [queries @ part.to(queries.dtype).T for part in _blocks(states)]
    return found[0] if len(found) == 1 else torch.cat(found, dim=1)


def _blocks(states: Tensor) -> list[Tensor]:
    """A layer's rows, some at a time: a bank may lie in several files."""
    return [states[start : start + _ROWS] for start in range(0, len(states), _ROWS)]


def _directions(queries: Tensor) -> Tensor:
    wide = queries.float()
    return wide / torch.linalg.vector_norm(wide, dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
