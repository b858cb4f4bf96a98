"""All that a page shows, as one parcel: runs with their pictures, words, numbers and maps.

The names in here are the other half of ``view/web/src/payload.ts``. Texts go as they are: the page puts them where they
are text and nothing else (``view/web/src/text.ts``).
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from llava_probe.analyzers.confidence import confidence
from llava_probe.analyzers.sinks import sinks
from llava_probe.border import checked
from llava_probe.errors import NotANumber, NotCaptured, shortened
from llava_probe.layout import ImageLayout
from llava_probe.layout.geometry import tile_grids
from llava_probe.maps.colours import HEAT, SIGNED, colour_map, colour_table
from llava_probe.maps.maps import ImageMap
from llava_probe.maps.overlay import INK
from llava_probe.trace.explained import ANSWER
from llava_probe.trace.request import spelled
from llava_probe.trace.trace import Trace
from llava_probe.view.page.changes import comparison_data
from llava_probe.view.page.grids import attention_data
from llava_probe.view.page.limits import limit_of
from llava_probe.view.page.packing import Parcel
from llava_probe.view.page.runs import Result, Run, compared, gathered
from llava_probe.view.terminal import notes

#: What the page's reader must know to read this.
FORMAT = 2
#: Bytes of the parcel, compressed: in base64, with the component, a page of 10 MB.
PAGE_BUDGET = 7_000_000
#: Bytes of a parcel that goes into a notebook's cell.
CELL_BUDGET = 1_500_000

#: Longer side of a photograph on a page, and how many pixels all of them have together.
_SIDE, _PIXELS = 1024, 4_000_000
#: A photograph that takes at most this share of a page as PNG goes as it is, to the pixel; a larger one as JPEG.
_EXACT = 0.04
_QUALITY = 86
#: What all photographs together may take of a page; and a side below which none is shrunken for it.
_PHOTOGRAPHS, _LEAST = 0.5, 96

#: A file, its type and its size in pixels, by the identity of the picture that it shows.
Files = dict[int, tuple[bytes, str, tuple[int, int]]]
#: What else the model nearly said, at each step.
_ALTERNATIVES = 8
#: Colour maps that can be read back under a photograph, and by the colour-blind; the first of each is the default.
_PLAIN, _SIGNED = (HEAT, "plasma", "viridis"), (SIGNED, "PuOr_r", "BrBG_r")


@checked
def payload(results: Result | Iterable[Result], budget: int = PAGE_BUDGET) -> bytes:
    """Everything that the page component shows of some traces, maps and comparisons, compressed.

    Args:
        results: one of these, or several: maps belong to the trace before them.
        budget: about how many bytes; single heads are left out until it fits, which the page tells.

    Raises:
        BadInput: something that is none of these, or nothing.
    """
    given = [results] if isinstance(results, Result) else list(results)
    runs = gathered(given)
    parcel = Parcel()
    files = _photographs(runs, budget)
    told = [_run_data(run, parcel, files) for run in runs]
    changes = [comparison_data(found, first, second, parcel) for first, second, found in compared(given, runs)]
    for number, (run, data) in enumerate(zip(runs, told, strict=True)):  # what is left goes to attention, a part each
        own = max(0, budget - parcel.size) // (len(runs) - number)
        data["attention"] = attention_data(run.trace, parcel, own) if run.trace is not None else None
    header = {"format": FORMAT, "colours": _colours(parcel), "ink": INK, "runs": told, "comparisons": changes}
    return parcel.packed(header)


def _run_data(run: Run, parcel: Parcel, files: Files) -> dict[str, Any]:
    return {
        **_told(run),
        "tokens": [[token.position, token.text, token.role] for token in run.tokens],
        "steps": _steps(run.trace, parcel) if run.trace is not None else None,
        "pictures": _pictures(run, parcel, files),
        "attentionLimit": limit_of("attention"),
        "maps": [_map_data(run, picture, m, parcel) for picture, m in run.maps],
    }


def _told(run: Run) -> dict[str, Any]:
    """Who was asked what, and with what it was made."""
    trace = run.trace
    if trace is None:
        m = run.maps[0][1]
        nothing: dict[str, Any] = {key: [] for key in ("said", "notes", "made", "interventions", "alternatives")}
        told = {
            "title": m.method,
            "question": "",
            "answer": m.label(),
            "promptLength": 0,
            "scored": True,
            "score": None,
        }
        return nothing | told
    asked = trace.question or trace.request.prompt or ""
    made = [(name, trace.provenance.get(name)) for name in ("model", "class", "revision", "dtype", "attention")]
    made += [("quantization", trace.provenance.get("quantization")), ("adapter", trace.provenance.get("adapter"))]
    made += [*sorted(trace.request.generate.items()), ("seed", trace.request.seed)]
    others = [{"answer": other.answer, "score": other.sequence_score} for other in trace.alternatives]
    return {
        "title": str(trace.provenance.get("model", "")),
        "question": asked,
        "answer": trace.answer,
        "promptLength": trace.prompt_length,
        "said": trace.positions(ANSWER),
        "notes": [shortened(note) for note in notes(trace)] + _unplaced(trace),
        "made": [[name, str(value)] for name, value in made if value is not None],
        "interventions": [shortened(spelled(each)) for each in trace.interventions],
        "alternatives": others,
        "scored": trace.scored,
        "score": trace.sequence_score,
    }


def _unplaced(trace: Trace) -> list[str]:
    """Why there is no map, where the places of visual tokens are not known."""
    if len(trace.layouts) == len(trace.images):
        return []
    return [f"no maps: the places of this model's visual tokens are {trace.provenance.get('places', 'not known')}"]


def _steps(trace: Trace, parcel: Parcel) -> dict[str, Any] | None:
    """How sure the model was at each step, and what else it nearly said; None where no logits were kept."""
    try:
        sure = confidence(trace)
    except (NotCaptured, NotANumber):
        return None
    columns = {"probability": sure.probability, "entropy": sure.entropy, "rank": sure.rank.float()}
    try:
        if sure.sampled_probability is not None:
            columns["sampled"] = sure.sampled_probability
    except (NotCaptured, NotANumber):
        pass
    kept = trace.logits.shape[1] if trace.kept("logits") else trace.top().values.shape[1]
    return {
        **{name: parcel.add(column.numpy().astype(np.float32)) for name, column in columns.items()},
        "alternatives": [
            [[other.text, round(other.probability, 6)] for other in step] for step in sure.top(min(_ALTERNATIVES, kept))
        ],
    }


def _pictures(run: Run, parcel: Parcel, files: Files) -> list[dict[str, Any]]:
    images = run.images
    known = len(run.layouts) == len(images)
    told = []
    for number, image in enumerate(images):
        layout = run.layouts[number] if known else None
        size = layout.size if layout is not None else image.size
        file, kind, shown = files[id(image)]
        told.append(
            {
                "size": list(size),
                "shown": list(shown),
                "file": parcel.file(file),
                "kind": kind,
                "layout": _layout_data(layout, parcel) if layout is not None else None,
                "sinks": _sinks(run.trace, number, parcel) if layout is not None and run.trace is not None else None,
            }
        )
    return told


def _layout_data(layout: ImageLayout, parcel: Parcel) -> dict[str, Any]:
    grids = [(own, grid) for own, grid in tile_grids(layout) if grid is not None] if len(layout) else []
    return {
        "boxes": parcel.add(layout.boxes.astype(np.float32)),
        "positions": parcel.add(layout.positions.astype(np.int32)),
        "tiles": parcel.add(layout.tiles.astype(np.int32)),
        "grids": [{"tokens": parcel.add(own.astype(np.int32)), "rows": int(r), "columns": int(c)}
                  for own, (r, c) in grids],
        "frames": list(layout.frames),
    }  # fmt: skip


def _sinks(trace: Trace, image: int, parcel: Parcel) -> dict[str, Any] | None:
    try:
        marked = sinks(trace, image).marked
    except NotCaptured:
        return None
    return parcel.add(np.flatnonzero(marked.numpy()).astype(np.int32))


def _map_data(run: Run, picture: int, m: ImageMap, parcel: Parcel) -> dict[str, Any]:
    made_under, said_under = m.about.get("interventions"), run.trace.interventions if run.trace is not None else ()
    other = made_under is not None and list(map(spelled, made_under)) != list(map(spelled, said_under))
    spans: Sequence[Sequence[int]] = m.about.get("positions") or [[token.position] for token in m.tokens]
    return {
        "name": m.method,
        "unit": str(m.about.get("unit", "value")),
        "limit": limit_of(m.method),
        "picture": picture,
        "rows": [[m.label(row), list(span)] for row, span in enumerate(spans)],
        "values": parcel.quantised(m.values.numpy(), np.uint16),
        "marked": None if m.marked is None else parcel.add(m.marked.numpy().astype(np.uint8)),
        "note": "made under other interventions than the answer" if other else "",
    }


def _colours(parcel: Parcel) -> dict[str, Any]:
    """[256, 3] tables of each colour map."""
    tables = [np.rint(colour_table(colour_map(name))).astype(np.uint8) for name in (*_PLAIN, *_SIGNED)]
    return {"plain": list(_PLAIN), "signed": list(_SIGNED), "tables": parcel.add(np.stack(tables))}


def _photographs(runs: Sequence[Run], budget: int) -> Files:
    """Every photograph as a file, by its identity; smaller where all together would take more than their part."""
    images = {id(image): image for run in runs for image in run.images}
    side = min(_SIDE, int((_PIXELS / max(1, len(images))) ** 0.5))
    while True:
        files = {key: _encoded(image, side, int(budget * _EXACT)) for key, image in images.items()}
        total = sum(len(file) for file, _, _ in files.values())
        if total <= budget * _PHOTOGRAPHS or side <= _LEAST:
            return files
        side = max(_LEAST, int(0.95 * side * (budget * _PHOTOGRAPHS / total) ** 0.5))


def _encoded(image: Image.Image, side: int, exact: int) -> tuple[bytes, str, tuple[int, int]]:
    """A photograph as a file that a browser shows: PNG of at most ``exact`` bytes, else JPEG; its type and size."""
    picture = image.convert("RGB")
    picture.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
    file = io.BytesIO()
    picture.save(file, "PNG")
    if file.tell() <= exact:
        return file.getvalue(), "image/png", picture.size
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=_QUALITY, subsampling="4:4:4", optimize=True)
    return file.getvalue(), "image/jpeg", picture.size
