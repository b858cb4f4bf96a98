"""Files that were damaged, or made by somebody who knows the format: each is read right or refused in one sentence.

    python tools/fuzz_files.py --count 1000 --seed 0        # of each kind; part of make fuzz

A good file of each kind is made once. Then it is damaged at random (bits, bytes, blocks, ends, other files' parts) or
crafted (a node of its JSON replaced, dropped or added, a tensor taken out or given another shape, the checksum made
right again), read, and everything in it used. What counts as a failure: an error that is not ours, more than 10 s,
more than 1 GB, or a damaged file that is read without a word as something else.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import llava_probe as lp
from llava_probe import tiny
from llava_probe.features.samples import read_samples
from llava_probe.leaderboard.board import Leaderboard
from llava_probe.leaderboard.page import leaderboard_page

SECONDS, MEGABYTES = 10, 1000
NASTY = (
    None,
    True,
    False,
    0,
    -1,
    1.5,
    10**30,
    1e308,
    float("nan"),
    "",
    "x",
    "\0",
    "\ud800",
    [],
    {},
    [[]],
    [None],
    {"a": 1},
)

Damage = Callable[[random.Random, Path], bool]


@dataclass(frozen=True)
class Target:
    """One kind of file.

    Attributes:
        make: writes a good one at a path (a file, or a folder of them).
        read: reads it and uses all of it; what it returns is compared where damage must not pass in silence.
        guarded: whether it carries a checksum, so that what is read from a damaged one must be what was written.
        craft: changes it as somebody would who knows the format; returns whether there was something to change.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    guarded: bool = False
    craft: Damage | None = None


@dataclass
class Found:
    """What became of the tries of one kind."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


def targets() -> dict[str, Target]:
    """All kinds of files that the package reads."""
    vlm = lp.load()
    scene = tiny.scene(34)
    trace = vlm.generate(scene.image, "What is the text on the stop sign?", max_new_tokens=3)
    rows = [{"image": tiny.scene(i).image, "question": f"What is this, {i}?", "id": str(i)} for i in range(4)]
    rows.append({"image": "gone.png", "question": "q", "id": "gone"})
    probe = lp.Probe(
        torch.zeros(4, 2, dtype=torch.float64),
        torch.zeros(2, dtype=torch.float64),
        "l",
        "classification",
        "logistic",
        ("a", "b"),
        "layer_1",
        "last_prompt",
    )

    def store(path: Path) -> None:
        lp.extract(vlm, rows, path, layers=[1], positions=["last_prompt", "text"], shard_rows=2)

    def scores(path: Path) -> None:
        names = ("touches", "inside", "precision", "energy", "iou", "otsu")
        entries = {"relevance": {"seconds": 1.0, "forwards": 1, "backwards": 1, "cases": [dict.fromkeys(names, 1.0)]}}
        line = {"question": "q", "picture": "p", "kind": "k", "answer": "a", "right": True, "blind": False}
        line |= {"cases": ["q"], "entries": entries}
        path.mkdir()
        (path / "scores-1-of-1.jsonl").write_text("".join(json.dumps(line) + "\n" for _ in range(3)))
        (path / "run.json").write_text("{}")

    def sources(suffix: str) -> Callable[[Path], None]:
        def make(path: Path) -> None:
            path.mkdir()
            plain = [
                {"image": "a.png", "question": f"What is {i}?", "label": i, "box": [1, 2, 30, 40]} for i in range(5)
            ]
            scene.image.save(path / "a.png")
            if suffix == "parquet":
                import pyarrow
                import pyarrow.parquet

                pyarrow.parquet.write_table(pyarrow.Table.from_pylist(plain), path / "rows.parquet")
            elif suffix == "csv":
                lines = [f'a.png,"What is {i}?",{i}' for i in range(5)]
                (path / "rows.csv").write_text("\n".join(["image,question,label", *lines]))
            else:
                listed = "\n".join(map(json.dumps, plain)) if suffix == "jsonl" else json.dumps(plain)
                (path / f"rows.{suffix}").write_text(listed)

        return make

    def read_rows(suffix: str) -> Callable[[Path], Any]:
        def read(path: Path) -> Any:
            samples = list(read_samples(path / f"rows.{suffix}"))
            return [(sample.question, sample.fault) for sample in samples]

        return read

    def picture(kind: str) -> Target:
        return Target(lambda path: scene.image.save(path, kind), lambda path: lp.open_image(path).tobytes()[:9])

    return {
        "trace": Target(lambda path: void(trace.save(path)), _read_trace, True, crafted("trace")),
        "probe": Target(lambda path: void(probe.save(path)), _read_probe, True, crafted("probe")),
        "map": Target(lambda path: void(lp.attention_map(trace).save(path)), _read_map, False, crafted_map),
        "store": Target(store, _read_store, True, crafted_store),
        "scores": Target(scores, _read_scores, False, crafted_scores),
        **{f"rows.{each}": Target(sources(each), read_rows(each)) for each in ("jsonl", "json", "csv", "parquet")},
        **{kind.lower(): picture(kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP")},
    }


def void(_: Any) -> None:
    """Nothing."""


# --- reading everything ---


def _read_trace(path: Path) -> Any:
    trace = lp.Trace.load(path)
    lp.confidence(trace).to_dict()
    if trace.layouts and trace.kept("attention"):
        lp.attention_map(trace).peak()
    repr(trace)
    return trace


def _read_probe(path: Path) -> Any:
    probe = lp.Probe.load(path)
    return repr(probe), probe.weights.tolist(), probe.bias.tolist()


def _read_map(path: Path) -> Any:
    m = lp.ImageMap.load(path)
    m.peak()
    m.overlay(side=40)
    return m.values.tolist()


def _read_store(path: Path) -> Any:
    features = lp.Features(path)
    features.verify()
    told: list[Any] = [features.errors().to_pylist(), features.to_pandas().to_dict("list")]
    for key in features.keys():  # noqa: SIM118 - no mapping
        values = features[key]
        values = values.values if hasattr(values, "spans") else values
        told.append(values[:].float().sum().item())
    return told


def _read_scores(path: Path) -> Any:
    return leaderboard_page(Leaderboard.read(path), "m", "c")


# --- crafting ---


def craft_json(draws: random.Random, told: Any) -> Any:
    """The same with one node replaced, dropped or added."""
    nodes = list(_nodes(told))
    if not nodes:
        return draws.choice(NASTY)
    holder, key = draws.choice(nodes)
    change = draws.random()
    if change < 0.2:
        del holder[key]
    elif change < 0.3 and isinstance(holder, dict):
        holder["more"] = draws.choice(NASTY)
    elif change < 0.4 and isinstance(holder, list):
        holder.append(draws.choice(NASTY))
    else:
        holder[key] = draws.choice(NASTY)
    return told


def _nodes(told: Any) -> Iterator[tuple[Any, Any]]:
    items = told.items() if isinstance(told, dict) else enumerate(told) if isinstance(told, list) else ()
    for key, value in list(items):
        yield told, key
        yield from _nodes(value)


def crafted(key: str) -> Damage:
    """A safetensors file of ours with a right checksum."""
    from llava_probe.whole_file import checksum

    def craft(draws: random.Random, path: Path) -> bool:
        with safe_open(path, framework="pt") as file:
            told, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if draws.random() < 0.6:
            told[key] = _dumped(craft_json(draws, json.loads(told[key])))
        else:
            _craft_tensors(draws, tensors)
        told["digest"] = checksum(told[key], tensors)
        save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata=told)
        return True

    return craft


def _dumped(told: Any) -> str:
    return json.dumps(told).replace("\\ud800", "?")


def _craft_tensors(draws: random.Random, tensors: dict[str, torch.Tensor]) -> None:
    name = draws.choice(sorted(tensors))
    one = tensors[name]
    changes: list[Callable[[], Any]] = [
        lambda: tensors.pop(name),
        lambda: tensors.update({name: one.to(draws.choice([torch.float16, torch.int64, torch.uint8, torch.float64]))}),
        lambda: tensors.update({name: one.reshape(-1).clone()}),
        lambda: tensors.update({name: one[:0].clone() if one.ndim else torch.zeros(3)}),
        lambda: tensors.update({name: one.unsqueeze(0).clone()}),
        lambda: tensors.update({f"{name}x": one.clone()}),
        lambda: tensors.update({name: torch.full_like(one, 127)}),
    ]
    draws.choice(changes)()


def crafted_map(draws: random.Random, path: Path) -> bool:
    """A map whose arrays or JSON are others."""
    with np.load(path / "map.npz") as held:
        arrays = dict(held)
    name = draws.choice(sorted(arrays))
    if draws.random() < 0.5 and "told" in arrays:
        arrays["told"] = np.array(_dumped(craft_json(draws, json.loads(str(arrays["told"])))))
    elif draws.random() < 0.3:
        arrays.pop(name)
    else:
        arrays[name] = draws.choice(
            [np.zeros(3), np.zeros((2, 2), np.int64), np.array("x"), arrays[name].reshape(-1)[:5]]
        )
    np.savez_compressed(path / "map.npz", **arrays)
    return True


def crafted_store(draws: random.Random, path: Path) -> bool:
    """A store whose manifest is another."""
    told = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(craft_json(draws, told)))
    return True


def crafted_scores(draws: random.Random, path: Path) -> bool:
    """Scores of another form."""
    file = draws.choice([path / "scores-1-of-1.jsonl", path / "run.json"])
    lines = file.read_text().splitlines()
    number = draws.randrange(len(lines))
    lines[number] = json.dumps(craft_json(draws, json.loads(lines[number])))
    file.write_text("\n".join(lines) + "\n")
    return True


# --- damaging ---


def damaged(draws: random.Random, path: Path) -> bool:
    """One file of those below ``path`` with something of it changed at random; whether anything is another now."""
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    file = draws.choice(files)
    before = data = bytearray(file.read_bytes())
    data = bytearray(before)
    if not data:
        return False
    place, kind = draws.randrange(len(data)), draws.randrange(6)
    if kind == 0:
        data[place] ^= 1 << draws.randrange(8)
    elif kind == 1:
        data[place] = draws.randrange(256)
    elif kind == 2:
        del data[place:]
    elif kind == 3:
        length = draws.randrange(1, 64)
        data[place : place + length] = bytes(draws.randrange(256) for _ in range(length))
    elif kind == 4:
        data[place:place] = data[draws.randrange(len(data)) :][: draws.randrange(1, 64)]
    else:
        head = min(len(data), 2000)  # where the structure is
        data[draws.randrange(head)] ^= 1 << draws.randrange(8)
    if data == before:
        return False
    file.write_bytes(data)
    return True


# --- trying ---


class _TooLong(BaseException):
    pass


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Ended by an alarm where it takes longer."""

    def over(*_: Any) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def peak_memory(reset: bool = False) -> float:
    """Megabytes that the process held at most since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return next(float(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def tried(name: str, target: Target, count: int, seed: int) -> Found:
    """So many tries of one kind."""
    found, draws = Found(), random.Random(f"{name} {seed}")
    with tempfile.TemporaryDirectory() as folder:
        good, bad = Path(folder) / "good", Path(folder) / "bad"
        target.make(good)
        expected = target.read(good)
        for number in itertools.count():
            if found.outcomes.total() == count:
                break
            shutil.rmtree(bad, ignore_errors=True) if bad.is_dir() else bad.unlink(missing_ok=True)
            shutil.copytree(good, bad) if good.is_dir() else shutil.copyfile(good, bad)
            crafting = target.craft is not None and number % 2 == 1
            if not (target.craft(draws, bad) if crafting and target.craft else damaged(draws, bad)):
                continue
            silent = None if crafting or not target.guarded else expected
            outcome, told = one_try(lambda: target.read(bad), silent)
            found.outcomes[outcome] += 1
            if told:
                found.failures.append(f"{name} {number} ({'crafted' if crafting else 'damaged'}): {told}")
    return found


def one_try(read: Callable[[], Any], expected: Any = None) -> tuple[str, str]:
    """How one try ended, and what was wrong with that."""
    before, start = peak_memory(reset=True), time.perf_counter()
    outcome, told = "read", ""
    try:
        with limited(SECONDS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            got = read()
        if expected is not None and got != expected:
            outcome, told = "silent", "read without a word as something else"
    except lp.ProbeError as error:
        outcome = "refused"
        if "\n" in str(error).strip() or not str(error).strip():
            outcome, told = "no sentence", f"{type(error).__name__}: {str(error)[:200]!r}"
    except _TooLong:
        outcome, told = "hang", f"more than {SECONDS} s"
    except Exception as error:
        place = _place(error)
        outcome, told = "foreign", f"{type(error).__name__}: {str(error)[:120]} at {place}"
    grown = peak_memory() - before
    if grown > MEGABYTES:
        outcome, told = "memory", f"{grown:,.0f} MB in {time.perf_counter() - start:.1f} s"
    return outcome, told


def _place(error: BaseException) -> str:
    """The deepest line of ours that an error went through."""
    place, trace = "?", error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if f"{os.sep}llava_probe{os.sep}" in code.co_filename:
            place = f"{Path(code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def main() -> int:
    """Try all kinds; exit status 1 where anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="kinds with this in their names")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    wrong = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = targets()
    for name, target in made.items():
        if asked.only and asked.only not in name:
            continue
        start = time.perf_counter()
        found = tried(name, target, asked.count, asked.seed)
        wrong += len(found.failures)
        told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(found.outcomes.items()))
        print(
            f"{name:14} {found.outcomes.total():5} tries in {time.perf_counter() - start:5.1f} s: {told}",
            flush=True,
        )
        for failure in found.failures[:12]:
            print(f"    {failure}")
    print(f"{wrong} failures")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
