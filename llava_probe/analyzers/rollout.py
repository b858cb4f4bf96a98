"""Attention followed back through the layers: whose information could have reached a token, step by step.

Abnar & Zuidema 2020, "Quantifying Attention Flow in Transformers" (arXiv 2005.00928), eq. 1: Â = (mean over heads
of A + I), rows normalised; R = Â_L ⋯ Â_1. Only the wanted rows of R are needed, so they are pulled back one layer at
a time, r ← r Â, and no P × P product is ever made. Rollout knows nothing of values or signs: in causal models it
piles up on the first tokens.

    trace = vlm.generate(image, question, capture=lp.Capture(attention_positions="all"))
    lp.rollout(trace, tokens="STOP")
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llava_probe.analyzers.attention import REDUCTIONS, Numbers, axis_list, by_word, chosen
from llava_probe.border import checked
from llava_probe.errors import BadInput, NotANumber, NotCaptured
from llava_probe.maps.maps import ImageMap
from llava_probe.trace.capture import in_units
from llava_probe.trace.explained import Tokens, explained, placed, queries, told
from llava_probe.trace.trace import Trace


@checked
def rollout(
    trace: Trace,
    image: int = 0,
    tokens: Tokens = None,
    layers: Numbers = None,
    heads: Numbers = None,
    *,
    reduce: str = "mean",
) -> ImageMap:
    """How much of each visual token could have flowed into each explained token's prediction.

    Args:
        trace: made with ``Capture(attention_positions="all")``.
        image, tokens: as for ``attention_map``.
        layers: which to follow back through; every layer of the model when None. Where some have no attention, name
            those that have: what the others pass on is then left out.
        heads: every head of the model when None.
        reduce: ``"mean"`` or ``"max"`` over the heads of a layer.

    Returns:
        ImageMap with values [tokens, N], each row a share of one.

    Raises:
        NotCaptured: rows of all positions, layers and heads were not kept; the message tells what that takes.
        OutOfRange: a picture, position, layer or head that is not there.
        BadInput: every layer was asked for, and some have no attention to follow.
    """
    if reduce not in REDUCTIONS:
        raise BadInput(f"reduce= takes {' or '.join(map(repr, REDUCTIONS))}; got {reduce!r}")
    layout = placed(trace, image)
    wanted, words = explained(trace, tokens)
    _check_kept(trace)
    count = trace.sizes.layers
    layer_list = axis_list("layers", layers) or _through(trace)
    head_list = axis_list("heads", heads) or list(range(trace.sizes.heads))
    trace.rows(at=[0], layer=layer_list, head=head_list)  # says so if one of them is not there or was not kept
    layer_list = sorted({layer % count for layer in layer_list})
    own = torch.eye(len(trace.tokens) - 1)
    rows = by_word(words, lambda at: own[queries(trace, at)])  # [T, K]
    for layer in reversed(layer_list):
        rows = rows @ _step(trace, layer, head_list, reduce)
    if bool(torch.isnan(rows).any()):
        raise NotANumber("attention rows hold NaN; in half precision this is an overflow: load the model in bfloat16")
    values = rows[:, torch.from_numpy(layout.positions)]
    about = {
        "unit": "share of attention flow",
        "tokens": told(tokens),
        "positions": words,
        "chosen": chosen(axis_list("layers", layers), axis_list("heads", heads)),
        "layers": layer_list,
        "heads": head_list,
        "reduce": reduce,
    }
    return ImageMap(values, layout, trace.images[image], wanted, "rollout", about=about)


def _through(trace: Trace) -> list[int]:
    """Every layer of the model."""
    others = trace.sizes.other_layers
    if others:
        kinds = ", ".join(f"{layer} ({kind})" for layer, kind in others.items())
        raise BadInput(
            f"rollout cannot be followed through layers without attention: {kinds}; pass "
            f"layers={list(trace.attention_layers)} to follow the others alone"
        )
    return list(range(trace.sizes.layers))


def _step(trace: Trace, layer: int, heads: Sequence[int], reduce: str) -> Tensor:
    """Â of one layer, [K, K]."""
    kept = trace.records["attention"][:, trace.attention_layers.index(layer)]  # [K, H, K], no copy
    count = trace.sizes.heads
    weights = kept[:, [trace.attention_heads.index(head % count) for head in heads]].float()
    mixed = weights.mean(1) if reduce == "mean" else weights.amax(1)
    mixed.diagonal().add_(1)
    return mixed / mixed.sum(1, keepdim=True)


def _check_kept(trace: Trace) -> None:
    fed = len(trace.tokens) - 1
    if len(trace.attention_positions) == fed:
        return
    layers, heads = trace.sizes.layers, trace.sizes.heads
    size = fed * fed * layers * heads * trace.sizes.itemsize
    kept = f"only {len(trace.attention_positions)}" if trace.attention_positions else "none"
    raise NotCaptured(
        f"rollout needs the attention rows of all {fed} positions and {kept} were kept; pass "
        f'Capture(attention_positions="all"): {fed} × {layers} layers × {heads} heads × {fed} weights take '
        f"{in_units(size)}"
    )
