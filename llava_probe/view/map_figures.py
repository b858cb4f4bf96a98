"""Maps as figures: all rows of one, several beside each other with their difference, each head of each layer.

lp.figures.maps(m)                              # a panel for each explained word, one scale, one colour bar
lp.figures.maps(m, row=0, photograph="beside")
lp.figures.compare({"before": a, "after": b}, difference=True)
lp.figures.head_maps(trace, tokens="STOP")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from llava_probe.border import Count, Positive
from llava_probe.errors import BadInput
from llava_probe.trace.explained import Tokens, explained, placed, queries
from llava_probe.view.canvas import Colours, Title, Width, drawable, styled
from llava_probe.view.limits import SHEET_LIMIT
from llava_probe.view.sheet import Frame, Look, Panel, by_scale, draw_sheet, look_of

if TYPE_CHECKING:
    from llava_probe.analyzers.confidence import Confidence
    from llava_probe.arrays import FloatArray
    from llava_probe.maps.maps import ImageMap
    from llava_probe.trace.trace import Trace

#: Panels that go into a column of a paper.
_IN_A_COLUMN = 2
#: Heads beyond this are drawn without their shares; so many go into a column; and a map is at most so high, in inches.
_NUMBERED, _FEW_HEADS, _HEAD_SIDE = 12, 5, 0.8


@styled
def maps(
    m: ImageMap,
    row: int | Sequence[int] | None = None,
    *,
    mean: bool = False,
    confidence: Confidence | None = None,
    photograph: str = "under",
    scale: str = "one",
    columns: Count | None = None,
    bar: bool = True,
    ax: Axes | None = None,
    highest: Positive | None = None,
    cmap: Colours | None = None,
    width: Width | None = None,
    title: Title = True,
) -> Figure:
    """A panel for each row of a map, all on one scale with one colour bar.

    Args:
        m: the map.
        row: which rows, from 0; all when None.
        mean: one panel, the mean of these rows.
        confidence: of the same trace, to tell each token's probability too.
        photograph: ``"under"`` lays it over each map in grey, ``"beside"`` sets it before them in colour and leaves the
            maps alone, ``"both"``, or ``"none"``. Under it a value is read from a pixel's hue, alone from its colour.
        scale: ``"one"``, or ``"each"`` panel by its own largest value, which its caption tells.
        columns: panels side by side; as many as suit their shape when None.
        bar: whether to draw the colour bar; ``lp.figures.mappable(figure)`` is for one of your own.
        ax: an axes to draw in.
        highest: the value of the last colour; the largest that is drawn when None.
        cmap: a colour map or its name; ``"heat"``, or for signed values ``"coolwarm"``, when None.
        width: ``"column"``, ``"page"`` or inches; a column for one panel or two when None.
        title: whether there is one, or yours.

    Raises:
        OutOfRange: there is no such row.
        BadInput: no row, an unknown option, or a colour map that cannot be read under a photograph.
    """
    rows = [row] if isinstance(row, int) else list(range(len(m)) if row is None else row)
    if not rows:
        raise BadInput("maps takes one row or more, row=0 or row=[0, 2]; got none")
    shown = rows[:SHEET_LIMIT]
    values = [m.values[rows].mean(0).numpy()] if mean and _there(m, rows) else [m.row(each).numpy() for each in shown]
    unit = str(m.about.get("unit", m.method))
    drawn, told = by_scale(values, scale, unit, highest)
    captions = [""] if mean else [_caption(m, each, confidence, scale == "each") for each in shown]
    marks = [None if m.marked is None else m.marked[[each]].any(0).numpy() for each in shown]
    if mean and m.marked is not None:
        marks = [m.marked[rows].any(0).numpy()]
    panels = [Panel(m.image, m.layout, *each) for each in zip(drawn, captions, marks, strict=False)]
    named = "mean over " if mean and len(rows) > 1 else ""
    method = ", ".join([m.method, *filter(None, [m.about.get("chosen")])])
    own = f"{method}: {named}{_all_words(m, rows)}" if mean else method
    if len(rows) > len(shown) and not mean:
        own += f", the first {len(shown)} of {len(rows)} tokens"
    frame = Frame(width or _width(len(panels), photograph), columns, photograph, bar, _notes(m, marks))
    return draw_sheet(_beside(panels, photograph), [look_of(drawn, told, cmap, highest)], frame, _told(title, own), ax)


@styled
def compare(
    maps: Mapping[str, ImageMap] | Sequence[ImageMap],
    row: int | None = None,
    *,
    difference: bool = False,
    photograph: str = "under",
    columns: Count | None = None,
    bar: bool = True,
    ax: Axes | None = None,
    highest: Positive | None = None,
    cmap: Colours | None = None,
    width: Width | None = None,
    title: Title = True,
) -> Figure:
    """Several maps on one scale: of other questions, models, methods, or with and without an intervention.

    Args:
        maps: by name, or in order; each is told by its method and words then.
        row: of each; the mean of its rows when None.
        difference: for two of the same visual tokens, also what the second has more, on a scale of its own.
        photograph, columns, bar, ax, highest, cmap, width, title: as for ``maps``.

    Raises:
        BadInput: no maps, values of different units, or a difference of other than two maps of one layout.
        OutOfRange: there is no such row.
    """
    named = list(maps) if isinstance(maps, Mapping) else []
    several: list[ImageMap] = list(maps.values() if isinstance(maps, Mapping) else maps)
    if not several:
        raise BadInput("compare takes two or more maps; got none")
    units = list(dict.fromkeys(str(m.about.get("unit", m.method)) for m in several))
    if len(units) > 1:
        raise BadInput(f"one scale takes values of one unit; got {', '.join(units)}: draw each with lp.figures.maps")
    values = [m.row(row).numpy() for m in several]
    captions = [drawable(name) for name in named] or [f"{m.method}\n{drawable(m.label(row))}" for m in several]
    looks = [look_of(values, units[0], cmap, highest)]
    panels = [
        Panel(m.image, m.layout, each, caption) for m, each, caption in zip(several, values, captions, strict=True)
    ]
    if difference:
        apart, look = _difference(several, values, captions, units[0])
        panels.append(apart)
        looks.append(look)
    if photograph in ("beside", "both"):
        panels = _with_photographs(panels)
    frame = Frame(width or _width(len(panels) + len(looks) - 1, photograph), columns, photograph, bar)
    return draw_sheet(panels, looks, frame, _told(title, ""), ax)


@styled
def head_maps(
    trace: Trace,
    tokens: Tokens = None,
    image: int = 0,
    *,
    photograph: str = "under",
    scale: str = "one",
    bar: bool = True,
    ax: Axes | None = None,
    highest: Positive | None = None,
    cmap: Colours | None = None,
    width: Width | None = None,
    title: Title = True,
) -> Figure:
    """A small attention map for each head of each layer, and what share of its attention lies on the picture.

    Args:
        trace: with attention rows.
        tokens: as for ``attention_map``; several are averaged.
        image: which picture.
        photograph, scale, bar, ax, highest, cmap, width, title: as for ``maps``.

    Raises:
        NotCaptured: rows that were not kept.
    """
    layout, (wanted, words) = placed(trace, image), explained(trace, tokens)
    at = queries(trace, [position for word in words for position in word])
    rows = torch.stack([row[..., layout.positions].float() for row in trace.each_row(at)])
    each = rows.mean(0).flatten(0, 1)  # [layers × heads, N]
    layers, heads = trace.attention_layers, trace.attention_heads
    shares = [f"{share:.0%}" if len(heads) <= _NUMBERED else "" for share in each.sum(1).tolist()]
    drawn, unit = by_scale(list(each.numpy()), scale, "share of attention", highest)
    panels = [Panel(trace.images[image], layout, *one) for one in zip(drawn, shares, strict=True)]
    names = [f"head {heads[0]}", *map(str, heads[1:])], [f"L{layer}" for layer in layers]
    width = width or ("column" if len(heads) <= _FEW_HEADS else "page")
    frame = Frame(width, len(heads), photograph, bar, heads=names[0], rows=names[1], highest=_HEAD_SIDE)
    said = drawable("".join(token.text for token in wanted))
    own = f"“{said}”: attention of each head, with its share on the picture"
    return draw_sheet(panels, [look_of(drawn, unit, cmap, highest)], frame, _told(title, own), ax)


def _there(m: ImageMap, rows: Sequence[int]) -> bool:
    """True; raises where a row is not there."""
    return all(m.row(each) is not None for each in rows)


def _told(title: str | bool, own: str) -> str:
    return own if title is True else title or ""


def _width(count: int, photograph: str) -> str:
    return "column" if count + (photograph in ("beside", "both")) <= _IN_A_COLUMN else "page"


def _beside(panels: list[Panel], photograph: str) -> list[Panel]:
    """The photograph in colour before its maps, where it was asked for."""
    if photograph not in ("beside", "both"):
        return panels
    return [Panel(panels[0].image, panels[0].layout, None, "the photograph"), *panels]


def _with_photographs(panels: Sequence[Panel]) -> list[Panel]:
    """Each photograph in colour before the first panel that is of it."""
    found: list[Panel] = []
    for panel in panels:
        if not any(panel.image is other.image for other in found):
            found.append(Panel(panel.image, panel.layout, None, "the photograph"))
        found.append(panel)
    return found


def _difference(
    several: Sequence[ImageMap], values: Sequence[FloatArray], captions: Sequence[str], unit: str
) -> tuple[Panel, Look]:
    """What the second has more than the first: a panel, and its own colours on both sides of nothing.

    Raises:
        BadInput: there are not two, or they have other visual tokens.
    """
    if len(several) != 2:
        raise BadInput(f"difference=True takes two maps; got {len(several)}")
    (one, other), (before, after) = several, values
    if len(one.layout) != len(other.layout) or (one.layout.boxes != other.layout.boxes).any():
        raise BadInput(
            f"difference=True takes maps of the same visual tokens; got {len(one.layout)} on {one.layout.size} and "
            f"{len(other.layout)} on {other.layout.size} pixels"
        )
    first, second = (caption.replace("\n", " ") for caption in captions)
    caption = f"{second}\nless {first}"
    apart = after - before
    look = look_of([apart], f"difference of {unit}", None, None, signed=True)
    return Panel(other.image, other.layout, apart, caption, look=1), look


def _caption(m: ImageMap, number: int, confidence: Confidence | None, alone: bool) -> str:
    """The word, what it is weighed against, how sure it was, and the value of the last colour if that is its own."""
    text = drawable(m.label(number)).replace(" rather than ", "\nrather than ")
    told = []
    if confidence is not None:
        step = m.tokens[number].position - confidence.trace.prompt_length
        told += [f"p {float(confidence.probability[step]):.2f}"] if step >= 0 else []
    if alone:
        told.append(f"largest {float(m.row(number).abs().max()):.2g}")
    return "\n".join([text, "   ".join(told)] if told else [text])


def _all_words(m: ImageMap, rows: Sequence[int]) -> str:
    """The words of these rows, and what they are weighed against."""
    if len(rows) == len(m):
        return f"“{drawable(m.label())}”"
    return ", ".join(f"“{drawable(m.label(each))}”" for each in rows)


def _notes(m: ImageMap, marks: Sequence[object]) -> list[str]:
    notes = []
    if m.marked is not None:
        sinks = int(torch.stack([torch.as_tensor(each) for each in marks]).any(0).sum())
        notes.append(f"ringed: {sinks} sinks")
    if not m.layout.seen.all():
        notes.append("hatched: never seen by the model")
    return notes
