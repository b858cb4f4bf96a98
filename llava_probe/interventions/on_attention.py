"""What acts on attention: queries, keys, layers and heads, and a rule for the weights between them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from llava_probe.errors import BadInput, BadModel
from llava_probe.inside import seam
from llava_probe.inside.edges import Edges, Rule
from llava_probe.inside.passes import Span
from llava_probe.inside.rows import Call
from llava_probe.interventions.intervention import (
    Intervention,
    attention_told,
    by_row,
    chosen_heads,
    chosen_layers,
)
from llava_probe.interventions.places import Phase, Places
from llava_probe.model import VLM
from llava_probe.trace.explained import At
from llava_probe.trace.trace import Trace


class OnAttention(Intervention):
    """Lets a rule hold between some queries and some keys.

    Args:
        keys: the keys; None: all but ``keep`` and a query's own.
        keep: the keys that stay as they are, where ``keys`` is None.
        queries: the queries; None: every position but the keys, with ``keep`` every one.
        rule: what becomes of the weights; None: nothing.

    Attributes:
        layers: the blocks; ``heads``: the query heads, None for all.
    """

    def __init__(
        self,
        vlm: VLM,
        keys: At | None,
        queries: At | None,
        layers: Any,
        heads: Any,
        *,
        rule: Rule | None,
        keep: At | None = None,
        phase: Phase = "both",
        allow_nothing: bool = False,
    ) -> None:
        super().__init__(vlm, phase, allow_nothing)
        if (keys is None) == (keep is None):
            raise BadInput(f"{self.kind} takes keys=, or keep= for everything but; give one of the two")
        self.rule = rule
        self.layers = chosen_layers(vlm, layers)
        self.heads = chosen_heads(vlm, heads, self.layers)
        self._kept = keys is None
        named = keep if keys is None else keys
        self._keys = Places(vlm, [] if named is None else named, "keep" if keys is None else "keys")
        self._queries = None if queries is None else Places(vlm, queries, "queries", phase)
        _check_reached(vlm, self.layers, self.kind)

    def settings(self) -> Mapping[str, Any]:
        """Which edges, as plain data."""
        return {
            self._keys.argument: self._keys.told(),
            "queries": None if self._queries is None else self._queries.told(),
            "layers": list(self.layers),
            "heads": None if self.heads is None else list(self.heads),
        }

    def planned(self, trace: Trace | None) -> list[str]:
        """Modules, blocks, heads, and which look where."""
        everything = "every position" if self._kept else "every other position"
        past = self.vlm.anatomy.beside_attention
        return [
            attention_told(self.vlm, self.layers, self.heads),
            f"queries: {everything if self._queries is None else self._queries.shown(trace)}",
            f"{'all keys but their own and' if self._kept else 'keys:'} {self._keys.shown(trace)}",
            self.ruled(),
            *([f"what goes past attention, in {'; '.join(past)}, is not reached"] if past else []),
        ]

    def ruled(self) -> str:
        """What becomes of the weights, in words."""
        raise NotImplementedError

    def attention(self, call: Call) -> Call | None:
        """The same call under the rule."""
        span = call.span
        if span is None or call.layer not in self.layers or call.stack is not self.vlm.anatomy.decoder:
            return None
        sizes = (call.start, call.first_key, *call.sizes, call.device)
        edges = self.once(span, sizes, lambda: self._edges(span, call))
        if edges is None or self.rule is None:
            return None
        rule, kind = self.rule, (call.kernel, call.kwargs.get("sliding_window"), call.kwargs.get("is_causal"))
        others = tuple((id(edit.edges), id(edit.rule)) for edit in call.edits)
        (before, _), made, count = self.once(  # what is kept keeps its number
            span,
            (*sizes, id(call.mask), others, kind),
            lambda: ((call.mask, call.edits), *self._made_of(call, edges, rule)),
        )
        self.acted(call.layer, span, count)
        if rule.hides and made.mask is not before:  # the mask is the same for all layers of a kind
            return replace(call, mask=made.mask, emptied=made.emptied)
        return call.edited(edges, rule)

    def why_idle(self) -> str:
        """Which of the two was not there, or why they could not meet."""
        if not self.layers:
            return "layers=[] names no layer"
        if self._keys.empty and not self._kept:
            return "keys=[] names no token"
        if not self._keys.met and not self._kept:
            return f"no pass held a key that keys={self._keys.told()!r} names"
        if self._queries is not None and (missed := self.missed(self._queries)) is not None:
            return missed
        if self.rule is None:
            return "its strength is 0"
        return "none of these queries could see these keys anyway: keys come later, or a window hides them"

    # --- details ---

    def _edges(self, span: Span, call: Call) -> Edges | None:
        """Which pairs of this call; None where it has none."""
        first, count = call.start - span.before, call.queries
        start = call.first_key - span.before
        keys = self._keys.columns(span, start, start + call.keys)
        if self._kept:
            keys = ~keys & _there(span, start, start + call.keys)
        if self._queries is not None:
            queries = self._queries.columns(span, first, first + count)
        else:
            queries = _there(span, first, first + count, self.phase)
            if not self._kept:
                queries = queries & ~self._keys.columns(span, first, first + count)
        if not bool((keys.any(1) & queries.any(1)).any()):
            return None
        heads = None
        if self.heads is not None:
            heads = torch.zeros(call.sizes[1], dtype=torch.bool)
            heads[list(self.heads)] = True
            heads = heads.to(call.device)
        rows, device = call.sizes[0], call.device
        own = first - start if self._kept else None
        return Edges(by_row(queries, span, rows, device), by_row(keys, span, rows, device), heads, own)

    def _made_of(self, call: Call, edges: Edges, rule: Rule) -> tuple[Call, Tensor]:
        """The changed call, and how many pairs that could be seen are under the rule."""
        touched = edges.touched
        seen = call.allowed(touched)
        pairs = edges.pairs(touched)
        taken = seen & pairs
        if rule.hides:
            left = (seen & ~pairs).any(-1)
            self.refuse_where(
                seen.any(-1) & ~left,
                f"{self!r} leaves a query without any key, so nothing is left that it could look at; keep one, its own "
                "say, or name fewer queries",
            )
        return (call.hiding(edges) if rule.hides else call), taken.any(1).sum() * (call.sizes[0] // len(taken))


def _there(span: Span, start: int, stop: int, phase: Phase = "both") -> Tensor:
    """[samples, stop - start] which columns hold tokens of a sample, of prompt or answer."""
    columns = torch.arange(start, stop)
    padding = torch.tensor([prompt.padding for prompt in span.prompts])[:, None]
    ends = torch.tensor([prompt.stop for prompt in span.prompts])[:, None]
    there = columns >= padding
    if phase == "both":
        return there
    return there & (columns < ends if phase == "prompt" else columns >= ends)


def _check_reached(vlm: VLM, layers: tuple[int, ...], kind: str) -> None:
    """Refuse attention that cannot be reached, and tell of what goes past it."""
    own = [
        module
        for module, layer in vlm.anatomy.decoder.attentions.items()
        if layer in layers and not seam.reads_interface(module)
    ]
    if own:
        raise BadModel(
            f"{type(own[0]).__name__} has an attention kernel of its own, past transformers' attention interface, "
            "so nothing can be taken away from it"
        )
    if past := vlm.anatomy.beside_attention:
        warnings.warn(
            f"{type(vlm.anatomy.model).__name__} carries something from one position to another past attention "
            f"({'; '.join(past)}), which {kind} of attention does not reach",
            stacklevel=6,
        )
