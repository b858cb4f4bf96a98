"""The component as the output of a notebook's cell: a piece of HTML with a shadow root of its own.

Styles neither leak in nor out; it is drawn when it is scrolled into view; the same output shown twice is two
components. Where no script runs (GitHub, an untrusted notebook) the static picture and words inside stay visible.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from llava_probe.view.page.contents import CELL_BUDGET, payload
from llava_probe.view.page.document import as_text, script
from llava_probe.view.page.runs import Result, gathered
from llava_probe.view.page.still import still


def fragment(results: Result | Iterable[Result]) -> str:
    """HTML of a cell that shows some traces, maps and comparisons.

    Raises:
        BadInput: something that is none of these, or nothing.
    """
    given = [results] if isinstance(results, Result) else list(results)
    parcel = payload(given, CELL_BUDGET)
    mark = hashlib.sha256(parcel).hexdigest()[:12]
    build = hashlib.sha256(script().encode()).hexdigest()[:12]
    there = f'globalThis.llavaProbe?.build!=="{build}"'
    return (
        f'<div data-llava-probe="{mark}">{still(gathered(given))}</div>'
        f'<script>if({there}){{{script()}\nglobalThis.llavaProbe.build="{build}"}}\n'
        f'globalThis.llavaProbe.mountWhenSeen("{mark}","{as_text(parcel)}")</script>'
    )
