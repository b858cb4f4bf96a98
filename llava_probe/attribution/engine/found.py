"""What a method gives back before it becomes an ``ImageMap``: a value for each position, or each part of a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from llava_probe.layout import ImageLayout


@dataclass(frozen=True, eq=False)
class Found:
    """Values of a method, a row for each target.

    Attributes:
        positions: [R, P] for every token that was fed; or None.
        values: [R, N] for the parts of the picture alone, where there are no ``positions``.
        layout: of ``values``; None for the picture's visual tokens.
        unit: what a value is, for colour bars.
        forwards, backwards: how many passes through the model it took.
        about: further facts.
    """

    positions: Tensor | None = None
    values: Tensor | None = None
    layout: ImageLayout | None = None
    unit: str = ""
    forwards: int = 0
    backwards: int = 0
    about: Mapping[str, Any] = field(default_factory=dict)
