"""The hidden states of one layer and position as rows to fit on, in memory or a block at a time.

A position that is one token a row gives one instance a row. A ragged one (``image``) gives the mean of the row's
tokens, or with ``pool="tokens"`` every token as an instance with its row's label and picture. Rows that have no
token there (an empty mask) have no instance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llava_probe.arrays import FloatArray, IntArray
from llava_probe.errors import BadInput, NotANumber

POOLS = ("mean", "tokens")
#: Bytes of a block that is read at once in the out-of-core path, in float64.
_BLOCK = 64_000_000
#: The fewest rows of a block.
_FEWEST = 64

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Instances:
    """The instances of one cell.

    Attributes:
        owner: [m] which labelled row each belongs to, ascending.
        width: D.
        read: instances ``low`` to ``high`` as [high - low, D] float64.
        held: all of them [m, D], or None where they are more than the memory allowed.
        block: instances read at once where they are not held.
    """

    owner: IntArray
    width: int
    read: Callable[[int, int], FloatArray]
    held: FloatArray | None
    block: int

    def __len__(self) -> int:
        return len(self.owner)

    def blocks(self, mask: Mask) -> Iterator[tuple[IntArray, FloatArray]]:
        """Instance numbers and their features, those in ``mask`` only, in order."""
        for low in range(0, len(self), self.block):
            chosen = np.flatnonzero(mask[low : low + self.block])
            if len(chosen):
                high = min(low + self.block, len(self))
                features = self.read(low, high) if self.held is None else self.held[low:high]
                yield chosen + low, features[chosen]


def read_instances(features: Any, key: tuple[str, str], rows: IntArray, pool: str, memory: int) -> Instances:
    """The instances of ``features[key]`` at the labelled ``rows``.

    Args:
        features: an opened store; ``key``: (layer, position).
        rows: [n] row numbers of the store.
        pool: one of ``POOLS``, for ragged positions.
        memory: bytes that the matrix may take in float32 before it is read a block at a time. Held in float64 it
            takes twice that, and a fit a few copies.

    Raises:
        NotANumber: a hidden state is NaN or infinite.
        BadInput: no row has a token there.
    """
    cell = features[key]
    flat = cell.values if hasattr(cell, "spans") else cell
    if flat.ndim != 2:
        raise BadInput(f"{', '.join(key)} holds {list(flat.shape)}, not one vector a row; leave it out of layers=")
    if flat is cell:
        return _assembled(
            key,
            np.arange(len(rows)),
            cell.shape[1],
            lambda low, high: np.asarray(features.numpy(*key, rows=rows[low:high]), dtype=np.float64),
            memory,
        )
    spans = np.asarray(cell.spans)[rows]
    counts = spans[:, 1] - spans[:, 0]
    filled = np.flatnonzero(counts)
    if not len(filled):
        raise BadInput(f"{key[1]!r} is empty in every labelled row; leave it out of positions=")
    width = cell.values.shape[1]
    if pool == "mean":

        def means(low: int, high: int) -> FloatArray:
            return np.stack([_tokens(cell, rows[row]).mean(0) for row in filled[low:high]])

        return _assembled(key, filled, width, means, memory)
    owner = np.repeat(np.arange(len(rows)), counts)
    starts = np.cumsum(counts) - counts

    def tokens(low: int, high: int) -> FloatArray:
        touched = np.unique(owner[low:high])
        first = starts[touched[0]]
        together = np.concatenate([_tokens(cell, rows[row]) for row in touched])
        return together[low - first : high - first]

    return _assembled(key, owner, width, tokens, memory)


def noise(like: Instances, seed: int, memory: int) -> Instances:
    """Standard normal features in the shape of ``like``."""

    def drawn(low: int, high: int) -> FloatArray:
        return np.random.default_rng([seed, low]).standard_normal((high - low, like.width))

    return _assembled(("noise", ""), like.owner, like.width, drawn, memory)


def _tokens(ragged: Any, row: Any) -> FloatArray:
    """[n, D] of one row, in float64: bf16 means lose digits."""
    found: FloatArray = ragged[int(row)].double().numpy()
    return found


def _assembled(
    key: tuple[str, str], owner: IntArray, width: int, read: Callable[[int, int], FloatArray], memory: int
) -> Instances:
    def checked(low: int, high: int) -> FloatArray:
        features = read(low, high)
        if not np.isfinite(features).all():
            raise NotANumber(f"the features of {', '.join(key)} hold NaN or infinity; a probe cannot be fitted on them")
        return features

    held = checked(0, len(owner)) if 4 * len(owner) * width <= memory else None
    block = max(_FEWEST, min(_BLOCK, memory) // (8 * width))
    return Instances(owner, width, checked, held, block)
