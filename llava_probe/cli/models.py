"""``llava-probe models``: what holds for each family."""

from __future__ import annotations

from typing import Annotated

import typer


def models(
    only: Annotated[str | None, typer.Argument(help="Only names with this text in them: qwen.")] = None,
) -> None:
    """What holds for each family of transformers, as the tests found it."""
    from llava_probe.view.terminal import show_families

    show_families(only)
