"""``llava-probe check``: what is recorded beside transformers' own numbers, on one's own weights."""

from __future__ import annotations

from typing import Annotated

import typer

from llava_probe.cli.options import ModelOptions


def check(
    model: ModelOptions,
    image: Annotated[str | None, typer.Option(help="A picture to try with; a drawn one if left.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Length of the compared answers.")] = 16,
) -> None:
    """Compare what is recorded with transformers' own numbers, on your weights."""
    from llava_probe.pictures.images import open_image

    picture = None if image is None else open_image(image)
    from llava_probe.agreement import check as compare
    from llava_probe.view.progress import spinner

    vlm = model.load()
    with spinner("comparing"):
        found = compare(vlm, picture, max_new_tokens=max_new_tokens)
    typer.echo(str(found))
    if not found.ok:
        raise typer.Exit(1)
