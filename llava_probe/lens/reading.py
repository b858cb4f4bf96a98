"""What is kept of a vocabulary of logits for each token, a block of tokens at a time: never all of them at once.

At LLaVA-1.5-7B's shape the logits of 576 patches in 33 layers are 2.4 GB; a block of them is 16 MB, and what is kept of
it (the likeliest words, the entropy, some chosen words) a few numbers a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llava_probe.errors import NotANumber, OutOfRange
from llava_probe.inside.ending import Ending

#: Bytes of float32 logits at once.
BLOCK_BYTES = 16_000_000


@dataclass(frozen=True, eq=False)
class SaidWords:
    """What n tokens would say, on the CPU.

    Attributes:
        ids, probability: [n, top] of the likeliest, best first; entropy: [n] of the whole distribution, in nats.
        word_probability: [words, n], all spellings summed; word_rank: [words, n] how many other tokens are likelier
            than the likeliest spelling.
    """

    ids: Tensor
    probability: Tensor
    entropy: Tensor
    word_probability: Tensor
    word_rank: Tensor


def said_by(
    ending: Ending,
    states: Tensor,
    top: int,
    words: Sequence[Sequence[int]] = (),
    *,
    normed: bool = False,
    vocabulary: int,
) -> SaidWords:
    """Unembed states block by block.

    Args:
        ending: of the model.
        states: [n, D] of one layer.
        top: how many of the likeliest tokens to keep.
        words: ids of each word's spellings.
        normed: whether the states are behind the final norm.
        vocabulary: V, for the size of a block.

    Raises:
        OutOfRange: more are asked for than the vocabulary has.
        NotANumber: a logit is NaN.
    """
    rows = rows_at_once(vocabulary)
    parts = [_said(ending.logits(block, normed=normed), top, words) for block in states.split(rows)]
    held = {name: [getattr(part, name) for part in parts] for name in SaidWords.__dataclass_fields__}
    return SaidWords(**{name: torch.cat(each, dim=int(name.startswith("word"))) for name, each in held.items()})


def rows_at_once(vocabulary: int) -> int:
    """How many tokens make a block."""
    return max(1, BLOCK_BYTES // (4 * vocabulary))


def _said(logits: Tensor, top: int, words: Sequence[Sequence[int]]) -> SaidWords:
    """Of [n, V] logits, which are overwritten."""
    if top > logits.shape[1]:
        raise OutOfRange(f"asked for the top {top} of a vocabulary of {logits.shape[1]}")
    total = logits.logsumexp(1)
    if bool(torch.isnan(total).any()):
        raise NotANumber("the logits of a hidden state are NaN; load the model with dtype='bfloat16' or 'float32'")
    values, ids = logits.topk(top, dim=1)
    shares, ranks = [], []
    for spelled in words:
        own = logits[:, list(spelled)]
        shares.append((own - total[:, None]).exp().sum(1))
        ranks.append((logits > own.amax(1, keepdim=True)).sum(1))
    probability = logits.sub_(total[:, None]).exp_()
    entropy = torch.special.entr(probability).sum(1)
    none = torch.zeros(0, len(logits))
    return SaidWords(
        ids.cpu(),
        (values - total[:, None]).exp().float().cpu(),
        entropy.float().cpu(),
        torch.stack(shares).float().cpu() if shares else none,
        torch.stack(ranks).cpu() if ranks else none.long(),
    )
