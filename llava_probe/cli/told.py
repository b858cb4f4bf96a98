"""What several verbs tell on the way: the files that they wrote, and what the tiny model knows."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from llava_probe.cli.options import EXAMPLE
from llava_probe.escaping import visible

if TYPE_CHECKING:
    from PIL.Image import Image


def told_folder(out: Path, written: Iterable[Path]) -> str:
    """What a run wrote, folders by their names, and how large it is."""
    files = list(written)
    parts = [path.relative_to(out.expanduser()).parts for path in files]
    names = dict.fromkeys(first + "/" * bool(rest) for first, *rest in parts)
    return f"{visible(str(out))}/: {', '.join(names)} ({sum(path.stat().st_size for path in files) / 1e6:.1f} MB)"


def warn_tiny(pictures: Iterable[Image]) -> None:
    """Say that the tiny model knows its own scenes only, where a picture is none."""
    from llava_probe import tiny

    if not all(tiny.is_scene(picture) for picture in pictures):
        typer.secho(
            "The tiny model knows only its own drawn scenes (coloured shapes and stop signs); what it says of "
            f"anything else means nothing. For a photograph name a model:  --model {EXAMPLE}",
            fg="yellow",
            err=True,
        )
