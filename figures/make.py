"""Makes every picture of this folder that no longer command makes: ``make figures``."""

from __future__ import annotations

from pathlib import Path

from PIL.ImageFilter import GaussianBlur

import llava_probe as lp
from llava_probe import tiny

HERE = Path(__file__).parent


def stop_sign(vlm: lp.VLM) -> Path:
    """Where the tiny model looked for each letter of the word on a sign, in the README."""
    scenes = map(tiny.scene, range(1_000))
    scene = next(s for s in scenes if len(s.objects) == 4 and any(thing.text == "STOP" for thing in s.objects))
    trace = vlm.generate(scene.image, "What is the text on the stop sign?")
    letters = lp.attention_map(trace, tokens=list(trace.find("STOP", role="generated")))
    figure = lp.figures.maps(letters, confidence=lp.confidence(trace), photograph="both", title=False)
    return lp.figures.save(figure, HERE / "stop_sign.png", 200)


def doubt(vlm: lp.VLM) -> Path:
    """What it says of a blurred picture, the doubtful words standing out."""
    trace = vlm.generate(tiny.scene(34).image.filter(GaussianBlur(3)), "Describe the image.")
    return lp.figures.save(lp.figures.tokens(lp.confidence(trace), title=False), HERE / "doubt.png", 200)


if __name__ == "__main__":
    tiny_model = lp.load()
    for draw in (stop_sign, doubt):
        print(draw(tiny_model))
