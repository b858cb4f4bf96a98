"""Attention knock-out: some positions may not look at some others, in some layers and heads.

    with lp.knock_out(vlm, keys="image", queries="last", layers=range(8, 17)) as cut:
        trace = vlm.generate(image, question)
    cut.acts                       # what was taken away, by layer and step

Geva et al. 2023, "Dissecting Recall of Factual Associations in Auto-Regressive Language Models" (arXiv 2304.14767),
section 5: the logits of the edges from queries to keys become −∞, so their weights are exactly 0 and the rest of the
row is what softmax makes of it. A query that is left without any key attends to nothing: its weights and what attention
adds for it are 0. It acts in every kernel and with every cache, in batches, beams and chunks.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from llava_probe.border import checked
from llava_probe.errors import BadModel
from llava_probe.inside import seam
from llava_probe.inside.passes import Span, visiting
from llava_probe.inside.rows import Call
from llava_probe.interventions.intervention import Intervention, Places, chosen_heads, chosen_layers
from llava_probe.model import VLM
from llava_probe.trace.explained import At
from llava_probe.trace.request import spelled


@checked
@contextmanager
def knock_out(
    vlm: VLM,
    *,
    keys: At,
    queries: At | None = None,
    layers: int | Sequence[int] | None = None,
    heads: int | Sequence[int] | None = None,
) -> Iterator[KnockOut]:
    """Let some positions not look at some others while the context lasts, in whatever runs in it.

    Args:
        vlm: whose passes; ``vlm.model(...)`` called by hand counts too.
        keys: what may not be looked at: positions (from 0), words of the prompt, places such as ``"image"``.
        queries: what may not look there, likewise; everything but the keys themselves when None.
        layers: blocks, from 0; all when None.
        heads: query heads; all when None.

    Yields:
        What tells afterwards where it acted.

    Raises:
        NotActed: on leaving, where nothing was taken away; the message says why.
        OutOfRange: a layer or head that this model does not have.
        BadModel: attention that cannot be reached, or layers that pass information on beside it.
    """
    cut = KnockOut(vlm, keys, queries, layers, heads)
    with visiting(vlm.anatomy, cut, alone=False):
        yield cut


@checked
class KnockOut(Intervention):
    """One attention knock-out in force. Made by ``knock_out``.

    Attributes:
        layers: the blocks; ``heads``: the query heads, None for all.
    """

    def __init__(self, vlm: VLM, keys: At, queries: At | None, layers: Any, heads: Any) -> None:
        super().__init__(vlm)
        self.layers = chosen_layers(vlm, layers)
        self.heads = chosen_heads(vlm, heads, self.layers)
        self._keys = Places(vlm, keys, "keys")
        self._queries = None if queries is None else Places(vlm, queries, "queries")
        own = [
            module
            for module, layer in vlm.anatomy.decoder.attentions.items()
            if layer in self.layers and not seam.reads_interface(module)
        ]
        if own:
            raise BadModel(
                f"{type(own[0]).__name__} has an attention kernel of its own, past transformers' attention interface, "
                "so nothing can be taken away from it"
            )
        if past := vlm.anatomy.beside_attention:
            warnings.warn(
                f"{type(vlm.anatomy.model).__name__} carries something from one position to another past attention "
                f"({'; '.join(past)}), which no knock-out of attention reaches",
                stacklevel=4,
            )

    def told(self) -> Mapping[str, Any]:
        """What it is, as plain data."""
        return {
            "kind": "knock_out",
            "keys": self._keys.told(),
            "queries": None if self._queries is None else self._queries.told(),
            "layers": list(self.layers),
            "heads": None if self.heads is None else list(self.heads),
        }

    def __repr__(self) -> str:
        return spelled(self.told())

    def plan(self) -> str:
        """What will happen in each pass, before any has run: modules, blocks, heads, and which look where."""
        stack, told = self.vlm.anatomy.decoder, self.told()
        kinds = sorted({type(module).__name__ for module, layer in stack.attentions.items() if layer in self.layers})
        kernel = seam.implementation(stack.owner.config)
        queries = "every other position" if told["queries"] is None else told["queries"]
        heads = "all heads" if self.heads is None else f"heads {', '.join(map(str, self.heads))}"
        lines = [
            f"{', '.join(kinds)} ({kernel}) of blocks {', '.join(map(str, self.layers))}, {heads}",
            f"queries: {queries}",
            f"may not look at: {told['keys']}",
            "in each pass of prompt and answer that holds both",
        ]
        past = self.vlm.anatomy.beside_attention
        return "\n".join(
            [*lines, *([f"what goes past attention, in {'; '.join(past)}, is not reached"] if past else [])]
        )

    def attention(self, call: Call) -> Call | None:
        """The same call without the pairs that are cut."""
        span = call.span
        if span is None or call.layer not in self.layers or call.stack is not self.vlm.anatomy.decoder:
            return None
        hidden = self._hidden(span, call)
        if hidden is None:
            return None
        taken = call.allowed() & hidden
        self.acted(call.layer, span, taken.any(1).sum() * (call.sizes[0] // len(taken)))
        if self.heads is not None:
            wanted = torch.zeros(call.sizes[1], dtype=torch.bool, device=call.device)
            wanted[list(self.heads)] = True
            hidden = hidden & wanted[:, None, None]
        return call.without(hidden)

    def idle(self) -> str | None:
        """Why nothing was taken away, if nothing was."""
        if self.acts:
            return None
        queries = self._queries
        if not self._passes:
            why = "no pass of this model ran inside it, in this thread"
        elif not self._keys.met:
            why = f"no pass held a key that keys={self._keys.told()!r} names"
        elif queries is not None and not queries.met:
            why = (
                f"no pass computed a query that queries={queries.told()!r} names: such a position was never fed, or "
                "its keys and values came from a cache made before"
            )
        else:
            why = "none of these queries could see these keys anyway: keys come later, or a window hides them"
        return f"{self!r} took nothing away: {why}"

    def _hidden(self, span: Span, call: Call) -> Tensor | None:
        """Truth values [B or 1, 1, Q, K] of the pairs that are cut; None where this call has none."""
        first, count = call.start - span.before, call.queries
        start = call.first_key - span.before
        keys = self._keys.columns(span, start, start + call.keys)
        if self._queries is None:
            queries = ~self._keys.columns(span, first, first + count)
        else:
            queries = self._queries.columns(span, first, first + count)
        if not bool((keys.any(1) & queries.any(1)).any()):
            return None
        hidden = queries[:, None, :, None] & keys[:, None, None, :]
        rows = call.sizes[0]
        if len(hidden) > 1 and rows != len(hidden):
            hidden = hidden[[span.sample(row) for row in range(rows)]]
        return hidden.to(call.device)
