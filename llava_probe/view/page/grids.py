"""The attention rows of a trace as a page holds them: means over all, over heads, and as many single heads as fit.

Every head of every layer for every word is 29 million values in a 7B model with 50 words: more than a page should
weigh. What a page always holds, for each explained token: the mean over all layers and heads, and each head's share on
the picture. Then, as far as its budget goes: each layer's mean over heads, and single heads, those that look at the
picture most first; of the other heads it has the mean over the answer. ``reduced`` tells what was left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llava_probe.arrays import FloatArray, IntArray
from llava_probe.trace.explained import queries
from llava_probe.trace.trace import Trace
from llava_probe.view.page.packing import Parcel, deflated, quantise

#: Of the budget: what the means over heads of each layer may take before they are thinned out.
_LAYERS = 0.5
#: Heads that are compressed to see how small they get.
_TRIED = 4
#: How far the estimate from these is trusted.
_TRUST = 0.9


@dataclass(frozen=True)
class _Sums:
    """What one pass over the rows leaves: each query's means, and each head's over the answer."""

    mean: FloatArray  # [Q, N]
    layers: FloatArray  # [L, Q, N]
    shares: FloatArray  # [Q, L, H]
    heads: FloatArray  # [L, H, N]


def explained_positions(trace: Trace) -> list[int]:
    """The tokens whose row was kept: words of the prompt by their own row, generated ones by the row before."""
    kept = set(trace.attention_positions)
    prompt = [
        token.position
        for token in trace.tokens[: trace.prompt_length]
        if token.role != "image" and token.position in kept
    ]
    generated = [token.position for token in trace.generated if token.position - 1 in kept]
    predicting_only = kept <= set(trace.predicting)
    return generated if predicting_only else prompt + generated


def attention_data(trace: Trace, parcel: Parcel, budget: int) -> dict[str, Any] | None:
    """The attention of a trace on each of its pictures; None where there is none, a sentence where it cannot be shown.

    Args:
        trace: with attention rows.
        parcel: where the arrays go.
        budget: bytes, compressed, that they may take.
    """
    if not trace.kept("attention") or not trace.layouts:
        return None
    explained = explained_positions(trace)
    if not explained:
        return None
    at = queries(trace, explained)
    total = sum(len(layout) for layout in trace.layouts)
    pictures: list[dict[str, Any] | None] = []
    told = []
    for layout in trace.layouts:
        if not len(layout):
            pictures.append(None)
            continue
        own = int(budget * len(layout) / total)
        data, reduced = _picture_data(trace, at, explained, layout.positions, parcel, own)
        if data is None:
            return {"refused": reduced}
        pictures.append(data)
        told.append(reduced)
    return {
        "tokens": explained,
        "layers": list(trace.attention_layers),
        "heads": list(trace.attention_heads),
        "pictures": pictures,
        "reduced": next(filter(None, told), ""),
    }


def _picture_data(
    trace: Trace, at: Sequence[int], explained: Sequence[int], columns: IntArray, parcel: Parcel, budget: int
) -> tuple[dict[str, Any] | None, str]:
    sums = _summed(trace, at, explained, columns)
    if not np.isfinite(sums.mean).all():
        return None, "attention rows hold NaN: nothing is drawn; in half precision load the model in bfloat16"
    layers, heads = len(trace.attention_layers), len(trace.attention_heads)
    fine = np.uint16 if sums.mean.size * 2 < budget / 4 else np.uint8
    data: dict[str, Any] = {
        "mean": parcel.quantised(sums.mean, fine),
        "shares": parcel.quantised(sums.shares, np.uint16),
        "ofHeads": None,
    }
    means, mean_scales = quantise(sums.heads, np.uint8)
    left = budget - _size(sums.mean, fine) - _size(sums.shares, np.uint16)
    if len(deflated(means.tobytes())) < left / 2:
        left -= len(deflated(means.tobytes()))
        data["ofHeads"] = parcel.steps(means, mean_scales, late=True)
    steps, scale = quantise(sums.layers, np.uint8)
    fit = max(1, int(layers * _LAYERS * left / max(1, len(deflated(steps.tobytes())))))
    chosen = np.unique(np.linspace(0, layers - 1, min(layers, fit)).round().astype(int))
    data["layers"] = parcel.steps(steps[chosen], scale[chosen], late=len(chosen) * sums.mean.size > budget / 8) | {
        "kept": chosen.tolist()
    }
    left -= len(deflated(steps[chosen].tobytes()))
    kept = _fitting(trace, at, columns, sums.shares.mean(0), left)
    steps, scale = _of_heads(trace, at, columns, kept)
    data["heads"] = parcel.steps(steps, scale, late=True) | {"kept": [[int(a), int(b)] for a, b in kept]}
    told = []
    if len(chosen) < layers:
        told.append(f"{len(chosen)} of {layers} layers")
    if len(kept) < layers * heads:
        told.append(f"{len(kept):,} of {layers * heads:,} heads, those with most on the picture,")
    if not told:
        return data, ""
    others = "of the other heads this page has the mean over the answer" if data["ofHeads"] else "others had no room"
    return data, f"{' and '.join(told)} are kept word by word; {others}. The trace holds them all."


def _size(values: FloatArray, kind: type[np.generic]) -> int:
    """Bytes that maps take, quantised and compressed."""
    return len(deflated(quantise(values, kind)[0].tobytes()))


def _rows(trace: Trace, at: Sequence[int], columns: IntArray) -> Iterator[FloatArray]:
    """[L, H, N] float32 of one query after another."""
    return (row[..., columns].float().numpy() for row in trace.each_row(list(at)))


def _summed(trace: Trace, at: Sequence[int], explained: Sequence[int], columns: IntArray) -> _Sums:
    means, layers, shares = [], [], []
    heads: FloatArray = np.zeros((1, 1, 1), np.float32)
    answer = 0
    for position, row in zip(explained, _rows(trace, at, columns), strict=True):
        means.append(row.mean((0, 1)))
        layers.append(row.mean(1))
        shares.append(row.sum(-1))
        if position >= trace.prompt_length:
            heads = heads + row
            answer += 1
    return _Sums(np.stack(means), np.stack(layers, 1), np.stack(shares), heads / max(1, answer))


def _fitting(trace: Trace, at: Sequence[int], columns: IntArray, shares: FloatArray, left: int) -> IntArray:
    """[kept, 2] (layer, head), by index, of the heads that fit into ``left`` bytes; by share, then put in order."""
    order = np.argsort(-shares, axis=None, kind="stable")
    places = np.stack(np.unravel_index(order, shares.shape), axis=-1)
    tried = _of_heads(trace, at, columns, places[:_TRIED])[0]
    each = len(deflated(tried.tobytes())) / max(1, len(places[:_TRIED])) / _TRUST
    kept = places[: max(0, int(left / each))]
    return kept[np.lexsort((kept[:, 1], kept[:, 0]))]


def _of_heads(trace: Trace, at: Sequence[int], columns: IntArray, places: IntArray) -> tuple[Any, FloatArray]:
    """Steps [heads, Q, N] uint8 of single heads, and their scales [heads, Q]."""
    steps = np.empty((len(places), len(at), len(columns)), np.uint8)
    scale = np.empty((len(places), len(at)), np.float32)
    for number, row in enumerate(_rows(trace, at, columns)):
        steps[:, number], scale[:, number] = quantise(row[places[:, 0], places[:, 1]], np.uint8)
    return steps, scale
