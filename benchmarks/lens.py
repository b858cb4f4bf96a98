"""What a lens costs at LLaVA-1.5-7B's shape: seconds and peak memory, beside the dense way.

    python benchmarks/lens.py                              # 576 patches, 33 hidden states, vocabulary of 32,064; bf16
    python benchmarks/lens.py --device cuda

*ours* is ``lp.lens`` on a trace that kept the states; *ours, a pass* on one that did not, so that the model runs once
more; *dense* makes the logits of every layer and patch, [33, 576, 32064] in float32, as other tools do, and reads the
same numbers from them. The model is as wide and as deep as a 7B's, with its vocabulary and its picture; its blocks are
narrow inside, since no lens looks there. Each way is measured in a process of its own: peak over what the model and the
trace held before. Random weights: what it says means nothing, its costs are a real model's.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from capture import SHAPES, _resident, build
from PIL import Image

import llava_probe as lp

WAYS = ("ours", "ours, a pass", "dense")
#: As deep and as wide as a 7B, nearly nothing inside its blocks.
HOLLOW = {"hidden_size": 4096, "intermediate_size": 64, "num_hidden_layers": 32, "num_attention_heads": 1}
KEPT = {"attention": False, "logits": False, "scores": False}


def made(device: str, way: str) -> tuple[lp.VLM, lp.Trace]:
    """The model and a trace of one picture, with the states that a way reads."""
    SHAPES["hollow"] = {**HOLLOW, "head_dim": 64}
    vlm = build("hollow", device)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (336, 336, 3), dtype=np.uint8))
    capture = (
        lp.Capture(positions="image", **KEPT) if way != "ours, a pass" else lp.Capture(hidden_states=False, **KEPT)
    )
    return vlm, vlm.generate(picture, "What is it?", max_new_tokens=1, capture=capture)


def dense(vlm: lp.VLM, trace: lp.Trace) -> list[torch.Tensor]:
    """All logits at once, by the module's weights."""
    inside, at = vlm.model.model.language_model, trace.layouts[0].positions.tolist()
    with torch.no_grad():
        states = trace.hidden(at=at).to(vlm.model.device)  # [N, layers, D]
        states = torch.cat([inside.norm(states[:, :-1]), states[:, -1:]], dim=1)
        logits = vlm.model.lm_head(states).float()
        probability = logits.softmax(-1)
        return [*probability.topk(5), torch.special.entr(probability).sum(-1)]


def run(vlm: lp.VLM, trace: lp.Trace, way: str) -> None:
    """One reading."""
    if way == "dense":
        dense(vlm, trace)
    else:
        lp.lens(vlm, trace, words=["stop"])


def measured(device: str, way: str) -> dict[str, float]:
    """Seconds and peak bytes of one reading in this process."""
    vlm, trace = made(device, way)
    lp.lens(vlm, trace, layers=[1], at=[5], top=1)  # what the first call alone does
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        run(vlm, trace, way)
        torch.cuda.synchronize()
        return {"seconds": time.perf_counter() - started, "peak": torch.cuda.max_memory_allocated() - before}
    ctypes.CDLL(None).malloc_trim(0)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    started = time.perf_counter()
    run(vlm, trace, way)
    return {"seconds": time.perf_counter() - started, "peak": _resident("VmHWM") - before}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measured(arguments.device, arguments.way)))
        return
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"576 patches, 33 hidden states of 4,096, vocabulary 32,064, bf16, {name}, torch {torch.__version__}")
    # Freed memory goes back at once and from one pool, so that a peak is of what was held and not of fragments.
    steady = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "0"}
    for way in WAYS:
        command = [sys.executable, __file__, "--device", arguments.device, "--way", way]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **steady})
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{way:<14} {found['seconds']:>7.1f} s   peak {found['peak'] / 1e6:>6.0f} MB over model and trace",
            flush=True,
        )


if __name__ == "__main__":
    main()
