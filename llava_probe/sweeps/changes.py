"""What lanes of a batch do otherwise: attention cut along edges, or states taken from another lane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from llava_probe.inside.anatomy import Stack
from llava_probe.inside.edges import Edges, Hide, Rule
from llava_probe.inside.passes import Span, Visitor
from llava_probe.inside.rows import Call
from llava_probe.interventions.knock_out import Spread
from llava_probe.interventions.on_states import by_position
from llava_probe.sweeps.departures import Departure


@dataclass(frozen=True)
class Cut:
    """Edges of one lane that follow another rule.

    Attributes:
        layers: in which blocks.
        queries, keys: positions of the prompt.
        uniform: whether what is given to the keys is spread over them, and not taken away.
    """

    layers: range
    queries: tuple[int, ...]
    keys: tuple[int, ...]
    uniform: bool = False


class Cuts(Visitor):
    """Cuts edges, each lane its own."""

    changes = True

    def __init__(self, lanes: Sequence[Departure], bases: int) -> None:
        self._lanes, self._bases = lanes, bases

    def attention(self, call: Call) -> Call | None:
        """The same call with the lanes' edges cut."""
        if call.span is None or call.layer < 0 or call.stack is None:
            return None
        changed = None
        for uniform, rule in ((False, Hide()), (True, Spread())):
            edges = self._edges(call, uniform)
            if edges is not None:
                changed = _under(changed or call, edges, rule)
        return changed

    def _edges(self, call: Call, uniform: bool) -> Edges | None:
        rows, _, queries, keys = call.sizes
        first, before = call.start - call.span.before, call.first_key - call.span.before  # type: ignore[union-attr]
        looking, seen = (torch.zeros(rows, size, dtype=torch.bool) for size in (queries, keys))
        for row, lane in enumerate(self._lanes[: max(0, rows - self._bases)], start=self._bases):
            cut: Cut = lane.change
            if cut.uniform == uniform and call.layer in cut.layers:
                looking[row, [place - first for place in cut.queries if 0 <= place - first < queries]] = True
                seen[row, [place - before for place in cut.keys if 0 <= place - before < keys]] = True
        if not bool((looking.any(1) & seen.any(1)).any()):
            return None
        return Edges(looking.to(call.device), seen.to(call.device))


def _under(call: Call, edges: Edges, rule: Rule) -> Call:
    return call.hiding(edges) if rule.hides else call.edited(edges, rule)


@dataclass(frozen=True)
class Swap:
    """States of one lane that are another's.

    Attributes:
        part: ``"residual"``, what ``"attention"`` or the ``"mlp"`` adds, or the ``"query"``, ``"key"`` or ``"value"``
            vectors of all its heads.
        layers: hidden states for the residual stream, blocks for the other parts.
        places: positions of the prompt.
        source: the lane that they are taken from: a base.
    """

    part: str
    layers: range
    places: tuple[int, ...]
    source: int


class Swaps(Visitor):
    """Takes states from a base, each lane its own."""

    changes = True

    def __init__(self, lanes: Sequence[Departure], bases: int) -> None:
        self._lanes, self._bases = lanes, bases

    def begin(self, span: Span) -> None:
        """A pass begins."""
        self._span = span

    def state(self, stack: Stack, layer: int, hidden: Tensor) -> Tensor | None:
        """A hidden state."""
        return self._swapped("residual", layer, hidden)

    def part(self, stack: Stack, kind: str, layer: int, output: Tensor) -> Tensor | None:
        """What attention or the MLP adds."""
        return self._swapped(kind, layer, output)

    def attention(self, call: Call) -> Call | None:
        """Queries, keys and values, as they go into the kernel."""
        if call.span is None or call.layer < 0 or call.stack is None:
            return None
        for name, start in (("query", call.start), ("key", call.first_key), ("value", call.first_key)):
            for row, swap in self._wanted(name, call.layer, call.sizes[0]):
                whole = getattr(call, name)
                at = [place - (start - call.span.before) for place in swap.places]
                at = [place for place in at if 0 <= place < whole.shape[2]]
                made = whole.clone()
                made[row, :, at] = whole[swap.source, :, at]
                call = replace(call, **{name: made})
        return call

    def _wanted(self, part: str, layer: int, rows: int) -> list[tuple[int, Swap]]:
        """Rows of a pass and what is swapped in them."""
        return [
            (row, lane.change)
            for row, lane in enumerate(self._lanes, start=self._bases)
            if row < rows and lane.change.part == part and layer in lane.change.layers
        ]

    def _swapped(self, part: str, layer: int, values: Tensor) -> Tensor | None:
        span: Any = self._span
        rows = values.shape[0] if values.ndim != 2 else values.shape[0] // span.length
        wanted = self._wanted(part, layer, rows)
        if not wanted:
            return None
        whole, back = by_position(values, replace(span, rows=rows))
        first = span.start_of(whole.shape[1]) - span.before
        made = whole.clone() if torch.is_grad_enabled() else whole  # a batch of our own: nobody else holds its states
        for row, swap in wanted:
            at = torch.tensor(swap.places, device=whole.device) - first
            made[row, at] = whole[swap.source, at]
        return back(made)
