"""``llava-probe demo``: the whole way on a drawn scene."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llava_probe.cli.options import EXAMPLE, ModelOptions
from llava_probe.cli.told import told_folder
from llava_probe.errors import BadInput

#: Pixels of a blur that leaves the letters of a sign to be guessed.
_BLUR = 3


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the figures.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Look for a scene from this one on; held out below 1,000,000.")] = 0,
) -> None:
    """Ask the tiny model about a drawn scene, sharp and blurred: no download, a few seconds."""
    from PIL.ImageFilter import GaussianBlur

    from llava_probe import tiny
    from llava_probe.view.folder import made, write_run
    from llava_probe.view.terminal import show

    scene = tiny.scene(_with_stop_sign(seed))
    made(out)
    vlm = ModelOptions().load()
    trace = vlm.generate(scene.image, "What is the text on the stop sign?")
    written = write_run(trace, out)
    show(trace, written)
    described = vlm.generate(scene.image, "Describe the image.")
    show(described, write_run(described, out / "describe"))
    blurred = vlm.generate(scene.image.filter(GaussianBlur(_BLUR)), "Describe the image.")
    typer.echo("\nThe same picture, blurred: now it is not sure of every word.")
    show(blurred, write_run(blurred, out / "blurred"))
    typer.echo(f"\nEverything is in {told_folder(out, written)} (and describe/, blurred/)")
    typer.echo(f"A photograph of your own:  llava-probe run PHOTO 'QUESTION' --model {EXAMPLE}")


def _with_stop_sign(seed: int) -> int:
    """The first scene from ``seed`` on with company for a sign that says STOP."""
    from llava_probe import tiny

    if not 0 <= seed < 1_000_000:
        raise BadInput(f"--seed {seed}: held-out scenes have seeds from 0 to 999,999")
    seeds = range(seed, 1_000_000)
    scenes = ((number, tiny.scene(number).objects) for number in seeds)
    return next((n for n, things in scenes if len(things) > 2 and any(t.text == "STOP" for t in things)), seeds[-1])
