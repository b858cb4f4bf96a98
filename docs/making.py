"""What the gallery is made of: the notebooks as they are stored, a picture of each, and live pages."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llava_probe as lp
from llava_probe import tiny


@dataclass(frozen=True)
class Live:
    """What a notebook's live page shows: a scene, what it is asked, and what is computed beside the trace.

    Attributes:
        seed: of the scene; ``question``: what it is asked.
        methods: of attribution, each a map beside the trace's attention.
        cut: whether a second trace stands beside it, of the same question while the last position sees no picture.
    """

    seed: int
    question: str
    methods: tuple[str, ...] = ()
    cut: bool = False

    def results(self) -> list[Any]:
        """Traces and maps, as ``lp.page`` takes them."""
        vlm = lp.load()
        trace = vlm.generate(tiny.scene(self.seed).image, self.question)
        maps = [lp.attribute(vlm, trace, method) for method in self.methods]
        if not self.cut:
            return [trace, *maps]
        with lp.knock_out(vlm, keys="image", queries="last", layers=range(2, 6)):
            return [trace, *maps, vlm.rerun(trace)]


LIVE = {
    "01_quick_start": Live(34, "What is the text on the stop sign?"),
    "02_where_it_looked": Live(34, "Where is the triangle?", ("relative_attention",)),
    "03_how_sure_it_was": Live(1, "Describe the image."),
    "04_attribution": Live(92, "What colour is the circle?", ("relevance", "attnlrp", "gradient")),
    "05_take_a_part_away": Live(34, "What shape is the orange object?", cut=True),
    "06_what_a_layer_knows": Live(34, "What colour is the triangle?", ("relevance",)),
    "07_what_each_layer_says": Live(92, "What colour is the circle?", ("attnlrp",)),
    "08_when_not_to_believe_it": Live(4, "Describe the image."),
    "09_what_changed": Live(9, "What colour is the ring?", cut=True),
}


def gallery(repository: Path, made: Path) -> dict[str, str]:
    """Fill ``made`` anew, and say for each notebook (``live_01_quick_start`` ...) where its live page is."""
    pictures, pages = made / "pictures", made / "pages"
    for part in (pictures, pages):
        part.mkdir(parents=True, exist_ok=True)
    for source in sorted((repository / "notebooks").glob("*.ipynb")):
        _copy(source, made / source.name)
        (pictures / f"{source.stem}.png").write_bytes(_last_picture(source))
    return {f"live_{name}": live_page(name, pages) for name in LIVE}


def _copy(source: Path, target: Path) -> None:
    """With links that lead inside the site; only what changed, for the builder reads again what is newer."""
    text = re.sub(r"\(\.\./figures/(\w+)\.md\)", r"(/start/\1.md)", source.read_text(encoding="utf-8"))
    text = text.replace("(../docs/", "(/")
    if not target.exists() or target.read_text(encoding="utf-8") != text:
        target.write_text(text, encoding="utf-8")


def _last_picture(notebook: Path) -> bytes:
    *_, last = _pictures(json.loads(notebook.read_text(encoding="utf-8")))
    return base64.b64decode(last)


def _pictures(notebook: dict[str, Any]) -> Iterator[str]:
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                yield output["data"]["image/png"]


def live_page(name: str, pages: Path) -> str:
    """Make the live page of a notebook's question, where this version makes pages."""
    if not hasattr(lp, "page"):
        return "*(this version makes no live pages)*"
    path = pages / "live" / f"{name}.html"
    path.parent.mkdir(exist_ok=True)
    lp.page(LIVE[name].results(), path)
    opened = "#beside=1" if LIVE[name].cut else ""
    return f'<a href="../live/{name}.html{opened}">{LIVE[name].question}</a>'
