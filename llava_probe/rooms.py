"""Rooms of the package that are called: ``lp.lens`` is the folder ``lens/`` and the function that it is named after.

A function of that name in ``lp`` would hide the room's files from whoever imports them, or be hidden by the room as
soon as one of them is.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


def front_door() -> Any:
    """The package as a user has it: what stands rooms above is asked for by its public name."""
    return import_module("llava_probe")


def called(room: str, module: str, function: str) -> None:
    """Let a room be called.

    Args:
        room: its full name, of a module that is being imported.
        module: of the function that answers, which is imported at the first call; ``function``: its name there.
    """

    class Room(ModuleType):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return getattr(import_module(module), function)(*args, **kwargs)

    Room.__call__.__doc__ = f"See ``{module}.{function}``."
    sys.modules[room].__class__ = Room
