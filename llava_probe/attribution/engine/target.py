"""What is explained: a token, a word or the whole answer, and rather than what.

    targets(vlm, trace, None)                      # the answer's content words, a target each
    targets(vlm, trace, "stop sign")               # one target of two tokens, for each time that it was said
    targets(vlm, trace, "red", contrast="blue")    # why "red" rather than "blue" in that place

A target is a sum of terms, each one token's log-probability (or logit) at one step of a teacher-forced continuation of
the prompt: the trace's own answer, or, where a contrast has several tokens, the answer up to there and the contrast.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn import functional

from llava_probe.asking.answers import answer_ids, check_answer
from llava_probe.asking.generation import teacher_forced
from llava_probe.asking.identity import model_of, other_model
from llava_probe.asking.prompts import asked_again
from llava_probe.border import Limits
from llava_probe.errors import BadInput, OutOfRange
from llava_probe.inside.passes import Prompt, Visitor, alone_with, visiting
from llava_probe.layout import ImageLayout, PromptLayouts
from llava_probe.model import VLM
from llava_probe.trace.explained import Tokens, as_one, spans
from llava_probe.trace.tokens import Token
from llava_probe.trace.trace import Trace

#: A word, which a gradient is taken through the whole of.
_Word = Annotated[str, Limits(0, 200)]
#: The word that might have stood there, or one for each target.
Contrast = _Word | Sequence[_Word | None] | None
#: What is differentiated or measured: a log-probability in nats, or the raw logit.
QUANTITIES = ("logprob", "logit")


@dataclass(frozen=True)
class Term:
    """One token's share of a target.

    Attributes:
        continuation: of which continuation; ``step``: at which token of it.
        token: whose logit or log-probability.
        sign: 1, or -1 for what it is weighed against.
    """

    continuation: int
    step: int
    token: int
    sign: int = 1


@dataclass(frozen=True)
class Target:
    """What one row of a map explains: a token that stands for all it was spelled with, and its terms.

    Attributes:
        token, terms: as above; ``positions``: of all its tokens in the trace.
        contrast: the word that it is weighed against.
    """

    token: Token
    positions: tuple[int, ...]
    terms: tuple[Term, ...]
    contrast: str | None = None

    @property
    def against(self) -> int:
        """The continuation that it is weighed against; 0 where all its terms are of the answer's own."""
        return max(term.continuation for term in self.terms)

    def of(self, continuation: int) -> tuple[Term, ...]:
        """The terms that one continuation gives."""
        return tuple(term for term in self.terms if term.continuation == continuation)

    def steps(self, continuation: int) -> list[int]:
        """The steps of one continuation that it rests on."""
        return sorted({term.step for term in self.of(continuation)})

    def value(self, continuation: int, logits: Tensor, quantity: str | None) -> Tensor:
        """[...] one continuation's part of the target, from its logits [..., steps, V], in float32 at least."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        total = logits.new_zeros(logits.shape[:-2])
        for term in self.of(continuation):
            total = total + term.sign * _measured(logits[..., term.step, :], term.token, quantity)
        return total


def _measured(logits: Tensor, token: int, quantity: str | None) -> Tensor:
    """A token's logit, or its log-probability with a gradient that is right near certainty too.

    log p = -softplus(logsumexp of the others - own): where p rounds to one, log_softmax's gradient loses the token
    itself and keeps its rivals.
    """
    own = logits[..., token]
    if quantity == "logit":
        return own
    hidden = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    hidden[token] = True
    others = torch.logsumexp(logits.masked_fill(hidden, float("-inf")), dim=-1)
    return -functional.softplus(others - own)


@dataclass(frozen=True, eq=False)
class Continuation:
    """The prompt and one way to go on, as inputs of one teacher-forced pass."""

    inputs: Mapping[str, Any]
    answer: tuple[int, ...]
    shared: int  # positions that it has in common with the trace's own sequence

    @property
    def length(self) -> int:
        """How many tokens it feeds to the model."""
        return int(self.inputs["input_ids"].shape[1])


@dataclass(frozen=True, eq=False)
class Task:
    """One call of ``attribute``: everything that a method needs.

    Attributes:
        vlm, trace: the model, and the answer explained.
        layout: where the visual tokens of the explained picture lie; ``image``: which picture it is.
        targets: one for each row of the map.
        answers: ids of each continuation of the prompt: the answer, then contrasts of several tokens.
        quantity: ``"logprob"`` or ``"logit"``; None for what each method was published with.
        told: how a map tells which tokens were asked for.
    """

    vlm: VLM
    trace: Trace
    layout: ImageLayout
    image: int
    targets: tuple[Target, ...]
    answers: tuple[tuple[int, ...], ...]
    quantity: str | None = None
    told: str = "content words"

    def measured(self, quantity: str) -> Task:
        """The same with this quantity, where none was asked for; the processor does not run again."""
        if self.quantity is not None:
            return self
        settled = replace(self, quantity=quantity)
        settled.__dict__["continuations"] = self.continuations
        return settled

    @property
    def fed(self) -> int:
        """How many tokens of prompt and answer the model reads."""
        return len(self.trace.tokens) - 1

    @property
    def places(self) -> Tensor:
        """[N] sequence positions of the picture's visual tokens."""
        return torch.from_numpy(self.layout.positions)

    @property
    def passes(self) -> list[int]:
        """The continuations that targets are weighed against, 0 for none: one pass with a graph for each."""
        return sorted({target.against for target in self.targets})

    @property
    def forwards(self) -> int:
        """Sequences put through the model for the gradients of every target; a second one goes alone first."""
        return sum(3 if number else 1 for number in self.passes)

    @property
    def backwards(self) -> int:
        """Sequences that the gradients of every target go back through."""
        return sum(2 if target.against else 1 for target in self.targets)

    @property
    def contrasts(self) -> tuple[str | None, ...]:
        """The word that each target is weighed against."""
        return tuple(target.contrast for target in self.targets)

    @property
    def contrasted(self) -> bool:
        """Whether some target is weighed against another word."""
        return any(term.sign < 0 for target in self.targets for term in target.terms)

    @cached_property
    def continuations(self) -> tuple[Continuation, ...]:
        """The inputs of each continuation; the processor runs once.

        Raises:
            BadInput: the prompt comes out in other tokens here (the trace is of another model or processor), or the
                answer holds the token that stands for a picture.
        """
        return continued(self.vlm, self.trace, self.answers)

    def prompt(self, number: int) -> Prompt:
        """What a pass of one continuation holds, for what visits it."""
        return prompt_of(self.trace, self.answers[number])

    def logits(self, number: int, *visitors: Visitor, **changed: Any) -> Tensor:
        """[B, steps, V] of one pass over a continuation, under whatever is in force.

        Args:
            number: of the continuation.
            *visitors: of this pass.
            **changed: inputs in the place of its own.
        """
        inputs = {**self.continuations[number].inputs, **changed}
        with visiting(self.vlm.anatomy, *visitors, prompts=[self.prompt(number)]):
            return self.vlm.model(**inputs).logits  # type: ignore[no-any-return]

    def position(self, step: int) -> int:
        """The sequence position whose logits predict a step."""
        return self.trace.prompt_length - 1 + step


def continued(vlm: VLM, trace: Trace, answers: Sequence[tuple[int, ...]]) -> tuple[Continuation, ...]:
    """The inputs of a trace's prompt with each of some answers; the processor runs once.

    Raises:
        BadInput: the prompt comes out in other tokens here (the trace is of another model or processor), or an answer
            holds the token that stands for a picture.
    """
    for answer in answers:
        check_answer(answer, vlm.anatomy.vocabulary, vlm.visual_ids)
    asked = asked_again(trace.images, trace.request)
    tensors, prompts = vlm.prepare([asked], trace.request.processor)
    ids = tensors["input_ids"][0, prompts[0].padding :].tolist()
    length = trace.prompt_length
    if ids[:length] != [token.id for token in trace.tokens[:length]]:
        raise BadInput("this trace is of another model or processor: its prompt comes out in other tokens here")
    own, inside = answers[0], vlm.anatomy
    return tuple(
        Continuation(
            {**teacher_forced(inside.model, tensors, answer), **inside.everywhere}, answer, length + _alike(own, answer)
        )
        for answer in answers
    )


def prompt_of(trace: Trace, answer: Sequence[int]) -> Prompt:
    """What a pass over a trace's prompt and an answer holds, for what visits it."""
    ids = (*(token.id for token in trace.tokens[: trace.prompt_length]), *answer[:-1])
    visual, question = tuple(visual_positions(trace)), trace.request.question
    return Prompt(trace.prompt_length, 0, visual, ids, question, lay_out=lambda: PromptLayouts(trace.layouts))


def warn_of_another(vlm: VLM, trace: Trace) -> None:
    """Say so where a trace is not of this model: an adapter was switched, a weight changed, or it is another one."""
    with alone_with(vlm.anatomy.model):
        here = model_of(vlm.anatomy, vlm.model)
    if other := other_model(trace.provenance, here):
        warnings.warn(
            f"another model made this trace ({'; '.join(other)}): what this one makes of its answer is explained; "
            "vlm.rerun(trace, answer=trace.generated_ids) gives this model's own trace of it",
            stacklevel=4,
        )


def visual_positions(trace: Trace) -> list[int]:
    """Positions of all visual tokens, of every picture."""
    return [token.position for token in trace.tokens if token.role == "image"]


def targets(
    vlm: VLM, trace: Trace, tokens: Tokens = None, contrast: Contrast = None
) -> tuple[tuple[Target, ...], tuple[tuple[int, ...], ...]]:
    """The targets that ``tokens`` names, and the continuations that they rest on.

    Args:
        vlm: whose tokenizer spells the contrast.
        trace: whose answer is explained.
        tokens: words, positions or places of the answer, a target for each of ``explained.spans``; the content words
            when None.
        contrast: a word, or one for each target.

    Raises:
        OutOfRange: a position or word that the answer does not have.
        BadInput: no target at all, or contrasts that do not fit.
    """
    words = _spans(trace, tokens)
    answers = [tuple(token.id for token in trace.generated)]
    listed = isinstance(contrast, Iterable) and not isinstance(contrast, str)
    others: list[Any] = [*contrast] if listed and contrast is not None else [contrast] * len(words)
    if tokens is None and isinstance(contrast, str) and len(words) > 1:
        said = ", ".join(repr(as_one(trace, word).text.strip()) for word in words)
        raise BadInput(f"contrast= stands against one word, and this answer has {len(words)} ({said}); give tokens=")
    if not all(other is None or isinstance(other, str) for other in others):
        raise BadInput(f"contrast= takes the word that might have stood there, as text; got {contrast!r}")
    if len(others) != len(words):
        raise BadInput(f"contrast= takes one word, or one for each of {len(words)} targets; got {len(others)}")
    found = []
    for word, other in zip(words, others, strict=True):
        span = [position - trace.prompt_length for position in word]
        terms = [Term(0, step, answers[0][step]) for step in span]
        if other is not None:
            terms += _against(vlm, trace, answers, span, other)
        found.append(Target(as_one(trace, word), tuple(word), tuple(terms), other))
    return tuple(found), tuple(answers)


# --- which words ---


def _spans(trace: Trace, tokens: Tokens) -> list[list[int]]:
    """The positions of each target, all in the answer."""
    try:
        found = spans(trace, tokens)
    except OutOfRange as error:
        raise OutOfRange(f"{error}; what the model did not say is explained with text=") from error
    if not found or not all(found):
        raise BadInput(f"tokens={tokens!r} names no token; leave it out for the content words of the answer")
    for span in found:
        if span[0] < trace.prompt_length:
            raise OutOfRange(
                f"tokens={tokens!r} names {trace.tokens[span[0]].text!r} at position {span[0]}, in the prompt; only "
                f"what the model said is explained ({trace.answer!r}, at {trace.prompt_length} to "
                f"{len(trace.tokens) - 1}), and what it did not say with text="
            )
    return found


# --- rather than what ---


def _against(vlm: VLM, trace: Trace, answers: list[tuple[int, ...]], span: Sequence[int], word: str) -> list[Term]:
    """Terms of the word that might have stood there; a continuation is added where it has several tokens."""
    if list(span) != list(range(span[0], span[-1] + 1)):
        raise BadInput("contrast= explains one word rather than another; these tokens do not stand together")
    ids = _spelled(vlm, trace, span, word)
    if set(vlm.visual_ids) & set(ids):
        raise BadInput(f"contrast={word!r} holds the token that stands for a picture; give a word")
    own = answers[0]
    if ids == own[span[0] : span[-1] + 1]:
        raise BadInput(f"contrast={word!r} is what the model said there; give another word")
    if len(ids) == 1:
        return [Term(0, span[0], ids[0], -1)]
    answers.append((*own[: span[0]], *ids))
    return [Term(len(answers) - 1, span[0] + index, token, -1) for index, token in enumerate(ids)]


def _spelled(vlm: VLM, trace: Trace, span: Sequence[int], word: str) -> tuple[int, ...]:
    """The ids that would spell ``word`` in the place of a span."""
    if not word.strip():
        raise BadInput("contrast= takes the word that might have stood there; got an empty text")
    tokenizer = vlm.processor.tokenizer
    if word.strip() in tokenizer.all_special_tokens:
        return (tokenizer.convert_tokens_to_ids(word.strip()),)
    own = tuple(token.id for token in trace.generated)
    before = own[: span[0]]
    said = "".join(token.text for token in trace.generated[: span[0]])
    spaced = trace.generated[span[0]].text[:1].isspace() or bool(before and own[span[0]] in trace.ends)
    prompt = [token.id for token in trace.tokens[: trace.prompt_length]]
    asked = asked_again(trace.images, trace.request)
    whole = answer_ids(vlm.processor, asked, prompt, f"{said}{' ' * spaced}{word.strip()}", vlm.answer_ends)
    if whole[-1] in vlm.answer_ends:
        whole = whole[:-1]
    if whole[: len(before)] == before and len(whole) > len(before):
        return whole[len(before) :]
    return tuple(tokenizer(" " * spaced + word.strip(), add_special_tokens=False).input_ids)


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two answers begin with in common, among those that are fed."""
    pairs = zip(one[:-1], other[:-1], strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)) - 1)
