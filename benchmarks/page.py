"""What a page costs: size, time to write, to open and to answer a click, at the shape of LLaVA-1.5-7B; beside bertviz.

    python benchmarks/page.py                 # needs Chromium and playwright; bertviz where it is installed

32 layers × 32 heads × 50 tokens × 576 visual tokens, attention drawn at random: softmax of logits with the given spread
(real maps are emptier and smaller). Time to open is from the navigation's start to the first painted map; of a click,
from the event to the painted frame that follows it, the median and the largest over all tokens and 32 layers. bertviz's
``model_view`` takes whole square matrices: it is tried at growing lengths, and its size at this one follows from them.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import llava_probe as lp
from llava_probe import tiny
from llava_probe.layout import ImageLayout
from llava_probe.layout.geometry import boxes_between, cell_edges
from llava_probe.trace.tokens import Token

LAYERS, HEADS, WORDS, SIDE, PROMPT = 32, 32, 50, 24, 620
FIRST_IMAGE = 5

#: Resolves once a map is on the canvas, with the milliseconds since the navigation began.
OPENED = """() => new Promise(done => {
  const look = () => {
    const canvas = document.querySelector('#page')?.shadowRoot?.querySelector('figure canvas');
    const painted = canvas && canvas.getContext('2d').getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data[3];
    painted ? done(performance.now()) : requestAnimationFrame(look);
  };
  look();
})"""
#: Milliseconds from a click to the frame behind it, for every element that a selector finds.
CLICKED = """async (selector) => {
  const root = document.querySelector('#page').shadowRoot;
  const times = [];
  for (const each of root.querySelectorAll(selector)) {
    const before = performance.now();
    each.click();
    await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
    times.push(performance.now() - before);
  }
  return times;
}"""


def large_trace(spread: float) -> lp.Trace:
    """A trace of the tiny model blown up to the shape of a 7B one."""
    trace = lp.load().generate(tiny.scene(34).image, "What is the text on the stop sign?")
    edges = cell_edges(0, 336, SIDE)
    count = SIDE * SIDE
    positions = np.arange(FIRST_IMAGE, FIRST_IMAGE + count)
    layout = ImageLayout((336, 336), positions, boxes_between(edges, edges), np.zeros(count, int), (SIDE, SIDE))
    visual = set(positions.tolist())
    roles = ["image" if place in visual else "prompt" for place in range(PROMPT)] + ["generated"] * WORDS
    tokens = tuple(Token(7, f" w{place}", role, place) for place, role in enumerate(roles))
    random = torch.Generator().manual_seed(0)
    keys = PROMPT + WORDS - 1
    rows = [torch.randn(LAYERS, HEADS, keys, generator=random).mul(spread).softmax(-1).half() for _ in range(WORDS)]
    vocabulary = trace.logits.shape[1]
    return replace(
        trace,
        tokens=tokens,
        prompt_length=PROMPT,
        layouts=(layout,),
        records={"attention": torch.stack(rows), "logits": torch.randn(WORDS, vocabulary, generator=random)},
        attention_layers=tuple(range(LAYERS)),
        attention_heads=tuple(range(HEADS)),
        attention_positions=tuple(range(PROMPT - 1, keys)),
        hidden_layers=(),
        hidden_positions=(),
    )


def ours(trace: lp.Trace, folder: Path, repeats: int) -> None:
    """Print what our page takes."""
    began = time.perf_counter()
    path = lp.page(trace, folder / "page.html")
    written = time.perf_counter() - began
    print(f"lp.page: {path.stat().st_size / 1e6:.2f} MB, written in {written:.1f} s")
    with browser() as chromium:
        opened, tokens, layers, heads = [], [], [], []
        for _ in range(repeats):
            page = chromium.new_page(viewport={"width": 1280, "height": 900})
            page.goto(path.as_uri(), wait_until="commit")
            opened.append(page.evaluate(OPENED))
            page.wait_for_timeout(1500)  # the later part
            tokens += page.evaluate(CLICKED, ".token.generated")
            layers += page.evaluate(CLICKED, "tbody th button")
            heads += page.evaluate(CLICKED, "thead th button")
            page.close()
    print(f"  opens in {min(opened):.0f} to {max(opened):.0f} ms")
    for name, times in (("token", tokens), ("layer", layers), ("head of all layers", heads)):
        print(
            f"  a click on a {name}: median {np.median(times):.0f} ms, largest {max(times):.0f} ms, {len(times)} clicks"
        )


def bertviz(folder: Path) -> None:
    """Print what ``model_view`` takes at growing lengths."""
    try:
        from bertviz import model_view
    except ImportError:
        print("bertviz is not installed")
        return
    sizes = []
    for length in (16, 32, 64):
        attention = [torch.rand(1, HEADS, length, length).softmax(-1) for _ in range(LAYERS)]
        began = time.perf_counter()
        html = model_view(attention, [f"w{n}" for n in range(length)], html_action="return").data
        path = folder / f"bertviz_{length}.html"
        path.write_text(f"<!doctype html><meta charset=utf-8>{html}", encoding="utf-8")
        sizes.append(path.stat().st_size / length**2)
        size = path.stat().st_size / 1e6
        print(f"bertviz model_view, {length} tokens: {size:.1f} MB, written in {time.perf_counter() - began:.1f} s")
    whole = sizes[-1] * (PROMPT + WORDS) ** 2 / 1e9
    print(f"  at {PROMPT + WORDS} tokens, by the same bytes a weight: {whole:.1f} GB; a string of V8 ends at 0.5 GB")


class browser:
    """A headless Chromium."""

    def __enter__(self):
        from playwright.sync_api import sync_playwright

        self._driver = sync_playwright().start()
        where = shutil.which("chromium") or shutil.which("google-chrome")
        self._browser = self._driver.chromium.launch(executable_path=where, args=["--no-sandbox"])
        return self._browser

    def __exit__(self, *_):
        self._browser.close()
        self._driver.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--spread", type=float, default=2.0, help="standard deviation of the attention logits")
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    print(f"{LAYERS} layers × {HEADS} heads × {WORDS} tokens × {SIDE * SIDE} visual tokens, random")
    with tempfile.TemporaryDirectory() as folder:
        ours(large_trace(asked.spread), Path(folder), asked.repeats)
        bertviz(Path(folder))


if __name__ == "__main__":
    main()
