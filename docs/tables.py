"""The site's tables that the code decides: ``python docs/tables.py`` writes them, and a test compares.

Families come from ``llava_probe/layout/families.json``, which the tests of the families decide, methods from
``lp.METHODS``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import llava_probe as lp

FOLDER = Path(__file__).parent / "tables"


def methods() -> str:
    """What ``lp.METHODS`` holds."""
    rows = [
        (f"``{name}``", each.family, each.about, "yes" if each.contrasts else "", _options(each.options))
        for name, each in lp.METHODS.items()
    ]
    return _table(("method", "family", "what it is", "contrast", "options"), (18, 12, 40, 8, 22), rows)


def families() -> str:
    """What holds for each family of image-text models."""
    told = json.loads((Path(lp.__file__).parent / "layout" / "families.json").read_text(encoding="utf-8"))
    said = {True: "yes", False: "no", None: "—"}
    rows = [(f"``{each['name']}``", each["places"], said[each["rows"]], each.get("note", "")) for each in told]
    return _table(("family", "places", "rows of eager", "note"), (24, 14, 14, 48), rows)


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"``{name}={value!r}``" for name, value in options.items())


def _table(head: Sequence[str], widths: Sequence[int], rows: Iterable[Sequence[str]]) -> str:
    lines = [".. list-table::", "   :header-rows: 1", f"   :widths: {' '.join(map(str, widths))}", ""]
    for row in (head, *rows):
        lines += [f"   {'* -' if not number else '  -'} {cell}".rstrip() for number, cell in enumerate(row)]
    return "\n".join(lines) + "\n"


#: Each table's file and what it holds.
TABLES = {"methods.rst": methods, "families.rst": families}


if __name__ == "__main__":
    for name, made in TABLES.items():
        (FOLDER / name).write_text(made(), encoding="utf-8")
        print(FOLDER / name)
