"""Makes every picture in this folder again: ``make figures``."""

from __future__ import annotations

from pathlib import Path

import llava_probe as lp
from llava_probe import tiny

HERE = Path(__file__).parent


def stop_sign() -> Path:
    """Where the tiny model looked for each letter of the word on a sign, in the README."""
    scenes = map(tiny.scene, range(1_000))
    scene = next(s for s in scenes if len(s.objects) == 4 and any(thing.text == "STOP" for thing in s.objects))
    trace = lp.load().generate(scene.image, "What is the text on the stop sign?")
    m = lp.attention_map(trace, tokens="STOP")
    return lp.figures.save_figure(lp.figures.contact_sheet(m, lp.confidence(trace)), HERE / "stop_sign.png")


if __name__ == "__main__":
    print(stop_sign())
