"""What a search of a bank of words costs at a 7B model's width.

    python benchmarks/bank.py                           # 5,000 states of 4,096 numbers, 576 patches, bf16

Whether its words are true, ``figures/lens.py`` tells.

The search is timed on states with a common direction, as those of language models have one, and on states without: the
number of candidates that have to be multiplied again differs. The dense way beside it is float32 throughout.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from llava_probe.lens.nearest import lengths_of, nearest

#: Of a 7B model: its width, the visual tokens of a picture, and layers and contexts of a bank of 5,000 states.
WIDTH, PATCHES, LAYERS, CONTEXTS = 4096, 576, 8, 625


def seconds(run: Callable[[], Any], rounds: int) -> float:
    """The median of some rounds, after one to warm up."""
    run()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def drawn(alike: float) -> tuple[Tensor, list[Tensor], Tensor]:
    """Queries and states in bf16 whose cosines lie around ``alike``² / (1 + ``alike``²)."""
    torch.manual_seed(0)
    shared = alike * torch.randn(WIDTH)
    states = [(shared + torch.randn(CONTEXTS, WIDTH)).bfloat16() for _ in range(LAYERS)]
    return (
        (shared + torch.randn(PATCHES, WIDTH)).bfloat16(),
        states,
        torch.stack([lengths_of(layer) for layer in states]),
    )


def dense(queries: Tensor, states: list[Tensor], lengths: Tensor) -> Tensor:
    """The same by float32 products and a sort of all."""
    wide = queries.float()
    scores = torch.stack([wide @ layer.float().T for layer in states], 1) / lengths
    return scores.amax(1).argsort(dim=1, descending=True)[:, :5]


def cost(rounds: int) -> None:
    """Print how long a search takes."""
    print(f"{LAYERS * CONTEXTS:,} states of {WIDTH:,} numbers, {PATCHES} patches, {torch.get_num_threads()} threads")
    for alike in (0.0, 1.0):
        queries, states, lengths = drawn(alike)
        ours = seconds(partial(nearest, queries, states, lengths, 5), rounds)
        plain = seconds(partial(dense, queries, states, lengths), rounds)
        products = seconds(lambda queries=queries, states=states: [queries @ layer.T for layer in states], rounds)
        same = (nearest(queries, states, lengths, 5).rows == dense(queries, states, lengths)).float().mean()
        print(
            f"cosines around {alike**2 / (1 + alike**2):.1f}: {1e3 * ours:5.0f} ms, of which bf16 products "
            f"{1e3 * products:.0f} ms; dense float32 {1e3 * plain:.0f} ms; the same rows in {same:.2%} of places"
        )


def main() -> None:
    """Print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, help="of torch; its own number if left")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    cost(arguments.rounds)


if __name__ == "__main__":
    main()
