"""What relevance costs: time and peak memory beside a plain forward and backward pass, and beside the naive rule.

    python benchmarks/attribution.py                        # 620 and 2,900 tokens, float32, CPU
    python benchmarks/attribution.py --device cuda --shape 7b --dtype bfloat16

*plain* differentiates one token's logit with respect to what enters the language model, on the fast kernel;
*relevance* is ``lp.attribute``'s own pass; *naive* runs eager attention with every matrix and its gradient kept and
multiplies whole tokens × tokens matrices, as published code does. Ratios are taken within rounds that run each way in
turn, and the median is printed; peak memory in a fresh process for each way, over what was held before. The model is
random: its maps mean nothing, its costs are a real model's.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from capture import QUESTION, SHAPES, _resident, build
from PIL import Image

import llava_probe as lp
from llava_probe.attribution import explained_by, prepared

WAYS = ("plain", "relevance", "naive")
#: Pictures in the prompt and decoder blocks for each length: what the naive rule needs must fit beside the model.
LENGTHS = {620: (1, 12), 2900: (5, 4)}


def model_of(shape: str, layers: int, device: str, dtype: str) -> lp.VLM:
    """A random LLaVA with so many decoder blocks."""
    SHAPES["cut"] = SHAPES[shape] | {"num_hidden_layers": layers}
    vlm = build("cut", device)
    vlm.model.to(getattr(torch, dtype))
    return vlm


def task_of(vlm: lp.VLM, pictures: int, new_tokens: int = 1):
    """One answer about some pictures, ready to be explained."""
    noise = np.random.default_rng(0)
    images = [Image.fromarray(noise.integers(0, 256, (336, 336, 3), dtype=np.uint8)) for _ in range(pictures)]
    prompt = "USER: " + "<image>\n" * pictures + f"{QUESTION}\nASSISTANT:"
    kept = lp.Capture(hidden_states=False, attention=False, logits=False, scores=False)
    trace = vlm.generate(images, prompt=prompt, max_new_tokens=new_tokens, capture=kept)
    task = prepared(vlm, trace, "relevance", tokens="generated", of="logit")
    assert len(task.continuations) == 1
    return task


@contextmanager
def entering(vlm: lp.VLM, held: list[torch.Tensor]):
    """Let the graph start where the sequence enters the decoder."""

    def enter(_module, args, kwargs):
        torch.set_grad_enabled(True)
        held.append(kwargs["inputs_embeds"].detach().clone().requires_grad_())
        return args, {**kwargs, "inputs_embeds": held[-1]}

    handle = vlm.model.get_decoder().register_forward_pre_hook(enter, with_kwargs=True)
    flags = [(each, each.requires_grad) for each in vlm.model.parameters()]
    for each, _ in flags:
        each.requires_grad_(False)
    try:
        yield
    finally:
        handle.remove()
        for each, flag in flags:
            each.requires_grad_(flag)


def plain(task, backwards: int = 1) -> None:
    """One forward pass and some backward passes, nothing watched."""
    held: list[torch.Tensor] = []
    ids = task.answers[0]
    with entering(task.vlm, held), torch.no_grad():
        logits = task.vlm.model(**task.continuations[0].inputs).logits[0, -len(ids) :]
        for step in range(backwards):
            torch.autograd.grad(logits[step, ids[step]], held[0], retain_graph=step + 1 < backwards)


def naive(task) -> torch.Tensor:
    """The published rule: all matrices and their gradients, and the whole R."""
    model, kept, held = task.vlm.model, [], []

    def keep(_module, _args, output):
        output[1].retain_grad()
        kept.append(output[1])

    model.set_attn_implementation("eager")
    hooks = [layer.self_attn.register_forward_hook(keep) for layer in model.get_decoder().layers]
    try:
        with entering(task.vlm, held), torch.no_grad():
            logits = model(**task.continuations[0].inputs).logits[0, -1]
            logits[task.answers[0][-1]].backward()
        with torch.no_grad():
            whole = torch.eye(kept[0].shape[-1], device=kept[0].device)
            for weights in kept:
                whole = whole + (weights[0] * weights.grad[0]).float().clamp(min=0).mean(0) @ whole
        return whole[-1]
    finally:
        for hook in hooks:
            hook.remove()
        model.set_attn_implementation("sdpa")


def run(task, way: str) -> None:
    """One explanation."""
    if way == "plain":
        plain(task)
    elif way == "naive":
        naive(task)
    else:
        explained_by(task, "relevance")


def timed(task, way: str) -> float:
    """Seconds of one explanation."""
    gc.collect()
    _settle(task)
    started = time.perf_counter()
    run(task, way)
    _settle(task)
    return time.perf_counter() - started


def _settle(task) -> None:
    if task.vlm.model.device.type == "cuda":
        torch.cuda.synchronize()


def extra_memory(arguments: argparse.Namespace, way: str) -> int:
    """Peak bytes of one explanation over what was held before it."""
    pictures, layers = LENGTHS[arguments.length]
    task = task_of(model_of(arguments.shape, layers, arguments.device, arguments.dtype), pictures)
    gc.collect()
    if arguments.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(task, way)
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak of building the model is not the one we mean
    run(task, way)
    return _resident("VmHWM") - before


def fresh_memory(arguments: argparse.Namespace, length: int, way: str) -> float:
    """``extra_memory`` in processes of their own, their median: on the CPU the peak wanders."""
    command = [sys.executable, __file__, "--shape", arguments.shape, "--device", arguments.device]
    command += ["--dtype", arguments.dtype, "--length", str(length), "--memory-of", way]
    # Freed memory goes back at once and from one pool, so that a peak is of what was held and not of fragments.
    steady = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "0"}
    found = []
    for _ in range(1 if arguments.device == "cuda" else arguments.memory_runs):
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **steady})
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return statistics.median(found)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1.1b", help="width of the decoder; its blocks are cut")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--length", type=int, choices=LENGTHS, help="one length alone")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--naive-rounds", type=int, default=2)
    parser.add_argument("--memory-runs", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=20, help="tokens explained together; 0 leaves that out")
    parser.add_argument("--memory-of", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(json.dumps(extra_memory(arguments, arguments.memory_of)))
        return
    card = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"{arguments.shape}, {arguments.dtype}, {card}, torch {torch.__version__}")
    for length in [arguments.length] if arguments.length else LENGTHS:
        pictures, layers = LENGTHS[length]
        vlm = model_of(arguments.shape, layers, arguments.device, arguments.dtype)
        task = task_of(vlm, pictures)
        for way in WAYS[:2]:
            run(task, way)
        ratios: dict[str, list[float]] = {way: [] for way in WAYS[1:]}
        for number in range(arguments.rounds):
            ways = WAYS if number < arguments.naive_rounds else WAYS[:2]
            seconds = {way: timed(task, way) for way in (ways if number % 2 else ways[::-1])}
            print("  " + "  ".join(f"{way} {seconds[way]:.2f} s" for way in ways), flush=True)
            for way in ways[1:]:
                ratios[way].append(seconds[way] / seconds["plain"])
        print(f"{task.fed} tokens, {layers} blocks")
        for way, found in ratios.items():
            if found:
                print(f"  time, {way} / plain: {statistics.median(found):.2f} ({len(found)} rounds)", flush=True)
        if arguments.tokens and length == min(LENGTHS):
            several(vlm, pictures, arguments.tokens)
        del vlm, task
        gc.collect()
        if arguments.memory_runs:
            memory = {way: fresh_memory(arguments, length, way) for way in WAYS}
            for way in WAYS[1:]:
                print(
                    f"  extra memory, {way} / plain: {memory[way] / memory['plain']:.2f} "
                    f"({memory[way] / 1e9:.2f} against {memory['plain'] / 1e9:.2f} GB)",
                    flush=True,
                )


def several(vlm: lp.VLM, pictures: int, tokens: int) -> None:
    """Many tokens together against one forward pass and a backward pass for each."""
    task = task_of(vlm, pictures, tokens)
    ratios = []
    for _ in range(3):
        started = time.perf_counter()
        plain(task, len(task.targets))
        _settle(task)
        middle = time.perf_counter()
        explained_by(task, "relevance")
        _settle(task)
        ratios.append((time.perf_counter() - middle) / (middle - started))
    print(
        f"  {len(task.targets)} tokens / one forward and {len(task.targets)} backward passes: "
        f"{statistics.median(ratios):.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
