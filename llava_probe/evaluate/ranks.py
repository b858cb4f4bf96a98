"""Whether two methods put the same places first, on the same picture.

Values of different methods have different units; their order can be compared. Agreement says nothing of who is right.

    spearman(attention, relevance, row)
    print(agreement({"attention": attention, "relevance": relevance, "centre": centre_prior(attention)}))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from llava_probe.arrays import FloatArray
from llava_probe.border import Count, checked, read_as
from llava_probe.errors import BadInput
from llava_probe.maps.maps import ImageMap

Measure = Callable[[ImageMap, ImageMap, int | None], float]

#: Of the visual tokens, how many are the top where no number is given: about what one object takes.
_TOP_SHARE = 0.1


@checked
@dataclass(frozen=True, eq=False)
class Agreement:
    """How far each two of some maps agree.

    Attributes:
        names: of the maps, in their order.
        values: [n, n], symmetric.
    """

    names: tuple[str, ...]
    values: FloatArray

    def table(self) -> str:
        """A line for each map, to print."""
        width = max(map(len, self.names))
        lines = [f"{name:<{width}}  " + "  ".join(f"{value:>6.2f}" for value in row) for name, row in self._rows()]
        numbers = "  ".join(f"{number:>6}" for number in range(1, len(self.names) + 1))
        return "\n".join([f"{'':<{width}}  {numbers}", *lines])

    def __str__(self) -> str:
        return self.table()

    def _rows(self) -> list[tuple[str, FloatArray]]:
        return list(zip(self.names, self.values, strict=True))


@checked
def spearman(one: ImageMap, other: ImageMap, row: int | None = None) -> float:
    """Spearman's rank correlation of two maps over their visual tokens, ties sharing the mean of their ranks.

    Returns:
        −1 to 1; NaN where a map is the same everywhere and so has no order.

    Raises:
        BadInput: the maps are not of the same tokens of the same picture.
        OutOfRange: there is no such row in one of them.
    """
    return rank_correlation(*_paired(one, other, row))


def rank_correlation(one: FloatArray, other: FloatArray) -> float:
    """Spearman's rank correlation of two arrays [n], ties sharing their mean rank; NaN where one has no order."""
    first, second = (_ranks(values) for values in (one, other))
    first, second = first - first.mean(), second - second.mean()
    spread = np.sqrt((first @ first) * (second @ second))
    return float(np.clip(first @ second / spread, -1, 1)) if spread else float("nan")


@checked
def top_overlap(one: ImageMap, other: ImageMap, row: int | None = None, k: Count | None = None) -> float:
    """The share of the k highest visual tokens that two maps have in common; by chance k / N.

    Tokens that tie for the last places share them: two on one place count half each.

    Args:
        k: how many; a tenth of them when None, at least one.

    Raises:
        BadInput: the maps are not of the same tokens of the same picture, or have fewer than k.
        OutOfRange: there is no such row in one of them.
    """
    first, second = _paired(one, other, row)
    count = max(1, round(_TOP_SHARE * len(first))) if k is None else k
    if not 1 <= count <= len(first):
        raise BadInput(f"k={count} is not between 1 and the {len(first)} visual tokens of these maps")
    return float(np.minimum(_among_top(first, count), _among_top(second, count)).sum() / count)


@checked
def agreement(maps: Mapping[str, ImageMap], row: int | None = None, measure: Measure = spearman) -> Agreement:
    """Every map against every other.

    Args:
        maps: of one picture, by name.
        measure: ``spearman``, ``top_overlap`` or another symmetric function of two maps and a row.

    Raises:
        BadInput: no maps, or some that are not of the same tokens of the same picture.
        OutOfRange: there is no such row in one of them.
    """
    if not maps:
        raise BadInput("agreement takes maps by name, such as {'attention': m}; got none")
    listed = list(maps.values())
    values = np.empty((len(listed), len(listed)))
    for i, one in enumerate(listed):
        for j, other in enumerate(listed[: i + 1]):
            values[i, j] = values[j, i] = read_as(
                float, measure(one, other, row), "agreement(measure=...) gives what it"
            )
    return Agreement(tuple(maps), values)


def _paired(one: ImageMap, other: ImageMap, row: int | None) -> tuple[FloatArray, FloatArray]:
    """Values [N] of both; a layout's positions may differ, as in two prompts, its places may not."""
    first, second = one.layout, other.layout
    if first.size != second.size or len(first) != len(second) or not np.allclose(first.boxes, second.boxes):
        raise BadInput(
            f"maps are compared token by token on one picture; {one.method!r} lies on {first!r} "
            f"and {other.method!r} on {second!r}"
        )
    return one.row(row).double().numpy(), other.row(row).double().numpy()


def _ranks(values: FloatArray) -> FloatArray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle = counts.cumsum() - (counts - 1) / 2
    ranks: FloatArray = middle[place]
    return ranks


def _among_top(values: FloatArray, count: int) -> FloatArray:
    """[N] 1 for the ``count`` highest, less where they tie for the last places, 0 for the rest."""
    last = np.sort(values)[-count]
    above, tied = values > last, values == last
    return above + tied * ((count - above.sum()) / tied.sum())
