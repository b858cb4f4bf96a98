"""How far two models' layers are apart in what they would say, and the first layer where they would say other words.

Each is read with its own final norm and output embedding, as ``lp.lens`` does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llava_probe.errors import BadModel
from llava_probe.inside.ending import Ending
from llava_probe.lens.fitting import divergence
from llava_probe.lens.lens import a_word
from llava_probe.lens.reading import rows_at_once
from llava_probe.lens.states import states_at
from llava_probe.model import VLM
from llava_probe.trace.trace import Trace


@dataclass(frozen=True, eq=False)
class ThroughLens:
    """What the layers of two models would say at the same tokens.

    Attributes:
        layers: hidden states, by transformers' index.
        kl: [layers, rows] KL(a ‖ b) in nats, of the rows that predicted after the same beginning.
        parting: the first layer from which on, to the last, each would rather say its own word than the other's where
            the answers part; None where they do not, or where it is not so even in the end.
    """

    layers: tuple[int, ...]
    kl: Tensor
    parting: int | None


def through_lens(
    models: tuple[VLM, VLM],
    traces: tuple[Trace, Trace],
    rows: list[tuple[int, int]],
    parting: tuple[int, int, int] | None,
) -> ThroughLens | str:
    """Read both traces' layers, or say why they cannot be compared.

    Args:
        models: whose traces they are.
        traces: states that they kept are read; else each model runs once.
        rows: positions that predicted, in the one and in the other.
        parting: which of ``rows`` predicted the word at which the answers part, and the ids that each said there; None
            where they do not.
    """
    one, other = (trace.sizes for trace in traces)
    if (one.layers, one.vocabulary) != (other.layers, other.vocabulary):
        told = " and ".join(f"{each.layers} layers and {each.vocabulary} words" for each in (one, other))
        return f"models of other depths or vocabularies say nothing that can be compared layer by layer: {told}"
    if not rows:
        return "no word was predicted after the same beginning"
    try:
        return _read(models, traces, rows, parting)
    except BadModel as error:
        return str(error)


def _read(
    models: tuple[VLM, VLM],
    traces: tuple[Trace, Trace],
    rows: list[tuple[int, int]],
    parting: tuple[int, int, int] | None,
) -> ThroughLens:
    """Layer by layer, a block of rows at a time."""
    sizes = traces[0].sizes
    layers = tuple(range(sizes.layers + 1))
    states = [
        states_at(vlm, trace, layers, [row[side] for row in rows])
        for side, (vlm, trace) in enumerate(zip(models, traces, strict=True))
    ]
    endings = [Ending(vlm.anatomy, a_word(trace)) for vlm, trace in zip(models, traces, strict=True)]
    apart, parted = [], []
    for layer in layers:
        here = [each.pop(layer) for each in states]
        normed, size = layer == sizes.layers, rows_at_once(sizes.vocabulary)
        blocks = zip(*(each.split(size) for each in here), strict=True)
        kl, said_there = [], []
        for pair in blocks:
            with torch.no_grad():
                said = [
                    ending.logits(block, normed=normed).log_softmax(1).cpu()
                    for ending, block in zip(endings, pair, strict=True)
                ]
            kl.append(divergence(*(each.double() for each in said)))
            if parting is not None:
                said_there.append(torch.stack([each[:, list(parting[1:])] for each in said]))
        apart.append(torch.cat(kl))
        if parting is not None:
            (own, of_other), (of_own, other) = torch.cat(said_there, dim=1)[:, parting[0]].tolist()
            parted.append(own > of_other and other > of_own)
    return ThroughLens(layers, torch.stack(apart), settled_from(layers, parted))


def settled_from(layers: tuple[int, ...], held: list[bool]) -> int | None:
    """The first layer from which on something holds to the last; None where it does not in the end."""
    found = None
    for layer, there in zip(reversed(layers), reversed(held), strict=False):
        if not there:
            break
        found = layer
    return found
