"""How files come into a store: written beside their places, moved there together, and one process at a time.

What a killed run leaves half written goes by a name that ``sweep`` knows; a living run's is locked, and stays.
"""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from llava_probe.errors import BadFile, first_line
from llava_probe.stored import remove_left

try:
    import fcntl
except ImportError:  # Windows, where a file that somebody has open cannot be removed anyway
    fcntl = None  # type: ignore[assignment]

TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.part")


class Drafts:
    """Files written beside their places, to be moved there together; what was not moved is removed at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written: list[tuple[Any, Path]] = []

    def add(self, target: Path, pieces: Iterable[memoryview | bytes]) -> str:
        """Write a draft for ``target`` and return its checksum; it stays locked, so that no other run sweeps it."""
        target.parent.mkdir(parents=True, exist_ok=True)
        opened = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part").open("xb")
        self.written.append((opened, target))
        _lock(opened, wait=True)
        digest = hashlib.sha256()
        for piece in pieces:
            opened.write(piece)
            digest.update(piece)
        opened.flush()
        os.fsync(opened.fileno())
        return digest.hexdigest()

    def move(self) -> None:
        """Put each in its place, in the order in which they were added."""
        for opened, target in self.written:
            if fcntl is None:
                opened.close()
            Path(opened.name).replace(target)

    def move_first(self) -> None:
        """The same where nothing is there yet: another process that was quicker keeps its own."""
        for opened, target in self.written:
            if fcntl is None:
                opened.close()
            try:
                os.link(opened.name, target)
            except FileExistsError:
                continue
            except OSError:  # a file system without links
                Path(opened.name).replace(target)

    def __enter__(self) -> Drafts:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for opened, _ in self.written:
            with suppress(OSError):
                Path(opened.name).unlink(missing_ok=True)
            with suppress(OSError):  # closing tries once more to write what the full disk refused
                opened.close()
        if isinstance(error, OSError) and not isinstance(error, BadFile):
            reason = error.strerror or first_line(error)
            kept = "finished shards are kept, and the same command goes on from there"
            raise BadFile(f"{self.folder} could not be written: {reason}; {kept}") from error


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """One process at a time, where the file system knows locks; ``path`` is a file that all of them know."""
    with path.open("rb+") as opened:
        _lock(opened, wait=True)
        yield


def sweep(folder: Path) -> None:
    """Remove what killed runs left half written; what a living one writes is locked."""
    for leftover in list(folder.rglob(".*.part")):
        if TEMPORARY.fullmatch(leftover.name):
            if leftover.is_dir():
                remove_left(leftover)
                continue
            with suppress(OSError), leftover.open("rb+") as opened:
                if _lock(opened, wait=False):
                    leftover.unlink()


def _lock(opened: Any, *, wait: bool) -> bool:
    """Whether the lock was got; True where the file system knows none."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
