"""Where on the original each number that a processor hands to the model came from, whatever it did on the way.

Resizing, cropping, padding and tiling are linear in colour. So pictures whose colour *is* the coordinate come out of
the processor telling, number by number, from which x and y of the original it was taken; two plain greys tell gain
and offset of each number, and a number that neither moves is padding. Each axis is asked three times: a ramp along
the whole side, and two triangle waves a quarter period apart that refine it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from llava_probe.arrays import FloatArray

Encode = Callable[[Sequence[Image.Image]], Mapping[str, Tensor]]

#: Greys of the two plain pictures: an all-black picture counts as padding in some processors.
DARK, LIGHT = 96, 160
#: Lowest and highest grey of a ramp; beyond them a sharpening filter would be clipped.
LOW, HIGH = 16, 240
#: A number that moves less than this share of the others is padding, with some of the picture blurred into it.
FILLED = 0.5
#: Rises and falls of a triangle wave along a side.
FOLDS = 8
#: How far off a ramp may be, in shares of the side: its greys are rounded before and after resizing.
ROUNDED = 1.5 / (HIGH - LOW)


@dataclass(frozen=True, eq=False)
class Origin:
    """One tensor of model inputs, and where on the originals its numbers came from.

    Attributes:
        name: of the model input.
        dark: float32, its numbers for plain dark pictures; ``gain``: how much they grow for one step of grey.
        x, y: of the same shape, pixels of the original; NaN for padding.
        picture: which of the pictures a number belongs to, -1 for padding.
    """

    name: str
    dark: Tensor
    gain: Tensor
    x: Tensor
    y: Tensor
    picture: Tensor


def sources(encode: Encode, sizes: Sequence[tuple[int, int]]) -> list[Origin]:
    """The model inputs that pictures of these sizes fill, and where each of their numbers came from.

    Args:
        encode: pictures to model inputs; always the same prompt.
        sizes: (width, height) of each picture.
    """

    def waves(axis: int, wave: Callable[[FloatArray], FloatArray]) -> Mapping[str, Tensor]:
        shape = (1, -1) if axis == 0 else (-1, 1)
        shares = [(np.arange(size[axis]) + 0.5) / size[axis] for size in sizes]
        levels = [(LOW + (HIGH - LOW) * wave(share)).reshape(shape) for share in shares]
        return encode([_picture(size, level) for size, level in zip(sizes, levels, strict=True)])

    def lit(bit: int) -> Mapping[str, Tensor]:
        """Light where the number of the picture has this bit."""
        return encode([plain([size], LIGHT if j >> bit & 1 else DARK)[0] for j, size in enumerate(sizes)])

    dark, light = encode(plain(sizes, DARK)), encode(plain(sizes, LIGHT))
    digits = [lit(bit) for bit in range((len(sizes) - 1).bit_length())]
    asked = [[waves(axis, wave) for wave in (_ramp, _triangle, _shifted)] for axis in (0, 1)]
    found = []
    for name, value in dark.items():
        if not isinstance(value, Tensor) or not value.is_floating_point() or torch.equal(value, light[name]):
            continue
        low = value.float()
        gain = (light[name].float() - low) / (LIGHT - DARK)
        filled = gain.abs() > FILLED * gain.abs().max()
        picture = torch.where(filled, 0, -1)
        for bit, one in enumerate(digits):
            picture[filled & (one[name] != value)] += 1 << bit
        places = []
        for axis in (0, 1):
            side = torch.tensor([size[axis] for size in sizes], dtype=torch.float32)[picture.clamp(min=0)]
            told = [((wave[name].float() - low) / gain + DARK - LOW) / (HIGH - LOW) for wave in asked[axis]]
            places.append(torch.where(filled, _place(told) * side, torch.nan))
        x, y = places
        found.append(Origin(name, low, gain, x, y, picture))
    return found


def plain(sizes: Sequence[tuple[int, int]], grey: int) -> list[Image.Image]:
    """Pictures of one grey."""
    return [_picture(size, np.full((1, 1), grey)) for size in sizes]


def _place(told: Sequence[Tensor]) -> Tensor:
    """The share of the side that a ramp and two triangle waves tell together."""
    ramp, *triangles = told
    place = ramp.clamp(0, 1)
    best, height = place, torch.zeros_like(place)
    for triangle, shift in zip(triangles, (0.0, 0.5), strict=True):
        candidates = []
        for step in (-1, 0, 1):
            k = torch.floor(place * FOLDS + shift) + step
            rising = torch.remainder(k, 2) == 0
            candidates.append((k + torch.where(rising, triangle, 1 - triangle) - shift) / FOLDS)
        stacked = torch.stack(candidates)
        nearest = (stacked - place).abs().argmin(0, keepdim=True)
        refined = stacked.gather(0, nearest)[0]
        inside = 0.5 - (triangle - 0.5).abs()  # far from the folds, where the wave is straight
        better = (inside > height) & ((refined - place).abs() < ROUNDED)
        best, height = torch.where(better, refined, best), torch.where(better, inside, height)
    return best


def _ramp(share: FloatArray) -> FloatArray:
    return share


def _triangle(share: FloatArray) -> FloatArray:
    return _folded(share * FOLDS)


def _shifted(share: FloatArray) -> FloatArray:
    return _folded(share * FOLDS + 0.5)


def _folded(steps: FloatArray) -> FloatArray:
    """Up and down between 0 and 1, a fold at each whole number."""
    return 1 - np.abs(steps % 2 - 1)


def _picture(size: tuple[int, int], levels: FloatArray) -> Image.Image:
    grey = np.broadcast_to(np.rint(levels).astype(np.uint8), (size[1], size[0]))
    return Image.fromarray(np.ascontiguousarray(grey)).convert("RGB")
