"""What a module without parts does, told from what it does to a probe: a norm, an activation, or neither.

    rule = ModuleRules().of(module, args, output)  # y = x ⊙ c + rest, c of x; None where it is no such thing

No class is named: RMSNorm, LayerNorm and their relatives are recognised in every family by how they behave.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

#: Probes of a norm are so long that its ε does not show, and agree to what bfloat16 can tell.
_LONG, _ALIKE = 64.0, 0.05


@dataclass(frozen=True)
class ModuleRule:
    """What a module without parts does: y = x ⊙ c + rest, where c may depend on x.

    Attributes:
        norm: whether c depends on the length of x alone (less its mean), and not on each number of it apart.
        centred: whether the mean of x is taken off first.
        rest: what it gives for x = 0, where that is something.
    """

    norm: bool = False
    centred: bool = False
    rest: Tensor | None = None


class ModuleRules:
    """The rules of modules that no graph can tell, each told once."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, int], ModuleRule | None] = {}

    def of(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> ModuleRule | None:
        """The rule of a module that was given ``args`` and gave ``output``, where it has one and a graph goes on."""
        x = args[0] if len(args) == 1 else None
        if not isinstance(x, Tensor) or not isinstance(output, Tensor) or not output.requires_grad:
            return None
        if output is x or output.shape != x.shape or not is_small(module, x.shape[-1]):
            return None
        place = id(module), x.shape[-1]
        if place not in self._found:
            with torch.no_grad():
                self._found[place] = rule_of(module, x)
        return self._found[place]


def is_small(module: nn.Module, width: int | None = None) -> bool:
    """Whether a module has no parts, and no weights but some for each feature (of so many)."""
    own = list(module.parameters(recurse=False))
    return next(module.children(), None) is None and all(
        weight.ndim == 1 and width in (None, len(weight)) for weight in own
    )


def rule_of(module: nn.Module, like: Tensor) -> ModuleRule | None:
    """The rule of an activation of single numbers or of a norm; None for anything else."""
    compute: Callable[[Tensor], Tensor] = module.forward
    width = like.shape[-1]
    probe = torch.randn(3, width, generator=torch.Generator().manual_seed(0)).to(like)
    nothing = compute(torch.zeros_like(probe))
    plain = next(module.parameters(), None) is None and width > 1 and not nothing.any()
    if plain and _apart(compute, probe):
        return ModuleRule()
    probe = probe * _LONG
    value = compute(probe)
    if not _same(compute(2 * probe), value) or not _same(compute(probe[1:2]), value[1:2]):
        return None
    centred = _same(compute(probe + _LONG), value)
    factor = (value - nothing) / (probe - probe.mean(-1, keepdim=True) if centred else probe)
    factor = factor / factor.norm(dim=-1, keepdim=True)
    alike = _same(factor[:1], factor[1:2])
    return ModuleRule(True, centred, nothing[0] if nothing.any() else None) if alike else None


def _apart(compute: Callable[[Tensor], Tensor], probe: Tensor) -> bool:
    """Whether each half of a row that comes out depends on that half of this row alone."""
    first = torch.arange(probe.shape[1], device=probe.device) < probe.shape[1] // 2
    row, value = probe[1:2], compute(probe)[1:2]
    return all(_same(compute(torch.where(half, row, _LONG * row))[:, half], value[:, half]) for half in (first, ~first))


def _same(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).norm() <= _ALIKE * other.norm())
