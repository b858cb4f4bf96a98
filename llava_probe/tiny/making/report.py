"""What a training run says of itself while it runs: how much of what it was just shown it got right."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from llava_probe.tiny.making.batches import GROUPS, KINDS_OF_PATCH
from llava_probe.tiny.questions import KINDS


class Report:
    """Means over some steps: loss, patches read right, and answers right to the last token under teacher forcing."""

    def __init__(self):
        self.steps, self.loss, self.patches = 0, 0.0, 0.0
        self.right, self.asked = np.zeros(len(KINDS)), np.zeros(len(KINDS))

    def add(self, loss: Tensor, patches: Tensor, predicted: Tensor | None, batch: dict[str, Tensor]) -> None:
        """Count one step."""
        self.steps += 1
        self.loss += loss.item()
        self.patches = self.patches + patches.cpu().numpy()
        if predicted is None:
            return
        wrong = (predicted != batch["tokens"][:, 1:]) & (batch["weights"][:, 1:] > 0)
        answers = batch["answers"][:, 1:]
        failed = torch.zeros(len(wrong), GROUPS + 1, dtype=torch.bool, device=wrong.device)
        rows = torch.arange(len(wrong), device=wrong.device)[:, None].expand_as(wrong)
        failed[rows[wrong], answers[wrong]] = True
        kinds = batch["kinds"].cpu().numpy()
        for i in range(len(KINDS)):
            self.asked[i] += (kinds == i).sum()
            self.right[i] += ((kinds == i) & ~failed[:, :GROUPS].cpu().numpy()).sum()

    def __str__(self) -> str:
        parts = [f"loss {self.loss / self.steps:.3f}"]
        parts += [f"{k} {v / self.steps:.3f}" for k, v in zip(KINDS_OF_PATCH, self.patches, strict=True)]
        if self.asked.any():
            parts += [f"{k} {r / max(n, 1):.3f}" for k, r, n in zip(KINDS, self.right, self.asked, strict=True)]
        return "  ".join(parts)
