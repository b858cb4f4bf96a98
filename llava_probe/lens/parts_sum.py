"""The sum that a pass left: each part's share of a logit, and of each head's share what it read at each position.

Whatever is not what we think is refused here, never handed on: slopes that depend on what they belong to, heads whose
output goes elsewhere, parts that miss the logit, keys that miss their head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llava_probe.errors import BadModel
from llava_probe.inside.anatomy import Anatomy
from llava_probe.inside.tolerance import SUMS
from llava_probe.lens.parts_pass import Leaf, Parts, Reading

#: What a leaf that has no heads counts as.
_COUNTS = {"mlp": "mlp", "other": "other", "attention": "other", "bias": "biases"}


@dataclass(frozen=True, eq=False)
class Split:
    """The numbers of a ``Written``, by its names."""

    logit: float
    capped: float | None
    embedding: float
    heads: Tensor
    mlp: Tensor
    other: Tensor
    biases: Tensor
    keys: Tensor
    layers: tuple[int, ...]
    kinds: Mapping[int, str]
    residual: float


def split_of(anatomy: Anatomy, parts: Parts, ids: Sequence[int], fed: int) -> Split:
    """Split a logit, or the difference of two.

    Args:
        anatomy: of the model; ``parts``: of its pass, with its graph.
        ids: the token's, and the other's that it is weighed against.
        fed: how many positions were read.

    Raises:
        BadModel: the model's residual stream is no sum of its parts.
    """
    name, blocks, wide = type(anatomy.model).__name__, anatomy.layers, anatomy.heads
    logit, slopes, capped = _slopes(name, parts, ids)
    sums = {kind: torch.zeros(blocks + 1, dtype=torch.float64) for kind in set(_COUNTS.values())}
    heads, keys, kinds = {}, {}, {}
    embedding = 0.0
    for leaf, slope, reading in zip(parts.leaves, slopes, parts.readings, strict=True):
        if slope is None:
            _may_be_unused(name, leaf)
            continue
        gave = (leaf.value.detach().double() * slope.double()).sum(-1).cpu()
        if reading is not None:
            if leaf.layer in heads:
                raise BadModel(f"{name}: block {leaf.layer} attends more than once, so its heads have no one number")
            heads[leaf.layer] = _filled(gave, wide)
            keys[leaf.layer] = _filled(_by_key(reading, slope, fed), wide)
        elif leaf.kind == "embedding":
            embedding = float(gave)
        else:
            sums[_COUNTS[leaf.kind]][leaf.layer] += gave
            if _COUNTS[leaf.kind] == "other":
                kinds[leaf.layer] = type(leaf.module).__name__
    layers = tuple(sorted(heads))
    nothing = torch.zeros(0, wide, dtype=torch.float64)
    by_head = torch.stack([heads[layer] for layer in layers]) if layers else nothing
    by_key = torch.stack([keys[layer] for layer in layers]) if layers else nothing[..., None].expand(0, wide, fed)
    everything = torch.cat([torch.tensor([embedding]), by_head.flatten(), *sums.values()])
    scale = max(abs(logit), float(everything.abs().max()))
    missed = {
        "the logit": abs(float(everything.sum()) - logit) / scale,
        "what their heads give": float((by_key.sum(-1) - by_head).abs().max()) / scale if layers else 0.0,
    }
    residual = max(missed.values())
    if not residual <= SUMS[anatomy.model.dtype]:
        what = max(missed, key=lambda each: missed[each])
        raise BadModel(
            f"the parts of {name} miss {what} by {residual:.1%} of the largest of them: something else is between them "
            "(an intervention on hidden states, perhaps), so the logit cannot be split; lp.attribute explains it still"
        )
    return Split(
        logit=logit,
        capped=capped,
        embedding=embedding,
        heads=by_head,
        mlp=sums["mlp"][:-1],
        other=sums["other"][:-1],
        biases=sums["biases"],
        keys=by_key,
        layers=layers,
        kinds=kinds,
        residual=residual,
    )


def _slopes(name: str, parts: Parts, ids: Sequence[int]) -> tuple[float, list[Tensor | None], float | None]:
    """The logit (or the difference), its slope at each leaf, and what it is behind a cap where the model has one."""
    assert parts.logits is not None and parts.scores is not None
    final = _value(parts.logits, ids)
    for value in (final, _value(parts.scores, ids)):
        if not value.requires_grad:
            continue
        leaves = [leaf.value for leaf in parts.leaves]
        slopes = torch.autograd.grad(value, leaves, create_graph=True, allow_unused=True)
        if not any(slope is not None and slope.requires_grad for slope in slopes):
            capped = None if value is final else float(final.detach())
            return float(value.detach()), list(slopes), capped
    raise BadModel(
        f"the residual stream of {name} is no sum of its parts: what becomes of one depends on others, so no logit can "
        "be split; lp.attribute(vlm, trace) explains it still"
    )


def _value(logits: Tensor, ids: Sequence[int]) -> Tensor:
    exact = torch.promote_types(logits.dtype, torch.float32)
    chosen = logits[list(ids)].to(exact)
    return chosen[0] - chosen[1:].sum()


def _may_be_unused(name: str, leaf: Leaf) -> None:
    """Refuse a part of attention that reaches the logit by no way that we see; others may feed a part beside them."""
    if leaf.kind in ("heads", "attention"):
        raise BadModel(
            f"what {type(leaf.module).__name__} of block {leaf.layer} gives is made into something else before it is "
            f"added to the residual stream of {name}, so no logit can be split"
        )


def _by_key(reading: Reading, slope: Tensor, fed: int) -> Tensor:
    """[H, K] what each head gave from each position: A_k (v_k · slope)."""
    groups = len(slope) // len(reading.values)
    exact = torch.promote_types(slope.dtype, torch.float32)
    worth = torch.einsum("ngd,nkd->ngk", slope.to(exact).unflatten(0, (-1, groups)), reading.values.to(exact))
    gave = (worth.flatten(0, 1) * reading.weights.to(exact)).double().cpu()
    return torch.nn.functional.pad(gave, (reading.first, fed - reading.first - gave.shape[1]))


def _filled(gave: Tensor, heads: int) -> Tensor:
    """The same with nothing for heads that a block does not have."""
    return torch.cat([gave, gave.new_zeros(heads - len(gave), *gave.shape[1:])])
