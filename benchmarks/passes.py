"""What it costs that something may visit a pass: plain ``generate`` beside an empty context, one visitor, a knock-out.

    python benchmarks/passes.py                       # 0.1B shape, bf16, 576 visual tokens, CPU
    python benchmarks/passes.py --shape 7b            # LLaVA-1.5-7B's shape; on a GPU where there is one

Ratios within rounds that run every way in turn; the median of the rounds is printed.
"""

from __future__ import annotations

import argparse
import statistics
from contextlib import nullcontext

import torch
from capture import SHAPES, build, run, timed

import llava_probe as lp
from llava_probe.inside.passes import Visitor, visiting


class Looks(Visitor):
    """Hears of everything and does nothing."""

    def attended(self, call, output):
        """An attention call."""

    def state(self, stack, layer, hidden):
        """A hidden state."""


def ways(vlm: lp.VLM) -> dict[str, object]:
    """A context for each way, made anew each time."""
    return {
        "plain": nullcontext,
        "plain again": nullcontext,
        "empty": lambda: visiting(vlm.anatomy),
        "visitor": lambda: visiting(vlm.anatomy, Looks()),
        "knock-out": lambda: lp.knock_out(vlm, keys="image"),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="0.1b")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=11)
    arguments = parser.parse_args()
    vlm = build(arguments.shape, arguments.device)
    run(vlm, "plain", 2)
    seconds: dict[str, list[float]] = {name: [] for name in ways(vlm)}
    for number in range(arguments.rounds):
        names = list(seconds)
        for name in names if number % 2 else names[::-1]:
            with ways(vlm)[name]():
                seconds[name].append(timed(vlm, "plain", arguments.new_tokens, arguments.device))
    print(f"{arguments.shape} shape, {arguments.new_tokens} new tokens, {arguments.rounds} rounds, {arguments.device}")
    for name, own in seconds.items():
        ratios = [one / plain for one, plain in zip(own, seconds["plain"], strict=True)]
        print(f"  {name:12s} {statistics.median(own):6.2f} s   {statistics.median(ratios):.3f} of plain")


if __name__ == "__main__":
    main()
