"""The frames of a video: as the family lays out a picture, on fewer tokens each, or two frames in one token.

LLaVA-NeXT-Video crops each frame and pools squares of patches; Video-LLaVA keeps every patch, behind a class token;
LLaVA-OneVision squashes each frame and shrinks its features, with a newline token after the video; Qwen-VL, GLM-V and
VideoLLaMA 3 stretch the frames over one grid, and the first two read two frames at once. Frames that share tokens are
one ``Share`` here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from llava_probe.inside import seam
from llava_probe.layout.anyres import blended
from llava_probe.layout.crop import lines
from llava_probe.layout.geometry import Share, boxes_between, cell_edges
from llava_probe.layout.prepared import Prepared

#: VideoLLaMA 3 keeps only these visual tokens: not those of patches that look as in the frame before.
_KEPT = "video_compression_mask"


def place_pooled(prepared: Prepared) -> list[Share]:
    """LLaVA-NeXT-Video: each token pools a square of patches; what is left at the edges is dropped."""
    stride = prepared.config.spatial_pool_stride
    shares = []
    for size, count in zip(prepared.sizes, prepared.frames, strict=True):
        x, y = (line[::stride] for line in lines(prepared, size))
        one = Share.of(boxes_between(x, y), grid=(len(y) - 1, len(x) - 1))
        shares += _repeated(one, count)
    return shares


def place_cropped(prepared: Prepared) -> list[Share]:
    """Video-LLaVA: the class token of every frame is kept, whatever is done with that of a picture."""
    shares = []
    for size, count in zip(prepared.sizes, prepared.frames, strict=True):
        x, y = lines(prepared, size)
        one = Share.of(boxes_between(x, y), before=1, grid=(len(y) - 1, len(x) - 1))
        shares += _repeated(one, count)
    return shares


def place_blended(prepared: Prepared) -> list[Share]:
    """LLaVA-OneVision: the model's own pooling is given features that name their places, as in ``anyres``."""
    side = prepared.config.vision_config.image_size // prepared.config.vision_config.patch_size
    places = torch.cartesian_prod(torch.arange(side), torch.arange(side)).float()  # [patches, (row, column)]
    pooled = seam.pooled_features(prepared.model, places[None])[0]
    (top, bottom), (left, right) = (blended(place, side) for place in np.asarray(pooled, dtype=float).T)
    rows = round(len(top) ** 0.5)
    shares = []
    for size, count in zip(prepared.sizes, prepared.frames, strict=True):
        x, y = lines(prepared, size)
        boxes = np.stack([x[left], y[top], x[right + 1], y[bottom + 1]], axis=-1)
        one = Share.of(boxes, grid=(rows, rows))
        *most, last = _repeated(one, count)
        shares += [*most, replace(last, count=last.count + 1)]
    return shares


def place_frames_by_grid(prepared: Prepared) -> list[Share]:
    """Qwen-VL and its kind: the processor tells the model the grid of each video, in time too.

    The last frame of an odd number is read twice. Nothing is said where the processor took other frames than these.
    """
    merged = prepared.setting("merge_size") or prepared.config.vision_config.spatial_merge_size
    together = prepared.setting("temporal_patch_size") or 1
    grids = [prepared.told("video_grid_thw", video) for video in range(-prepared.first, len(prepared.sizes))]
    start = sum(t * h * w // merged**2 for t, h, w in grids[: prepared.first])
    shares = []
    for size, count, (t, h, w) in zip(prepared.sizes, prepared.frames, grids[prepared.first :], strict=True):
        rows, columns = h // merged, w // merged
        boxes = boxes_between(cell_edges(0, size[0], columns), cell_edges(0, size[1], rows))
        if t != -(-count // together):
            return []
        for frame in range(0, count, together):
            kept = _kept(prepared.inputs, start, len(boxes))
            grid = (rows, columns) if kept.all() else None
            frames = tuple(range(frame, min(frame + together, count)))
            shares.append(Share.of(boxes[kept], grid=grid, frames=frames))
            start += len(boxes)
    return shares


def pruned(inputs: Mapping[str, Tensor]) -> bytes:
    """What decides a layout beside the sizes of the pictures: which of their tokens were kept."""
    return inputs[_KEPT].cpu().numpy().tobytes() if _KEPT in inputs else b""


def _kept(inputs: Mapping[str, Tensor], start: int, count: int) -> np.ndarray:
    if _KEPT not in inputs:
        return np.ones(count, dtype=bool)
    return inputs[_KEPT].flatten()[start : start + count].bool().cpu().numpy()


def _repeated(share: Share, count: int) -> list[Share]:
    """The same for each frame of a video."""
    return [replace(share, placement=replace(share.placement, frames=(frame,))) for frame in range(count)]
