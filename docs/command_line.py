"""The page of the command line, from the commands themselves: what each verb is for, and its options."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from typing import Any

import typer

from llava_probe.cli import app


def verbs() -> str:
    """A section for each verb; options that every verb with a model has stand once, in front."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    of_models = [each for each in commands["check"].params if _common(each, commands)]
    parts = [_titled("Which model, in every verb that asks one"), _options(of_models)]
    for name, command in commands.items():
        own = [each for each in command.params if not any(_same(each, common) for common in of_models)]
        parts += [_titled(f"llava-probe {name}"), _told(command.help or ""), _options(own)]
    return "\n\n".join(parts) + "\n"


def _common(option: Any, commands: dict[str, Any]) -> bool:
    """Whether most verbs have it."""
    having = [command for command in commands.values() if option.opts in [each.opts for each in command.params]]
    return len(having) * 2 > len(commands)


def _same(one: Any, other: Any) -> bool:
    """Whether two options are one: an adapter to start from is not one to look at."""
    return one.opts == other.opts and getattr(one, "help", None) == getattr(other, "help", None)


def _titled(title: str) -> str:
    return f"{title}\n{'-' * len(title)}"


def _told(text: str) -> str:
    return "\n\n".join(_plain(" ".join(part.split())) for part in text.replace("\b", "").split("\n\n"))


def _options(options: Iterable[Any]) -> str:
    lines = []
    for each in options:
        name = ", ".join(each.opts) if each.param_type_name == "option" else each.name.upper()
        told = _plain(" ".join((getattr(each, "help", None) or "").split()))
        if not (each.default in (None, False, (), []) or callable(each.default)):
            told += f" Default: ``{each.default}``."
        lines.append(f"``{name}``\n{textwrap.indent(told.strip() or '—', '   ')}")
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Text in which nothing is markup."""
    return re.sub(r"([\\*`_|])", r"\\\1", text)
