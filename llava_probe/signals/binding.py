"""What a fit of confidences belongs to: the model to its weights, dtype and kernel, the prompt, and the libraries.

A temperature of one model is no temperature of another, nor of the same model in another precision or asked with other
words. What a binding tells is read from traces, so nobody has to write it down, and it is compared before a fit is
used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llava_probe.asking.identity import differences
from llava_probe.errors import BadInput, shortened
from llava_probe.signals.rows import is_looped
from llava_probe.trace.request import to_plain
from llava_probe.trace.trace import Trace

#: Of a trace's provenance: all that decides a number of the model, and no name of a folder or a device.
_MODEL = (
    "class",
    "dtype",
    "attention",
    "quantization",
    "adapter",
    "config",
    "modules",
    "weights",
    "changed",
    "processor",
)
_LIBRARIES = ("torch", "transformers")


@dataclass(frozen=True)
class Binding:
    """What confidences were made with.

    Attributes:
        model: what decides its numbers: class, dtype, weights, adapter, processor ...
        prompt: the whole prompt; or, of different ones, how all of them begin and how all of them end.
        versions: of torch and transformers.
    """

    model: Mapping[str, Any]
    prompt: tuple[str, ...]
    versions: Mapping[str, str]

    @classmethod
    def of(cls, made: Any) -> Binding:
        """What some traces were made with.

        Args:
            made: a trace, several (each is read and let go), or something that tells its ``binding``.

        Raises:
            BadInput: none, or traces of different models.
        """
        if isinstance(made, Binding):
            return made
        if isinstance(found := getattr(made, "binding", None), Binding):
            return found
        if isinstance(made, Trace):
            made = [made]
        if not is_looped(made):
            raise BadInput(f"of= takes the traces that the confidences were read from; got {type(made).__name__}")
        whole: Binding | None = None
        for number, trace in enumerate(made):
            if not isinstance(trace, Trace):
                raise BadInput(f"of= takes traces; number {number} is a {type(trace).__name__}")
            own = cls(_model_of(trace), (_prompt_of(trace),), _versions_of(trace))
            whole = own if whole is None else whole.joined(own, f"number {number}")
        if whole is None:
            raise BadInput("of= takes the traces that the confidences were read from; got none")
        return whole

    def joined(self, other: Binding, name: str) -> Binding:
        """Both together; their prompts may differ in the middle.

        Args:
            other: of one trace; ``name``: it goes by, for the sentence.

        Raises:
            BadInput: it is of another model.
        """
        for mine, others in ((self.model, other.model), (self.versions, other.versions)):
            if apart := differences(mine, others):
                raise BadInput(f"the traces are of different models: {name} differs in {'; '.join(apart)}")
        return Binding(self.model, _shared(self.prompt, other.prompt[0]), self.versions)

    def check(self, made: Binding, what: str) -> None:
        """Refuse what was made otherwise.

        Args:
            made: with what; ``what`` is refused, for the sentence: "this calibrator".

        Raises:
            BadInput: another model, precision, version, or prompt.
        """
        both: tuple[tuple[str, Any, Any], ...] = (
            ("model", self.model, made.model),
            ("versions", self.versions, made.versions),
        )
        for name, mine, other in both:
            if apart := differences(mine, other):
                raise BadInput(f"{what} was fitted with other {name} ({'; '.join(apart)}): fit it anew on these")
        first, last = self.prompt[0], self.prompt[-1]
        fits = made.prompt == self.prompt if len(self.prompt) == 1 else _frames(first, last, made.prompt)
        if not fits:
            told = " ... ".join(shortened(repr(part)) for part in self.prompt)
            here = " ... ".join(shortened(repr(part)) for part in made.prompt)
            raise BadInput(f"{what} was fitted on the prompt {told}; it is no fit for {here}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {"model": dict(self.model), "prompt": list(self.prompt), "versions": dict(self.versions)}


def _model_of(trace: Trace) -> dict[str, Any]:
    told = {name: trace.provenance[name] for name in _MODEL if trace.provenance.get(name) is not None}
    if trace.request.processor:
        told["processor_kwargs"] = to_plain(dict(trace.request.processor))
    if trace.interventions:
        told["interventions"] = [dict(each) for each in trace.interventions]
    return dict(json.loads(json.dumps(told, default=str)))


def _versions_of(trace: Trace) -> dict[str, str]:
    versions = trace.provenance.get("versions", {})
    return {name: str(versions[name]) for name in _LIBRARIES if name in versions}


def _prompt_of(trace: Trace) -> str:
    if trace.request.prompt is not None:
        return trace.request.prompt
    return "".join(token.text for token in trace.tokens[: trace.prompt_length] if token.role != "image")


def _shared(frame: tuple[str, ...], prompt: str) -> tuple[str, ...]:
    """How both begin and how both end, in whole words; the prompt alone where they are the same."""
    if frame == (prompt,):
        return frame
    begin = _begin(frame[0], prompt)
    if begin not in (frame[0], prompt):
        begin = re.sub(r"\w+$", "", begin)
    end = _begin(frame[-1][::-1], prompt[len(begin) :][::-1])[::-1]
    if end not in (frame[-1], prompt[len(begin) :]):
        end = re.sub(r"^\w+", "", end)
    return begin, end


def _begin(one: str, other: str) -> str:
    """The letters with which both begin."""
    same = next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
    return one[:same]


def _frames(first: str, last: str, prompt: tuple[str, ...]) -> bool:
    if len(prompt) == 1 and len(prompt[0]) < len(first) + len(last):
        return False
    return prompt[0].startswith(first) and prompt[-1].endswith(last)
