"""Adam on tensors that can be written down, so that a run goes on where it was broken off, to the bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

#: Of Adam, as the paper has them, and the names of its tensors in a file.
_BETAS, _EPSILON = (0.9, 0.999), 1e-8
_PARTS = ("value", "mean", "square")


class Adam:
    """Kingma and Ba 2015 (arXiv 1412.6980), algorithm 1.

    Attributes:
        values: what is moved; ``taken``: how many steps were taken.

    Args:
        values: where it begins.
    """

    def __init__(self, values: Sequence[Tensor]) -> None:
        self.values = list(values)
        self._means, self._squares = ([torch.zeros_like(value) for value in values] for _ in range(2))
        self.taken = 0

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], taken: int) -> Adam:
        """As it was when ``tensors`` were read and so many steps had been taken."""
        values, means, squares = (
            [tensors[f"{part}.{number}"] for number in range(len(tensors) // len(_PARTS))] for part in _PARTS
        )
        made = cls(values)
        made._means, made._squares, made.taken = means, squares, taken
        return made

    def tensors(self) -> dict[str, Tensor]:
        """All that the next steps depend on, on the CPU."""
        held = zip(_PARTS, (self.values, self._means, self._squares), strict=True)
        return {f"{part}.{number}": one.cpu() for part, all_ in held for number, one in enumerate(all_)}

    def to(self, device: torch.device) -> None:
        """Where the states are."""
        for held in (self.values, self._means, self._squares):
            held[:] = [one.to(device) for one in held]

    def step(self, slopes: Sequence[Tensor], rate: float) -> None:
        """Move every value against its slope."""
        self.taken += 1
        for value, mean, square, slope in zip(self.values, self._means, self._squares, slopes, strict=True):
            mean.lerp_(slope, 1 - _BETAS[0])
            square.mul_(_BETAS[1]).addcmul_(slope, slope, value=1 - _BETAS[1])
            own, spread = 1 - _BETAS[0] ** self.taken, 1 - _BETAS[1] ** self.taken
            value.addcdiv_(mean / own, (square / spread).sqrt_().add_(_EPSILON), value=-rate)
