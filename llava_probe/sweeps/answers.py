"""What a sweep watches: the first word of the answer, its probability, and its logit beside another word's.

The probability of a word says little where it is near 0 or 1, and hides what pushes it down; the difference of two
logits is linear in what is written to the last state (Zhang and Nanda 2023, arXiv 2309.16042). So both are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llava_probe.errors import BadInput, NotANumber, OutOfRange
from llava_probe.model import VLM
from llava_probe.trace.capture import Capture
from llava_probe.trace.explained import At, positions
from llava_probe.trace.trace import Trace

#: What is asked of a sweep: traces, or pictures and questions.
SweepSamples = Trace | Sequence[Trace] | Sequence[Sequence[Any]]

#: Below this difference of logit differences there is nothing to bring back, and shares of it mean nothing.
LEAST_GAP = 0.5
#: What a sweep needs of a trace besides its prompt.
_LITTLE = Capture(attention=False, hidden_states=False, scores=False)


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


def watched(vlm: VLM, logits: Tensor, answer: str | int | None = None, against: str | int | None = None) -> Watched:
    """What is watched in runs whose plain one gave these logits [V].

    Args:
        vlm: whose tokenizer reads the words.
        logits: of the plain run.
        answer: a word or an id; what the plain run would say first when None.
        against: likewise; the best other in the plain run when None.

    Raises:
        BadInput: a word that the tokenizer does not know, or the same twice.
        NotANumber: the plain run's logits are no numbers.
    """
    if bool(torch.isnan(logits).any()):
        raise NotANumber("the plain run's logits are no numbers; load the model in bfloat16 or float32")
    token = int(logits.argmax()) if answer is None else first_token(vlm, answer)
    rest = logits.clone()
    rest[token] = -torch.inf
    other = int(rest.argmax()) if against is None else first_token(vlm, against)
    decode = vlm.processor.tokenizer.decode
    if other == token:
        raise BadInput(f"the answer and what it is weighed against begin with the same token, {decode([token])!r}")
    return Watched(token, other, decode([token]), decode([other]))


def first_token(vlm: VLM, word: str | int) -> int:
    """The first token of a word as an answer begins with it; an id as it is.

    Raises:
        BadInput: the tokenizer does not know it.
    """
    if isinstance(word, int):
        return word
    tokenizer = vlm.processor.tokenizer
    ids = tokenizer(f" {word.strip()}", add_special_tokens=False).input_ids if word.strip() else []
    ids = [token for token in ids if tokenizer.decode([token]).strip()]
    if not ids:
        raise BadInput(f"{word!r} is no word of this tokenizer")
    return int(ids[0])


def prompt_places(trace: Trace, at: At) -> tuple[int, ...]:
    """Positions of the prompt that ``at`` names; nothing where it has none."""
    try:
        return tuple(sorted({place for place in positions(trace, at) if place < trace.prompt_length}))
    except OutOfRange:
        return ()


def window_around(middle: int, width: int, layers: int) -> range:
    """The layers of a window, as far as there are any."""
    return range(max(0, middle - (width - 1) // 2), min(layers, middle + width // 2 + 1))


def way_of(trace: Trace) -> dict[str, Any]:
    """How ``generate`` is asked once more what a trace was asked, besides the picture."""
    request = trace.request
    settings: dict[str, Any] = {"processor_kwargs": dict(request.processor)}
    if request.question is None or request.messages is not None:
        return {"prompt": request.prompt, **settings}
    return {
        "question": request.question, "system": request.system, "template_kwargs": dict(request.template), **settings
    }  # fmt: skip


def asked_of(vlm: VLM, samples: SweepSamples) -> list[Trace]:
    """Samples asked, traces as they are.

    Raises:
        BadInput: none at all, or something that is neither.
    """
    try:
        listed = [samples] if isinstance(samples, Trace) else list(samples)
    except TypeError:
        raise BadInput(
            f"samples are a trace or a list of pictures and questions; got {type(samples).__name__}"
        ) from None
    if not listed:
        raise BadInput("there is no sample to sweep over")
    return [each if isinstance(each, Trace) else _asked(vlm, each) for each in listed]


def _asked(vlm: VLM, sample: Any) -> Trace:
    try:
        image, question = sample
    except (TypeError, ValueError):
        raise BadInput(f"a sample is a trace, or a picture and a question; got {type(sample).__name__}") from None
    return vlm.generate(image, question, max_new_tokens=1, capture=_LITTLE)
