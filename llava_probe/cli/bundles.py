"""Options that several verbs share, written down once: a dataclass whose fields are options.

    @dataclass(frozen=True)
    class ModelOptions:
        dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 ...")] = None

    def check(model: ModelOptions) -> None: ...        # llava-probe check --dtype float32

``as_command`` gives typer a function with an option for each field, and a verb the dataclass. Errors of ours become
one sentence on the way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer

from llava_probe.errors import ProbeError
from llava_probe.escaping import visible


def as_command(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb with its bundles taken apart, for typer; what it raises on purpose is one sentence and exit status 1."""
    hints = get_type_hints(verb, include_extras=True)
    bundles: dict[str, type] = {}
    parameters: list[Parameter] = []
    for name, parameter in signature(verb).parameters.items():
        kind = hints[name]
        if is_dataclass(kind) and isinstance(kind, type):
            bundles[name] = kind
            parameters += _options(kind)
        else:
            parameters.append(parameter.replace(annotation=kind, kind=Parameter.KEYWORD_ONLY))

    def command(**given: Any) -> None:
        with _plainly([each.name for each in parameters]):
            for name, kind in bundles.items():
                given[name] = kind(**{each.name: given.pop(each.name) for each in fields(kind)})
            verb(**given)

    for parameter in parameters:
        _refuse_no_path(parameter)
    command.__doc__ = verb.__doc__
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    return command


def _options(kind: type) -> Iterator[Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    for each in fields(kind):
        default = Parameter.empty if each.default is MISSING else each.default
        yield Parameter(each.name, Parameter.KEYWORD_ONLY, default=default, annotation=hints[each.name])


def _refuse_no_path(parameter: Parameter) -> None:
    """Paths are read here: to ``Path``, nothing is the folder that one stands in."""
    match get_args(parameter.annotation):
        case kind, told if kind is Path or Path in get_args(kind):
            told.parser, told.metavar = _path, "PATH"


def _path(typed: str | Path) -> Path:
    if not str(typed).strip():
        raise typer.BadParameter("a path was expected; got an empty one")
    return Path(typed)


@contextmanager
def _plainly(names: Sequence[str]) -> Iterator[None]:
    """Errors of ours, and Ctrl-C, as one sentence; an argument that it names, ``prompt=``, is ``--prompt`` here."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("Stopped.", err=True)
        raise typer.Exit(130) from None
    except ProbeError as error:
        either = "|".join(names) or "(?!)"
        named = re.compile(rf"[\w.]+\(({either})=\.\.\.\)|\b({either})=(?![^\s.,;:)])")
        told = named.sub(lambda found: "--" + (found[1] or found[2]).replace("_", "-"), str(error))
        typer.secho(visible(told, lines=True), fg="red", err=True)
        raise typer.Exit(1) from None
