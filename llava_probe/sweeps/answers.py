"""What a sweep watches: the first word of the answer, its probability, and its logit beside the best other's.

The probability of a word says little where it is near 0 or 1, and hides what pushes it down; the difference of two
logits is linear in what is written to the last state (Zhang and Nanda 2023, arXiv 2309.16042). So both are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llava_probe.errors import BadInput, NotANumber
from llava_probe.model import VLM
from llava_probe.trace.trace import Trace


@dataclass(frozen=True)
class Watched:
    """One answer that is watched.

    Attributes:
        token: its first id; ``other``: what it is weighed against.
        text, other_text: of these.
    """

    token: int
    other: int
    text: str
    other_text: str

    def probability(self, logits: Tensor) -> Tensor:
        """[...] of logits [..., V]."""
        return torch.softmax(logits, -1)[..., self.token]

    def difference(self, logits: Tensor) -> Tensor:
        """[...] the answer's logit less the other's."""
        return logits[..., self.token] - logits[..., self.other]


def watched(vlm: VLM, logits: Tensor, answer: str | None = None, against: str | None = None) -> Watched:
    """What is watched in runs whose plain one gave these logits [V].

    Args:
        answer: a word; what the plain run would say first when None.
        against: a word; the best other in the plain run when None.

    Raises:
        BadInput: a word that the tokenizer does not know, or the same twice.
        NotANumber: the plain run's logits are no numbers.
    """
    if not bool(torch.isfinite(logits).any()):
        raise NotANumber("the plain run's logits are no numbers; load the model in bfloat16 or float32")
    token = int(logits.argmax()) if answer is None else first_token(vlm, answer)
    rest = logits.clone()
    rest[token] = -torch.inf
    other = int(rest.argmax()) if against is None else first_token(vlm, against)
    if other == token:
        raise BadInput(f"the answer and what it is weighed against begin with the same token, {against!r}")
    decode = vlm.processor.tokenizer.decode
    return Watched(token, other, decode([token]), decode([other]))


def first_token(vlm: VLM, word: str) -> int:
    """The first token of a word as an answer begins with it.

    Raises:
        BadInput: the tokenizer does not know it.
    """
    tokenizer = vlm.processor.tokenizer
    ids = tokenizer(f" {word.strip()}", add_special_tokens=False).input_ids
    ids = [token for token in ids if tokenizer.decode([token]).strip()]
    if not word.strip() or not ids:
        raise BadInput(f"{word!r} is no word of this tokenizer")
    return int(ids[0])


def traces_of(vlm: VLM, samples: Sequence[tuple[object, str]] | Sequence[Trace] | Trace) -> list[Trace]:
    """Samples asked, traces as they are."""
    from llava_probe.trace.capture import Capture

    listed = [samples] if isinstance(samples, Trace) else list(samples)
    if not listed:
        raise BadInput("there is no sample to sweep over")
    little = Capture(attention=False, hidden_states=False, scores=False)
    return [
        each if isinstance(each, Trace) else vlm.generate(each[0], each[1], max_new_tokens=1, capture=little)  # type: ignore[arg-type]
        for each in listed
    ]
