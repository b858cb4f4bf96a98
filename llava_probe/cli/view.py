"""``llava-probe view``: saved traces and maps as one page for the browser."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llava_probe.errors import BadInput
from llava_probe.escaping import visible

if TYPE_CHECKING:
    from llava_probe.view.page.runs import Result


def view(
    files: Annotated[
        list[Path], typer.Argument(help="Traces (.trace) and maps (map.npz, or their folder); maps follow their trace.")
    ],
    out: Annotated[Path, typer.Option(help="The page.")] = Path("page.html"),
    open_: Annotated[bool, typer.Option("--open", help="Show it in the browser at once.")] = False,
) -> None:
    """Make a page of what was saved: one file that opens anywhere, without network.

    Two traces stand side by side on it, with the difference of their maps.
    """
    from llava_probe.view.page import page

    if out.absolute() in [file.absolute() for file in files]:
        raise BadInput(f"--out {out} is one of the files that the page is made of")
    written = page([_read(file) for file in files], out)
    typer.echo(f"{visible(str(written))} ({written.stat().st_size / 1e6:.1f} MB)")
    if open_:
        webbrowser.open(written.absolute().as_uri())


def _read(file: Path) -> Result:
    from llava_probe.maps.maps import ImageMap
    from llava_probe.trace.trace import Trace

    return ImageMap.load(file) if file.is_dir() or file.suffix == ".npz" else Trace.load(file)
