"""Questions leave nothing behind: the short form of ``benchmarks/app.py``."""

from __future__ import annotations

import runpy
from pathlib import Path

from llava_probe.view.app.store import ANSWERS_KEPT, PICTURES_KEPT

BENCHMARK = runpy.run_path(str(Path(__file__).parents[3] / "benchmarks" / "app.py"))


def test_what_a_browser_keeps_does_not_grow_with_its_questions(app):
    async def ask(numbers):
        for number in numbers:
            await BENCHMARK["asked"](app.desk, "somebody", number)

    def kept():
        """Folders of this browser, and the bytes in them."""
        own = [item for item in app.desk.store._items.values() if item.owner == "somebody"]
        return len(own), sum(BENCHMARK["files"](item.folder)[1] for item in own)

    app.in_its_loop(ask(range(8)))
    folders, size = kept()
    assert folders == PICTURES_KEPT + ANSWERS_KEPT
    app.in_its_loop(ask(range(8, 12)))
    assert kept()[0] == folders and kept()[1] < 1.25 * size
    on_disk = {path.name for path in app.desk.store.folder.iterdir()}
    assert on_disk <= {item.token for item in app.desk.store._items.values()} | {"gradio", "in-use"}
