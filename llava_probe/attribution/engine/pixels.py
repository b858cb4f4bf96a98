"""The pixels that the tower reads, each on its place on the photograph.

Which visual token a pixel goes into is asked of the model with each patch alone (``layout.isolation``), so no family's
way of cutting, tiling and padding is written here. A token's pixels fill its box, in the order in which they were read;
where a processor flattens patches into rows, a token's rows are one cell: the order inside them is its own affair.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llava_probe.attribution.engine.forward import frozen
from llava_probe.attribution.engine.origins import depends, origins
from llava_probe.attribution.engine.target import Task
from llava_probe.errors import BadModel
from llava_probe.inside.isolation import isolated
from llava_probe.inside.passes import ENTRY, DecoderInput, alone_with, visiting
from llava_probe.layout import ImageLayout


@dataclass(frozen=True, eq=False)
class PixelCells:
    """The parts of one picture that pixels are gathered in.

    Attributes:
        name: of the model input that holds the pixels.
        layout: where each cell lies: a pixel of the tower, or all pixels of a visual token.
        cell: the cell of each pixel, in the shape of the input without its channels, -1 for none.
        channels: the channels' axis.
    """

    name: str
    layout: ImageLayout
    cell: Tensor
    channels: int

    def summed(self, values: Tensor) -> Tensor:
        """[cells] float64 sums over each cell's pixels and channels."""
        each = values.detach().double().sum(self.channels).flatten().cpu()
        cell = self.cell.flatten()
        out = torch.zeros(len(self.layout), dtype=torch.float64)
        return out.index_add_(0, cell[cell >= 0], each[cell >= 0])


def pixel_cells(task: Task) -> PixelCells:
    """The cells of the explained picture.

    Raises:
        BadModel: a pixel goes into several visual tokens even with each patch alone, or its pixels are not there.
    """
    name, pixels, tokens = _alone(task)
    flat = pixels.ndim < 4
    channels = -1 if flat else -3
    owner = origins(tokens, pixels, channels)
    if owner is None:
        raise BadModel(
            f"a pixel of {type(task.vlm.anatomy.model).__name__} goes into several visual tokens, so it has no one "
            'place; pass on="tokens"'
        )
    owner = owner.detach().cpu()
    if flat:
        return PixelCells(name, task.layout, owner, channels)
    read = owner.reshape(-1, *owner.shape[-2:]).numpy()  # [crops, height, width]
    crop, y, x = np.nonzero(read >= 0)
    token = read[crop, y, x]
    corners = np.stack([_least(token, x), _least(token, y), -_least(token, -x), -_least(token, -y)], axis=1)
    low, high = corners[token, :2], corners[token, 2:] + 1
    boxes = task.layout.boxes[token]
    size = (boxes[:, 2:] - boxes[:, :2]) / (high - low)
    start = boxes[:, :2] + (np.stack([x, y], axis=1) - low) * size
    cell = torch.full(owner.shape, -1)
    cell[owner >= 0] = torch.arange(len(token))
    layout = ImageLayout(
        task.layout.size,
        task.layout.positions[token],
        np.concatenate([start, start + size], axis=1),
        task.layout.tiles[token],
        frames=task.layout.frames,
    )
    return PixelCells(name, layout, cell, channels)


def _least(token: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The smallest value of each token's pixels."""
    out = np.full(token.max() + 1, np.iinfo(np.int64).max)
    np.minimum.at(out, token, values)
    return out


def _alone(task: Task) -> tuple[str, Tensor, Tensor]:
    """The pixels, and the visual tokens made of them with each patch alone; both in one graph."""
    anatomy = task.vlm.anatomy
    inputs = dict(task.continuations[0].inputs)
    names = [name for name, value in inputs.items() if name.startswith("pixel_values") and isinstance(value, Tensor)]
    with alone_with(anatomy.model), torch.inference_mode(False), frozen(anatomy.model), isolated(anatomy.model):
        for name in names:
            pixels = inputs[name].detach().clone().requires_grad_()
            entry = DecoderInput()
            with torch.enable_grad(), visiting(anatomy, entry, until=ENTRY, apart=True):
                task.vlm.model(**{**inputs, name: pixels})
            tokens = None if entry.embeddings is None else entry.embeddings[0, task.places]
            if tokens is not None and tokens.requires_grad and depends(tokens, pixels):
                return name, pixels, tokens
    name = type(anatomy.model).__name__
    raise BadModel(f'the visual tokens of {name} cannot be followed back to pixels; pass on="tokens"')
