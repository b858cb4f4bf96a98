"""The sum that a pass left: each part's share of a logit, and of each head's share what it read at each position.

Whatever is not what we think is refused here, never handed on: slopes that depend on what they belong to, heads whose
output goes elsewhere, parts that miss the logit, keys that miss their head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llava_probe.errors import BadInput, BadModel
from llava_probe.inside.anatomy import Anatomy
from llava_probe.inside.passes import in_force
from llava_probe.inside.tolerance import SUMS
from llava_probe.lens.parts_pass import HeadsRead, Leaf, PartsPass

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


def split_of(anatomy: Anatomy, parts: PartsPass, ids: Sequence[int], fed: int) -> Split:
    """Split a logit, or the difference of two.

    Args:
        anatomy: of the model; ``parts``: of its pass, with its graph.
        ids: the token's, and the other's that it is weighed against.
        fed: how many positions were read.

    Raises:
        BadModel: the model's residual stream is no sum of its parts.
        BadInput: the model rules one of the words out.
    """
    logit, slopes, capped = _slopes(anatomy, parts, ids)
    found = _Shares(anatomy, fed, changed=bool(in_force(anatomy)))
    for leaf, slope, reading in zip(parts.leaves, slopes, parts.readings, strict=True):
        found.add(leaf, slope, reading)
    heads, keys = found.by_head(), found.by_key()  # [A, H], [A, H, K]
    everything = torch.cat([torch.tensor([found.embedding]), heads.flatten(), *found.sums.values()])
    scale = max(abs(logit), float(everything.abs().max()))
    rounding = SUMS[anatomy.model.dtype]
    off = (keys.sum(-1) - heads).abs() / scale  # [A, H]
    if found.changed:  # a head in whose place something was put read nothing of it
        keys[off > rounding], off[off > rounding] = 0.0, 0.0
    missed = {
        "the logit": abs(float(everything.sum()) - logit) / scale,
        "what a head gives": max(off.flatten().tolist(), default=0.0),
    }
    for what, share in missed.items():
        if not share <= rounding:
            raise BadModel(_missing(anatomy, what, share))
    return Split(
        logit=logit,
        capped=capped,
        embedding=found.embedding,
        heads=heads,
        mlp=found.sums["mlp"][:-1],
        other=found.sums["other"][:-1],
        biases=found.sums["biases"],
        keys=keys,
        layers=tuple(sorted(found.heads)),
        kinds=found.kinds,
        residual=max(missed.values()),
    )


class _Shares:
    """What each part gave, as it is added up; ``changed``: under interventions, which put something in parts' places.

    Attributes:
        embedding: of what entered the first block.
        heads, keys: [H] and [H, K] by block; ``sums``: [L + 1] by kind; ``kinds``: what stands for heads elsewhere.
    """

    def __init__(self, anatomy: Anatomy, fed: int, *, changed: bool) -> None:
        self._name, self._wide, self._fed, self.changed = type(anatomy.model).__name__, anatomy.heads, fed, changed
        self.embedding = 0.0
        self.heads: dict[int, Tensor] = {}
        self.keys: dict[int, Tensor] = {}
        self.sums = {
            kind: torch.zeros(anatomy.layers + 1, dtype=torch.float64) for kind in dict.fromkeys(_COUNTS.values())
        }
        self.kinds: dict[int, str] = {}

    def add(self, leaf: Leaf, slope: Tensor | None, reading: HeadsRead | None) -> None:
        """One part's share; one without a slope feeds another part and not the residual stream."""
        if slope is None:
            if leaf.kind in ("heads", "attention") and not self.changed:
                raise BadModel(
                    f"what {type(leaf.module).__name__} of block {leaf.layer} gives is made into something else before "
                    f"it is added to the residual stream of {self._name}, so no logit can be split"
                )
            return
        gave = (leaf.value.detach().double() * slope.double()).cpu()
        if leaf.kind == "embedding":
            self.embedding = float(gave.sum())
        elif reading is None:
            self.sums[_COUNTS[leaf.kind]][leaf.layer] += gave.sum()
            if _COUNTS[leaf.kind] == "other":
                self.kinds[leaf.layer] = type(leaf.module).__name__
        elif leaf.layer in self.heads:
            raise BadModel(f"{self._name}: block {leaf.layer} attends more than once, so its heads have no one number")
        else:
            self.heads[leaf.layer] = self._filled(gave.sum(-1))
            self.keys[leaf.layer] = self._filled(_by_key(reading, slope, self._fed))

    def by_head(self) -> Tensor:
        """[A, H] what each head gave."""
        return self._stacked(self.heads, ())

    def by_key(self) -> Tensor:
        """[A, H, K] what it read for it."""
        return self._stacked(self.keys, (self._fed,))

    def _stacked(self, found: Mapping[int, Tensor], rest: tuple[int, ...]) -> Tensor:
        nothing = torch.zeros(0, self._wide, *rest, dtype=torch.float64)
        return torch.stack([found[layer] for layer in sorted(found)]) if found else nothing

    def _filled(self, gave: Tensor) -> Tensor:
        """The same with nothing for heads that a block does not have."""
        return torch.cat([gave, gave.new_zeros(self._wide - len(gave), *gave.shape[1:])])


def _missing(anatomy: Anatomy, what: str, share: float) -> str:
    name = type(anatomy.model).__name__
    if in_force(anatomy):
        return (
            f"the parts of {name} miss {what} by {share:.1%} of the largest of them: an intervention puts something "
            "into the residual stream that no part wrote; cut edges, heads or MLPs (lp.knock_out, lp.ablate) instead"
        )
    return (
        f"the parts of {name} miss {what} by {share:.1%} of the largest of them: something that no part wrote is in "
        "its residual stream, so no logit can be split; lp.attribute explains it still"
    )


def _slopes(anatomy: Anatomy, parts: PartsPass, ids: Sequence[int]) -> tuple[float, list[Tensor | None], float | None]:
    """The logit (or the difference), its slope at each leaf, and what it is behind a cap where the model has one."""
    assert parts.logits is not None and parts.scores is not None
    if bool((parts.logits[list(ids)] <= torch.finfo(parts.logits.dtype).min / 2).any()):
        raise BadInput("the model rules this word out, whatever its parts say (it never says a picture's tokens, say)")
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
        f"the residual stream of {type(anatomy.model).__name__} is no sum of its parts: what becomes of one depends on "
        "others, so no logit can be split; lp.attribute explains it still"
    )


def _value(logits: Tensor, ids: Sequence[int]) -> Tensor:
    exact = torch.promote_types(logits.dtype, torch.float32)
    chosen = logits[list(ids)].to(exact)
    return chosen[0] - chosen[1:].sum()


def _by_key(reading: HeadsRead, slope: Tensor, fed: int) -> Tensor:
    """[H, K] what each head gave from each position: A_k (v_k · slope)."""
    groups = len(slope) // len(reading.values)
    exact = torch.promote_types(slope.dtype, torch.float32)
    worth = torch.einsum("ngd,nkd->ngk", slope.to(exact).unflatten(0, (-1, groups)), reading.values.to(exact))
    gave = (worth.flatten(0, 1) * reading.weights.to(exact)).double().cpu()
    return nn.functional.pad(gave, (reading.first, fed - reading.first - gave.shape[1]))
