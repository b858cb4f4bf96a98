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
    """Where a run wrote, how large all of it is, and what it is, folders by their names."""
    files = list(written)
    parts = [path.relative_to(out.expanduser()).parts for path in files]
    names = dict.fromkeys(first + "/" * bool(rest) for first, *rest in parts)
    size = sum(path.stat().st_size for path in files) / 1e6
    return f"{visible(str(out))}/ ({size:.1f} MB): {', '.join(names)}"


def warn_drawn(pictures: Iterable[Image]) -> None:
    """Say that the models that ship inside know drawn scenes only, where a picture is none."""
    from llava_probe import tiny

    if not all(tiny.is_scene(picture) for picture in pictures):
        typer.secho(
            "This model knows only its own drawn scenes (coloured shapes and stop signs); what it says of "
            f"anything else means nothing. For a photograph name a model:  --model {EXAMPLE}",
            fg="yellow",
            err=True,
        )
