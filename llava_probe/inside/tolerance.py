"""How far two ways of computing the same number may lie apart, by dtype.

Numbers that are added up in another order round otherwise: float32 by 1e-7 a step, bfloat16 by 4e-3 (8 bits of
mantissa), float16 by 5e-4 (11 bits). How much of that a result shows depends on how much is behind it, so there is a
table for each kind of result, and none for two.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

#: Attention rows beside another kernel's, absolute (a row sums to one): few sums behind each, and float32 softmaxes.
ROWS: Mapping[torch.dtype, float] = {
    torch.float64: 1e-5,
    torch.float32: 1e-5,
    torch.bfloat16: 2e-2,
    torch.float16: 5e-3,
}
#: The same of quantised layers, which round activations by what else is in the pass.
QUANTISED_ROWS = 5e-2

#: Hidden states of one sample beside others or alone, relative to their length: all layers are behind them, and what a
#: misplaced token does in float32 is 1e-2 and more. In 16 bits it may be less than rounding: ``features/trial.py`` then
#: goes by positions.
STATES: Mapping[torch.dtype, float] = {
    torch.float64: 1e-4,
    torch.float32: 1e-4,
    torch.bfloat16: 0.1,
    torch.float16: 2e-2,
}

#: A word's log-probability or logit, relative to its size where that is above 1: all layers and the vocabulary are
#: behind it, and a map's own values are a hundred times larger.
SCORES: Mapping[torch.dtype, float] = {
    torch.float64: 1e-6,
    torch.float32: 1e-3,
    torch.bfloat16: 0.1,
    torch.float16: 2e-2,
}

#: A part's gradient beside a multiple of it, relative to its length: products of a backward pass, which float16 rounds
#: near its smallest numbers.
GRADIENTS: Mapping[torch.dtype, float] = {
    torch.float64: 1e-6,
    torch.float32: 1e-3,
    torch.bfloat16: 0.1,
    torch.float16: 5e-2,
}

#: The parts of a logit beside the logit, relative to the largest of them: a sum of all that the layers wrote, each part
#: rounded where it was added, and its slope where it was multiplied. Over 32 random layers it comes to 3e-7, 8e-3 and
#: 2e-3; a part that is left out, to its share.
SUMS: Mapping[torch.dtype, float] = {
    torch.float64: 1e-6,
    torch.float32: 1e-4,
    torch.bfloat16: 5e-2,
    torch.float16: 1e-2,
}
