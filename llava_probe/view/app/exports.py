"""A run as files to take away: its traces, its page, its figures, and the script that makes all of it again."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

from llava_probe.stored import whole
from llava_probe.view.app.code import picture_name
from llava_probe.view.app.runs import PICTURE, AskedRun, read_run

#: The names under which they are saved, and what they are.
NAMES = {
    "trace": ("run.trace", "application/octet-stream"),
    "page": ("run.html", "text/html; charset=utf-8"),
    "figures": ("figures.zip", "application/zip"),
    "code": ("again.py", "text/x-python; charset=utf-8"),
    "everything": ("llava_probe_run.zip", "application/zip"),
}


def write(folder: Path, kind: Literal["page", "figures", "everything"]) -> Path:
    """Make one export of the run in ``folder``, beside its trace, unless it is there.

    Raises:
        BadFile: the disk is full, or the run's files are gone.
    """
    target = folder / NAMES[kind][0]
    if target.exists():
        return target
    run = read_run(folder)
    if kind == "page":
        _page(run, folder, target)
    elif kind == "figures":
        _zip(target, _figures(run, folder))
    else:
        figures = _figures(run, folder)
        write(folder, "page")
        _zip(target, {**_kept(run, folder), **{f"figures/{name}": path for name, path in figures.items()}})
    return target


def _kept(run: AskedRun, folder: Path) -> dict[str, Path]:
    """What is there already, by the names that the script knows."""
    names = (NAMES["trace"][0], "changed.trace")
    kept = {picture_name(run): folder / PICTURE, **dict(zip(names, run.traces(folder), strict=False))}
    return kept | {NAMES[kind][0]: folder / NAMES[kind][0] for kind in ("page", "code")}


def _page(run: AskedRun, folder: Path, target: Path) -> None:
    from llava_probe.trace.trace import Trace
    from llava_probe.view.page import page

    shown = [Trace.load(path) for path in run.traces(folder)]
    page(shown if len(shown) > 1 else shown[0], target)


def _figures(run: AskedRun, folder: Path) -> dict[str, Path]:
    """The figures of each trace, by name."""
    from llava_probe.trace.trace import Trace
    from llava_probe.view.folder import write_run

    found: dict[str, Path] = {}
    for name, path in zip(("answer", "changed"), run.traces(folder), strict=False):
        trace = Trace.load(path)
        written = write_run(trace, folder / "drawn" / name, maps=bool(trace.layouts))
        found |= {str(each.relative_to(folder / "drawn")): each for each in written if each.suffix != ".trace"}
    return found


def _zip(target: Path, files: dict[str, Path]) -> None:
    with whole("archive", target) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in files.items():
            squeezed = path.suffix in (".png", ".trace", ".zip", ".npz") or name.startswith("picture.")
            archive.write(path, name, zipfile.ZIP_STORED if squeezed else zipfile.ZIP_DEFLATED)
