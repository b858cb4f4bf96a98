"""A column of features in a plane: what lies beside what, coloured by a column of the index.

    lp.figures.features(lp.Features("features/"), "layer_16", "last_prompt", by="colour")

Principal components keep distances as far as two of them can, and tell how far that is; UMAP (McInnes et al. 2018,
arXiv 1802.03426) keeps neighbours, and its distances between groups mean little.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llava_probe.border import Count, Positive, Seed
from llava_probe.errors import BadInput, shortened
from llava_probe.maps.colours import colour_map
from llava_probe.view.canvas import VALUES, Colours, Title, Width, drawable, finished, on_axes, styled
from llava_probe.view.colour_bars import Scale, colour_bar

if TYPE_CHECKING:
    from llava_probe.arrays import FloatArray
    from llava_probe.probes.labels import FeaturesLike

PROJECTIONS = ("pca", "umap")
#: More groups than this cannot be told apart by colour and shape.
_GROUPS = 24
_COLOURS, _SHAPES = 6, "osD^"


@styled
def features(
    store: FeaturesLike,
    what: str,
    position: str,
    *,
    by: str | None = None,
    method: str = "pca",
    most: Count = 5000,
    bar: bool = True,
    ax: Axes | None = None,
    highest: Positive | None = None,
    cmap: Colours | None = None,
    width: Width = "column",
    title: Title = True,
    seed: Seed = 0,
) -> Figure:
    """A point for each row of a column of features; rows of several tokens are their mean.

    Args:
        store: what ``lp.extract`` wrote; ``what``, ``position``: which column, as in ``store.keys()``.
        by: a column of the index to colour by: names in groups, numbers by a colour bar.
        method: ``"pca"``, or ``"umap"`` where umap-learn is installed.
        most: draw so many rows at most, chosen by chance.
        bar, ax, width, title: as for ``maps``.
        highest, cmap: of numbers.
        seed: of chance.

    Raises:
        NotCaptured: there is no such column.
        BadInput: fewer than three rows, another method, too many groups, or no umap-learn.
    """
    if method not in PROJECTIONS:
        raise BadInput(f"method= takes {' or '.join(map(repr, PROJECTIONS))}; got {method!r}")
    if method == "umap" and find_spec("umap") is None:
        raise BadInput('method="umap" needs umap-learn: pip install umap-learn; method="pca" does not')
    values, rows, count = _rows(store, what, position, most, seed)
    places, names = _principal(values) if method == "pca" else _neighbours(values, seed)
    axes = on_axes(ax, width, 2.6)
    if by is None:
        axes.plot(*places.T, "o", ms=2.2, mew=0)
    else:
        column = store.column(by)
        _coloured(axes, places, [column[row] for row in rows], by, cmap, highest, bar)
    axes.set(xlabel=names[0], ylabel=names[1], aspect="equal" if method == "pca" else "auto", xticks=[], yticks=[])
    axes.set_adjustable("datalim")
    told = f"{len(rows):,} of {count:,} rows" if len(rows) < count else f"{count:,} rows"
    return finished(axes, title, f"{drawable(what)} at {drawable(position)}, {told}")


def _rows(store: FeaturesLike, what: str, position: str, most: int, seed: int) -> tuple[FloatArray, list[int], int]:
    """[n, D] finite rows, at most so many, which they are, and of how many."""
    held = store[what, position]
    whole = held.mean() if hasattr(held, "spans") else held
    count = len(whole)
    chosen = np.sort(np.random.default_rng(seed).permutation(count)[:most])
    values = whole[chosen.tolist()].float().flatten(1).numpy()
    finite = np.isfinite(values).all(1)
    if finite.sum() < 3:
        raise BadInput(f"a plane takes three rows of {what}/{position} or more; got {int(finite.sum())}")
    return values[finite], chosen[finite].tolist(), count


def _principal(values: FloatArray) -> tuple[FloatArray, tuple[str, str]]:
    """[n, 2] on the two largest principal components, and what share of the variance each has."""
    centred = values.astype(np.float64) - values.mean(0, dtype=np.float64)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    shares = sizes**2 / max(float((sizes**2).sum()), np.finfo(np.float64).tiny)
    names = tuple(f"principal component {number + 1} ({shares[number]:.0%})" for number in (0, 1))
    return left[:, :2] * sizes[:2], names  # type: ignore[return-value]


def _neighbours(values: FloatArray, seed: int) -> tuple[FloatArray, tuple[str, str]]:
    import umap

    return umap.UMAP(random_state=seed).fit_transform(values), ("UMAP 1", "UMAP 2")


def _coloured(
    axes: Axes, places: FloatArray, labels: Sequence[Any], by: str, cmap: Any, highest: float | None, bar: bool
) -> None:
    """Numbers by a colour bar, everything else in groups."""
    if all(isinstance(label, int | float) and not isinstance(label, bool) for label in labels):
        numbers = np.asarray(labels, dtype=np.float64)
        colours = cmap if cmap is not None and not isinstance(cmap, str) else colour_map(cmap or "viridis")
        norm = Scale([numbers], float(np.nanmin(numbers)), highest or float(np.nanmax(numbers)))
        shown = axes.scatter(places[:, 0], places[:, 1], s=5, lw=0, c=numbers, cmap=colours, norm=norm, label=VALUES)
        if bar:
            colour_bar(axes, shown, drawable(by))
        return
    groups = sorted(dict.fromkeys(map(str, labels)))
    if len(groups) > _GROUPS:
        raise BadInput(f"by= takes a column of at most {_GROUPS} names; {shortened(repr(by))} has {len(groups)}")
    own = np.array([groups.index(str(label)) for label in labels])
    for number, group in enumerate(groups):
        shape = _SHAPES[number // _COLOURS]
        axes.plot(*places[own == number].T, shape, ms=2.4, mew=0, color=f"C{number % _COLOURS}", label=drawable(group))
    axes.legend(title=drawable(by), loc="center left", bbox_to_anchor=(1, 0.5), markerscale=1.6)
