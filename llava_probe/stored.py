"""One way of opening and reading every file of ours, whoever made it.

A file may come from a stranger, another version or a bad disk, and a checksum is no signature: what is opened is a
regular file and never a pipe or a device, what is read is of the types that we write, and whatever else it is ends in
one ``BadFile`` sentence that says where and why.

    with opened("trace", path) as file: ...
    line = decoded(Line, text, "line 3 of scores.jsonl")     # ... has no field `question`
"""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar, get_type_hints

import msgspec

from llava_probe.border.values import Refused, in_few_words, read_path
from llava_probe.errors import BadFile, ProbeError, first_line, shortened

Read = TypeVar("Read")

#: Whole numbers as an int64 tensor holds them, and those of them that count or name a place.
Whole = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Natural = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")


class Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a JSON object in a file of ours holds, all of it: a key that is not described is refused."""


def path_of(what: str, path: Any) -> Path:
    """``path`` as a ``Path`` that a file can have here, ``~`` expanded.

    Args:
        what: is to be read or written there, for the sentence: "trace".
        path: text or a ``Path``.

    Raises:
        BadFile: no file can be called so.
    """
    found = read_path(path)
    if isinstance(found, Refused):
        raise BadFile(
            f"the path of the {what} is {in_few_words(path)}{', ' + found.why if found.why else ': give text'}"
        )
    return Path(found).expanduser()


def opened(what: str, path: Any, most_bytes: int | None = None) -> BinaryIO:
    """A regular file, open for reading; nothing here waits for whoever writes a pipe.

    Args:
        what: it is, for the sentence: "trace".
        path: its place; ``~`` is expanded.
        most_bytes: that such a file can have.

    Raises:
        BadFile: there is none, it is no regular file or too large, or it may not be read.
    """
    source = path_of(what, path)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        _check_regular(what, source, source.stat())  # some devices act on being opened
        descriptor = os.open(source, flags)
    except FileNotFoundError:
        raise BadFile(f"there is no {what} at {_at(source)}") from None
    except NotADirectoryError:
        raise BadFile(f"there is no {what} at {_at(source)}: what should be its folder is a file") from None
    except ProbeError:
        raise
    except (OSError, ValueError) as error:
        raise BadFile(f"{_at(source)} cannot be read as a {what}: {_reason(error)}") from None
    try:
        found = os.fstat(descriptor)
        _check_regular(what, source, found)  # it may be another one by now
        if most_bytes is not None and found.st_size > most_bytes:
            raise BadFile(f"{_at(source)} has {found.st_size:,} bytes; a {what} has {most_bytes:,} at most")
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def contents(what: str, path: Any, most_bytes: int) -> bytes:
    """All of a regular file.

    Raises:
        BadFile: as for ``opened``, or the disk cannot read it.
    """
    with opened(what, path, most_bytes) as file:
        try:
            data = file.read(most_bytes + 1)
        except OSError as error:
            raise BadFile(f"{_at(path)} cannot be read as a {what}: {_reason(error)}") from None
    if len(data) > most_bytes:  # it grows
        raise BadFile(f"{_at(path)} has more bytes than a {what} has, {most_bytes:,}")
    return data


def decoded(kind: type[Read], text: str | bytes, what: str) -> Read:
    """JSON as the type that it is described by.

    Args:
        kind: a ``Stored``, or anything else that msgspec can convert to. A float may be NaN or infinite, as Python
            writes them.
        text: the JSON.
        what: it is, for the sentence: "the header of run.trace".

    Raises:
        BadFile: it is no JSON, or not of this type; the sentence says where in it.
    """
    try:
        text = text.decode() if isinstance(text, bytes) else text
        plain = json.loads(text)
        if _HALF_CHARACTER.search(text):
            json.dumps(plain, ensure_ascii=False).encode()
    except RecursionError:
        raise BadFile(f"{what} is damaged: it is nested too deep") from None
    except UnicodeError:
        raise BadFile(f"{what} is damaged: it holds half a character") from None
    except ValueError as error:
        raise BadFile(f"{what} is damaged, or no JSON: {shortened(first_line(error))}") from None
    return of_type(kind, plain, what)


def of_type(kind: type[Read], plain: Any, what: str) -> Read:
    """Plain data (of JSON) as the type that it is described by; see ``decoded``.

    Raises:
        BadFile: it is not of this type.
    """
    try:
        return msgspec.convert(plain, kind, str_keys=True)
    except (msgspec.ValidationError, RecursionError, OverflowError) as error:
        raise BadFile(f"{what} is not what was expected: {_spoken(error)}") from None


def like(kind: type, name: str, **types: Any) -> Any:
    """A ``Stored`` with the fields of a dataclass, whose ``asdict`` was written, all of them required.

    Args:
        kind: the dataclass.
        name: of the new type.
        types: of fields that are narrower in a file than the dataclass says.
    """
    hints = get_type_hints(kind)
    described = [(each.name, types.get(each.name, hints[each.name])) for each in fields(kind)]
    return msgspec.defstruct(name, described, bases=(Stored,), frozen=True, forbid_unknown_fields=True)


def _check_regular(what: str, source: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "no regular file")
        raise BadFile(f"{_at(source)} is {kind}, and no {what}")


def _at(path: Any) -> str:
    return shortened(repr(str(path))[1:-1])


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or first_line(error)


def _spoken(error: Exception) -> str:
    """What msgspec says: "Expected `int`, got `str` - at `$.tokens[0]`"; the place is in the file's own names."""
    said = shortened(first_line(error)) if isinstance(error, msgspec.ValidationError) else "it is nested too deep"
    return said[:1].lower() + said[1:].replace("`$.", "`").replace(" - at `$`", "")
