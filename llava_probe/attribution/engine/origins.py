"""Which visual token each part of an earlier tensor goes into, asked of the graph itself.

A projector may merge patches, drop a class token, turn windows back into reading order; a processor may cut, tile and
pad. If a part goes into one token only, then the gradient of all tokens, each weighed by a digit of its number, is at
that part the digit times the gradient of all tokens weighed alike. A few digits in a small base tell the number in any
precision; a part that goes into several tokens shows as a gradient that is no multiple.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llava_probe.inside.tolerance import GRADIENTS

_BASE = 4
#: How far a digit may be from a whole number.
_ROUNDING = 0.3
#: Parts whose gradient is this much weaker than the strongest count as going nowhere.
_FAINT = 1e-6
#: Directions that are tried: in one, a part's gradient may be nothing but the rounding of what cancels.
_TRIALS = 4


def depends(tokens: Tensor, source: Tensor) -> bool:
    """Whether any of the tokens depends on ``source`` at all."""
    slope = torch.autograd.grad(tokens.sum(), source, retain_graph=True, allow_unused=True)[0]
    return slope is not None and bool((slope != 0).any())


def origins(tokens: Tensor, source: Tensor, features: int = -1) -> Tensor | None:
    """The token that each part of ``source`` goes into.

    Args:
        tokens: [N, D] in the graph, made from ``source``.
        source: [..., features, ...] in the graph; a part is everything along ``features``.
        features: its axis.

    Returns:
        Token numbers in the shape of ``source`` without ``features``, -1 where a part goes nowhere; None where a part
        goes into several tokens.
    """
    out, wrong = _numbered(tokens, source, features, 0)
    for seed in range(1, _TRIALS):
        if not bool(wrong.any()):
            return out
        number, again = _numbered(tokens, source, features, seed)
        out, wrong = torch.where(wrong, number, out), wrong & again
    return None if bool(wrong.any()) else out


def _numbered(tokens: Tensor, source: Tensor, features: int, seed: int) -> tuple[Tensor, Tensor]:
    """The token of each part as one direction of the tokens' features tells it, and where it tells none."""
    count, width = tokens.shape
    direction = torch.randn(width, generator=torch.Generator().manual_seed(seed)).to(tokens)

    def weighed(weights: Tensor) -> Tensor:
        slope = torch.autograd.grad(tokens, source, weights.to(tokens)[:, None] * direction, retain_graph=True)[0]
        return slope.movedim(features, -1).double()

    alike = weighed(torch.ones(count))
    strength = alike.norm(dim=-1)
    used = strength > _FAINT * strength.max()
    wrong = torch.zeros_like(used)
    number = torch.zeros(strength.shape, dtype=torch.long, device=strength.device)
    left, place = torch.arange(count), 1
    while place < count:
        slope = weighed((left % _BASE + 1).float())
        digit = (slope * alike).sum(-1) / strength.square().clamp(min=1e-300)
        off = (slope - digit[..., None] * alike).norm(dim=-1) / slope.norm(dim=-1).clamp(min=1e-300)
        wrong |= ((off > GRADIENTS[source.dtype]) | ((digit - digit.round()).abs() > _ROUNDING)) & used
        number += place * (digit.round().long() - 1)
        left, place = left // _BASE, place * _BASE
    return torch.where(used, number, -1), wrong | (used & ((number < 0) | (number >= count)))
