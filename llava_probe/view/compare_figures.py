"""Figures of what changed: between two traces, and between two models over a data set.

    lp.figures.save(lp.figures.changed(lp.compare(a, b, models=(base, tuned))), "changed.pdf")
    lp.figures.models_compared(lp.compare_models(base, tuned, samples))

Maps of both on one scale, with their difference: ``lp.figures.compare({"a": found.maps.a, "b": found.maps.b},
difference=True)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from llava_probe.arrays import FloatArray
from llava_probe.errors import BadInput
from llava_probe.view.canvas import VALUES, Title, Width, drawable, finished, hosted, inches, styled
from llava_probe.view.colour_bars import colour_bar
from llava_probe.view.sheet import look_of

if TYPE_CHECKING:
    from llava_probe.compare.comparison import TraceComparison
    from llava_probe.compare.model_comparison import ModelComparison
    from llava_probe.compare.over_pictures import Means

#: Inches of a row of panels, of one word under another, and of what stands around all of them.
_PANEL, _WORD, _AROUND = 1.75, 0.13, 0.35
#: Words, and bars, beyond these are not drawn; more words than the last stand in a column of their own.
_WORDS, _BARS, _FEW_WORDS = 40, 8, 12
#: Numbers beside an axis; letters of a name beside a bar.
_NUMBERED, _LETTERS = 12, 26
_BAND = 0.18
#: Inches from which on panels stand beside each other.
_WIDE = 6.0

_DRIFT, _KL = "drift, ‖b − a‖ / ‖a‖", "KL by the lens, nats"
_OWN = "change of what\na head writes"
_LOOKED = "share of attention that\nlies elsewhere"

Drawn = Callable[[Axes], None]


@styled
def changed(found: TraceComparison, *, ax: Axes | None = None, width: Width = "page", title: Title = True) -> Figure:
    """The words of both and how sure each was, and beside them how far layers and heads moved.

    Args:
        found: of ``lp.compare``.
        ax: an axes of a grid, whose place is divided.
        width: ``"column"``, ``"page"`` or inches.
        title: whether there is one, or yours.

    Raises:
        BadInput: nothing of it can be drawn.
    """
    inside: list[Drawn] = []
    if found.drift is not None:
        each = zip(found.drift.groups, found.drift.distance.numpy(), strict=True)
        drift = [_Line(name, found.drift.layers, row) for name, row in each]
        inside.append(partial(_by_layer, lines=drift, unit=_DRIFT))
    if found.lens is not None:
        kl = _Line("", found.lens.layers, found.lens.kl.mean(1).numpy())
        inside.append(partial(_by_layer, lines=[kl], unit=_KL))
    for heads, unit in ((found.own, _OWN), (found.looking, _LOOKED)):
        if heads is not None and bool(heads.moved.any()):
            inside.append(partial(_grid, values=heads.moved.numpy(), layers=heads.layers, heads=heads.heads, unit=unit))
            break
    count = 0 if found.probability is None else min(_WORDS, len(found.tokens))
    words: list[Drawn] = [partial(_words, found=found)] if count else []
    own = f"“{drawable(found.a.answer)}” and “{drawable(found.b.answer)}”"
    if count <= _FEW_WORDS or not inside:
        rows = [[*words, *inside]]
        return _drawn(rows, max(_PANEL, 0.5 + _WORD * count), ax, width, title, own)
    return _drawn([words, inside], max(_PANEL * len(inside), 0.5 + _WORD * count), ax, width, title, own, side=True)


@styled
def models_compared(
    found: ModelComparison, *, ax: Axes | None = None, width: Width = "page", title: Title = True
) -> Figure:
    """How far layers are apart, how alike they are over pictures, and which heads, weights and answers moved.

    Args:
        found: of ``lp.compare_models``; bands and whiskers are 95 % over pictures.
        ax: an axes of a grid, whose place is divided.
        width: ``"column"``, ``"page"`` or inches.
        title: whether there is one, or yours.

    Raises:
        BadInput: nothing of it can be drawn.
    """
    answers: list[Drawn] = [partial(_flips, found=found)]
    own = found.own if found.own is not None and found.own.value.any() else None
    if (heads := own or found.looked) is not None:
        layers, numbers = found.attending
        unit = _LOOKED if own is None else _OWN
        answers.append(partial(_grid, values=heads.value, layers=layers, heads=numbers, unit=unit))
    if moved := [each for each in found.weights if each.difference][:_BARS]:
        names = [_shortened(f"{each.module}.{each.weight}".removesuffix(".weight")) for each in moved]
        ratios = [each.ratio for each in moved]
        answers.append(partial(_bars, names=names, values=ratios, unit="‖ΔW‖ / ‖W‖"))
    inside: list[Drawn] = []
    if found.drift:
        lines = [_line(name, means) for name, means in found.drift.items()]
        inside.append(partial(_by_layer, lines=lines, unit=_DRIFT))
    if found.kl is not None:
        inside.append(partial(_by_layer, lines=[_line("", found.kl)], unit=_KL))
    if any(np.isfinite(float(each.cka)) for layers in found.similar.values() for each in layers):
        inside.append(partial(_alike, found=found))
    told = f"{len(found)} samples of {found.pictures} pictures, 95 % over pictures"
    return _drawn([answers, inside], _PANEL, ax, width, title, told)


def _drawn(
    rows: Sequence[Sequence[Drawn]],
    height: float,
    ax: Axes | None,
    width: Width,
    title: Title,
    own: str,
    *,
    side: bool = False,
) -> Figure:
    """Rows of panels, each laid out by itself; on less than a page's width all of them one under the other.

    Args:
        rows: of panels.
        height: of a row, in inches; ``side``: of all, the second row standing one under the other beside the first.
        ax, width, title, own: as for every figure.

    Raises:
        BadInput: there is no panel.
    """
    rows = [row for row in rows if row]
    if not rows:
        raise BadInput("nothing of this comparison can be drawn: print it to see what was left out, and why")
    if inches(width) < _WIDE:
        rows, side = [[panel] for row in rows for panel in row], False
    side = side and len(rows) > 1
    host = hosted(ax, width, _AROUND + height * (1 if side else len(rows)))
    shape = (1, len(rows)) if side else (len(rows), 1)
    for part, row in zip(host.subfigures(*shape, squeeze=False).ravel(), rows, strict=True):
        grid = part.subplots(*((len(row), 1) if side else (1, len(row))), squeeze=False).ravel()
        for axes, draw in zip(grid, row, strict=True):
            draw(axes)
    return finished(host, title, own)


# --- panels ---


def _words(axes: Axes, found: TraceComparison) -> None:
    """A line for each aligned token, from the one's probability to the other's."""
    shown = found.tokens[:_WORDS]
    values = found.probability[: len(shown)].numpy()  # type: ignore[index]
    places = np.arange(len(shown))
    axes.hlines(places, values.min(1), values.max(1), color="#bbbbbb", lw=1)
    for side, (name, colour) in enumerate((("a", "C0"), ("b", "C1"))):
        axes.plot(values[:, side], places, "o", color=colour, markersize=3, label=name)
    names = []
    for one, other in shown:
        texts = ["–" if each is None else drawable(each.text) for each in (one, other)]
        names.append(texts[0] if texts[0] == texts[1] else " | ".join(texts))
    axes.set_yticks(places, names)
    axes.set(xlim=(-0.03, 1.03), ylim=(max(len(shown), _FEW_WORDS // 2) - 0.5, -0.5), xlabel="probability")
    _above(axes)


@dataclass(frozen=True)
class _Line:
    """One line of a panel, with its band where it has one."""

    name: str
    layers: Sequence[int]
    value: FloatArray
    low: FloatArray | None = None
    high: FloatArray | None = None


def _line(name: str, means: Means) -> _Line:
    return _Line(name, range(len(means.value)), means.value, means.low, means.high)


def _by_layer(axes: Axes, lines: Sequence[_Line], unit: str) -> None:
    for number, line in enumerate(lines):
        axes.plot(line.layers, line.value, color=f"C{number}", marker=".", label=line.name)
        if line.low is not None and line.high is not None and np.isfinite(line.low).all():
            axes.fill_between(line.layers, line.low, line.high, color=f"C{number}", alpha=_BAND, lw=0)
    axes.set(xlabel="hidden state", ylabel=unit, ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(lines) > 1:
        _above(axes)


def _above(axes: Axes) -> None:
    """What lines are, over the panel, where it hides none of them."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2, columnspacing=1, handlelength=1.2)


def _alike(axes: Axes, found: ModelComparison) -> None:
    """Unbiased CKA by layer, over what chance gives."""
    for number, (place, layers) in enumerate(found.similar.items()):
        values = np.array([[each.cka.value, each.cka.low, each.cka.high, each.shuffled] for each in layers])
        numbers = np.arange(len(values))
        axes.plot(numbers, values[:, 0], color=f"C{number}", marker=".", label=place)
        axes.fill_between(numbers, values[:, 1], values[:, 2], color=f"C{number}", alpha=_BAND, lw=0)
        axes.plot(numbers, values[:, 3], ":", color=f"C{number}", lw=1, label=f"{place}, shuffled")
    axes.axhline(0, color="#bbbbbb", linewidth=0.6)
    axes.set(xlabel="hidden state", ylabel="unbiased CKA", ylim=(-0.25, 1.05))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _above(axes)


def _grid(axes: Axes, values: FloatArray, layers: Sequence[int], heads: Sequence[int], unit: str) -> None:
    """Layers by heads."""
    look = look_of([values], unit, None, None)
    edges = (np.arange(len(each) + 1) - 0.5 for each in (heads, layers))
    colours: dict[str, Any] = {"cmap": look.colours, "norm": look.norm, "edgecolors": "face", "linewidth": 0.1}
    cells = axes.pcolormesh(*edges, values, label=VALUES, **colours)
    axes.invert_yaxis()
    every = [max(1, -(-len(each) // _NUMBERED)) for each in (heads, layers)]
    axes.set_xticks(range(0, len(heads), every[0]), [str(head) for head in heads[:: every[0]]])
    axes.set_yticks(range(0, len(layers), every[1]), [str(layer) for layer in layers[:: every[1]]])
    axes.set(xlabel="head", ylabel="layer")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    colour_bar(axes, cells, unit)


def _flips(axes: Axes, found: ModelComparison) -> None:
    """The share of other answers, of all samples and of the questions with most."""
    table = found.by_question(_BARS).data
    own = [[each.flipped for each in found.samples if each.question == name] for name in table["question"]]
    names = ["all", *(_shortened(drawable(name), end=False) for name in table["question"])]
    _bars(axes, names, [float(found.flips), *(float(np.mean(each)) for each in own)], "share of other answers")
    if np.isfinite(found.flips.low):
        axes.hlines(0, found.flips.low, found.flips.high, color="#333333", lw=1)
    axes.set_xlim(0, 1)


def _bars(axes: Axes, names: Sequence[str], values: Sequence[float], unit: str) -> None:
    axes.barh(np.arange(len(names)), values, color="C0", height=0.7)
    axes.set_yticks(np.arange(len(names)), names)
    axes.set_ylim(max(len(names), _BARS // 2) - 0.5, -0.5)
    axes.set_xlabel(unit)


def _shortened(name: str, end: bool = True) -> str:
    """A name that fits beside a bar: its end, which tells weights apart, or its beginning."""
    if len(name) <= _LETTERS:
        return name
    return f"…{name[-_LETTERS:].partition('.')[2] or name[-_LETTERS:]}" if end else f"{name[:_LETTERS]}…"
