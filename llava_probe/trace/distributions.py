"""The top k of a distribution, with what the rest adds up to: a vocabulary's worth of numbers in a few.

Probabilities, entropy and rank of the taken token stay exact; only the far tail's own numbers are gone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llava_probe.errors import BadInput


@dataclass(frozen=True)
class TopK:
    """The largest of each step's logits (or scores), and enough of the rest to stay exact.

    Attributes:
        values, ids: [T, k] in falling order.
        chosen: [T] value of the token that was taken; ``rank``: [T] how many are larger.
        logsumexp, entropy: [T] over the whole vocabulary, in nats.
    """

    values: Tensor
    ids: Tensor
    chosen: Tensor
    rank: Tensor
    logsumexp: Tensor
    entropy: Tensor


def top_k(distribution: Tensor, chosen: Tensor, k: int) -> TopK:
    """The top ``k`` of each row of ``distribution`` [T, V], of which the ``chosen`` [T] ids were taken.

    Raises:
        BadInput: more than there are.
    """
    if k > distribution.shape[1]:
        raise BadInput(f"asked for the top {k} of a vocabulary of {distribution.shape[1]}")
    values, ids = distribution.topk(k, dim=1)
    taken = distribution.gather(1, chosen[:, None]).squeeze(1)
    logprobs = torch.log_softmax(distribution, dim=1)
    return TopK(
        values=values,
        ids=ids,
        chosen=taken,
        rank=(distribution > taken[:, None]).sum(1),
        logsumexp=torch.logsumexp(distribution, dim=1),
        entropy=torch.special.entr(logprobs.exp()).sum(1),
    )
