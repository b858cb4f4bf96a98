"""Where a stranger's argument comes in: read by its annotation, once, or refused in one sentence.

    @checked
    def attention_map(trace: Trace, image: int = 0, layers: Numbers = None) -> ImageMap: ...

    attention_map(trace, layers=1.5)
    # BadInput: attention_map(layers=...) takes a whole number, a list of whole numbers or None; got 1.5 (float)

What a public function takes stands in its signature and nowhere else. A whole number is whatever counts (NumPy's and
torch's too) and no bool; a number is finite where ``Limits`` stand beside it; text has an encoding; a file could be
called by a path. A class is guarded as a whole: its constructor and its public methods. Wrong *names* of arguments stay
Python's TypeError.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any, TypeVar, Unpack, get_args, get_origin, get_type_hints

from llava_probe.border.hints import Names
from llava_probe.border.kinds import ANYTHING, Kind, kind_of
from llava_probe.border.settled import settled
from llava_probe.border.values import Refused, in_few_words
from llava_probe.errors import BadInput, ProbeError

T = TypeVar("T")


def checked(thing: T) -> T:
    """A function, or a class with its constructor and public methods, whose arguments are read by their annotations."""
    if not isinstance(thing, type):
        return _guarded(thing, thing.__name__)  # type: ignore[attr-defined,no-any-return]
    for name, member in list(vars(thing).items()):
        if name.startswith("_") and name not in ("__init__", "__getitem__"):
            continue
        told = {"__init__": thing.__name__, "__getitem__": f"{thing.__name__}[...]"}.get(
            name, f"{thing.__name__}.{name}"
        )
        if inspect.isfunction(member):
            setattr(thing, name, _guarded(member, told))
        elif isinstance(member, classmethod | staticmethod):
            setattr(thing, name, type(member)(_guarded(member.__func__, told)))
    return thing


def read_as(annotation: Any, value: Any, told: str) -> Any:
    """``value`` as one annotation takes it.

    Raises:
        BadInput: it is not of that kind; ``told`` begins the sentence.
    """
    return _read(kind_of(annotation), value, told)


def _read(kind: Kind, value: Any, told: str, name: str | None = None) -> Any:
    try:
        found = kind.read(value)
    except ProbeError:
        raise
    except Exception as error:  # whatever a stranger's object does when it is looked at
        found = Refused(f"which cannot be looked at: {type(error).__name__}")
    if type(found) is Refused:
        raise _refusal(told if name is None else f"{told}({name}=...)", kind, value, found)
    return found


def _refusal(told: str, kind: Kind, value: Any, found: Refused) -> BadInput:
    why = f", {found.why}" if found.why else ""
    return BadInput(f"{told} takes {kind.one}; got {in_few_words(value)}{why}")


def _guarded(function: Any, told: str) -> Any:
    plan: tuple[list[tuple[int, str, Kind]], dict[str, Kind], Kind | None, bool] | None = None

    @functools.wraps(function)
    def guard(*args: Any, **kwargs: Any) -> Any:
        nonlocal plan
        if plan is None:
            plan = _plan(function)
        positional, named, others, closed = plan
        if args and positional:
            given, count = list(args), len(args)
            for place, name, kind in positional:
                if place >= count:
                    break
                given[place] = _read(kind, given[place], told, name)
            args = tuple(given)
        for name, value in kwargs.items():
            kind_ = named.get(name, others)
            if kind_ is not None:
                kwargs[name] = _read(kind_, value, told, name)
            elif closed and name not in named:
                raise BadInput(f"{told} has no option {name}=; it takes {', '.join(named)}")
        with settled(module):
            return function(*args, **kwargs)

    module = function.__module__
    return guard


def _plan(function: Any) -> tuple[list[tuple[int, str, Kind]], dict[str, Kind], Kind | None, bool]:
    """Readers by place and by name; of other keywords; and whether other keywords are refused by name."""
    names = Names(inspect.unwrap(function))
    positional: list[tuple[int, str, Kind]] = []
    named: dict[str, Kind] = {}
    others, closed = None, False
    for place, (name, each) in enumerate(inspect.signature(function).parameters.items()):
        hint = names.resolved(each.annotation)
        if each.kind is each.VAR_KEYWORD and get_origin(hint) is Unpack:
            options = get_type_hints(get_args(hint)[0], localns=names.beside(get_args(hint)[0]), include_extras=True)
            named |= {option: kind_of(each) for option, each in options.items()}
            closed = True
            continue
        kind = kind_of(hint)
        if each.kind is each.VAR_POSITIONAL:
            continue
        if each.kind is each.VAR_KEYWORD:
            others = kind if kind is not ANYTHING else None
            continue
        if kind is not ANYTHING and each.kind is not each.KEYWORD_ONLY:
            positional.append((place, name, kind))
        named[name] = kind
    return positional, named, others, closed
