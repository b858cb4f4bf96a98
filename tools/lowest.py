"""The lower bounds of pyproject.toml as exact versions, one a line: a constraints file for ``make lowest``.

    python tools/lowest.py > lowest.txt

A bound that nobody tries is a guess. Those of what the package itself needs are tried together; extras are taken as new
as these allow.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def lowest() -> Iterator[str]:
    """``torch==2.11`` for each ``torch>=2.11``."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    for need in project["dependencies"]:
        found = re.match(r"([\w-]+)(?:\[[^]]*\])?>=([\d.]+)", need)
        if found:
            yield f"{found[1]}=={found[2]}"


if __name__ == "__main__":
    print("\n".join(lowest()))
