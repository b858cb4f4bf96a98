"""Attention rows beside the fast kernel: softmax(q·kᵀ·scaling + mask) of a few queries.

A fused kernel (sdpa, flash) gives the output of attention and never its weights; eager gives all P×P of them. A
``Call`` is what one attention module handed its kernel: from it the weights of the queries that are wanted are computed
beside the kernel, for every kernel and every form of mask, and attention along some edges can follow another rule.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from llava_probe.inside.anatomy import Stack
from llava_probe.inside.edges import Edges, Edit, Hide, Rule
from llava_probe.inside.spans import Span

#: Queries whose rows are computed at once: bounds the float32 softmax when whole matrices are asked for.
QUERY_BLOCK = 256

#: Weights of one block of queries, over all heads and keys: as many as stay near the processor (32 MB in float32).
BLOCK_WEIGHTS = 2**23

#: From this share of the queries on, keys are hidden by the mask; below it, these rows are computed beside the kernel.
_BY_MASK = 0.25

#: Kernels of transformers that take a mask [B, H, Q, K] of truth values, and of numbers to add; and that take none.
_TAKES_TRUTH, _TAKES_NUMBERS = "sdpa", "eager"
_TAKES_NO_MASK = re.compile("flash|paged")


@dataclass(frozen=True, eq=False)
class Call:
    """One attention call: what its kernel got.

    Attributes:
        module: that called.
        layer: which block of ``stack`` it is in; -1 and None where it is in no stack that we know.
        query: [B, H, Q, d]; ``key``, ``value``: [B, H_kv, K, d]; queries and keys after rotary embedding.
        mask: what the kernel got: [B, 1, Q, K] of truth values or numbers, [B, K] (flash), or None.
        kwargs: its other arguments (``scaling``, ``softcap``, ``position_bias``, ``s_aux``, ``cu_seq_lens_q`` ...).
        kernel: the kernel's name in transformers' table.
        start: how many tokens were seen before its first query.
        span: the pass of the decoder that it is of.
        weights: [B, H, Q, K], where the kernel gave them of itself.
        emptied: [B, 1 or H, Q, 1] queries that were left without a key: their weights and their output are 0.
        edits: other rules for the weights of some queries, in order; those that hide nothing, or hide few rows.
    """

    module: nn.Module
    stack: Stack | None
    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    kwargs: Mapping[str, Any]
    kernel: str = "sdpa"
    start: int = 0
    span: Span | None = None
    weights: Tensor | None = None
    emptied: Tensor | None = None
    edits: tuple[Edit, ...] = ()

    @property
    def unread(self) -> bool:
        """Whether nothing is known of it: a module with a kernel of its own that keeps its weights to itself."""
        return self.weights is None and not self.query.numel()

    # --- its sizes ---

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Batch rows, heads, queries and keys."""
        if self.weights is not None:
            return tuple(self.weights.shape)  # type: ignore[return-value]
        return (*self.query.shape[:3], self.key.shape[2])

    @property
    def queries(self) -> int:
        """How many queries it has."""
        return self.sizes[2]

    @property
    def keys(self) -> int:
        """How many keys it has."""
        return self.sizes[3]

    @property
    def first_key(self) -> int:
        """Where its first key stands in the sequence: a sliding cache hands over the last ones only."""
        return max(0, self.start + self.queries - self.keys)

    @property
    def device(self) -> torch.device:
        """Where its weights are computed."""
        return self.query.device if self.weights is None else self.weights.device

    def of_row(self, row: slice) -> Call:
        """The same of some rows of the batch."""

        def part(tensor: Any) -> Any:
            return tensor[row] if isinstance(tensor, Tensor) and tensor.shape[0] == batch > 1 else tensor

        batch = self.sizes[0]
        bias = self.kwargs.get("position_bias")
        return replace(
            self,
            query=part(self.query),
            key=part(self.key),
            value=part(self.value),
            mask=part(self.mask),
            kwargs=self.kwargs if bias is None else {**self.kwargs, "position_bias": part(bias)},
            weights=part(self.weights),
            emptied=part(self.emptied),
            edits=tuple(replace(edit, edges=edit.edges.of_row(row)) for edit in self.edits),
        )

    # --- its weights ---

    def allowed(self, queries: Tensor | None = None) -> Tensor:
        """Which keys some queries may attend to, whatever the form of the mask.

        Args:
            queries: their indices; all when None.

        Returns:
            Truth values [B or 1, H or 1, queries, K].
        """
        opened = self._opened(queries)
        for edit in self.edits:
            opened = opened & ~edit.edges.pairs(queries) if edit.rule.hides else opened
        return opened if self.emptied is None else opened & ~_part(self.emptied, queries, None)

    def _opened(self, queries: Tensor | None = None) -> Tensor:
        """The same for the kernel, which gets no row without a key."""
        index = torch.arange(self.queries, device=self.device) if queries is None else queries.to(self.device)
        if self.mask is not None and self.mask.ndim == 4:
            return _allows(_part(self.mask[..., : self.keys], index, None))
        ruled = self._ruled(index)
        if ruled is None:
            return torch.ones(1, 1, len(index), self.keys, dtype=torch.bool, device=self.device)
        return ruled

    def rows(self, queries: Tensor | None = None, heads: Tensor | None = None) -> Tensor:
        """The attention weights of some queries.

        Args:
            queries: their indices; all when None (every step but the first has one).
            heads: which query heads; all when None.

        Returns:
            [B, heads, queries, K] in the query's dtype; the softmax itself in float32 at least. Exactly 0 where a key
            may not be seen.
        """
        if self.weights is not None:
            weights = self.weights if queries is None else self.weights[:, :, queries.to(self.device)]
            weights = weights if heads is None else weights[:, heads]
            return self._without_emptied(weights, queries, heads)
        if queries is None and self.queries > QUERY_BLOCK:
            queries = torch.arange(self.queries, device=self.device)
        if queries is None or len(queries) <= QUERY_BLOCK:
            return self._block(queries, heads, self.keys)
        return torch.cat([self._block(block, heads, self.keys) for block in queries.split(QUERY_BLOCK)], dim=2)

    def blocks(self, wanted: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Some queries, a block at a time: their index, and their weights [B, H, block, keys up to the last seen]."""
        batch, heads, _, keys = self.sizes
        if self.weights is not None:
            yield wanted, self.rows(wanted)
            return
        reach = self._reach()
        for block in wanted.split(max(16, BLOCK_WEIGHTS // (batch * heads * keys))):
            end = keys if reach is None else max(int(reach[block].max()), int(block.max()) + 1)
            yield block, self._block(block, None, end)

    # --- changing it ---

    def edited(self, edges: Edges, rule: Rule) -> Call:
        """The same call with another rule along some edges, behind those that it has."""
        return replace(self, edits=(*self.edits, Edit(edges, rule)))

    def hiding(self, edges: Edges) -> Call:
        """The same call where some edges are not seen."""
        if self.edits or len(edges.touched) >= _BY_MASK * self.queries:
            return self.without(edges.pairs())
        return self.edited(edges, Hide())

    def without(self, hidden: Tensor) -> Call:
        """The same call where some queries may not see some keys.

        A query that is left without any key attends to nothing: its weights and its output are 0.

        Args:
            hidden: truth values that broadcast to [B, H, Q, K].
        """
        opened, kept = self._opened(), self.allowed() & ~hidden
        emptied = ~kept.any(-1, keepdim=True)
        seen = kept | (emptied & opened)  # an empty row would be NaN to the kernel
        mask = self.mask
        if mask is not None and mask.ndim == 4 and mask.dtype != torch.bool:
            seen = mask[..., : self.keys].masked_fill(~seen, torch.finfo(mask.dtype).min)
        elif self.kernel == _TAKES_NUMBERS:
            lowest = torch.finfo(self.query.dtype).min
            seen = torch.zeros(seen.shape, dtype=self.query.dtype, device=seen.device).masked_fill(~seen, lowest)
        return replace(self, mask=seen, emptied=emptied)

    def through(self, kernel: Any) -> tuple[Tensor, Tensor | None]:
        """The kernel's output [B, Q, H, d], and its weights where it gives them.

        A kernel that takes no mask of any shape (flash) is stood in for by the sum that it stands for; somebody's own
        is given what sdpa takes.
        """
        if not self.edits:
            return self._kernels(kernel)
        touched = torch.cat([edit.edges.touched for edit in self.edits]).unique().to(self.device)
        if self.kernel == _TAKES_NUMBERS:  # all of it from one matrix, as an eager kernel's graph is
            weights = self.rows()
            return self._times_values(weights), weights
        if len(touched) == self.queries:
            return self._summed(), None
        output, _ = self._kernels(kernel)
        return output.index_copy(1, touched, self._times_values(self.rows(touched)).to(output.dtype)), None

    def _kernels(self, kernel: Any) -> tuple[Tensor, Tensor | None]:
        """The same without edits."""
        if self.emptied is None:
            output, weights = kernel(self.module, self.query, self.key, self.value, self.mask, **self.kwargs)
            return output, weights
        if not _TAKES_NO_MASK.search(self.kernel):
            output, weights = kernel(self.module, self.query, self.key, self.value, self.mask, **self.kwargs)
        else:
            output, weights = self._summed(), None
        weights = None if weights is None else weights.masked_fill(self.emptied, 0)
        return output.masked_fill(self.emptied.transpose(1, 2), 0), weights

    # --- details ---

    def _summed(self) -> Tensor:
        """Σ weights · values, a block of queries at a time: [B, Q, H, d]."""
        blocks = torch.arange(self.queries, device=self.device).split(QUERY_BLOCK)
        return torch.cat([self._times_values(self._block(block, None, self.keys)) for block in blocks], dim=1)

    def _times_values(self, weights: Tensor) -> Tensor:
        """[B, q, H, d] for weights [B, H, q, K]."""
        batch, heads, queries, _ = weights.shape
        kv_heads = self.value.shape[1]
        packed = weights.reshape(batch, kv_heads, heads // kv_heads * queries, -1)
        return torch.matmul(packed, self.value).view(batch, heads, queries, -1).transpose(1, 2).contiguous()

    def _block(self, index: Tensor | None, heads: Tensor | None, end: int) -> Tensor:
        """Weights of one block of queries over the first ``end`` keys."""
        query, key, kwargs = self.query, self.key[:, :, :end], self.kwargs
        batch, n_heads, _, _ = query.shape
        groups = n_heads // key.shape[1]
        chosen = query if index is None else query[:, :, index]
        if heads is not None:
            chosen, key = chosen[:, heads], key[:, heads // groups]
            groups = 1
        packed = chosen.reshape(batch, key.shape[1], groups * chosen.shape[2], -1)
        logits = torch.matmul(packed, key.transpose(2, 3)).view(batch, -1, chosen.shape[2], key.shape[2])
        scaling = kwargs.get("scaling")
        logits = logits * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        if (cap := kwargs.get("softcap")) is not None:
            logits = torch.tanh(logits / cap) * cap
        if (bias := kwargs.get("position_bias")) is not None:
            logits = logits + _part(bias[..., :end], index, heads)
        logits = self._masked(logits, index, heads)
        edited = self._edited_pairs(logits, index, heads)
        for rule, pairs in edited:
            logits = rule.before(logits, pairs)
        if (sinks := kwargs.get("s_aux")) is not None:
            sinks = sinks if heads is None else sinks[heads]
            logits = torch.cat([logits, sinks.view(1, -1, 1, 1).expand(*logits.shape[:3], 1).to(logits.dtype)], dim=-1)
        exact = torch.promote_types(query.dtype, torch.float32)
        weights = torch.softmax(logits, dim=-1, dtype=exact)
        weights = weights[..., :-1] if sinks is not None else weights
        for rule, pairs in edited:
            weights = rule.after(weights, pairs)
        return self._without_emptied(weights.to(query.dtype), index, heads)

    def _edited_pairs(self, logits: Tensor, index: Tensor | None, heads: Tensor | None) -> list[tuple[Rule, Tensor]]:
        """The rules for some queries, each with its pairs that may be seen."""
        if not self.edits:
            return []
        found, seen = [], _allows(logits)
        for edit in self.edits:
            pairs = edit.edges.pairs(index, heads, logits.shape[-1]) & seen
            seen = seen & ~pairs if edit.rule.hides else seen
            found.append((edit.rule, pairs))
        return [(rule, pairs if rule.hides else pairs & seen) for rule, pairs in found]

    def _without_emptied(self, weights: Tensor, index: Tensor | None, heads: Tensor | None) -> Tensor:
        if self.emptied is None:
            return weights
        return weights.masked_fill(_part(self.emptied, index, heads), 0)

    def _masked(self, logits: Tensor, index: Tensor | None, heads: Tensor | None) -> Tensor:
        if self.mask is not None and self.mask.ndim == 4:
            part = _part(self.mask[..., : logits.shape[-1]], index, heads)
            if part.dtype != torch.bool:
                return logits + part
            return logits.masked_fill(~part, torch.finfo(logits.dtype).min)
        allowed = self._ruled(index)
        if allowed is None:
            return logits
        return logits.masked_fill(~allowed[..., : logits.shape[-1]], torch.finfo(logits.dtype).min)

    def _ruled(self, index: Tensor | None) -> Tensor | None:
        """What the kernel hides by rule where no [B, 1, Q, K] says it; None where it hides nothing."""
        queries, keys = self.queries, self.keys
        varied = self.kernel not in (_TAKES_TRUTH, _TAKES_NUMBERS)  # these two ignore the lengths that flash goes by
        lengths = self.kwargs.get("cu_seq_lens_q") if varied else None
        window = self.kwargs.get("sliding_window")
        causal = self._causal
        alone = queries == 1 and keys <= self.start + 1 and window is None
        if self.mask is None and lengths is None and (not causal or alone):
            return None
        at = torch.arange(queries, device=self.device) if index is None else index.to(self.device)
        allowed = torch.ones(1, 1, len(at), keys, dtype=torch.bool, device=self.device)
        if lengths is not None:  # pictures or windows one behind the other: each sees itself
            ends = self.kwargs.get("cu_seq_lens_k")
            key_ends = lengths if ends is None else ends
            own = torch.searchsorted(lengths.to(at), at, right=True)
            other = torch.searchsorted(key_ends.to(at), torch.arange(keys, device=self.device), right=True)
            allowed = allowed & (own[:, None] == other)
        if causal:
            key_at = torch.arange(keys, device=self.device) + self.first_key
            query_at = (self.start + at).unsqueeze(-1)
            allowed = allowed & (key_at <= query_at)
            if window is not None:
                allowed = allowed & (key_at > query_at - window)
        if self.mask is not None:
            allowed = allowed & self.mask[:, None, None, -keys:].bool()
        return allowed

    @property
    def _causal(self) -> bool:
        """Whether the kernel hides what comes later where no mask says so; an eager one only adds what it is given."""
        if self.kernel == _TAKES_NUMBERS:
            return False
        causal = self.kwargs.get("is_causal")
        return bool(getattr(self.module, "is_causal", True) if causal is None else causal)

    def _reach(self) -> Tensor | None:
        """[Q] how many keys each query may see at most, where they are not all; None where every one is seen."""
        queries, keys, mask = self.queries, self.keys, self.mask
        if queries != keys:
            return None
        if mask is None or mask.ndim == 2:
            return torch.arange(1, queries + 1, device=self.device) if self._causal else None
        columns = torch.arange(1, keys + 1, device=mask.device)
        last = (_allows(mask[..., :keys]).any(1).any(0) * columns).amax(-1)
        return last.clamp(min=1) if last.numel() == queries and int(last[0]) < keys else None


def _allows(mask: Tensor) -> Tensor:
    """Where a mask lets attention through: numbers far below any logit do not."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def _part(whole: Tensor, index: Tensor | None, heads: Tensor | None) -> Tensor:
    """The chosen queries and heads of [B, H or 1, Q, K]."""
    part = whole if index is None else whole[:, :, index.to(whole.device)]
    return part if heads is None or part.shape[1] == 1 else part[:, heads]
