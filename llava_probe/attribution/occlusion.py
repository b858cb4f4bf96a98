"""Occlusion: how much the target loses when a window of the picture is taken away.

Zeiler & Fergus 2014 (arXiv 1311.2901): a window slides over the picture, and a part's value is the mean drop of the
target over the windows that cover it (the average that captum's ``Occlusion`` takes). Visual tokens are replaced where
they enter the language model, photographs before the processor.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from llava_probe.attribution.engine.found import Found
from llava_probe.attribution.engine.perturbing import (
    AT_ONCE,
    TOKEN_BASELINES,
    Pictures,
    picture_scores,
    token_scores,
)
from llava_probe.attribution.engine.target import Task
from llava_probe.attribution.engine.windows import blocks_of, token_windows, within
from llava_probe.border import Count, checked
from llava_probe.errors import BadInput
from llava_probe.layout import ImageLayout

PICTURE_BASELINES = ("mean", "zero", "blur")

#: Blocks along the photograph's longer side, and the blur's radius as a share of it.
CELLS, BLUR = 14, 0.05


@checked
def occlusion(
    task: Task,
    *,
    on: str = "tokens",
    window: Count = 1,
    baseline: str = "mean",
    cells: Count = CELLS,
    budget: Count | None = None,
    batch: Count = AT_ONCE,
) -> Found:
    """Drop of the target when each window is taken away, in the target's own unit.

    Args:
        task: what is explained.
        on: ``"tokens"``: visual tokens; ``"pixels"``: blocks of the photograph, through the tower again.
        window: side of the window, in tokens or blocks.
        baseline: what stands there instead: ``"mean"`` of the picture, ``"zero"`` (black), and for pixels ``"blur"``.
        cells: on pixels, blocks along the photograph's longer side.
        budget: passes at most for each continuation; windows then move in larger steps, and grow with them.
        batch: changed inputs a pass.

    Raises:
        BadInput: an unknown option, or a budget too small to cover the picture once.
    """
    if on not in ("tokens", "pixels"):
        raise BadInput(f'on= takes "tokens" or "pixels"; got {on!r}')
    if on == "tokens":
        if baseline not in TOKEN_BASELINES:
            raise BadInput(f"on tokens, baseline= takes {' or '.join(map(repr, TOKEN_BASELINES))}; got {baseline!r}")
        side, stride = within(task.layout, window, budget)
        windows = token_windows(task.layout, side, stride)
        keep = torch.cat([torch.ones(1, windows.shape[1]), (~windows).float()])
        scores = token_scores(task, keep, baseline=baseline, batch=batch, label="occlusion")
        layout = None
    else:
        layout = blocks_of(task.layout.size, cells)
        side, stride = within(layout, window, budget)
        windows = token_windows(layout, side, stride)
        photograph = task.trace.images[task.image]
        behind = blank(photograph, baseline)
        shown = [torch.zeros_like(windows[0]), *windows]
        pictures = Pictures(len(shown), lambda number: _covered(photograph, behind, layout, shown[number]))
        scores = picture_scores(task, pictures, batch=batch, label="occlusion")
    drops = scores[:1] - scores[1:]  # [W, R]
    covered = windows.double()
    values = (drops.T @ covered) / covered.sum(0)
    return Found(
        values=values,
        layout=layout,
        unit="drop when occluded",
        forwards=len(scores) * len(task.answers),
        about={"on": on, "window": side, "stride": stride, "baseline": baseline},
    )


def blank(photograph: Image.Image, baseline: str) -> Image.Image:
    """What stands where a photograph is taken away: its mean colour, black, or itself blurred.

    Raises:
        BadInput: an unknown baseline.
    """
    rgb = photograph.convert("RGB")
    if baseline == "blur":
        return rgb.filter(ImageFilter.GaussianBlur(BLUR * max(rgb.size)))
    if baseline == "zero":
        return Image.new("RGB", rgb.size)
    if baseline == "mean":
        colour = np.asarray(rgb).reshape(-1, 3).mean(0).round().astype(int)
        return Image.new("RGB", rgb.size, tuple(colour.tolist()))
    raise BadInput(f"baseline= takes {', '.join(map(repr, PICTURE_BASELINES))}; got {baseline!r}")


def _covered(photograph: Image.Image, behind: Image.Image, layout: ImageLayout, window: Tensor) -> Image.Image:
    hidden = layout.to_pixels(window.float().numpy()) > 0
    return Image.composite(behind, photograph.convert("RGB"), Image.fromarray(hidden))
