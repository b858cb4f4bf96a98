"""What ``lp.compare`` found as a page holds it: words that stand for one another, curves by layer, heads that moved.

The names in here are those of ``Comparison`` in ``view/web/src/payload.ts``. Its maps are not among them: a page has
the attention of both runs, and draws both and their difference for whatever words and heads are chosen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from llava_probe.analyzers.heads import PARTS
from llava_probe.compare.comparison import TraceComparison, most_moved
from llava_probe.view.page.packing import Parcel

#: Heads that are named of each list.
_HEADS = 8


def comparison_data(found: TraceComparison, first: int, second: int, parcel: Parcel) -> dict[str, Any]:
    """One comparison.

    Args:
        found: the comparison.
        first, second: the numbers of its runs on the page.
        parcel: where the arrays go.
    """
    words = [pair for pair in found.alignment.prompt if found.a.tokens[pair[0]].role != "image"]
    return {
        "a": first,
        "b": second,
        "prompt": [list(pair) for pair in words],
        "answer": [list(pair) for pair in found.alignment.answer],
        "probability": None if found.probability is None else _put(found.probability, parcel),
        "change": None if found.change is None else _put(found.change, parcel),
        "notes": found.notes,
        "layers": _by_layer(found, parcel),
        "heads": _heads(found),
    }


def _by_layer(found: TraceComparison, parcel: Parcel) -> list[dict[str, Any]]:
    """Curves over hidden states: lines [lines, layers] by name."""
    curves = []
    if found.drift is not None:
        drift = found.drift
        told = {"title": "drift of hidden states", "unit": "‖b − a‖ / ‖a‖", "names": list(drift.groups)}
        curves.append(told | {"layers": list(drift.layers), "values": _put(drift.distance, parcel)})
    if found.lens is not None:
        told = {"title": "KL through the lens", "unit": "nats", "names": ["mean over words"]}
        curves.append(
            told | {"layers": list(found.lens.layers), "values": _put(found.lens.kl.mean(1, keepdim=True).T, parcel)}
        )
    return curves


def _heads(found: TraceComparison) -> list[dict[str, Any]]:
    """Heads that moved, most first: what they write and where they look, each with its share on the picture in both."""
    lists = []
    for moved, title in ((found.own, "write otherwise on the same states"), (found.looking, "look elsewhere")):
        if moved is None:
            continue
        heads = [
            [each.layer, each.head, each.moved, *_shares(found, each.layer, each.head)]
            for each in most_moved(moved.layers, moved.heads, moved.moved.nan_to_num(), _HEADS)
            if each.moved
        ]
        lists.append({"title": title, "heads": heads})
    return lists


def _shares(found: TraceComparison, layer: int, head: int) -> list[float | None]:
    """Its share of attention on the picture in either, where both kept it."""
    seen = found.looking
    if seen is None or layer not in seen.layers or head not in seen.heads:
        return [None, None]
    place = PARTS.index("image"), seen.layers.index(layer), seen.heads.index(head)
    return [float(seen.a[place]), float(seen.b[place])]


def _put(values: Tensor, parcel: Parcel) -> dict[str, Any]:
    return parcel.add(values.numpy().astype(np.float32))
