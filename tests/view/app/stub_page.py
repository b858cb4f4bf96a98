"""What the page component will be to the app, in a few lines: a picture, and a box that can be marked on it.

Installed in place of ``llava_probe.view.page`` where that is not there. Run as a script, it is the model's process.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import sys
import zlib
from pathlib import Path
from types import ModuleType

_SCRIPT = """
globalThis.llavaProbe = {
  mount(element, payload, options) {
    const root = element.shadowRoot || element.attachShadow({mode: "open"});
    async function draw(data) {
      const packed = await (await fetch("data:application/octet-stream;base64," + data)).blob();
      const stream = packed.stream().pipeThrough(new DecompressionStream("deflate"));
      const told = await new Response(stream).json();
      root.innerHTML = "<div class=answers></div><img style='max-width:100%;display:block;border-radius:8px'>";
      root.querySelector("img").src = told.image;
      root.querySelector(".answers").textContent = told.answers.join(" | ");
      const image = root.querySelector("img");
      let start = null;
      const at = (event) => {
        const box = image.getBoundingClientRect();
        const scale = told.size[0] / box.width;
        return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
      };
      image.draggable = false;
      image.addEventListener("pointerdown", (event) => { start = at(event); });
      image.addEventListener("pointerup", (event) => {
        const end = at(event);
        const box = [Math.min(start[0], end[0]), Math.min(start[1], end[1]),
                     Math.max(start[0], end[0]), Math.max(start[1], end[1])];
        element.dispatchEvent(new CustomEvent("llava-probe-region",
          {bubbles: true, composed: true, detail: {trace: 0, image: 0, box}}));
      });
    }
    draw(payload);
    return {update: draw, remove() { root.innerHTML = ""; }};
  },
};
"""


def payload(results):
    from llava_probe.trace.html import picture_html

    traces = results if isinstance(results, list) else [results]
    image = picture_html(traces[0].images[0], 700).partition('src="')[2].partition('"')[0]
    told = {"answers": [trace.answer for trace in traces], "image": image, "size": traces[0].images[0].size}
    return zlib.compress(json.dumps(told).encode())


def script():
    return _SCRIPT


def page(results, path):
    data = base64.b64encode(payload(results)).decode()
    Path(path).write_text(f"<!doctype html><title>run</title><script>/*{data}*/</script>")
    return Path(path)


def install():
    if importlib.util.find_spec("llava_probe.view.page") is None:
        stub = ModuleType("llava_probe.view.page")
        stub.payload, stub.script, stub.page = payload, script, page
        sys.modules["llava_probe.view.page"] = stub


if __name__ == "__main__":
    install()
    from llava_probe.view.app.process import run_process

    run_process()
