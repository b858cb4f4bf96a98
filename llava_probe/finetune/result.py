"""What a training run left behind: a folder that loads, and what was measured on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_probe.analyzers.table import Table, Tabular


@dataclass(frozen=True, eq=False)
class Finetuned(Tabular):
    """A finished run; as a table, its losses by step.

    Attributes:
        folder: of the adapter, or of the whole model: ``lp.load(model, adapter=folder)``, ``lp.load(folder)``.
        parts: what was trained.
        losses: of the training, by step: ``step``, ``loss``, ``learning_rate``.
        held_out: before, on the way and at the end: ``step``, ``loss``, and ``exact``, the share of held-out answers of
            which every token is the likeliest, as greedy ``generate`` would say them; empty where nothing was held out.
        rows, trained: rows and tokens that were trained on, in each epoch.
        moved: largest change of a logit of the check row, relative to the largest logit; zero would be refused.
        merged: how far the same logits are off, likewise, with the adapter merged into the weights; None where it was
            not or cannot be.
        left_out: bad rows that were gone past, with their lines and reasons.
    """

    folder: Path
    parts: tuple[str, ...]
    losses: tuple[Mapping[str, float], ...]
    held_out: tuple[Mapping[str, float], ...]
    rows: int
    trained: int
    moved: float
    merged: float | None = None
    left_out: tuple[str, ...] = ()

    def _columns(self) -> Table:
        """A line for each step that was measured."""
        names = ("step", "loss", "learning_rate")
        held = {entry["step"]: entry for entry in self.held_out}
        data: dict[str, list[Any]] = {name: [entry[name] for entry in self.losses] for name in names}
        for name in ("loss", "exact"):
            data[f"held_out_{name}"] = [held.get(step, {}).get(name) for step in data["step"]]
        return Table(data)
