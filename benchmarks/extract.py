"""What extraction costs: rows a second beside a plain loop, at half the depth, written to disk, with two workers.

    python benchmarks/extract.py                      # 1.1B shape, 6 questions a picture as in POPE, CPU
    python benchmarks/extract.py --shape 7b --dtype bfloat16      # on a GPU where there is one
    python benchmarks/extract.py --only store ray     # some of the parts

Times are ratios within rounds that run every way in turn; the median of the rounds is printed. The model is random: its
features mean nothing, its costs are a real model's.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from capture import build
from PIL import Image

import llava_probe as lp
from llava_probe.features import store as ours_store
from llava_probe.features.engines import Cluster, run_here
from llava_probe.features.extractor import Extractor, Recipe
from llava_probe.features.places import FeatureChoice
from llava_probe.features.samples import Sample

OBJECTS = ("dog", "traffic light", "person", "snowboard", "dining table", "bicycle")


def questions(pictures: int) -> list[dict]:
    """POPE's shape: six questions a picture, each of one object."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(pictures):
        picture = Image.fromarray(rng.integers(0, 256, (400, 600, 3), dtype=np.uint8))
        made += [
            {"id": f"{number}-{thing}", "image": picture, "question": f"Is there a {thing} in the image?"}
            for thing in OBJECTS
        ]
    return made


def samples_of(rows: list[dict]) -> list[Sample]:
    return [Sample(place, row["id"], row["image"], row["question"]) for place, row in enumerate(rows)]


def plain_loop(vlm: lp.VLM, rows: list[dict], layers: list[int]) -> torch.Tensor:
    """What people write: one question, one pass, the last token of some hidden states. [rows, layers, D]."""
    kept = []
    for row in rows:
        text = vlm.processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row["question"]}]}],
            add_generation_prompt=True,
            tokenize=False,
        )
        inputs = vlm.processor(images=row["image"], text=text, return_tensors="pt")
        inputs = inputs.to(vlm.model.device, vlm.model.dtype)
        with torch.inference_mode():
            out = vlm.model(**inputs, output_hidden_states=True, use_cache=False)
        kept.append(torch.stack([out.hidden_states[layer][0, -1] for layer in layers]).cpu())
    return torch.stack(kept)


def extractor_of(vlm: lp.VLM, layers: list[int]) -> Extractor:
    """Ours, its trial of what may share a pass behind it: once a run of any length."""
    extractor = Extractor(vlm, Recipe(tuple(layers), ("last_prompt",), batch_size=len(OBJECTS)))
    ours(extractor, questions(1)[:2], layers)
    return extractor


def ours(extractor: Extractor, rows: list[dict], layers: list[int]) -> torch.Tensor:
    """The same by our extractor, not written to disk."""
    (shard,) = extractor.shards([(0, samples_of(rows))])
    assert not shard.errors, shard.errors[0]
    return torch.stack([shard.tensors[f"layer_{layer}/last_prompt"] for layer in layers], dim=1)


def seconds(run: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def speed(vlm: lp.VLM, arguments: argparse.Namespace) -> None:
    """Against the plain loop, and at half the depth."""
    rows, last = questions(arguments.pictures), vlm.anatomy.layers
    layers = [last // 4, last // 2, last]
    extractor = extractor_of(vlm, layers)
    deep, shallow = extractor.wanted, FeatureChoice.of(vlm.anatomy, layers[:2])
    ratios, halves = [], []
    for number in range(arguments.rounds):
        found: dict[str, torch.Tensor] = {}
        plain = seconds(lambda found=found: found.update(plain=plain_loop(vlm, rows, layers)))
        full = seconds(lambda found=found: found.update(ours=ours(extractor, rows, layers)))
        extractor.wanted = shallow
        half = seconds(lambda: ours(extractor, rows, layers[:2]))
        extractor.wanted = deep
        ratios.append(plain / full), halves.append(full / half)
        reference, got = found["plain"].float(), found["ours"].float()
        distance = float(((got - reference).norm(dim=-1) / reference.norm(dim=-1)).max())
        print(
            f"  round {number + 1}: plain {len(rows) / plain:.3f} rows/s, ours {len(rows) / full:.3f}, "
            f"half depth {len(rows) / half:.3f}; largest difference {distance:.1e} of a state's length",
            flush=True,
        )
    print(f"ours / plain loop: {statistics.median(ratios):.2f}")
    print(f"half depth / full depth: {statistics.median(halves):.2f}")


def disk(vlm: lp.VLM, arguments: argparse.Namespace) -> None:
    """Writing beside not writing: the same shards, made and dropped, or made and written."""
    rows, last = questions(arguments.pictures), vlm.anatomy.layers
    extractor = extractor_of(vlm, [last // 4, last // 2])
    runs = [(number, samples_of(rows)[start : start + 6]) for number, start in enumerate(range(0, len(rows), 6))]
    ratios = []
    for number in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:

            def written(target: Path = Path(folder) / "features") -> None:
                ours_store.begin(target, {})
                run_here(extractor, runs, target)
                ours_store.finish(target)

            ways = [written, lambda: list(extractor.shards(runs))]
            took = {way: seconds(ways[way]) for way in ((0, 1) if number % 2 else (1, 0))}
            ratios.append(took[0] / took[1])
    print(f"written to disk / not written: {statistics.median(ratios):.3f}  ({', '.join(f'{r:.3f}' for r in ratios)})")


def store(arguments: argparse.Namespace) -> None:
    """Our store beside one pickled blob and one commit a tensor in SQLite, in bytes and seconds."""
    count, layers, width = arguments.rows, 3, 4096
    made = torch.randn(layers, count, width, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "features"

        def write() -> None:
            ours_store.begin(target, {})
            for number, start in enumerate(range(0, count, 1000)):
                part = slice(start, start + 1000)
                tensors = {f"layer_{layer}/last_prompt": made[layer, part] for layer in range(layers)}
                ours_store.write_shard(target, number, tensors, [{"id": str(i)} for i in range(count)[part]])
            ours_store.finish(target)

        def blobs() -> None:
            with sqlite3.connect(Path(folder) / "blobs.db") as database:
                database.execute("CREATE TABLE tensors (id INTEGER, layer INTEGER, tensor BLOB)")
                for row in range(count):
                    for layer in range(layers):
                        buffer = io.BytesIO()
                        torch.save(made[layer, row].clone(), buffer)
                        database.execute("INSERT INTO tensors VALUES (?, ?, ?)", (row, layer, buffer.getvalue()))
                        database.commit()

        def read_ours() -> torch.Tensor:
            return lp.Features(target)["layer_1", "last_prompt"].clone()

        def read_blobs() -> torch.Tensor:
            with sqlite3.connect(Path(folder) / "blobs.db") as database:
                found = database.execute("SELECT tensor FROM tensors WHERE layer = 1 ORDER BY id").fetchall()
            return torch.stack([torch.load(io.BytesIO(blob)) for (blob,) in found])

        took = {"ours": seconds(write), "blobs": seconds(blobs)}
        read = {"ours": seconds(read_ours), "blobs": seconds(read_blobs)}
        assert torch.equal(read_ours(), read_blobs())
        size = {"ours": sum(f.stat().st_size for f in target.rglob("*") if f.is_file())}
        size["blobs"] = (Path(folder) / "blobs.db").stat().st_size
    for way, told in (("ours", "shards"), ("blobs", "one blob and one commit a tensor")):
        print(
            f"{told}: {count:,} rows x {layers} layers x {width}: {size[way] / 1e6:.0f} MB, "
            f"written in {took[way]:.1f} s, one layer read in {read[way]:.2f} s"
        )


def ray(arguments: argparse.Namespace) -> None:
    """Two workers beside one, each on one thread, timed from when every worker has made a shard to the last one."""
    import ray as ray_package

    rates: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = questions(arguments.ray_pictures)
        for number, row in enumerate(rows):
            path = folder / f"{number // len(OBJECTS)}.png"
            if not path.exists():
                row["image"].save(path)
            row["image"] = str(path)
        vlm = build("0.1b", "cpu")
        vlm.model.save_pretrained(folder / "model"), vlm.processor.save_pretrained(folder / "model")
        del vlm
        for workers in (1, 2) * arguments.ray_rounds:
            out = folder / "features"
            wanted = {"layers": [4], "shard_rows": len(OBJECTS), "batch_size": len(OBJECTS), "pack": True}
            lp.extract(str(folder / "model"), rows, out, **wanted, engine="ray", cluster=Cluster(workers=workers))
            ends = sorted(file.stat().st_mtime for file in (out / "index").iterdir())
            first = 2 * workers  # by then every worker has its model and has tried what may share a pass
            rates[workers].append((len(ends) - first) / (ends[-1] - ends[first - 1]))
            print(f"  {workers} worker(s): {len(OBJECTS) * rates[workers][-1]:.2f} rows/s", flush=True)
            shutil.rmtree(out)
            ray_package.shutdown()
    one, two = (statistics.median(rates[workers]) for workers in (1, 2))
    print(f"two Ray workers / one: {two / one:.2f}")


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="1.1b")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--pictures", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--ray-pictures", type=int, default=14)
    parser.add_argument("--ray-rounds", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=("speed", "disk", "store", "ray"))
    arguments = parser.parse_args()
    parts = arguments.only or ("speed", "disk", "store", "ray")
    if {"speed", "disk"} & set(parts):
        vlm = build(arguments.shape, arguments.device)
        vlm.model.to(getattr(torch, arguments.dtype))
        print(f"{arguments.shape} shape, {arguments.dtype}, {vlm.model.device}, {torch.get_num_threads()} threads")
        for part, measure in (("speed", speed), ("disk", disk)):
            if part in parts:
                measure(vlm, arguments)
        del vlm
    if "store" in parts:
        store(arguments)
    if "ray" in parts:
        ray(arguments)


if __name__ == "__main__":
    main()
