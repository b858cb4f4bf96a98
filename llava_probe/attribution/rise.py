"""RISE: random masks, each weighted by how well the target did under it.

Petsiuk, Das & Saenko 2018 (arXiv 1806.07421), eq. 6: S = Σ f(x ⊙ M)·M / (n·E[M]) over random masks M, small random
grids enlarged bilinearly and shifted. The target's mean over the masks is subtracted first: it adds the same to every
part and, with finitely many masks, only noise.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from llava_probe.attribution.engine.found import Found
from llava_probe.attribution.engine.perturbing import AT_ONCE, Pictures, picture_scores, token_scores
from llava_probe.attribution.engine.target import Task
from llava_probe.attribution.engine.windows import blocks_of
from llava_probe.attribution.occlusion import CELLS, blank
from llava_probe.border import Count, Limits, Portion, Seed, checked
from llava_probe.errors import BadInput

#: Passes where nobody says; the paper takes 4,000 to 8,000.
BUDGET = 500


@checked
def rise(
    task: Task,
    *,
    on: str = "tokens",
    budget: Annotated[int, Limits(2, 1_000_000)] = BUDGET,
    cells: Count = 7,
    keep: Portion = 0.5,
    baseline: str = "mean",
    seed: Seed = 0,
    batch: Count = AT_ONCE,
) -> Found:
    """How much better the target does when a part is shown.

    Args:
        task: what is explained.
        on: ``"tokens"``: visual tokens are blended with the baseline; ``"pixels"``: the photograph is, through the
            tower again.
        budget: how many masks, a forward pass each for each continuation.
        cells: the random grids' cells along a side.
        keep: chance that a cell is shown.
        baseline: what is shown instead: ``"mean"``, ``"zero"``, and for pixels ``"blur"``.
        seed: of the masks.
        batch: changed inputs a pass.

    Raises:
        BadInput: an unknown option.
    """
    if on not in ("tokens", "pixels"):
        raise BadInput(f'on= takes "tokens" or "pixels"; got {on!r}')
    if not 0 < keep < 1:
        raise BadInput(f"keep= takes the chance that a cell is shown, between 0 and 1; got {keep!r}")
    layout = task.layout if on == "tokens" else blocks_of(task.layout.size, max(CELLS, 4 * cells))
    size = torch.tensor(layout.size * 2, dtype=torch.float64)
    boxes = torch.from_numpy(np.asarray(layout.boxes, dtype=np.float64)) / size
    centres = (boxes[:, :2] + boxes[:, 2:]).clamp(0, 2) / 2  # shares of the photograph's width and height
    masks = random_masks(centres, budget, cells, keep, seed)  # [n, N]
    if not bool(masks.any()):
        raise BadInput(f"keep={keep} shows nothing in any of {budget} masks; give more of either")
    if on == "tokens":
        scores = token_scores(task, masks, baseline=baseline, batch=batch, label="rise")
    else:
        photograph = task.trace.images[task.image].convert("RGB")
        behind = blank(photograph, baseline)

        def drawn(number: int) -> Image.Image:
            shown = (255 * layout.to_pixels(masks[number])).round().astype(np.uint8)
            return Image.composite(photograph, behind, Image.fromarray(shown))

        pictures = Pictures(len(masks), drawn)
        scores = picture_scores(task, pictures, batch=batch, label="rise")
    weights = masks.double()
    values = (scores - scores.mean(0)).T @ weights / (len(weights) * weights.mean())
    return Found(
        values=values,
        layout=None if on == "tokens" else layout,
        unit="gain when shown",
        forwards=len(masks) * len(task.answers),
        about={"on": on, "masks": len(masks), "cells": cells, "keep": keep, "baseline": baseline, "seed": seed},
    )


def random_masks(centres: Tensor, count: int, cells: int, keep: Portion, seed: Seed) -> Tensor:
    """[count, N] values in 0 to 1 of smooth random masks at points [N, 2] of the unit square.

    A grid of zeros and ones is enlarged bilinearly until a cell measures 1 / cells, and shifted by up to one cell.
    """
    generator = torch.Generator().manual_seed(seed % 2**63)
    out = torch.empty(count, len(centres))
    for row in out:
        grid = (torch.rand(cells + 2, cells + 2, generator=generator) < keep).float()
        at = centres.float() * cells + torch.rand(2, generator=generator)  # [N, 2] x, y in cells
        low = at.floor().long().clamp(0, cells)
        part = at - low
        x, y = low.T
        top = grid[y, x] * (1 - part[:, 0]) + grid[y, x + 1] * part[:, 0]
        bottom = grid[y + 1, x] * (1 - part[:, 0]) + grid[y + 1, x + 1] * part[:, 0]
        row[:] = (top * (1 - part[:, 1]) + bottom * part[:, 1]).clamp(0, 1)
    return out
