"""What a feature store of 100,000 rows costs: memory to write it and to read it, time until the first rows are there.

    python benchmarks/store.py                        # 3 layers of 4,096 in bfloat16, 100 shards: 2.5 GB of disk
    python benchmarks/store.py --rows 10000           # a smaller one

Each step runs in a process of its own, so that its peak memory is its own; "beside torch" is that peak less what the
process held when everything was imported. Rows are pseudo-random, so reading can compare every one with what was
written. Times are the median of several openings with the pages in the system's cache.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from llava_probe.features import store, tables
from llava_probe.features.reading import Features

LAYERS = ("layer_8", "layer_16", "layer_24")
POSITION = "last_prompt"
WIDTH = 4096
SHARD = 1000
OPENINGS = 15


def shard(number: int) -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(number)
    return {f"{layer}/{POSITION}": torch.randn(SHARD, WIDTH, generator=made, dtype=torch.bfloat16) for layer in LAYERS}


def write(folder: Path, rows: int) -> dict[str, float]:
    store.begin(folder, {"layers": [8, 16, 24]})
    seconds = 0.0
    for number in range(rows // SHARD):
        tensors = shard(number)
        told = [{"id": f"s{number * SHARD + row}", "label": row % 7} for row in range(SHARD)]
        start = time.perf_counter()
        store.write_shard(folder, number, tensors, told)
        seconds += time.perf_counter() - start
    store.finish(folder)
    return {"seconds": seconds}


def read(folder: Path, rows: int) -> dict[str, float]:
    features, seconds = Features(folder), 0.0
    for layer in LAYERS:
        batches = features.batches(layer, POSITION, size=SHARD)
        for number in range(rows // SHARD):
            expected = shard(number)[f"{layer}/{POSITION}"]
            start = time.perf_counter()
            _, found = next(batches)
            equal = torch.equal(found, expected)
            seconds += time.perf_counter() - start
            if not equal:
                raise SystemExit(f"{layer} of shard {number} came back changed")
    return {"seconds": seconds}


def whole(folder: Path, rows: int) -> dict[str, float]:
    start = time.perf_counter()
    layer = Features(folder)["layer_16", POSITION].clone()
    if len(layer) != rows:
        raise SystemExit(f"{len(layer)} rows of {rows}")
    return {"seconds": time.perf_counter() - start}


def first(folder: Path, rows: int) -> dict[str, float]:
    """The median seconds of an opening and of the first thousand rows, every one of them used."""
    seconds = []
    for _ in range(OPENINGS):
        start = time.perf_counter()
        found = Features(folder)["layer_16", POSITION][:1000].clone()  # a mapped row is read only when it is used
        seconds.append(time.perf_counter() - start)
    if not torch.equal(found, shard(0)[f"layer_16/{POSITION}"]):
        raise SystemExit("the first rows came back changed")
    return {"seconds": statistics.median(seconds), "slowest": max(seconds)}


STEPS = {"write": write, "read": read, "whole": whole, "first": first}


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(step: str, folder: Path, rows: int) -> dict[str, float]:
    """One step in a fresh process."""
    command = [sys.executable, __file__, "--rows", str(rows), "--step", step, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.step:
        tables.arrow()
        before = peak_mb()
        told = STEPS[asked.step](asked.folder, asked.rows[0])
        print(json.dumps({**told, "peak": peak_mb(), "beside": peak_mb() - before}))
        return
    print("| rows | step | time | peak memory | of it beside torch |\n|---|---|---|---|---|")
    for rows in asked.rows:
        place = Path(tempfile.mkdtemp(prefix="store-"))
        try:
            for step, name in (
                ("write", f"write {rows * WIDTH * 2 * len(LAYERS) / 1e9:.2f} GB"),
                ("read", f"read {len(LAYERS)} layers in batches, compare all"),
                ("whole", "read one layer as a whole"),
                ("first", "open and read [:1000]"),
            ):
                told = measured(step, place / "features", rows)
                spent = f"{told['seconds']:.1f} s"
                if step == "first":
                    spent = f"{told['seconds'] * 1e3:.1f} ms (slowest {told['slowest'] * 1e3:.1f})"
                print(f"| {rows:,} | {name} | {spent} | {told['peak']:.0f} MB | {told['beside']:.0f} MB |", flush=True)
        finally:
            shutil.rmtree(place)


if __name__ == "__main__":
    main()
