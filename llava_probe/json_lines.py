"""Files of JSON lines that a run appends to, one as each thing is finished: what is cut off is the last line alone.

    drop_cut_line(path)                                  # before more is appended: it would be stuck to it
    for number, line in each_line("file of scores", path): ...

A run that was killed leaves a line without its end, or another run is just writing it; that one counts as not done.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llava_probe.errors import BadFile
from llava_probe.stored import decoded, opened

#: Bytes of one line; of a description with all methods of attribution some 100 kB.
_LONGEST = 50_000_000


def each_line(what: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each line stands ("line 3 of scores.jsonl"), and what it holds.

    Args:
        what: it is a file of, for sentences.

    Raises:
        BadFile: the file cannot be read, or a line that is not the last is damaged; its number is told.
    """
    with opened(what, path) as file:
        number = 0
        while line := file.readline(_LONGEST):
            number += 1
            where = f"line {number} of {path}"
            if len(line) == _LONGEST:
                raise BadFile(f"{where} is damaged: it has more than {_LONGEST:,} bytes")
            if not line.strip():
                continue
            try:
                plain = decoded(f"{where} is damaged", line, dict[str, Any])
            except BadFile:
                if line.endswith(b"\n"):
                    raise
                _warn_of_a_cut(path)
                continue
            yield where, plain


def drop_cut_line(what: str, path: Path) -> None:
    """Take away the end of a line that was being written when a run was killed."""
    with opened(what, path) as file:
        kept = 0
        while line := file.readline(_LONGEST):
            kept += len(line) if line.endswith(b"\n") else 0
        cut = file.tell() > kept
    if cut:
        _warn_of_a_cut(path)
        with path.open("r+b") as file:
            file.truncate(kept)


def _warn_of_a_cut(path: Path) -> None:
    warnings.warn(
        f"the last line of {path} is not whole: a run was killed, or is still writing it; it counts as not done",
        stacklevel=3,
    )
