"""Where a stranger's arguments come in: a public function reads them by its annotations, or refuses in one sentence."""

from llava_probe.border.guard import checked, read_as
from llava_probe.border.kinds import (
    Count,
    CountFromZero,
    Finite,
    Holds,
    Limits,
    Numeric,
    Portion,
    Positive,
    Seed,
    WholeNumeric,
)

__all__ = [
    "Count",
    "CountFromZero",
    "Finite",
    "Holds",
    "Limits",
    "Numeric",
    "Portion",
    "Positive",
    "Seed",
    "WholeNumeric",
    "checked",
    "read_as",
]
