"""Where each visual token of one picture lies on the original photograph, both ways.

A processor resizes, crops, pads or tiles the photograph before the model sees it; stretching the token grid over
the whole photograph puts a map in the wrong place wherever it did. An ``ImageLayout`` holds each token's true box:

    layout.to_pixels(values)      # one value per token  ->  one per pixel, NaN where the model saw nothing
    layout.to_tokens(mask)        # a mask on the photograph  ->  the share of each token's box that it covers

A pixel belongs to a box when its centre lies in it. A box narrower than a pixel owns the pixel under its centre.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from llava_probe.errors import BadInput

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False)
class ImageLayout:
    """One picture's visual tokens and their places.

    Attributes:
        size: (width, height) of the upright original, in pixels.
        positions: [N] sequence position of each visual token that carries a patch.
        boxes: [N, 4] each token's (x0, y0, x1, y1) in pixels of the original, origin at the top left; a box
            reaches beyond the photograph where the processor padded.
        tiles: [N] which tile a token belongs to, 0 where there is only one.
        grid: (rows, columns) where the tokens form one grid in reading order, else None.
    """

    size: tuple[int, int]
    positions: IntArray
    boxes: FloatArray
    tiles: IntArray
    grid: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.positions)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ImageLayout):
            return NotImplemented
        return (self.size, self.grid) == (other.size, other.grid) and all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in ("positions", "boxes", "tiles")
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"ImageLayout({len(self)} tokens on {self.size[0]}×{self.size[1]} px, {self.seen.mean():.0%} seen)"

    @cached_property
    def seen(self) -> npt.NDArray[np.bool_]:
        """[height, width], False where a crop hid the pixel from the model."""
        return self._owner >= 0

    @cached_property
    def _owner(self) -> IntArray:
        """[height, width] index of the finest token that covers each pixel, -1 where none does."""
        width, height = self.size
        owner = np.full((height, width), -1, dtype=np.int32)
        area = (self.boxes[:, 2] - self.boxes[:, 0]) * (self.boxes[:, 3] - self.boxes[:, 1])
        spans = self._spans
        for token in np.argsort(-area, kind="stable"):
            x0, y0, x1, y1 = spans[token]
            owner[y0:y1, x0:x1] = token
        return owner

    @cached_property
    def _spans(self) -> IntArray:
        """[N, 4] the pixels that each box owns, as half-open ranges on the photograph."""
        spans = np.ceil(self.boxes - 0.5).astype(np.int64)
        for low, high, side in ((0, 2, self.size[0]), (1, 3, self.size[1])):
            thin = spans[:, high] <= spans[:, low]
            under = np.floor(self.boxes[thin][:, [low, high]].mean(axis=1)).astype(np.int64)
            spans[thin, low], spans[thin, high] = under, under + 1
            spans[:, [low, high]] = spans[:, [low, high]].clip(0, side)
        return spans

    def to_pixels(self, values: Any) -> FloatArray:
        """One value per token painted over its pixels.

        Args:
            values: [..., N], array or tensor.

        Returns:
            [..., height, width] float32 on the original; each pixel takes the finest token that covers it, NaN
            where none does.

        Raises:
            BadInput: the last axis does not have one value per token.
        """
        painted = np.asarray(values, dtype=np.float32)
        if painted.ndim == 0 or painted.shape[-1] != len(self):
            raise BadInput(f"to_pixels takes values [..., {len(self)}], one for each token; got shape {painted.shape}")
        nothing = np.full((*painted.shape[:-1], 1), np.nan, dtype=np.float32)
        return np.concatenate([painted, nothing], axis=-1)[..., self._owner]

    def to_tokens(self, mask: Any) -> FloatArray:
        """The share of each token's box (of its part on the photograph) that ``mask`` covers.

        Args:
            mask: [height, width] on the original, bool or weights; NaN counts as not there.

        Returns:
            [N]; with weights, their mean over the box. 0 for a box wholly outside the photograph.

        Raises:
            BadInput: the mask has another size than the photograph.
        """
        covered = np.asarray(mask, dtype=np.float64)
        width, height = self.size
        if covered.shape != (height, width):
            raise BadInput(
                f"to_tokens takes a mask [height, width] = {(height, width)} like the original picture; "
                f"got {covered.shape}"
            )
        there = ~np.isnan(covered)
        total = _box_sums(np.where(there, covered, 0.0), self._spans)
        count = _box_sums(there.astype(np.float64), self._spans)
        return np.divide(total, count, out=np.zeros(len(self)), where=count > 0)

    def tokens_in(self, mask: Any) -> IntArray:
        """Sequence positions of the tokens whose box ``mask`` [height, width] covers by half or more."""
        return self.positions[self.to_tokens(mask) >= 0.5]


def _box_sums(image: FloatArray, spans: IntArray) -> FloatArray:
    integral = np.zeros((image.shape[0] + 1, image.shape[1] + 1))
    integral[1:, 1:] = image.cumsum(0).cumsum(1)
    x0, y0, x1, y1 = spans.T
    return integral[y1, x1] - integral[y0, x1] - integral[y1, x0] + integral[y0, x0]
