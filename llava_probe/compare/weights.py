"""Which weights of two models differ, module by module: the length of the difference over that of the weight.

    for each in moved_weights(base, tuned): print(each.module, each.ratio)

Of a LoRA (Hu et al. 2021, arXiv 2106.09685) the difference is s · BA, s = α/r, and its length needs no product as large
as the weight:

    ‖BA‖² = tr((BᵀB)(AAᵀ))

so a 7B model's adapter is read in a second. Where weights beneath the adapters differ as well, the whole difference is
made, a weight at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from llava_probe.errors import BadInput
from llava_probe.model import VLM


@dataclass(frozen=True)
class MovedWeight:
    """One weight of both models.

    Attributes:
        module: its module's name in the model, an adapter's wrappers left out; ``weight``: its own.
        length: ‖W‖ in the first model, adapters and all; ``difference``: ‖W_b − W_a‖.
    """

    module: str
    weight: str
    length: float
    difference: float

    @property
    def ratio(self) -> float:
        """The difference over the length; 0 where nothing differs, infinite where the first is 0."""
        if not self.difference:
            return 0.0
        return self.difference / self.length if self.length else math.inf


@dataclass(frozen=True, eq=False)
class _Weight:
    """A weight and what adapters add to it.

    Attributes:
        base: as it lies in the model.
        low: (B, A, s) of each LoRA; ``dense``: updates of other kinds, as large as the weight.
    """

    base: Tensor
    low: list[tuple[Tensor, Tensor, float]] = field(default_factory=list)
    dense: list[Tensor] = field(default_factory=list)


def moved_weights(a: VLM, b: VLM) -> tuple[MovedWeight, ...]:
    """Every weight of two models of one kind, those that differ most first, in the model's order where they do not.

    Raises:
        BadInput: they have other weights, or weights of other shapes.
    """
    one, other = dict(_weights(a.anatomy.model)), dict(_weights(b.anatomy.model))
    if odd := sorted(one.keys() ^ other.keys()):
        raise BadInput(f"the models have other weights, {odd[0]} is in one of them only: their weights do not compare")
    found = []
    for name, mine in one.items():
        theirs = other[name]
        if mine.base.shape != theirs.base.shape:
            raise BadInput(f"{name} is {list(mine.base.shape)} in one model and {list(theirs.base.shape)} in the other")
        module, _, own = name.rpartition(".")
        difference = _difference(mine, theirs)
        found.append(MovedWeight(module, own, _length(mine), difference))
    return tuple(sorted(found, key=lambda each: -each.ratio if each.ratio == each.ratio else 0.0))


def product_norm(pairs: list[tuple[Tensor, Tensor, float]]) -> float:
    """‖Σ s · BA‖ of some LoRA products, from [r, r] matrices alone.

    Args:
        pairs: B [out, r], A [r, in] and s of each.
    """
    if not pairs:
        return 0.0
    left = torch.cat([b.double() * scale for b, _, scale in pairs], dim=1)
    right = torch.cat([a.double().to(left.device) for _, a, _ in pairs], dim=0)
    return math.sqrt(max(0.0, float(((left.T @ left) * (right @ right.T).T).sum())))


# --- two weights ---


def _difference(one: _Weight, other: _Weight) -> float:
    if one.base.is_meta or other.base.is_meta:
        return math.nan  # offloaded: its numbers are elsewhere
    same = one.base is other.base or torch.equal(one.base, other.base.to(one.base.device))
    if same and not (one.dense or other.dense):
        if len(one.low) == len(other.low) and all(map(_same_product, one.low, other.low)):
            return 0.0
        return product_norm([*other.low, *((b, a, -scale) for b, a, scale in one.low)])
    if not (one.base.is_floating_point() and other.base.is_floating_point()):
        return math.nan  # quantised otherwise: what its numbers mean is the quantiser's
    return float((_whole(other).to(one.base.device) - _whole(one)).norm())


def _same_product(one: tuple[Tensor, Tensor, float], other: tuple[Tensor, Tensor, float]) -> bool:
    alike = all(x.shape == y.shape and torch.equal(x, y.to(x.device)) for x, y in zip(one[:2], other[:2], strict=True))
    return alike and one[2] == other[2]


def _length(weight: _Weight) -> float:
    if weight.base.is_meta or not weight.base.is_floating_point():
        return math.nan
    return float((_whole(weight) if weight.low or weight.dense else weight.base.float()).norm())


def _whole(weight: _Weight) -> Tensor:
    """What the model computes with, in float32."""
    whole = weight.base.detach().float()
    for b, a, scale in weight.low:
        whole = whole + scale * (b.float() @ a.float()).to(whole.device)
    for update in weight.dense:
        whole = whole + update.float().to(whole.device)
    return whole


# --- the weights of a model ---


def _weights(model: nn.Module) -> Iterator[tuple[str, _Weight]]:
    """Each weight by its name without wrappers; of tied ones the first."""
    updates = {id(weight): update for _, weight, update in _updates(model)}
    seen: set[int] = set()
    for name, parameter in model.named_parameters():
        plain = _plain_name(model, name)
        if plain is None or id(parameter) in seen:
            continue
        seen.add(id(parameter))
        low, dense = updates.get(id(parameter), ([], []))
        yield plain, _Weight(parameter.detach(), low, dense)


def _updates(model: nn.Module) -> Iterator[tuple[nn.Module, Tensor, tuple[list[Any], list[Tensor]]]]:
    """Of each module with an adapter: what the active ones add to its weight, unless it is in it already."""
    modules: Iterator[Any] = model.modules()  # wrappers of PEFT's among them, which is not imported here
    for module in modules:
        if not hasattr(module, "get_delta_weight") or getattr(module, "merged", False) or module.disable_adapters:
            continue
        low: list[tuple[Tensor, Tensor, float]] = []
        dense: list[Tensor] = []
        for name in module.active_adapters:
            if name in getattr(module, "lora_A", {}) and isinstance(module.lora_A[name], nn.Linear):
                if getattr(module, "use_dora", {}).get(name):
                    raise BadInput("DoRA gives the weight another length besides what it adds; merge it to compare it")
                product = module.lora_B[name].weight, module.lora_A[name].weight, float(module.scaling[name])
                low.append((product[0].detach(), product[1].detach(), product[2]))
            elif name in getattr(module, "lora_A", {}) or name in getattr(module, "lora_embedding_A", {}):
                dense.append(module.get_delta_weight(name).detach())
        if low or dense:
            yield module, module.get_base_layer().weight, (low, dense)


def _plain_name(model: nn.Module, name: str) -> str | None:
    """A weight's name in the model itself; None for one of an adapter, or one that an adapter stands in for."""
    parts = name.split(".")
    if "original_module" in parts or any(part.startswith(("lora_", "adalora_")) for part in parts):
        return None
    if "modules_to_save" in parts:
        at = parts.index("modules_to_save")
        wrapper: Any = model.get_submodule(".".join(parts[:at]))
        if parts[at + 1] not in wrapper.active_adapters:
            return None
        del parts[at : at + 2]
    return ".".join(part for part in parts if part != "base_layer")
