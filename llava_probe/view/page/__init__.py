"""A trace and what was computed from it as something to explore: one component, as a file, in a cell, in the app.

    lp.page([trace, lp.attribute(vlm, trace)], "run.html")     # one file, no network
    lp.page([trace, other], "both.html")                       # side by side, with their difference
    lp.page(lp.compare(trace, other), "changed.html")          # and how sure of each word, layers and heads that moved

    runs.py       what is put on a page          grids.py     attention, as much of it as fits
    contents.py   everything it shows            packing.py   as bytes that a browser unpacks
    changes.py    what a comparison found        document.py  as a file
    limits.py     what each method cannot say    fragment.py  as a cell's output
    still.py      where no script runs

The component itself is written in TypeScript (``view/web/``, ``make web``) and lies here, built, as ``component.js``.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from llava_probe.border import checked
from llava_probe.errors import BadInput, shortened
from llava_probe.stored import place, write_text
from llava_probe.view.page.contents import payload
from llava_probe.view.page.document import document, script
from llava_probe.view.page.fragment import fragment
from llava_probe.view.page.runs import Result, gathered

__all__ = ["fragment", "page", "payload", "script"]


@checked
def page(results: Result | Iterable[Result], path: str | Path) -> Path:
    """Write a page for the browser: photographs under their maps, words, layers and heads, to be explored.

    Args:
        results: a trace, a map, a comparison, or several, a map behind the trace that it belongs to. Several traces are
            shown one at a time or two side by side, with linked words and the difference of their maps; two that
            ``lp.compare`` put beside each other with what it found.
        path: one HTML file, which holds everything and fetches nothing.

    Returns:
        The path. What was left out to keep it under 10 MB is told on the page.

    Raises:
        BadInput: something that is none of these, or nothing; or a path that does not end in .html.
        BadFile: the place cannot be written.
    """
    if place("page", path).suffix.lower() not in (".html", ".htm"):
        raise BadInput(f"a page is written as .html; got {shortened(str(path))!r}")
    given = [results] if isinstance(results, Result) else list(results)
    runs = gathered(given)
    asked = [run.trace.question or "" for run in runs if run.trace is not None]
    said = [f"{run.trace.question or ''}\n{run.trace.answer}" for run in runs if run.trace is not None]
    title = " · ".join(filter(None, dict.fromkeys(asked))) or "llava_probe"
    return write_text("page", path, document(payload(given), title, "\n\n".join(said)))
