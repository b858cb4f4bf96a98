"""One value as a whole number, a number, text, a path or an array: the value, or a refusal with the reason.

What counts as a number is decided here and nowhere else: NumPy's and torch's scalars do, bools do not. Nothing of
NumPy or torch is imported: arrays are known by their shape and dtype.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from llava_probe.errors import shortened

#: The longest name of a file, and the longest path, that Linux takes; others take less and say so themselves.
_NAME, _PATH = 255, 4096
#: Told apart at once, since a list is often given where a number may stand.
_LISTS, _FILES = (list, tuple), (str, os.PathLike)
_NO_NUMBERS = (bool, str, list, tuple, range, type(None))
#: Of int64.
_LARGEST = 2**63
#: Entries of a broadcast array: making it whole would take gigabytes.
_SPREAD = 2**27
#: Of a nested list that stands for an array; deeper is no array of this package.
_DEEPEST = 8


class Refused:
    """What a reader returns for what it does not take; ``why`` goes on after what was given."""

    __slots__ = ("why",)

    def __init__(self, why: str = "") -> None:
        self.why = why


NO = Refused()


def in_few_words(value: Any) -> str:
    """What was given, in a few words, whatever it is."""
    try:
        return _told(value, type(value).__name__)
    except Exception:  # a class's own __repr__, __len__ or __getattr__
        return f"something of the class {type(value).__name__}"


def _told(value: Any, name: str) -> str:
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, str | bytes):
        return f"{shortened(repr(value[:200]))} ({name})"
    if isinstance(value, bool | float | complex):
        return f"{value!r} ({name})"
    if isinstance(value, int):
        return f"{value} ({name})" if abs(value) < 10**20 else f"a whole number of {value.bit_length()} bits"
    if getattr(value, "shape", None) is not None and getattr(value, "dtype", None) is not None:
        return f"{name} of shape {[*value.shape]} and dtype {value.dtype}"
    if isinstance(value, list | tuple | dict | set | frozenset | range):
        return f"a {name} of {len(value)}"
    return f"{'an' if name[:1] in 'aeiouAEIO' else 'a'} {name}"


def read_whole(value: Any) -> Any:
    """An int of whatever counts and is no bool."""
    if type(value) is int:
        return value
    if isinstance(value, _NO_NUMBERS) or getattr(value, "ndim", None) or "bool" in str(getattr(value, "dtype", "")):
        return NO
    try:
        return value.__index__()
    except Exception:  # a tensor of floats or on no device, an array of objects: each has errors of its own
        return NO


def read_number(value: Any) -> Any:
    """A float of any single real number."""
    if type(value) is float:
        return value
    if (
        isinstance(value, _NO_NUMBERS)
        or getattr(value, "ndim", None)
        or letter_of(getattr(value, "dtype", "i")) not in "iuf"
    ):
        return NO
    if not hasattr(value, "__float__") and not hasattr(value, "__index__"):
        return NO
    try:
        return float(value)
    except Exception:  # an int too large, a tensor on no device
        return NO


def read_truth(value: Any) -> Any:
    """A bool; 0 and 1 are numbers."""
    if isinstance(value, bool):
        return value
    return bool(value) if type(value).__name__ in ("bool_", "bool") and not getattr(value, "ndim", None) else NO


def read_text(value: Any) -> Any:
    """Text that has an encoding."""
    if not isinstance(value, str):
        return NO
    return value if value.isascii() or _encoded(value) else Refused("which holds half a character (a lone surrogate)")


def _encoded(text: str) -> bool:
    try:
        return bool(text.encode()) or True
    except UnicodeEncodeError:
        return False


def read_path(value: Any) -> Any:
    """Something that a file could be called here."""
    if not isinstance(value, _FILES):
        return NO
    try:
        text = os.fspath(value)
        raw = os.fsencode(text)
    except Exception:  # a class's __fspath__, text that no file system holds
        return Refused("which no file can be called")
    if not isinstance(text, str) or not text:
        return Refused("which is empty" if not text else "which is bytes")
    if b"\0" in raw:
        return Refused("which holds a NUL")
    if len(raw) > _PATH or max(map(len, raw.split(b"/"))) > _NAME:
        return Refused("whose name is longer than a file's can be")
    try:
        _ = Path(text).expanduser() if text.startswith("~") else None
    except RuntimeError:
        return Refused(f"but there is no such user here; a folder of that name is ./{shortened(text)}")
    return value


def letter_of(dtype: Any) -> str:
    """b, i, u, f, c or another letter of what an array holds, NumPy's or torch's."""
    kind = getattr(dtype, "kind", None)
    if isinstance(kind, str):
        return kind
    name = str(dtype).removeprefix("torch.")
    return "f" if name.startswith("bfloat") else name[:1]


def read_array(value: Any, kinds: str = "biuf") -> Any:
    """An array, a tensor or nested lists of numbers; an array's dtype is of one of ``kinds``."""
    dtype = getattr(value, "dtype", None)
    if dtype is None or getattr(value, "shape", None) is None:
        if isinstance(value, range):
            return value if "i" in kinds else NO
        return value if isinstance(value, _LISTS) and _numbers(value) else NO
    if letter_of(dtype) not in kinds:
        return NO
    if math.prod(value.shape) > _SPREAD and 0 in _strides(value):
        return Refused("which is a few numbers spread over more than memory holds")
    where, layout = getattr(value, "device", None), str(getattr(value, "layout", "torch.strided"))
    if getattr(where, "type", "") == "meta" or layout != "torch.strided":
        return Refused("which is on no device" if layout == "torch.strided" else f"which is {layout}")
    return value


def _strides(array: Any) -> Any:
    try:
        return array.strides if hasattr(array, "strides") else array.stride()
    except Exception:  # a sparse tensor, somebody's own array
        return ()


def _numbers(given: Any, depth: int = 0) -> bool:
    """Whether nested lists hold numbers all through, to one depth."""
    if not isinstance(given, _LISTS):
        return type(given) is bool or _fits(given) or _number_array(given)
    if depth > _DEEPEST or len({len(each) if isinstance(each, _LISTS) else -1 for each in given}) > 1:
        return False
    return all(_numbers(each, depth + 1) for each in given)


def _fits(given: Any) -> bool:
    """Whether it is a number that arrays hold: Python's whole ones have no end."""
    return type(found := read_number(given)) is not Refused and (not isinstance(given, int) or abs(found) < _LARGEST)


def _number_array(given: Any) -> bool:
    return getattr(given, "dtype", None) is not None and type(read_array(given)) is not Refused


def read_hashable(value: Any) -> Any:
    """What can be a key; a tensor equals no other, whatever it holds."""
    try:
        hash(value)
    except TypeError:
        return NO
    return Refused("which is no key; .tolist() gives its numbers") if hasattr(value, "detach") else value
