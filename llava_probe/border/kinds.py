"""What an annotation takes: a reader for every kind that a signature of this package may name.

    kind_of(int | Sequence[int] | None).one     # "a whole number, a list of whole numbers or None"

Lists are read entry by entry, arrays by their dtype, iterators while they are used up by whoever asked for them.
"""

from __future__ import annotations

import inspect
import math
import os
import types
from collections import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ForwardRef, Literal, TypeVar, Union, get_args, get_origin

from llava_probe.border.hints import Unloaded
from llava_probe.border.values import (
    NO,
    Refused,
    in_few_words,
    letter_of,
    read_array,
    read_hashable,
    read_number,
    read_path,
    read_text,
    read_truth,
    read_whole,
)
from llava_probe.errors import BadInput


@dataclass(frozen=True)
class Limits:
    """Beside a number in an annotation: where it may lie, both ends included; ``above`` is not. NaN never does.

    Beside ``str``: how many letters it may have.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None

    def hold(self, number: float) -> bool:
        """Whether ``number`` is finite and within."""
        return (
            (isinstance(number, int) or math.isfinite(number))
            and (self.least is None or number >= self.least)
            and (self.most is None or number <= self.most)
            and (self.above is None or number > self.above)
        )

    def __str__(self) -> str:
        if self.most is None:
            told = "" if self.least is None else f" of at least {self.least:,}"
            return told if self.above is None else f" above {self.above:,}"
        if self.above is not None:
            return f" above {self.above:,} and at most {self.most:,}"
        return f" of at most {self.most:,}" if self.least is None else f" from {self.least:,} to {self.most:,}"


@dataclass(frozen=True)
class Holds:
    """Beside an annotation of an array: the letters of what it may hold, as in NumPy's ``dtype.kind``."""

    kinds: str = "biuf"


#: How many of something are made or run: a million of anything that runs a model is days.
Count = Annotated[int, Limits(1, 1_000_000)]
#: The same, none too.
CountFromZero = Annotated[int, Limits(0, 1_000_000)]
#: What torch and NumPy both take to start their draws from.
Seed = Annotated[int, Limits(0, 2**63 - 1)]
#: Neither NaN nor infinite.
Finite = Annotated[float, Limits()]
#: Above zero and finite.
Positive = Annotated[float, Limits(above=0)]
#: A part of a whole.
Portion = Annotated[float, Limits(0, 1)]
#: Numbers in an array, a tensor, nested lists or a picture: a mask, or a value for each of something.
Numeric = Annotated[Any, Holds()]
#: Whole ones: a mask of True and False too.
WholeNumeric = Annotated[Any, Holds("iub")]

Reader = Callable[[Any], Any]

_LISTS, _READ_WHOLE = (list, tuple), (list, tuple, range, str, bytes)
_NO_LISTS = (str, bytes, bytearray, Mapping, type)
#: Of a union: more are looked through each time.
_KNOWN_CLASSES = 32


@dataclass(frozen=True)
class Kind:
    """How values of one annotation are read: ``read`` gives the value or a ``Refused``; ``one``, ``many`` name it.

    A value of a class in ``plain`` is taken as it is, so that long lists of them are quickly read.
    """

    read: Reader
    one: str
    many: str
    plain: frozenset[type] = frozenset()


def kind_of(hint: Any) -> Kind:
    """How values of an annotation are read."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is inspect.Parameter.empty or hint is Any or hint is object or isinstance(hint, TypeVar):
        return ANYTHING
    if hint is None or hint is type(None):
        return _NOTHING
    if isinstance(hint, Unloaded):
        return _ARRAYS.get(hint.name) or _named_class(hint.name)
    if origin is Annotated:
        return _annotated(*args)
    if origin in (Union, types.UnionType):
        return _either(args)
    if origin is Literal:
        return _choice(args)
    if origin is not None:
        return _generic(origin, args)
    if isinstance(hint, str | ForwardRef):
        raise TypeError(f"{hint} stands inside an alias; write it without quotes")
    return _class(hint)


def _either(arms: tuple[Any, ...]) -> Kind:
    """The first arm that takes it; text beside a path is a path."""
    files = any(isinstance(arm := get_origin(each) or each, type) and issubclass(arm, os.PathLike) for each in arms)
    if files:
        arms = tuple(each for each in arms if each is not str)
    kinds = [kind_of(arm) for arm in sorted(arms, key=lambda arm: arm in (None, type(None)))]
    if ANYTHING in kinds:
        return ANYTHING
    readers = tuple(kind.read for kind in kinds)
    empty = readers[-1] is _NOTHING.read
    usual: dict[type, Reader] = {}  # which arm took values of a class before

    def read(value: Any) -> Any:
        if value is None and empty:
            return None
        if (known := usual.get(type(value))) is not None and type(found := known(value)) is not Refused:
            return found
        why = NO
        for reader in readers:
            found = reader(value)
            if type(found) is not Refused:
                if len(usual) < _KNOWN_CLASSES:
                    usual[type(value)] = reader
                return found
            why = found if found.why else why
        return why

    one, many = (_listed(dict.fromkeys(getattr(kind, form) for kind in kinds)) for form in ("one", "many"))
    return Kind(read, one, many, frozenset(each for kind in kinds for each in kind.plain))


def _listed(words: Any) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else str(last)


def _choice(values: tuple[Any, ...]) -> Kind:
    def read(value: Any) -> Any:
        return value if any(type(value) is type(each) and value == each for each in values) else NO

    told = _listed([repr(value) for value in values])
    return Kind(read, told, told)


def _annotated(base: Any, *beside: Any) -> Kind:
    """A kind within the limits, or of the entries, that stand beside it."""
    for each in beside:
        if isinstance(each, Holds):
            return _arrays(each.kinds, f"an array of {'numbers' if 'f' in each.kinds else 'whole numbers'}")
    if base is str:
        return _of_length(beside[0])
    kind, limits = kind_of(base), [each for each in beside if isinstance(each, Limits)]
    return _within(kind, base, limits[0]) if limits else kind


def _of_length(bounds: Limits) -> Kind:
    """Text of so many letters."""

    def read(value: Any) -> Any:
        found = read_text(value)
        return found if type(found) is Refused or bounds.hold(len(found)) else NO

    return Kind(read, f"text of {bounds.most:,} letters at most", f"texts of {bounds.most:,} letters at most")


def _within(kind: Kind, base: Any, bounds: Limits) -> Kind:

    def read(value: Any) -> Any:
        found = kind.read(value)
        return found if type(found) is Refused or bounds.hold(found) else NO

    finite = "finite " if base is float and str(bounds) == "" else ""
    one, many = (f"{told.replace('number', f'{finite}number')}{bounds}" for told in (kind.one, kind.many))
    return Kind(read, one, many)


def _generic(origin: Any, args: tuple[Any, ...]) -> Kind:
    if origin.__name__ == "ndarray":
        held = get_args(args[-1]) or (None,)
        name = getattr(get_origin(held[0]) or held[0], "__name__", "")
        return _ARRAYS.get(name, _ARRAYS["ndarray"])
    if origin is tuple:
        return _tuple(args)
    if issubclass(origin, abc.Mapping):
        return _mapping(*map(kind_of, args))
    if origin is abc.Callable or origin is type:
        return _class(origin)
    if issubclass(origin, abc.Sequence) or origin is abc.Collection:
        return _sequence(kind_of(args[0]))
    if origin in (abc.Iterable, abc.Iterator):
        return _iterable(kind_of(args[0]))
    return _class(origin)


def _sequence(entry: Kind) -> Kind:
    reader, plain = entry.read, entry.plain

    def read(value: Any) -> Any:
        if isinstance(value, _LISTS):
            if plain and plain.issuperset(map(type, value)):
                return value
            return value if (found := _first_wrong(reader, value)) is None else found
        if isinstance(value, range):
            return value if entry is ANYTHING or type(reader(0)) is not Refused else NO
        if isinstance(value, _NO_LISTS):
            return NO
        if getattr(value, "ndim", None) is not None:
            keys = entry is _PLAIN[abc.Hashable] and hasattr(value, "tolist")
            if keys or letter_of(getattr(value, "dtype", "")) in ("U", "T"):
                return read(value.tolist())  # an array of texts is a list of them; a tensor's entries are no keys
            return value if value.ndim and type(reader(_sample(value))) is not Refused else NO
        return value if hasattr(value, "__len__") and hasattr(value, "__getitem__") else NO

    entries = f"({entry.many})" if " or " in entry.many else entry.many
    of = "" if entry is ANYTHING else f" of {entries}"
    return Kind(read, f"a list{of}", f"lists{of}")


def _first_wrong(reader: Reader, values: Any) -> Refused | None:
    for number, value in enumerate(values):
        found = reader(value)
        if type(found) is Refused:
            return Refused(f"whose entry {number} is {in_few_words(value)}{', ' * bool(found.why)}{found.why}")
    return None


def _sample(array: Any) -> Any:
    """An entry of an array's kind, without looking into it."""
    entry: Any = _ENTRIES.get(letter_of(getattr(array, "dtype", "")), NO)
    for _ in range(array.ndim - 1):
        entry = [entry]
    return entry


def _iterable(entry: Kind) -> Kind:
    listed = _sequence(entry)

    def read(value: Any) -> Any:
        if isinstance(value, _READ_WHOLE) or getattr(value, "ndim", None) is not None:
            return listed.read(value)
        if isinstance(value, type) or not hasattr(value, "__iter__"):
            return NO
        return value if entry is ANYTHING else _ReadOn(entry, value)

    return Kind(read, listed.one, listed.many)


class _ReadOn:
    """Each entry read when it is asked for: nothing is taken from an iterator before."""

    def __init__(self, entry: Kind, source: Any) -> None:
        self._entry, self._source = entry, source

    def __iter__(self) -> Any:
        for value in self._source:
            found = self._entry.read(value)
            if type(found) is Refused:
                raise BadInput(f"a list of {self._entry.many} was expected; it holds {in_few_words(value)}")
            yield found


def _tuple(args: tuple[Any, ...]) -> Kind:
    if len(args) == 2 and args[1] is Ellipsis:
        listed = _sequence(kind_of(args[0]))

        def whole(value: Any) -> Any:
            found = listed.read(value)
            return tuple(value) if type(found) is not Refused and not isinstance(value, tuple) else found

        return Kind(whole, listed.one, listed.many)
    kinds = [kind_of(arg) for arg in args]

    def read(value: Any) -> Any:
        if not isinstance(value, _LISTS) or len(value) != len(kinds):
            return NO
        found = tuple(kind.read(each) for kind, each in zip(kinds, value, strict=True))
        return NO if any(type(each) is Refused for each in found) else found

    told = " and ".join(kind.one for kind in kinds)
    return Kind(read, f"a pair ({told})" if len(kinds) == 2 else f"a tuple ({told})", f"tuples ({told})")


def _mapping(key: Kind = None, entry: Kind = None) -> Kind:  # type: ignore[assignment]
    def read(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return NO
        if key is None or (key is ANYTHING and entry is ANYTHING):
            return value
        for name, each in value.items():
            if type(key.read(name)) is Refused:
                return Refused(f"whose key {in_few_words(name)} is not {key.one}")
            if type(found := entry.read(each)) is Refused:
                return Refused(f"whose {name!r} is {in_few_words(each)}{', ' * bool(found.why)}{found.why}")
        return value

    told = "" if entry is None or entry is ANYTHING else f" of {entry.many}"
    return Kind(read, f"a dict{told}", f"dicts{told}")


def _class(cls: Any) -> Kind:
    """One of Python's own kinds, or an object of a class."""
    if cls in _PLAIN:
        return _PLAIN[cls]
    if cls.__name__ in _ARRAYS and cls.__module__.split(".")[0] in ("torch", "numpy"):
        return _ARRAYS[cls.__name__]
    try:
        isinstance(None, cls)
    except TypeError:  # a protocol that says what a type checker sees, and nothing that an object shows
        return ANYTHING
    if issubclass(cls, os.PathLike):
        return _PATHS
    if cls is abc.Mapping or cls is dict:
        return _mapping()
    if cls is abc.Callable:
        return Kind(lambda value: value if callable(value) else NO, "a function", "functions")
    return Kind(lambda value: value if isinstance(value, cls) else NO, *_articled(cls.__name__))


def _named_class(name: str) -> Kind:
    def read(value: Any) -> Any:
        return value if any(each.__name__ == name for each in type(value).__mro__) else NO

    return Kind(read, *_articled(name))


def _articled(name: str) -> tuple[str, str]:
    return f"{'an' if name[:1] in 'AEIOaeio' else 'a'} {name}", f"{name} objects"


def _arrays(kinds: str, one: str) -> Kind:
    return Kind(lambda value: read_array(value, kinds), one, one.replace("an array", "arrays"))


ANYTHING = Kind(lambda value: value, "anything", "anything")
_NOTHING = Kind(lambda value: None if value is None else NO, "None", "None")
_PATHS = Kind(read_path, "a path", "paths")
_PLAIN: dict[Any, Kind] = {
    int: Kind(read_whole, "a whole number", "whole numbers", frozenset([int])),
    float: Kind(read_number, "a number", "numbers", frozenset([float])),
    bool: Kind(read_truth, "True or False", "True or False"),
    str: Kind(read_text, "text", "texts"),
    abc.Hashable: Kind(read_hashable, "something hashable", "hashable things", frozenset([str, int])),
}
#: An entry of arrays of each letter.
_ENTRIES = {"i": 0, "u": 0, "f": 0.5, "b": True, "U": "x", "T": "x"}
#: By the name of the class that the annotation has, or of what the array holds.
_ARRAYS = {
    "Tensor": _arrays("biuf", "an array of numbers"),
    "ndarray": _arrays("biuf", "an array of numbers"),
    "floating": _arrays("iuf", "an array of numbers"),
    "integer": _arrays("iu", "an array of whole numbers"),
    "bool_": _arrays("b", "an array of True and False"),
    "bool": _arrays("b", "an array of True and False"),
    "uint8": _arrays("u", "an array of uint8"),
}
