"""The sizes of the model that made a trace: what an analyzer must know of it, without the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Sizes:
    """How large a model is, and what it computes in.

    Attributes:
        layers: L, blocks of the decoder.
        heads: H, query heads of a block; the largest number, where blocks differ.
        vocabulary: V, logits of a step.
        width: D, of a hidden state; None in a trace of the first file format, which did not keep it.
        dtype: of the weights, by torch's name.
        other_layers: the blocks without attention over the sequence, and what they are.
    """

    layers: int
    heads: int
    vocabulary: int
    width: int | None
    dtype: str
    other_layers: Mapping[int, str] = field(default_factory=dict)

    @property
    def hidden_layers(self) -> int:
        """Hidden states of a position: L + 1, the embedding before the blocks."""
        return self.layers + 1

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return int(getattr(torch, self.dtype).itemsize)
