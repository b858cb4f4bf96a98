"""Relevance: attention weighted by how much the target rests on it, followed back through the layers.

Chefer, Gur & Wolf 2021, "Generic Attention-model Explainability" (arXiv 2103.15679), eq. 5 and 6: for each layer
Ā = mean over heads of (A ⊙ ∂y/∂A)⁺ and R ← R + Ā R, from R = I. Only the rows of R that predict the target are wanted,
so a row is pulled back instead, r ← r + r Ā from the last layer to the first, while the backward pass goes by.

    lp.attribute(vlm, trace, "relevance")
    lp.attribute(vlm, trace, "relevance", through="tower")    # on through the vision tower to its patches
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from llava_probe.attribution.engine.forward import forward
from llava_probe.attribution.engine.found import Found
from llava_probe.attribution.engine.target import Task
from llava_probe.attribution.engine.tower import TowerRelevance
from llava_probe.attribution.engine.watching import Call, Slopes, Watch
from llava_probe.errors import BadInput, BadModel, NotANumber


def relevance(task: Task, *, through: str = "language", checkpoint: bool = False) -> Found:
    """Relevance of every position, one forward pass and a backward pass a target.

    Args:
        task: what is explained.
        through: ``"language"``: as far as the visual tokens; ``"tower"``: on through the vision tower's blocks, to
            the patches that each visual token was made of.
        checkpoint: keep one block's activations at a time.

    Raises:
        BadInput: an unknown ``through``.
        BadModel: no gradient, or a tower whose patches cannot be told apart.
        NotANumber: relevance became NaN; the message names the layer.
    """
    if through not in ("language", "tower"):
        raise BadInput(f'through= takes "language" or "tower"; got {through!r}')
    passed = task.vlm.anatomy.other_layers
    if passed:
        warnings.warn(
            f"relevance knows attention alone: it passes over {len(passed)} of {task.vlm.anatomy.layers} layers "
            f"({', '.join(sorted(set(passed.values())))}) as if they mixed no tokens",
            stacklevel=4,
        )
    rows = torch.zeros(len(task.targets), task.fed, dtype=torch.float64)
    for number in task.passes:
        pull = Pull("language model")
        tower = TowerRelevance(task, pull, Pull("vision tower")) if through == "tower" else None
        watches = (Watch(task.vlm.anatomy.decoder, pull), *(tower.visitors if tower else ()))
        with forward(task, number, *watches, pixels=tower is not None, checkpoint=checkpoint) as run:
            if tower is not None:
                tower.prepare(run)
            for row, target, last in run:
                pull.start(run.starting(target), run.shared)
                run.gradients(target, list(run.pixels.values()) or [run.entry], last=last)
                found = pull.finish()
                if tower is not None:
                    found = tower.finish(found)
                rows[row] = run.merged(found)
    return Found(
        rows,
        unit="relevance",
        forwards=task.forwards,
        backwards=task.backwards,
        about={"through": through, "checkpoint": checkpoint},
    )


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
