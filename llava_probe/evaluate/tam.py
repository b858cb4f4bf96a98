"""How the maps of one description rate by TAM's measures (Li et al. 2025, arXiv:2506.23270).

A map should be bright on what its word names, and dark for words that name nothing:

    Obj-IoU     of each object word's map above Otsu's threshold with the object
    Func-IoU    of each function word, the share of the photograph that is no brighter than nouns are on average
    F1-IoU      their harmonic mean

    scores = tam_scores(m, objects={4: mask_of_the_dog}, function=[0, 1, 3])
    TamScores.pooled(all_scores).f1_iou

Func-IoU compares rows with each other, so the rows must share a scale: attention and relevance do, rows that were each
stretched to 0..1 say less. Departures from the authors' ``eval.py``, none of which changes what is measured: each token
keeps its value over its own box in place of a bilinear resize; values are not rounded to 256 steps; a pixel exactly at
the mean threshold counts as dark, as it does for Obj-IoU; and which words are nouns is for the caller to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llava_probe.arrays import IntArray
from llava_probe.border import Numeric, checked
from llava_probe.errors import BadInput
from llava_probe.evaluate.cells import owners
from llava_probe.evaluate.otsu import otsu
from llava_probe.evaluate.overlap import Overlap, iou
from llava_probe.maps.maps import ImageMap
from llava_probe.trace.tokens import Token


@checked
@dataclass(frozen=True)
class TamScores:
    """Of one description, or of several together.

    Attributes:
        objects: the overlap of each object's word; neighbouring words of one object count as one.
        functions: of each function word, the share of seen pixels that are dark.
    """

    objects: tuple[Overlap, ...]
    functions: tuple[float, ...]

    @property
    def obj_iou(self) -> float:
        """The mean over objects; NaN where there is none, as for the others."""
        return _mean([found.iou for found in self.objects])

    @property
    def func_iou(self) -> float:
        """The mean over function words."""
        return _mean(self.functions)

    @property
    def f1_iou(self) -> float:
        """The harmonic mean of the two."""
        total = self.obj_iou + self.func_iou
        return 2 * self.obj_iou * self.func_iou / total if total else 0.0

    @property
    def precision(self) -> float:
        """The mean over objects."""
        return _mean([found.precision for found in self.objects])

    @property
    def recall(self) -> float:
        """The mean over objects."""
        return _mean([found.recall for found in self.objects])

    @classmethod
    def pooled(cls, scores: Iterable[TamScores]) -> TamScores:
        """Of a whole data set: every word counts once, and F1 is of the means."""
        listed = list(scores)
        return cls(
            tuple(found for each in listed for found in each.objects),
            tuple(share for each in listed for share in each.functions),
        )


@checked
def tam_scores(
    m: ImageMap, objects: Mapping[int, Numeric], function: Iterable[int] = (), nouns: Iterable[int] = ()
) -> TamScores:
    """Rate the maps of one description.

    A word is a run of rows whose tokens follow each other without a space. It takes the best of its tokens' overlaps,
    the highest of their thresholds and, if it is a function word, the mean of their shares.

    Args:
        m: a row for each token of the description.
        objects: by row, the mask [height, width] of all that the row's word names.
        function: rows of function words.
        nouns: rows of nouns that have no mask; their thresholds count in the mean.

    Returns:
        Without any noun there is no threshold, and no function word is rated.

    Raises:
        BadInput: a mask of another size or of nothing that could be seen; a row of two kinds.
        OutOfRange: there is no such row.
    """
    masks = dict(zip(_rows(m, objects), objects.values(), strict=True))
    of_function, of_nouns = _rows(m, function), _rows(m, nouns)
    twice = sorted({*of_function} & {*masks, *of_nouns})
    if twice:
        raise BadInput(f"row {twice[0]} is given as a function word and as a noun; it can be one of them")
    owner = owners(m.layout)
    pixels = np.bincount(owner[owner >= 0], minlength=len(m.layout))
    thresholds: list[float] = []
    found: list[Overlap] = []
    last: tuple[int, Any] | None = None  # where the word before ended, and what it names
    for word in _words(m.tokens):
        named = [row for row in word if row in masks]
        if named:
            overlaps = [iou(m, masks[row], row, "otsu") for row in named]
            thresholds.append(max(overlap.threshold for overlap in overlaps))
            best, mask, start = max(overlaps, key=_iou), masks[named[0]], m.tokens[word[0]].position
            if last is not None and last[0] + 1 == start and np.array_equal(last[1], mask):
                found[-1] = max(found[-1], best, key=_iou)
            else:
                found.append(best)
            last = m.tokens[word[-1]].position, mask
        else:
            last = None
            rows = [row for row in word if row in of_nouns]
            thresholds += [max(otsu(m.row(row), pixels) for row in rows)] if rows else []
    level = _mean(thresholds)
    words = [[row for row in word if row in of_function] for word in _words(m.tokens)] if thresholds else []
    return TamScores(
        tuple(found), tuple(_mean([_dark(m, row, level, pixels) for row in word]) for word in words if word)
    )


def _dark(m: ImageMap, row: int, level: float, pixels: IntArray) -> float:
    return float(pixels[(m.row(row).double() <= level).numpy()].sum() / pixels.sum())


def _rows(m: ImageMap, rows: Iterable[int]) -> list[int]:
    """The rows counted from 0; a row that is not there is refused by the map."""
    listed = list(rows)
    for row in listed:
        m.row(row)
    return [row % len(m) for row in listed]


def _words(tokens: Sequence[Token]) -> list[list[int]]:
    """Rows of each word: of tokens that follow each other in the sequence with no space between."""
    words: list[list[int]] = []
    for row, token in enumerate(tokens):
        before = tokens[row - 1] if row else None
        follows = before is not None and before.position + 1 == token.position
        if follows and before is not None and not (before.text[-1:].isspace() or token.text[:1].isspace()):
            words[-1].append(row)
        else:
            words.append([row])
    return words


def _iou(overlap: Overlap) -> float:
    return overlap.iou


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
