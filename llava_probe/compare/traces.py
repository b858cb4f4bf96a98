"""Two traces beside each other: of two models, questions, pictures, or with and without an intervention.

    plain = vlm.generate(image, question)
    with lp.knock_out(vlm, keys="image", queries="last"):
        blind = vlm.generate(image, question)
    found = lp.compare(plain, blind, models=vlm)
    print(found)                     # words and how sure, where the answers part, what moved
    lp.figures.changed(found)

What follows the word at which two answers part was predicted after other words, so only the rows up to it are compared
inside: states, attention and lens. A trace holds no model; what needs one (``lens``, ``own``) is told to be left out
where none is given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llava_probe.analyzers.confidence import confidence
from llava_probe.border import checked
from llava_probe.compare.alignment import Alignment, align
from llava_probe.compare.comparison import TraceComparison
from llava_probe.compare.drift import drift_of
from llava_probe.compare.looking import looking_of, maps_of
from llava_probe.compare.own_heads import OwnHeads, own_heads
from llava_probe.compare.through_lens import through_lens
from llava_probe.errors import BadInput, NotCaptured
from llava_probe.model import VLM
from llava_probe.trace.explained import Tokens
from llava_probe.trace.trace import Trace

_WITHOUT = "a trace holds no model; compare(a, b, models=(...)) takes theirs"


@checked
def compare_traces(
    a: Trace,
    b: Trace,
    models: VLM | Sequence[VLM] | None = None,
    *,
    tokens: Tokens = None,
    image: int = 0,
) -> TraceComparison:
    """What is another in the second trace.

    Args:
        a, b: any two traces; what they kept is compared, and of what they did not ``left_out`` tells.
        models: of both, or one for each: for the lens, and for what each head writes on the same states. States that
            the traces did not keep are then computed again, under what is in force now.
        tokens: of the first, for the maps, as ``attention_map`` takes them; the content words when None. The second's
            are those that stand for them.
        image: which picture the maps are of.

    Raises:
        BadInput: more than two models, or models of other traces.
        OutOfRange: a token that is not there.
    """
    pair = _pair(models)
    aligned = align(a, b)
    left_out: dict[str, str] = {}

    def kept(name: str, found: Any) -> Any:
        if isinstance(found, str):
            left_out[name] = found
            return None
        return found

    said = kept("confidence", _confidence(a, b, aligned))
    logprob, entropy = (None, None) if said is None else said
    return TraceComparison(
        a,
        b,
        aligned,
        logprob,
        entropy,
        kept("maps", maps_of(a, b, aligned, tokens, image)),
        kept("attention", looking_of(a, b, aligned)),
        kept("drift", drift_of(a, b, aligned)),
        kept("lens", _WITHOUT if pair is None else _lens(pair, a, b, aligned)),
        kept("own heads", _WITHOUT if pair is None else _own(pair, a, b)),
        left_out,
    )


def _pair(models: VLM | Sequence[VLM] | None) -> tuple[VLM, VLM] | None:
    if models is None:
        return None
    given = [models] if isinstance(models, VLM) else list(models)
    if len(given) not in (1, 2):
        raise BadInput(f"models= takes the model of both traces, or one for each; got {len(given)}")
    return given[0], given[-1]


def _confidence(a: Trace, b: Trace, aligned: Alignment) -> tuple[Tensor, Tensor] | str:
    """[rows, 2] log-probability and entropy."""
    try:
        found = [confidence(trace) for trace in (a, b)]
    except NotCaptured as error:
        return str(error)
    logprob = torch.full((len(aligned.answer), 2), math.nan, dtype=torch.float64)
    entropy = logprob.clone()
    for row, places in enumerate(aligned.answer):
        for side, (place, trace, each) in enumerate(zip(places, (a, b), found, strict=True)):
            if place is not None:
                logprob[row, side] = float(each.logprob[place - trace.prompt_length])
                entropy[row, side] = float(each.entropy[place - trace.prompt_length])
    return logprob, entropy


def _lens(pair: tuple[VLM, VLM], a: Trace, b: Trace, aligned: Alignment) -> Any:
    rows = [(one - 1, other - 1) for one, other in aligned.shared]
    return through_lens(pair, (a, b), rows, parted(a, b, aligned))


def parted(a: Trace, b: Trace, aligned: Alignment) -> tuple[int, int, int] | None:
    """Which of the shared rows predicted the word at which two answers part, and the ids that each said there.

    None where they do not.
    """
    if not aligned.parted:
        return None
    one, other = aligned.shared[-1]
    return len(aligned.shared) - 1, a.tokens[one].id, b.tokens[other].id


def _own(pair: tuple[VLM, VLM], a: Trace, b: Trace) -> OwnHeads | str:
    if a.interventions or b.interventions:
        return "a trace was made under an intervention, which is not in the weights that are compared here"
    return own_heads(pair, a)
