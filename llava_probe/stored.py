"""How every file of ours is opened, read and written, since somebody may have sent it, cut it or named it wrongly.

    told = stored.read_json("manifest", path, Manifest, limit=16_000_000)    # a described type, or one sentence
    with stored.opened("shard", path) as file: ...                           # a regular file and nothing else
    with stored.whole("page", path) as part: part.write_text(page)           # the new file, or still the old one

A checksum says that nothing was damaged, not who wrote it: what a file holds is read into a described type, and what
does not fit is one ``BadFile`` sentence. A FIFO, a device or a folder is never read, and nothing hangs on it.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec

from llava_probe.errors import BadFile, ProbeError, first_line, shortened

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Told = TypeVar("Told")

#: Bytes of JSON that are read at most: parsed, they take some thirty times as much memory.
JSON_LIMIT = 16_000_000

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)
_LONGEST_NAME = 255  # bytes of one part of a path, on every file system in use
_LONGEST_PATH = 4096


# --- paths ---


def place(what: str, path: Any, refuse: type[ProbeError] = BadFile) -> Path:
    """A path that can be, ``~`` expanded.

    Args:
        what: lies there, for the sentence: "trace".
        path: a string or ``os.PathLike``.
        refuse: the error to raise.

    Raises:
        BadFile: (or ``refuse``) it is of another type, empty, holds a NUL, is too long, or names no user after ``~``.
    """
    expected = f"the {what} takes a path, such as 'folder/name'"
    if not isinstance(path, (str, os.PathLike)):
        raise refuse(f"{expected}; got {shortened(repr(path))}")
    told = os.fspath(path)
    named = shortened(repr(told))
    if not isinstance(told, str):
        raise refuse(f"{expected}, as a string; got {named}")
    if not told.strip():
        raise refuse(f"{expected}; got an empty one")
    if "\0" in told:
        raise refuse(f"{expected}; a path holds no NUL, as {named} does")
    try:
        target = Path(told).expanduser()
        size, longest = len(os.fsencode(target)), max((len(os.fsencode(part)) for part in target.parts), default=0)
    except UnicodeError:
        raise refuse(f"{expected}; {named} holds what no file name can") from None
    except RuntimeError:
        raise refuse(f"{expected}; {named} names no user of this machine, write the folder out") from None
    if size > _LONGEST_PATH or longest > _LONGEST_NAME:
        raise refuse(f"{expected}; {named} is too long for a file name ({max(size, longest):,} bytes)")
    return target


def unreadable_kind(mode: int) -> str | None:
    """What lies there, by ``st_mode``; None for a regular file."""
    if stat.S_ISREG(mode):
        return None
    return next((name for test, name in _KINDS if test(mode)), "no regular file")


# --- reading ---


@contextmanager
def opened(what: str, path: Any, limit: int | None = None, refuse: type[ProbeError] = BadFile) -> Iterator[IO[bytes]]:
    """A regular file, open to be read; what the operating system says within the context is one sentence too.

    Args:
        what: it is, for the sentence: "trace".
        path: as ``place`` takes it.
        limit: bytes that it may measure, where it is held in memory.
        refuse: the error to raise.

    Raises:
        BadFile: (or ``refuse``) there is none, it is no regular file, is too large, or cannot be read.
    """
    target = place(what, path, refuse)
    expected = f"a {what} is a regular file"
    try:
        if (kind := unreadable_kind(target.stat().st_mode)) is not None:  # to open a device may already act on it
            raise refuse(f"{target} is {kind}; {expected}")
        # another file may lie there by now, so it is looked at again, and a pipe is not waited for
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        number = os.open(target, flags)
    except FileNotFoundError:
        raise refuse(f"there is no {what} at {target}") from None
    except OSError as error:
        if isinstance(error, ProbeError):
            raise
        raise refuse(f"{target} cannot be opened: {_reason(error)}") from None
    try:
        found = os.fstat(number)
        if (kind := unreadable_kind(found.st_mode)) is not None:
            raise refuse(f"{target} is {kind}; {expected}")
        if limit is not None and found.st_size > limit:
            raise refuse(f"{target} has {found.st_size:,} bytes; a {what} has at most {limit:,}")
        file = os.fdopen(number, "rb")
    except BaseException:
        os.close(number)
        raise
    with file:
        try:
            yield file
        except OSError as error:
            if isinstance(error, ProbeError):
                raise
            raise refuse(f"{target} cannot be read: {_reason(error)}") from error


def read_bytes(what: str, path: Any, limit: int, refuse: type[ProbeError] = BadFile) -> bytes:
    """All of a regular file.

    Raises:
        BadFile: (or ``refuse``) as for ``opened``.
    """
    with opened(what, path, limit, refuse) as file:
        data = file.read(limit + 1)  # it may have grown, or not have told its size
    if len(data) > limit:
        raise refuse(f"{path} has more than {limit:,} bytes; a {what} has at most as many")
    return data


def read_json(
    what: str, path: Any, kind: type[Told], limit: int = JSON_LIMIT, refuse: type[ProbeError] = BadFile
) -> Told:
    """A JSON file as ``kind``; see ``decoded``.

    Raises:
        BadFile: (or ``refuse``) it cannot be read, or holds something else.
    """
    return decoded(f"{path} is no {what}, or a damaged one", read_bytes(what, path, limit, refuse), kind, refuse)


def decoded(sentence: str, data: bytes | str, kind: type[Told], refuse: type[ProbeError] = BadFile) -> Told:
    """JSON as a described type: a dataclass, ``msgspec.Struct``, ``TypedDict``, or containers of these.

    NaN and infinities are read where ``kind`` takes a float: Python writes them. Lone surrogates are refused: what
    holds one can neither be printed nor saved again.

    Args:
        sentence: what to say where it is something else: "x.trace is no trace, or a damaged one".
        data: the JSON; ``kind``: what it must be.
        refuse: the error to raise.

    Raises:
        BadFile: (or ``refuse``) the sentence, and what is wrong where.
    """
    with refused(sentence, refuse):
        try:
            return msgspec.json.decode(data, type=kind)
        except msgspec.DecodeError:
            if not _beyond_json(data):
                raise
        held = json.loads(data)
        json.dumps(held, ensure_ascii=False).encode()  # a lone surrogate ends here
        return msgspec.convert(held, kind, str_keys=True)


def converted(sentence: str, told: Any, kind: type[Told], refuse: type[ProbeError] = BadFile) -> Told:
    """Plain data (of JSON, of a table) as a described type.

    Raises:
        BadFile: (or ``refuse``) the sentence, and what is wrong where.
    """
    with refused(sentence, refuse):
        return msgspec.convert(told, kind, str_keys=True)


@contextmanager
def refused(sentence: str, refuse: type[ProbeError] = BadFile) -> Iterator[None]:
    """Whatever is raised while a stranger's data are made into ours becomes one sentence.

    Raises:
        BadFile: (or ``refuse``) the sentence and the reason; errors of this package keep their words.
    """
    try:
        yield
    except refuse:
        raise
    except RecursionError:
        raise refuse(f"{sentence}: it is nested too deeply") from None
    except MemoryError:
        raise refuse(f"{sentence}: it asks for more memory than there is") from None
    except Exception as error:
        raise refuse(f"{sentence}: {shortened(first_line(error))}") from error


def _beyond_json(data: bytes | str) -> bool:
    if isinstance(data, str):
        return "NaN" in data or "Infinity" in data
    return b"NaN" in data or b"Infinity" in data


# --- writing ---


@contextmanager
def whole(what: str, path: Any) -> Iterator[Path]:
    """A path to write to, in a folder beside ``path``, moved there when the context ends well; else the old one stays.

    What a killed process left of the same is removed.

    Args:
        what: is written, for the sentence: "page".
        path: its place; ``~`` is expanded.

    Raises:
        BadFile: the place cannot be, is no regular file, cannot be written, or the disk is full.
    """
    target = place(what, path)
    with _written(what, target):
        with suppress(FileNotFoundError):
            if (kind := unreadable_kind(target.stat().st_mode)) is not None:
                raise BadFile(f"the {what} could not be written to {target}: that is {kind}")
        part = _part_of(target)
        try:
            part.mkdir()
            with _held(part):  # the folder: a library may put a file of its own, which nobody holds, in a file's place
                yield part / target.name
                _synced(part / target.name)
                (part / target.name).replace(target)
        finally:
            shutil.rmtree(part, ignore_errors=True)


@contextmanager
def together(what: str, folder: Any, first: str, earlier: Iterable[str] = ()) -> Iterator[Path]:
    """A folder inside ``folder`` to write files to; when the context ends well they move up, each in one step.

    Whatever stops it, ``first`` is there as it was or as it is to be: the file that is read again, where the others are
    only looked at. What a killed process left is removed.

    Args:
        what: is written, for the sentence: "map".
        folder: made where there is none.
        first: the name of the file that moves first.
        earlier: names of files in ``folder`` that are taken away before.

    Raises:
        BadFile: the folder cannot be made or written, or the disk is full.
    """
    target = made_folder(what, folder)
    with _written(what, target):
        part = _part_of(target / first)
        try:
            part.mkdir()
            with _held(part):
                yield part
                _synced(part / first)
                names = sorted(path.name for path in part.iterdir())
                for name in earlier:
                    if name not in names:
                        (target / name).unlink(missing_ok=True)
                for name in sorted(names, key=lambda name: name != first):
                    (part / name).replace(target / name)
        finally:
            shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _written(what: str, target: Path) -> Iterator[None]:
    """What goes wrong while something is written, as one sentence."""
    try:
        yield
    except ProbeError:
        raise
    except OSError as error:
        raise BadFile(f"the {what} could not be written to {target}: {_reason(error)}") from error


def _part_of(target: Path) -> Path:
    """A new name beside ``target``; what others left there under such a name, and nobody is writing to, is removed."""
    name = f".{target.name[:64]}."
    for left in target.parent.glob(f"{glob.escape(name)}{'[0-9a-f]' * 32}.part"):
        remove_left(left)
    return target.with_name(f"{name}{uuid.uuid4().hex}.part")


def remove_left(part: Path) -> None:
    """Remove what a killed process left half written, a file or a folder; what a living one writes it holds."""
    with suppress(OSError), _held(part, sure=True):
        shutil.rmtree(part) if part.is_dir() else part.unlink()


@contextmanager
def _held(part: Path, *, sure: bool = False) -> Iterator[None]:
    """A lock on a file or folder that ends with the process that holds it, however that ends.

    Raises:
        OSError: with ``sure``, somebody else holds it, or there are no such locks here.
    """
    if fcntl is None:  # Windows, where an open file can be neither moved nor removed
        if sure:
            raise OSError("no locks")
        yield
        return
    number = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with nullcontext() if sure else suppress(OSError):  # some file systems have none
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(number)


def _synced(path: Path) -> None:
    with path.open("rb+") as written:
        os.fsync(written.fileno())


def write_text(what: str, path: Any, text: str) -> Path:
    """Write a text in UTF-8, whole or not at all.

    Returns:
        Where, with ``~`` expanded.

    Raises:
        BadFile: as for ``whole``.
    """
    with whole(what, path) as part:
        part.write_bytes(text.encode("utf-8", "backslashreplace"))
    return place(what, path)


def made_folder(what: str, path: Any) -> Path:
    """A folder, made where there is none.

    Raises:
        BadFile: the path cannot be, a file lies there, or it may not be made.
    """
    target = place(what, path)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadFile(f"the folder {target} of the {what} cannot be made: {_reason(error)}") from error
    return target


def _reason(error: OSError) -> str:
    return error.strerror or first_line(error)
