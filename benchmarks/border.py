"""What reading the arguments of a public function costs: microseconds a call, guarded less unguarded.

python benchmarks/border.py
"""

from __future__ import annotations

import inspect
import os
import timeit
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import llava_probe as lp
from llava_probe import evaluate, tiny
from llava_probe.border import checked

TIMES = 20_000


def cost(function: Callable[..., Any], arguments: dict[str, Any]) -> float:
    """Microseconds that the guard adds to a call with these arguments, the function itself doing nothing."""

    def nothing(*_: Any, **__: Any) -> None:
        pass

    nothing.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    nothing.__globals__.update({**inspect.unwrap(function).__globals__, **globals()})
    guarded = checked(nothing)
    guarded(**arguments)  # reads the annotations, once
    read, unread = (_taken(each, arguments) for each in (guarded, nothing))
    return (read - unread) / TIMES * 1e6


def _taken(function: Callable[..., Any], arguments: dict[str, Any]) -> float:
    return min(timeit.repeat(lambda: function(**arguments), number=TIMES, repeat=3))


def main() -> None:
    """Print a line for each of a few typical calls."""
    vlm, image = lp.load(), tiny.scene(34).image
    trace = vlm.generate(image, "Describe the image.", max_new_tokens=4)
    m = lp.attention_map(trace)
    calls: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "attention_map(trace, tokens, layers)": (
            lp.attention_map,
            {"trace": trace, "tokens": "sign", "layers": list(range(32)), "heads": [0, 1]},
        ),
        "attribute(vlm, trace, method)": (lp.attribute, {"vlm": vlm, "trace": trace, "method": "rise", "image": 0}),
        "VLM.generate(image, question)": (
            lp.VLM.generate,
            {"self": vlm, "image": image, "question": "Describe the image.", "max_new_tokens": 64, "seed": 0},
        ),
        "Trace.hidden(layer, at)": (lp.Trace.hidden, {"self": trace, "layer": 3, "at": lp.LAST}),
        "ImageMap.pixels(row)": (lp.ImageMap.pixels, {"self": m, "row": 0}),
        "Token(...)": (lp.Token.__init__, {"self": None, "id": 3, "text": " sign", "role": "prompt", "position": 7}),
        "evaluate.summary(100 scores)": (
            evaluate.summary,
            {"scores": [0.5] * 100, "pictures": ["a"] * 100, "times": 2000, "seed": 0},
        ),
        "Trace.save(path)": (lp.Trace.save, {"self": trace, "path": "run.trace"}),
    }
    for name, (function, arguments) in calls.items():
        print(f"{name:40} {cost(function, arguments):6.1f} µs")


if __name__ == "__main__":
    main()
