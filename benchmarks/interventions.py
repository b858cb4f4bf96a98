"""What interventions cost: a knock-out during generate, and sweeps beside one full forward pass for each of their runs.

    python benchmarks/interventions.py                       # 1.1B shape; generate in bf16, sweeps in float32; CPU
    python benchmarks/interventions.py --shape 7b --device cuda --sweep-dtype bfloat16

*generate*: plain sdpa, the picture cut off from the last token, from everything, and eager attention with the same
mask; ratios within rounds that run each in turn, the median is printed. *sweeps*: all runs of one by ``departing``,
beside full passes under ``lp.knock_out`` and ``lp.patch``, of which a few are timed; printed: how many times as long
all of them would take, and the largest difference of a logit in those that were run both ways. *memory*: peak of a
sweep over few and over all layers, each in a fresh process. The model is random: its answers mean nothing, its costs
are a real
    model's.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from capture import QUESTION, SHAPES, _resident, build
from PIL import Image

import llava_probe as lp
from llava_probe.sweeps.changes import Cut, Cuts, Swap, Swaps
from llava_probe.sweeps.departures import Departure, departing

#: Pictures in the prompt and decoder blocks for each length.
LENGTHS = {620: (1, None), 2900: (5, 8)}
#: Full passes that are timed for each sweep.
TIMED = 4
WINDOW = 9


def model_of(shape: str, layers: int | None, device: str, dtype: str) -> lp.VLM:
    """A random LLaVA with so many decoder blocks."""
    SHAPES["cut"] = SHAPES[shape] | ({} if layers is None else {"num_hidden_layers": layers})
    vlm = build("cut", device)
    vlm.model.to(getattr(torch, dtype))
    return vlm


def pictures(count: int, seed: int = 0) -> list[Image.Image]:
    noise = np.random.default_rng(seed)
    return [Image.fromarray(noise.integers(0, 256, (336, 336, 3), dtype=np.uint8)) for _ in range(count)]


def prompt(count: int) -> str:
    return "USER: " + "<image>\n" * count + f"{QUESTION}\nASSISTANT:"


def synchronized(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def eager(vlm: lp.VLM, **cut):
    vlm.model.set_attn_implementation("eager")
    try:
        with lp.knock_out(vlm, **cut):
            yield
    finally:
        vlm.model.set_attn_implementation("sdpa")


def generating(arguments: argparse.Namespace) -> None:
    """Ratios of generate under a knock-out."""
    for count, layers in [LENGTHS[arguments.length]] if arguments.length else LENGTHS.values():
        vlm = model_of(arguments.shape, layers, arguments.device, "bfloat16")
        inputs, _ = vlm.model_inputs(pictures(count), prompt=prompt(count))
        ways = {
            "plain": nullcontext,
            "last": lambda vlm=vlm: lp.knock_out(vlm, keys=lp.IMAGE, queries=lp.PREDICTING),
            "everything": lambda vlm=vlm: lp.knock_out(vlm, keys=lp.IMAGE),
            "eager": lambda vlm=vlm: eager(vlm, keys=lp.IMAGE),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        new = {"max_new_tokens": arguments.new_tokens, "do_sample": False}
        vlm.model.generate(**inputs, **new)
        for number in range(arguments.rounds):
            for name in list(ways) if number % 2 else list(ways)[::-1]:
                gc.collect()
                with ways[name]():
                    started = synchronized(arguments.device)
                    vlm.model.generate(**inputs, **new)
                    seconds[name].append(synchronized(arguments.device) - started)
        tokens = inputs["input_ids"].shape[1]
        print(f"generate, {tokens} prompt tokens, {arguments.new_tokens} new, {vlm.anatomy.layers} layers, bf16")
        for name, own in seconds.items():
            ratios = [one / plain for one, plain in zip(own, seconds["plain"], strict=True)]
            print(
                f"  {name:12s} {statistics.median(own):6.2f} s   {statistics.median(ratios):.3f} of plain", flush=True
            )
        del vlm, inputs


def sweeps_of(vlm: lp.VLM, traces: list[lp.Trace]) -> dict[str, tuple[list[Departure], object, list[lp.Trace]]]:
    """The runs of each sweep, what changes them, and the plain runs that they depart from."""
    layers, end = vlm.anatomy.layers, traces[0].prompt_length
    image = tuple(token.position for token in traces[0].tokens if token.role == "image")
    question = tuple(range(image[-1] + 1, end - 1))
    edges = {
        "image->question": (image, question),
        "image->last": (image, (end - 1,)),
        "question->last": (question, (end - 1,)),
        "last->last": ((end - 1,), (end - 1,)),
    }
    spans = [range(max(0, at - WINDOW // 2), min(layers, at + WINDOW // 2 + 1)) for at in range(layers)]
    flow = [
        Departure(span.start, min(queries), Cut(span, queries, keys))
        for keys, queries in edges.values()
        for span in spans
    ]
    states = range(layers)
    whole = [Departure(at, image[0], Swap("residual", range(at, at + 1), image, 1)) for at in states]
    last = [Departure(at, end - 1, Swap("residual", range(at, at + 1), (end - 1,), 1)) for at in states]
    return {
        "information flow": (flow, Cuts, traces[:1]),
        "causal trace, image": (whole, Swaps, traces),
        "causal trace, last": (last, Swaps, traces),
    }


def one_pass(vlm: lp.VLM, traces: list[lp.Trace], change: Cut | Swap, device: str) -> tuple[torch.Tensor, float]:
    """[V] of a full pass under the public intervention, and its seconds."""
    if isinstance(change, Cut):
        given = {"keys": list(change.keys), "queries": list(change.queries), "layers": change.layers}
        context = lp.knock_out(vlm, **given)
    else:
        context = lp.patch(vlm, source=traces[1], at=list(change.places), layers=change.layers, part=change.part)
    inputs, _ = vlm.model_inputs(list(traces[0].images), prompt=traces[0].request.prompt)
    with context, torch.no_grad():
        started = synchronized(device)
        logits = vlm.model(**inputs, use_cache=False, logits_to_keep=1).logits[0, -1].double()
        return logits, synchronized(device) - started


def sweeping(arguments: argparse.Namespace) -> None:
    """How many times as long full passes would take."""
    vlm = model_of(arguments.shape, None, arguments.device, arguments.sweep_dtype)
    traces = asked(vlm)
    print(f"sweeps, {traces[0].prompt_length} prompt tokens, {vlm.anatomy.layers} layers, {arguments.sweep_dtype}")
    for name, (runs, changes, bases) in sweeps_of(vlm, traces).items():
        chosen = [runs[at] for at in np.linspace(0, len(runs) - 1, TIMED).round().astype(int)]
        gc.collect()
        started = synchronized(arguments.device)
        with departing(vlm, bases) as plain:
            logits = plain.logits(runs, changes)
        swept = synchronized(arguments.device) - started
        alone, off = [], 0.0
        for run in chosen:
            own, seconds = one_pass(vlm, traces, run.change, arguments.device)
            alone.append(seconds)
            off = max(off, float((own - logits[runs.index(run)]).abs().max()))
        ratio = statistics.median(alone) * len(runs) / swept
        print(
            f"  {name:20s} {len(runs):3d} runs in {swept:6.1f} s; one full pass {statistics.median(alone):5.2f} s: "
            f"{ratio:5.1f} times; largest difference {off:.1e} of {float(logits.std()):.2g}",
            flush=True,
        )


def asked(vlm: lp.VLM) -> list[lp.Trace]:
    kept = lp.Capture(hidden_states=True, positions="prompt", attention=False, logits=1, scores=False)
    return [vlm.generate(pictures(1, seed), prompt=prompt(1), max_new_tokens=1, capture=kept) for seed in (0, 1)]


def memory_of(arguments: argparse.Namespace) -> None:
    """Print the peak bytes of a sweep over some layers, over what was held before."""
    vlm = model_of(arguments.shape, 12, arguments.device, "bfloat16")
    traces = asked(vlm)
    image = tuple(token.position for token in traces[0].tokens if token.role == "image")
    runs, changes = (
        [
            Departure(at, image[0], Swap(part, range(at, at + 1), image, 1))
            for part in ("residual", "attention", "mlp")
            for at in range(vlm.anatomy.layers)
        ],
        Swaps,
    )
    runs, bases = runs[: arguments.memory_of], traces
    gc.collect()
    if arguments.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
    with departing(vlm, bases) as plain:
        plain.logits(runs, changes)
    peak = torch.cuda.max_memory_allocated() if arguments.device == "cuda" else _resident("VmHWM")
    print(peak - before)


def remembering(arguments: argparse.Namespace) -> None:
    """Peak memory of sweeps over few and over many layers and parts: it stops growing where a batch is full."""
    found = {}
    for count in (6, 12, 24, 36):
        command = [sys.executable, __file__, "--shape", arguments.shape, "--device", arguments.device]
        ran = subprocess.run([*command, "--memory-of", str(count)], check=True, capture_output=True, text=True)
        found[count] = int(ran.stdout.split()[-1]) / 1e6
    told = ", ".join(f"{count} runs {size:,.0f} MB" for count, size in found.items())
    print(f"memory of a causal trace of the image, over what was held before, 12 layers, bf16: {told}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1.1b")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sweep-dtype", default="float32")
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--length", type=int, choices=LENGTHS, help="of the prompts of generate: one alone")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("generate", "sweeps", "memory"))
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        memory_of(arguments)
        return
    for name, part in {"generate": generating, "sweeps": sweeping, "memory": remembering}.items():
        if arguments.only in (None, name):
            part(arguments)


if __name__ == "__main__":
    main()
