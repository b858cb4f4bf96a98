"""Maps made without a model: what any method has to beat before its score means something.

Objects stand near the centre and have edges, so a map that knows nothing of the question may still point well. Each
of these takes a map to be like: its tokens, picture and layout.

    centre_prior(m); edges(m); random(m, seed=0); of_another(m_of_another_picture, m)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from llava_probe.arrays import FloatArray
from llava_probe.border import Positive, Seed, checked
from llava_probe.layout import ImageLayout
from llava_probe.maps.maps import ImageMap

#: Of the Gaussian, as a share of each side: two standard deviations reach the photograph's border.
CENTRE_SIGMA = 0.25
_EXPLAINED = ("positions", "contrast", "image")


@checked
def centre_prior(like: ImageMap, sigma: Positive = CENTRE_SIGMA) -> ImageMap:
    """A Gaussian at the photograph's centre, the mean of it over each token's box; every row the same.

    Args:
        sigma: its standard deviation as a share of the photograph's width across, and of its height down.

    Raises:
        BadInput: a sigma that is not above zero.
    """
    across, down = (
        np.exp(-(((np.arange(side) + 0.5) / side - 0.5) ** 2) / (2 * sigma**2)) for side in like.layout.size
    )
    pixels = down[:, None] * across
    return _made(like, like.layout.to_tokens(pixels), "centre prior", {"sigma": sigma, "unit": "height of a Gaussian"})


@checked
def edges(like: ImageMap) -> ImageMap:
    """The length of the brightness gradient (Sobel's), the mean of it over each token's box; every row the same."""
    grey = np.asarray(like.image.convert("L"), dtype=np.float32)
    padded = np.pad(grey, 1, mode="edge")
    across = _smoothed(padded[:, 2:] - padded[:, :-2])
    down = _smoothed((padded[2:] - padded[:-2]).T).T
    return _made(like, like.layout.to_tokens(np.hypot(across, down)), "edges", {"unit": "brightness gradient"})


@checked
def random(like: ImageMap, seed: Seed = 0) -> ImageMap:
    """Uniform noise between 0 and 1, other noise in each row; the same seed gives the same map."""
    noise = np.random.default_rng(seed).random(tuple(like.values.shape))
    return _made(like, noise, "random", {"seed": seed, "unit": "nothing"})


@checked
def of_another(m: ImageMap, like: ImageMap) -> ImageMap:
    """``m``, the map of another picture, laid on the picture of ``like``: what a method says whatever it looks at.

    Token by token where both layouts have the same shape, else by stretching one photograph over the other; a token
    that then lies where nothing was seen gets 0. Rows go in pairs where both maps have as many, else every row is the
    mean of ``m``.
    """
    rows = m.values if len(m) == len(like) else m.row()[None]
    values = rows if _same_shape(m.layout, like.layout) else _stretched(rows, m.layout, like.layout)
    return _made(like, values, f"{m.method} of another picture", m.about)


def _made(like: ImageMap, values: Any, method: str, about: Any) -> ImageMap:
    rows = torch.as_tensor(values, dtype=torch.float32).expand(like.values.shape).clone()
    # what the rows explain, and of which picture, is the same, whatever they hold
    about = {name: value for name, value in about.items() if name not in _EXPLAINED}
    about |= {name: like.about[name] for name in _EXPLAINED if name in like.about}
    return replace(like, values=rows, method=method, marked=None, about=about)


def _smoothed(difference: FloatArray) -> FloatArray:
    """Down the columns, (1, 2, 1)."""
    return difference[:-2] + 2 * difference[1:-1] + difference[2:]


def _same_shape(one: ImageLayout, other: ImageLayout) -> bool:
    """Whether token i of both lies at the same place of its picture, or of the part of it that was seen."""
    if len(one) != len(other):
        return False
    if one.grid is not None or other.grid is not None:
        return one.grid == other.grid
    return np.array_equal(one.tiles, other.tiles) and np.allclose(_scaled(one), _scaled(other), atol=1e-6)


def _scaled(layout: ImageLayout) -> FloatArray:
    scaled: FloatArray = layout.boxes / np.tile(layout.size, 2)
    return scaled


def _stretched(rows: torch.Tensor, source: ImageLayout, target: ImageLayout) -> FloatArray:
    """[rows, N of target], each pixel of the target reading the nearest one of the source."""
    (width, height), (across, down) = source.size, target.size
    x = ((np.arange(across) + 0.5) * width / across).astype(np.int64)
    y = ((np.arange(down) + 0.5) * height / down).astype(np.int64)
    return np.stack([target.to_tokens(source.to_pixels(row)[y[:, None], x]) for row in rows])
