"""Who wrote the word: a logit split exactly into what each head and each MLP wrote, and what each head read for it.

    written = lp.written_by(vlm, trace, "red")
    print(written.table())                    # the parts that gave most, and from where
    written.map(layer=5, head=3).overlay()    # what this head read off the photograph, signed
    lp.written_by(vlm, trace, "red", contrast="blue")

A decoder adds what its parts write into one residual stream, norms its length and reads the logit off it. With the
length that the norm divided by held as it was, the logit is a sum over parts (Elhage et al. 2021, "A Mathematical
Framework for Transformer Circuits"; direct logit attribution):

    logit = u·x₀ + Σ_l Σ_h u·o_lh + Σ_l u·m_l + biases,    u = the output embedding's row, through the final norm
    u·o_lh = Σ_k A_lhk (u·W_O v_lhk)                       what head h of layer l read at position k

It says who wrote, not why: a part that writes the word may have been told to by others before it, and what later parts
would have done without it is not asked (``lp.ablate`` asks that). How one pass is made into that sum is told in
``parts_pass.py``.
"""

from __future__ import annotations

import warnings

import torch

from llava_probe.analyzers.sinks import FIRST_LAYER, massive
from llava_probe.attribution.engine.forward import UncutProjections, frozen
from llava_probe.attribution.engine.target import continued, prompt_of, targets, visual_positions, warn_of_another
from llava_probe.border import checked
from llava_probe.errors import BadInput, BadModel, NotANumber, OutOfRange
from llava_probe.inside.passes import alone_with, in_force, visiting
from llava_probe.lens.parts_pass import PartsPass
from llava_probe.lens.parts_sum import split_of
from llava_probe.lens.written import Written
from llava_probe.model import VLM
from llava_probe.trace.explained import QUESTION, Place, positions, spans
from llava_probe.trace.trace import Trace


@checked
def written_by(
    vlm: VLM, trace: Trace, token: int | str | Place | None = None, contrast: str | int | None = None
) -> Written:
    """Split the logit of a generated token into what each part of the model wrote.

    Args:
        vlm: the model that made the trace; it runs once again, over prompt and answer up to the token, under what is in
            force now (``lp.knock_out`` ...).
        trace: of any capture.
        token: a position or a word of the answer; the first content word when None. Of a word of several tokens the
            first is split, the one that settles the word; of a word said several times, the first time.
        contrast: another word that might have stood there, or the id of its token: the difference of the two logits is
            split. Of a word of several tokens, its first counts.

    Returns:
        Written: the parts sum to ``written.logit`` within rounding, which is checked.

    Raises:
        OutOfRange: a position or word that the answer does not have, an id that the model does not have.
        BadInput: a contrast that begins with the same token, or a trace of another model.
        BadModel: the model's residual stream is no sum of its parts.
        NotANumber: the model's logits are NaN.
    """
    warn_of_another(vlm, trace)
    if trace.interventions and trace.interventions != in_force(vlm.anatomy):
        warnings.warn(
            "this trace was made under interventions that are not in force now: its answer is split without them",
            stacklevel=3,
        )
    step, ids, told = _asked(vlm, trace, token, contrast)
    fed = trace.prompt_length + step
    with alone_with(vlm.anatomy.model), torch.inference_mode(False), frozen(vlm.anatomy.model):
        parts = _pass(vlm, trace, tuple(each.id for each in trace.generated[: step + 1]))
        split = split_of(vlm.anatomy, parts, ids, fed)
    return Written(
        token=trace.generated[step],
        contrast=told,
        sources=_sources(trace)[:fed],
        sinks=_sinks(trace, parts),
        tokens=trace.tokens[:fed],
        layouts=tuple(trace.layouts),
        images=tuple(trace.images),
        about={
            "class": type(vlm.anatomy.model).__name__,
            "interventions": list(in_force(vlm.anatomy)),
            **{name: trace.provenance[name] for name in ("places",) if name in trace.provenance},
        },
        **vars(split),
    )


# --- what is asked ---


def _asked(
    vlm: VLM, trace: Trace, token: int | str | Place | None, contrast: str | int | None
) -> tuple[int, list[int], str | None]:
    """The step that is explained, its token's id and the other's, and what the other is called."""
    words = spans(trace, token)
    if not words or not words[0]:
        raise BadInput(f"token={token!r} names no token; leave it out for the first content word of the answer")
    said = trace.tokens[words[0][0]]
    if said.role != "generated":
        raise OutOfRange(
            f"token={token!r} names {said.text!r} at position {said.position}, in the prompt; only what the model said "
            f"was written by it ({trace.answer!r}, from {trace.prompt_length} on)"
        )
    step = said.position - trace.prompt_length
    if contrast is None:
        return step, [said.id], None
    if isinstance(contrast, str):
        weighed = targets(vlm, trace, [words[0]], contrast)[0][0]
        other, told = next(term.token for term in weighed.terms if term.sign < 0), contrast.strip()
    elif 0 <= contrast < vlm.anatomy.vocabulary:
        other, told = contrast, vlm.processor.tokenizer.decode([contrast]).strip() or f"id {contrast}"
    else:
        raise OutOfRange(f"contrast={contrast} is no token: this model has ids 0 to {vlm.anatomy.vocabulary - 1}")
    if other == said.id:
        raise BadInput(f"contrast={contrast!r} begins with {said.text!r}, as the word itself does; give another word")
    return step, [said.id, other], told


def _pass(vlm: VLM, trace: Trace, answer: tuple[int, ...]) -> PartsPass:
    """One pass over the prompt and the answer up to its last token, split into its parts."""
    inputs = dict(continued(vlm, trace, [answer])[0].inputs)
    if "logits_to_keep" in inputs:
        inputs["logits_to_keep"] = 1
    middle = range(FIRST_LAYER, vlm.anatomy.layers)
    parts = PartsPass(vlm.anatomy, middle, [0, *visual_positions(trace)])
    uncut, prompt = UncutProjections(), prompt_of(trace, answer)
    with visiting(vlm.anatomy, parts, uncut, prompts=[prompt]), torch.no_grad():
        vlm.model(**inputs)
    if parts.logits is None or parts.scores is None:
        raise BadModel(f"{type(vlm.anatomy.model).__name__} gives its logits past its output embedding")
    if not bool(torch.isfinite(parts.scores).all()):
        raise NotANumber("the model's logits are not all finite numbers; load it in bfloat16 or float32")
    return parts


# --- what was read ---


def _sources(trace: Trace) -> tuple[str, ...]:
    """Which source each position belongs to; without plain words of a question, all of the prompt's words are it."""
    pictured = {place for layout in trace.layouts for place in layout.positions.tolist()}
    pictured = pictured or set(visual_positions(trace))
    try:
        asked = set(positions(trace, QUESTION))
    except (BadInput, OutOfRange):
        asked = {token.position for token in trace.tokens if token.role == "prompt"}

    def source(place: int) -> str:
        if place in pictured:
            return "image"
        if place >= trace.prompt_length:
            return "answer"
        return "first" if place == 0 else "question" if place in asked else "template"

    return tuple(source(token.position) for token in trace.tokens)


def _sinks(trace: Trace, parts: PartsPass) -> tuple[int, ...]:
    """Positions of the visual tokens that are massive where the first token is."""
    visual = visual_positions(trace)
    if not parts.states or not visual:
        return ()
    states = torch.stack([parts.states[layer].float().cpu() for layer in sorted(parts.states)], 1)
    return tuple(torch.tensor(visual)[massive(states).marked].tolist())
