"""One relevance row pulled back through a stack's attention, a layer at a time, while the backward pass goes by.

Chefer, Gur & Wolf 2021 (arXiv 2103.15679), eq. 5 and 6, for a row of R instead of the whole: r ← r + r Ā, with
Ā = mean over heads of (A ⊙ ∂y/∂A)⁺. The language model is one stack, a vision tower another.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llava_probe.attribution.engine.watching import Slopes
from llava_probe.errors import BadModel, NotANumber
from llava_probe.inside.rows import Call


class Pull:
    """A relevance row on its way back through the layers of one stack.

    Args:
        where: what the stack is called, for errors.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self.row = torch.empty(0)
        self._shared = 0
        self._added: dict[int, Tensor] = {}
        self._checks: list[tuple[int, Tensor]] = []

    def start(self, row: Tensor, shared: int = 0) -> None:
        """Begin at the last layer with [B, P]; the first ``shared`` positions are the first row's for all."""
        self.row, self._shared, self._added, self._checks = row, shared, {}, []

    def __call__(self, call: Call, slopes: Slopes) -> None:
        """R ← r + r Ā of one call; windows of one layer are pulled side by side."""
        if call.layer not in self._added:
            self._settle()
            self._added[call.layer] = torch.zeros_like(self.row)
        added = self._added[call.layer]
        span = slice(call.start, call.start + call.queries)
        row = self.row.to(added.device)[:, span]
        if row.shape[1] != span.stop - span.start:
            raise BadModel(f"blocks of the {self._where} read sequences of different lengths, so relevance is lost")
        wanted = (row != 0).any(0).nonzero().flatten()
        for block, weights, slope in slopes(wanted):
            along = (weights.to(row.dtype) * slope.to(row.dtype)).clamp_(min=0)  # [B, H, block, K]
            heads = along.shape[1]
            shares = (row[:, None, block] / heads).expand(-1, heads, -1).flatten(1)  # [B, H * block]
            pulled = torch.bmm(shares[:, None], along.flatten(1, 2))[:, 0]
            added[:, span][:, : pulled.shape[1]] += pulled
        self._checks.append((call.layer, torch.isfinite(added).all()))

    def finish(self) -> Tensor:
        """[B, P] at the first layer.

        Raises:
            BadModel: no attention call came by.
            NotANumber: a layer gave NaN.
        """
        self._settle()
        if not self._checks:
            raise BadModel(f"no attention of the {self._where} could be watched, so relevance cannot be followed")
        for layer, fine in self._checks:
            if not bool(fine):
                raise NotANumber(
                    f"relevance became NaN or infinite in layer {layer} of the {self._where}; "
                    "load the model in bfloat16 or float32"
                )
        return self.row

    def _settle(self) -> None:
        for added in self._added.values():
            self.row = self.row.to(added.device) + added
            self.row[0, : self._shared] += self.row[1:, : self._shared].sum(0)
            self.row[1:, : self._shared] = 0
        self._added = {}
