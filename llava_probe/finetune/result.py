"""What a training run left behind: a folder that loads, and what was measured on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_probe.analyzers.table import Table, Tabular


@dataclass(frozen=True, eq=False)
class Finetuned(Tabular):
    """A finished run; printed, how far it came; as a table, its losses by step.

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

    def __str__(self) -> str:
        measured = {
            "training loss": [entry["loss"] for entry in self.losses],
            "held-out loss": [entry["loss"] for entry in self.held_out],
            "held-out exact": [entry["exact"] for entry in self.held_out],
        }
        told = {name: (values[0], values[-1]) for name, values in measured.items() if values}
        first, last = ([ends[end] for ends in told.values()] for end in (0, 1))
        merged = "" if self.merged is None else f", and by {self.merged:.0e} where it is merged"
        return (
            f"{Table({'measure': list(told), 'first': first, 'last': last}).text()}\n\n"
            f"{', '.join(self.parts)} trained on {self.rows:,} rows, {self.trained:,} tokens of answers an epoch\n"
            f"a logit of the check row moved by {self.moved:.2g} of the largest{merged}"
        )

    def card(self, model: str) -> str:
        """What lies in the folder, for whoever finds it there: a README of a model on the hub.

        Args:
            model: what was trained, by its name.
        """
        whole = "everything" in self.parts
        loaded = f'lp.load("{self.folder.name}")' if whole else f'lp.load("{model}", adapter="{self.folder.name}")'
        return (
            f"---\nlibrary_name: {'transformers' if whole else 'peft'}\nbase_model: {model}\n---\n\n"
            f"# {model}, fine-tuned\n\nBy `llava-probe finetune`:\n\n```\n{self}\n```\n\n"
            f"```python\nimport llava_probe as lp\n\nvlm = {loaded}\n```\n\n"
            "`check_row.safetensors` holds a row and the logits that it had at the end; loading compares them. "
            "`finetune.json` holds every setting and all losses.\n"
        )

    def _columns(self) -> Table:
        """A line for each step of which something is known; what was not measured there is None."""
        told, held = ({entry["step"]: entry for entry in entries} for entries in (self.losses, self.held_out))
        steps = sorted({*told, *held})
        data: dict[str, list[Any]] = {"step": steps}
        for name in ("loss", "learning_rate"):
            data[name] = [told.get(step, {}).get(name) for step in steps]
        for name in ("loss", "exact"):
            data[f"held_out_{name}"] = [held.get(step, {}).get(name) for step in steps]
        return Table(data)
