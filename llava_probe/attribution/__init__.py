"""Why this word: each method of the field run on one answer, all with the same call and the same kind of map.

    lp.attribute(vlm, trace)                                  # relevance, a row for each content word
    lp.attribute(vlm, trace, "occlusion", tokens="red", window=3)
    lp.attribute(vlm, trace, "relevance", tokens="red", contrast="blue")
    lp.attribute(vlm, trace, "gradient", text="green")        # a word that the model did not say
    lp.METHODS["tam"]                                         # what it is, and which options it takes

Each method is one file with its equation and its source. Which of them to trust is measured: see
``llava_probe.evaluate`` and ``figures/leaderboard.md``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llava_probe.attribution.attention import attention, relative_attention
from llava_probe.attribution.attention_gradient import attention_gradient
from llava_probe.attribution.attnlrp import attnlrp
from llava_probe.attribution.cam import llava_cam
from llava_probe.attribution.engine.found import Found
from llava_probe.attribution.engine.target import QUANTITIES, Contrast, Target, Task, targets, warn_of_another
from llava_probe.attribution.gradient import gradient, input_x_gradient
from llava_probe.attribution.integrated import integrated_gradients
from llava_probe.attribution.localisation import LocalisationHeads, find_heads, localisation_heads
from llava_probe.attribution.occlusion import occlusion
from llava_probe.attribution.relevance import relevance
from llava_probe.attribution.rise import rise
from llava_probe.attribution.rollout import rollout
from llava_probe.attribution.tam import tam
from llava_probe.border import checked
from llava_probe.errors import BadInput, NotANumber
from llava_probe.inside.passes import in_force
from llava_probe.maps.maps import ImageMap
from llava_probe.model import VLM
from llava_probe.trace.capture import Capture
from llava_probe.trace.explained import ANSWER, Tokens, seen, told
from llava_probe.trace.trace import Trace

__all__ = ["METHODS", "LocalisationHeads", "Method", "Target", "Task", "attribute", "find_heads"]


@dataclass(frozen=True)
class Method:
    """One method of attribution.

    Attributes:
        run: takes a ``Task`` and the method's own options.
        family: ``"attention"``, ``"gradient"``, ``"propagation"``, ``"activation"``, ``"perturbation"`` or ``"heads"``.
        contrasts: whether it can explain one word rather than another.
        of: what it was published with. Relevance is no multiple of its target's gradient: near certainty, where
            log-probabilities hardly move, all but its first step would fade away.
    """

    run: Callable[..., Found]
    family: str
    contrasts: bool = True
    of: str = "logprob"

    @property
    def about(self) -> str:
        """What it is, in a line."""
        return (inspect.getdoc(self.run) or "").splitlines()[0]

    @property
    def options(self) -> Mapping[str, Any]:
        """Its own options and their defaults."""
        named = inspect.signature(self.run).parameters
        return {name: each.default for name, each in named.items() if each.kind is each.KEYWORD_ONLY}

    def __repr__(self) -> str:
        told = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"Method({self.family}: {self.about} Options: {told or 'none'})"


#: Every method by name.
METHODS: Mapping[str, Method] = {
    "attention": Method(attention, "attention", contrasts=False),
    "rollout": Method(rollout, "attention", contrasts=False),
    "relative_attention": Method(relative_attention, "attention", contrasts=False),
    "attention_gradient": Method(attention_gradient, "attention"),
    "gradient": Method(gradient, "gradient"),
    "input_x_gradient": Method(input_x_gradient, "gradient"),
    "llava_cam": Method(llava_cam, "gradient"),
    "integrated_gradients": Method(integrated_gradients, "gradient"),
    "relevance": Method(relevance, "propagation", of="logit"),
    "attnlrp": Method(attnlrp, "propagation", of="logit"),
    "tam": Method(tam, "activation", contrasts=False),
    "localisation_heads": Method(localisation_heads, "heads", contrasts=False),
    "occlusion": Method(occlusion, "perturbation"),
    "rise": Method(rise, "perturbation"),
}


@checked
def attribute(
    vlm: VLM,
    trace: Trace,
    method: str = "relevance",
    image: int = 0,
    tokens: Tokens = None,
    *,
    contrast: Contrast = None,
    text: str | None = None,
    of: str | None = None,
    **options: Any,
) -> ImageMap:
    """Explain tokens of an answer by one picture.

    Args:
        vlm: the model that made the trace; it runs again, teacher-forced, under what is in force now (``lp.knock_out``
            ...). Of another model with the same tokens, what that one makes of the answer is explained, with a warning;
            ``vlm.rerun(trace, answer=trace.generated_ids)`` says that it is meant.
        trace: of any capture.
        method: one of ``lp.METHODS``.
        image: which picture.
        tokens: what each row explains: None for each content word of the answer; a word (a row for each time that it
            was said, its tokens together); ``lp.ANSWER`` for the whole answer; ``lp.GENERATED`` for each token; a
            position; or a list of these, in which a list of positions is one word.
        contrast: explain why this word rather than that one: their log-probabilities' difference in that place. One
            word, or one for each row. A contrast of several tokens is read beside the answer, as a sequence that begins
            with it, and what gradients are weighed there is the difference's.
        text: another answer, scored and explained in place of the model's own; as a whole where ``tokens`` is None.
        of: ``"logprob"`` (nats) or ``"logit"``; what the method was published with when None.
        **options: of the method, as ``lp.METHODS[method].options`` lists them.

    Returns:
        ImageMap with values [rows, N]; ``text`` holds the same for the other tokens, where the method has a value for
        them; ``about["forwards"]`` and ``["backwards"]`` count the passes through the model, and
        ``about["positions"]`` lists each row's tokens, ``about["tokens"]`` tells which were asked for.

    Raises:
        BadInput: an unknown method or option, or a contrast that the method has no meaning for.
        OutOfRange: a word, position or picture that is not there.
        BadModel: something that the method needs and this model has not.
        NotANumber: the method's values are NaN; the message names the layer.
    """
    made = prepared(vlm, trace, method, image, tokens, contrast=contrast, text=text, of=of, options=options)
    return explained_by(made, method, options)


@checked
def prepared(
    vlm: VLM,
    trace: Trace,
    method: str,
    image: int = 0,
    tokens: Tokens = None,
    *,
    contrast: Contrast = None,
    text: str | None = None,
    of: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Task:
    """The task of one ``attribute`` call, checked; several methods may share it."""
    chosen = method_of(method, options or {})
    if of is not None and of not in QUANTITIES:
        raise BadInput(f"of= takes {' or '.join(map(repr, QUANTITIES))}; got {of!r}")
    if contrast is not None and not chosen.contrasts:
        raise BadInput(f"{method} does not weigh one word against another, so it knows no contrast; try relevance")
    if text is not None:
        trace = vlm.rerun(trace, answer=text, capture=Capture(hidden_states=False, attention=False, logits=False))
        tokens = ANSWER if tokens is None else tokens
    warn_of_another(vlm, trace)
    layout = seen(trace, image)
    found, answers = targets(vlm, trace, tokens, contrast)
    return Task(vlm, trace, layout, image % len(trace.images), found, answers, of, told(tokens))


@checked
def explained_by(task: Task, method: str, options: Mapping[str, Any] | None = None) -> ImageMap:
    """The map of one method for a prepared task."""
    chosen = method_of(method, options or {})
    task = task.measured(chosen.of)
    with torch.inference_mode(False):  # what is made inside it can have no gradient, nor be written to outside
        found = chosen.run(task, **(options or {}))
    layout = found.layout or task.layout
    values, beside = found.values, None
    if found.positions is not None:
        others = [token for token in task.trace.tokens[: task.fed] if token.role != "image"]
        beside = found.positions[:, [token.position for token in others]], tuple(others)
        values = found.positions[:, task.places]
    assert values is not None
    _check_finite(method, values, task)
    return ImageMap(
        values,
        layout,
        task.trace.images[task.image],
        tuple(target.token for target in task.targets),
        method,
        about={
            "unit": found.unit,
            "of": task.quantity,
            "image": task.image,
            "contrast": list(task.contrasts) if task.contrasted else None,
            "tokens": task.told,
            "positions": [list(target.positions) for target in task.targets],
            "forwards": found.forwards,
            "backwards": found.backwards,
            "interventions": list(in_force(task.vlm.anatomy)),
            **found.about,
        },
        text=None if beside is None else beside[0],
        text_tokens=() if beside is None else beside[1],
    )


def method_of(name: str, options: Mapping[str, Any]) -> Method:
    """One of ``METHODS``, which takes these options.

    Raises:
        BadInput: an unknown method or option.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise BadInput(f"method {name!r} is not known; lp.METHODS has {', '.join(METHODS)}")
    method = METHODS[name]
    wrong = [option for option in options if option not in method.options]
    if wrong:
        takes = ", ".join(f"{option}={value!r}" for option, value in method.options.items()) or "none"
        raise BadInput(f"{name} has no option {wrong[0]}=; it takes {takes}")
    return method


def _check_finite(method: str, values: Tensor, task: Task) -> None:
    wrong = (~torch.isfinite(values)).any(1).nonzero().flatten().tolist()
    if wrong:
        raise NotANumber(
            f"{method}: the values of {task.targets[wrong[0]].token.text!r} are NaN or infinite although every layer's "
            "output is finite, so a gradient overflowed; load the model in bfloat16 or float32"
        )
