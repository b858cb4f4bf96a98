"""What ``lp.compare`` found, as data and in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava_probe.analyzers.table import Table, Tabular
from llava_probe.border import Count, checked
from llava_probe.compare.alignment import Alignment
from llava_probe.compare.drift import Drift
from llava_probe.compare.looking import Looking, Maps
from llava_probe.compare.own_heads import OwnHeads
from llava_probe.compare.through_lens import ThroughLens
from llava_probe.rooms import front_door
from llava_probe.trace.tokens import Token
from llava_probe.trace.trace import Trace

_NONE = "–"
#: Heads that a printed comparison names.
_TOLD = 5


@dataclass(frozen=True)
class MovedHead:
    """One head and how far it moved."""

    layer: int
    head: int
    moved: float

    def __str__(self) -> str:
        return f"layer {self.layer} head {self.head} ({self.moved:.2g})"


@checked
@dataclass(frozen=True, eq=False)
class TraceComparison(Tabular):
    """Two traces beside each other; a change is always the second's value less the first's.

    Attributes:
        a, b: the traces.
        alignment: which token stands for which.
        logprob, entropy: [rows, 2] in nats, of each aligned token in either trace, NaN where it has none; None where a
            trace kept no logits.
        maps: where both looked; ``looking``: what their heads looked at; ``drift``: of hidden states, by layer.
        lens: what their layers would say; ``own``: what heads write otherwise on the same states. Both need the models.
        left_out: why a part is None, by its name.
    """

    a: Trace = field(repr=False)
    b: Trace = field(repr=False)
    alignment: Alignment = field(repr=False)
    logprob: Tensor | None
    entropy: Tensor | None
    maps: Maps | None
    looking: Looking | None
    drift: Drift | None
    lens: ThroughLens | None
    own: OwnHeads | None
    left_out: Mapping[str, str]

    @property
    def tokens(self) -> tuple[tuple[Token | None, Token | None], ...]:
        """The generated tokens, aligned."""
        return tuple(
            (None if one is None else self.a.tokens[one], None if other is None else self.b.tokens[other])
            for one, other in self.alignment.answer
        )

    @property
    def same_answer(self) -> bool:
        """Whether both said the same, token by token."""
        return self.alignment.same

    @property
    def probability(self) -> Tensor | None:
        """[rows, 2] of each aligned token, as ``logprob``."""
        return None if self.logprob is None else self.logprob.exp()

    @property
    def change(self) -> Tensor | None:
        """[rows] of the log-probability of each aligned token, in nats; NaN where a trace has none."""
        return None if self.logprob is None else self.logprob.diff(dim=1)[:, 0]

    @property
    def notes(self) -> list[str]:
        """What was found, in words, a line a part."""
        return [*self._said(), *self._inside(), *(f"{name} left out: {why}" for name, why in self.left_out.items())]

    @property
    def largest(self) -> dict[str, float]:
        """The largest change of each part that was compared: all 0 of a trace and itself."""
        found: dict[str, Tensor | None] = {
            "probability": None if self.probability is None else self.probability.diff(dim=1),
            "entropy": None if self.entropy is None else self.entropy.diff(dim=1),
            "map": None if self.maps is None or self.maps.difference is None else self.maps.difference.values,
            "attention share": None if self.looking is None else self.looking.change,
            "attention row": None if self.looking is None else self.looking.moved,
            "hidden state": None if self.drift is None else self.drift.distance,
            "KL through the lens": None if self.lens is None else self.lens.kl,
            "what a head writes": None if self.own is None else self.own.moved,
        }
        return {name: _largest(values) for name, values in found.items() if values is not None}

    def heads(self, k: Count = _TOLD) -> tuple[MovedHead, ...]:
        """The ``k`` heads that moved most: by what they write on the same states, else by what they looked at.

        Without the models a head that only reads what others changed counts like one that was changed itself; so it
        does where no head was, of two pictures on one model say.
        """
        found = self.own if self.own is not None and bool(self.own.moved.any()) else self.looking
        return () if found is None else most_moved(found.layers, found.heads, found.moved, k)

    def layers(self) -> Table:
        """A line for each hidden state: how far the states of each group lie apart, and KL through the lens."""
        numbers = self.drift.layers if self.drift is not None else self.lens.layers if self.lens is not None else ()
        columns: dict[str, list[Any]] = {"layer": list(numbers)}
        if self.drift is not None:
            for name, row in zip(self.drift.groups, self.drift.distance, strict=True):
                columns[f"drift, {name}"] = row.tolist()
        if self.lens is not None:
            kl = dict(zip(self.lens.layers, self.lens.kl.mean(1).tolist(), strict=True))
            columns["KL"] = [kl[layer] for layer in numbers]
        return Table(columns)

    # --- as data, as text, as a page ---

    def page(self, path: str | Path, *others: Any) -> Path:
        """Write a page for the browser, one file without network: ``lp.page([comparison, *others], path)``."""
        return front_door().page([self, *others], path)  # type: ignore[no-any-return]

    def to_dict(self) -> dict[str, list[Any]]:
        """Plain lists by name, an entry for each aligned token, ready for JSON; None where a trace has none."""
        return {
            name: [None if isinstance(cell, float) and cell != cell else cell for cell in column]
            for name, column in self._columns().data.items()
        }

    def table(self) -> str:
        """A line for each aligned token, to print."""
        return self._shown().text()

    def __repr__(self) -> str:
        return f"TraceComparison({self.a.answer[:40]!r} beside {self.b.answer[:40]!r})"

    def __str__(self) -> str:
        return "\n".join([self.table(), "", *self.notes])

    def _repr_html_(self) -> str:
        return self._shown().html("; ".join(self.notes))

    def _shown(self) -> Table:
        data = {
            name: [_NONE if cell is None or cell != cell else cell for cell in column]
            for name, column in self._columns().data.items()
        }
        return Table(data)

    def _columns(self) -> Table:
        data: dict[str, list[Any]] = {
            "a": [None if one is None else one.text for one, _ in self.tokens],
            "b": [None if other is None else other.text for _, other in self.tokens],
        }
        if self.probability is not None and self.entropy is not None:
            data |= {
                "p(a)": self.probability[:, 0].tolist(),
                "p(b)": self.probability[:, 1].tolist(),
                "change": (self.probability[:, 1] - self.probability[:, 0]).tolist(),
                "change of entropy": (self.entropy[:, 1] - self.entropy[:, 0]).tolist(),
            }
        return Table(data)

    def _said(self) -> list[str]:
        if self.same_answer:
            return ["the same answer"]
        if not self.alignment.parted:
            return ["one answer goes on where the other ends"]
        one, other = self.alignment.shared[-1]
        words = f"{self.a.tokens[one].text!r} and {self.b.tokens[other].text!r}"
        line = f"the answers part at their token {len(self.alignment.shared) - 1}: {words}"
        if self.lens is not None and self.lens.parting is not None:
            line += f"; each layer from hidden state {self.lens.parting} on would say its own"
        return [line]

    def _inside(self) -> list[str]:
        lines = []
        if self.drift is not None:
            begins = self.drift.begins
            lines.append("hidden states are the same" if begins is None else f"hidden states differ from {begins} on")
        if self.lens is not None:
            kl = self.lens.kl.mean(1)
            lines.append(
                f"KL through the lens {float(kl[-1]):.3g} nats in the end, "
                f"most at hidden state {self.lens.layers[int(kl.argmax())]}: {float(kl.max()):.3g}"
            )
        for found, how in ((self.own, "write otherwise on the same states"), (self.looking, "look elsewhere")):
            if found is not None:
                moved = [each for each in most_moved(found.layers, found.heads, found.moved, _TOLD) if each.moved]
                named = ", ".join(map(str, moved))
                lines.append(f"heads that {how}: {named or 'none'}")
        return lines


def most_moved(layers: tuple[int, ...], heads: tuple[int, ...], moved: Tensor, k: int) -> tuple[MovedHead, ...]:
    """The ``k`` heads with the largest of [layers, heads] values; of equal ones the earlier."""
    values, places = torch.sort(moved.flatten(), descending=True, stable=True)
    width = len(heads)
    return tuple(
        MovedHead(layers[place // width], heads[place % width], value)
        for place, value in zip(places[:k].tolist(), values[:k].tolist(), strict=True)
    )


def _largest(values: Tensor) -> float:
    held = values[~torch.isnan(values)].abs()
    return float(held.max()) if held.numel() else 0.0
