"""What the names in an annotation stand for, found when it is first needed.

Annotations are text until somebody asks (PEP 563), and some of their names are imported for type checkers only. Those
of this package are imported now; a class of somebody else's stays unloaded and is known by its name, so that nothing
heavy is imported to look at an argument.
"""

from __future__ import annotations

import ast
import builtins
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Union

_OWN = __name__.split(".")[0]


@dataclass(frozen=True)
class Unloaded:
    """A class that is known by its name alone."""

    name: str

    def __getattr__(self, name: str) -> Unloaded:
        if name.startswith("__"):
            raise AttributeError(name)
        return Unloaded(name)

    def __getitem__(self, _: Any) -> Unloaded:
        return self

    def __or__(self, other: Any) -> Any:
        return Union[self, other]  # noqa: UP007 - its own |

    def __ror__(self, other: Any) -> Any:
        return Union[other, self]  # noqa: UP007 - its own |

    def __call__(self) -> None:
        """For ``typing.Union``, which takes what can be called."""


class Names(Mapping[str, Any]):
    """The names that annotations of one function may hold."""

    def __init__(self, function: Any) -> None:
        self._globals = vars(inspect.getmodule(function))

    def resolved(self, annotation: Any) -> Any:
        """An annotation as an object, where it stands as text."""
        return eval(annotation, {}, self) if isinstance(annotation, str) else annotation

    def beside(self, cls: type) -> Names:
        """The names in the module of ``cls``."""
        names = Names.__new__(Names)
        names._globals = vars(import_module(cls.__module__))
        return names

    def __getitem__(self, name: str) -> Any:
        if name in self._globals:
            return self._globals[name]
        if hasattr(builtins, name):
            return getattr(builtins, name)
        module = for_checkers(self._globals["__name__"]).get(name, "")
        if module.split(".")[0] == _OWN:
            return getattr(import_module(module), name)
        return Unloaded(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._globals)

    def __len__(self) -> int:
        return len(self._globals)


@cache
def for_checkers(module: str) -> dict[str, str]:
    """The names that a module imports for type checkers only, and from where."""
    tree = ast.parse(inspect.getsource(import_module(module)))
    blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: node.module or "" for node in imports for alias in node.names}
