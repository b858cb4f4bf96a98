"""What the app keeps for its users: a private folder that goes away with it, and who may read which part of it.

Each picture and each answer is a folder under a name that cannot be guessed, belongs to one browser, and is read by no
other, whoever knows the name. Kept are so many of each browser, so many bytes of all, and nothing for longer than so
long; the least used go first. Whoever asks for what has gone is told so.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from llava_probe.errors import BadInput

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_PREFIX, _MARK = "llava-probe-app-", "in-use"

#: Of one browser at once.
PICTURES_KEPT = 8
ANSWERS_KEPT = 8
#: Bytes of all together.
MOST_BYTES = 4_000_000_000
#: Seconds for which something unused stays.
LONGEST_UNUSED = 3600.0

_WHAT = {"picture": "picture", "run": "answer"}


@dataclass(eq=False)
class Belonging:
    """A picture or an answer.

    Attributes:
        token: its name; ``owner``: whose it is; ``folder``: its files; ``about``: what is known of it.
    """

    token: str
    kind: str
    owner: str
    folder: Path
    about: Any = None
    used: float = 0.0
    size: int = 0
    readers: int = field(default=0, repr=False)


class Store:
    """The items of all users. Used from one thread.

    Args:
        most_bytes, longest: as above.
        now: the clock.
    """

    def __init__(
        self, most_bytes: int = MOST_BYTES, longest: float = LONGEST_UNUSED, now: Callable[[], float] = time.monotonic
    ) -> None:
        _remove_left()
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX))  # for this user alone
        self._mark = _marked(self.folder)
        self._most_bytes, self._longest, self._now = most_bytes, longest, now
        self._items: dict[str, Belonging] = {}  # the least used first

    def __len__(self) -> int:
        return len(self._items)

    def new(self, owner: str, kind: str) -> Belonging:
        """A new item with an empty folder."""
        token = secrets.token_urlsafe(24)
        item = Belonging(token, kind, owner, self.folder / token, used=self._now())
        item.folder.mkdir(mode=0o700)
        self._items[token] = item
        most = PICTURES_KEPT if kind == "picture" else ANSWERS_KEPT
        own = [each for each in self._items.values() if each.owner == owner and each.kind == kind]
        for each in own[: max(0, len(own) - most)]:
            self.drop(each)
        return item

    def get(self, owner: str, token: object, kind: str) -> Belonging:
        """One of the owner's items.

        Raises:
            BadInput: there is none of this name, or it is another's.
        """
        item = self._items.get(token) if isinstance(token, str) else None
        if item is None or item.kind != kind or not secrets.compare_digest(item.owner, owner):
            raise BadInput(f"this {_WHAT[kind]} is not kept any more; {_again(kind)}")
        item.used = self._now()
        self._items[item.token] = self._items.pop(item.token)
        return item

    @contextmanager
    def reading(self, item: Belonging) -> Iterator[Belonging]:
        """Its files stay while this lasts."""
        item.readers += 1
        try:
            yield item
        finally:
            item.readers -= 1
            item.size = sum(path.stat().st_size for path in item.folder.rglob("*") if path.is_file())
            if item.token not in self._items:
                self._remove(item)

    def drop(self, item: Belonging) -> None:
        """Forget an item; its files go when nobody reads them."""
        self._items.pop(item.token, None)
        self._remove(item)

    def tidy(self) -> None:
        """Drop what is too old, then the least used until the rest is small enough."""
        for item in list(self._items.values()):
            if not item.readers and item.used < self._now() - self._longest:
                self.drop(item)
        size = sum(item.size for item in self._items.values())
        for item in list(self._items.values()):
            if size <= self._most_bytes:
                break
            if not item.readers:
                size -= item.size
                self.drop(item)

    def close(self) -> None:
        """Remove everything."""
        self._items.clear()
        shutil.rmtree(self.folder, ignore_errors=True)
        if self._mark is not None:
            self._mark.close()

    def _remove(self, item: Belonging) -> None:
        if not item.readers:
            shutil.rmtree(item.folder, ignore_errors=True)


def _marked(folder: Path) -> IO[bytes] | None:
    """A file in it that is locked as long as the app runs, however it ends."""
    if fcntl is None:
        return None
    mark = (folder / _MARK).open("ab")
    fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return mark


def _remove_left() -> None:
    """Remove what apps of this user left that were killed: nobody holds their mark any more."""
    if fcntl is None:
        return
    for mark in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/{_MARK}"):
        with suppress(OSError), mark.open("ab") as file:
            if mark.parent.stat().st_uid == os.getuid() and not mark.parent.is_symlink():
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(mark.parent, ignore_errors=True)


def _again(kind: str) -> str:
    return "choose it again" if kind == "picture" else "ask again"
