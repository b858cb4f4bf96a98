"""The script that makes an answer again, with nothing of the app in it: what was clicked, as the calls behind it."""

from __future__ import annotations

from typing import Any

from llava_probe.view.app.messages import MarkedPart
from llava_probe.view.app.runs import AskedRun

_ENDINGS = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}


def picture_name(run: AskedRun) -> str:
    """What the script calls the photograph's file."""
    return f"picture.{_ENDINGS.get(run.format, run.format.lower())}"


def code(run: AskedRun) -> str:
    """A whole Python script: load, ask, take the part away, save trace and page.

    Every string in it is written as Python writes it, so that a question cannot become code.
    """
    asked = "".join(f", {name}={value!r}" for name, value in run.settings.arguments.items())
    loaded = "".join(f", {name}={value!r}" for name, value in run.loaded.items())
    model = f"lp.load({run.model!r}{loaded})" if run.model != "tiny" or run.loaded else "lp.load()"
    lines = [
        '"""Made by the llava_probe app: run it beside the photograph to get the same answer, trace and page."""',
        "",
        "import llava_probe as lp",
        "from llava_probe.pictures.images import fingerprint",
        "",
        f"vlm = {model}",
        f"photo = lp.open_image({picture_name(run)!r})",
        f"assert fingerprint(photo) == {run.fingerprint!r}, 'another photograph was asked about'",
        f"question = {run.question!r}",
        "",
        f"trace = vlm.generate(photo, question{asked})",
        "print(trace.answer)",
        'trace.save("run.trace")',
    ]
    shown = "trace"
    if run.cut is not None:
        lines += ["", *_cut(run.cut, asked)]
        shown = "[trace, changed]"
    return "\n".join([*lines, "", f'lp.page({shown}, "run.html")', ""])


def _cut(cut: MarkedPart, asked: str) -> list[str]:
    box: tuple[Any, ...] = tuple(int(side) if side == int(side) else side for side in cut.box)
    lines = [f"part = lp.Region({box}, image={cut.image}, ring={cut.ring})"]
    tokens = "part"
    if cut.how == "only":
        tokens = "others"
        lines += [
            f"layout = vlm.lay_out(photo, question)[{cut.image}]",
            "kept = set(part.tokens(layout).tolist())",
            "others = [place for index, place in enumerate(layout.positions.tolist()) if index not in kept]",
        ]
    return [
        *lines,
        f"with lp.ablate(vlm, tokens={tokens}):",
        f"    changed = vlm.generate(photo, question{asked})",
        "print(changed.answer)",
        'changed.save("changed.trace")',
    ]
