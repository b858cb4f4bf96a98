"""Everything that wants a GPU, in one command: agreement under each attention kernel, then the cost at 7B's shape.

    python benchmarks/gpu.py

Runs ``lp.check`` (tokens, rows, places) on a random LLaVA of 7B shape in bf16 with each kernel that the card has (those
of sdpa: flash, cuDNN, memory-efficient; flash-attn where it is installed) and under ``device_map``, compares relevance
beside each kernel with autograd through eager attention, with and without checkpoints, then runs
``benchmarks/capture.py`` and ``benchmarks/attribution.py`` at that shape.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from capture import build
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel

import llava_probe as lp
from llava_probe import evaluate

KERNELS = {
    "sdpa, flash": (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH),
    "sdpa, cuDNN": (SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH),
    "sdpa, memory-efficient": (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH),
}


def main() -> None:
    """Print the tables."""
    if not torch.cuda.is_available():
        sys.exit("no GPU is visible to torch; benchmarks/capture.py measures on the CPU")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    vlm = build("7b", "cuda")
    held = True
    for name, backends in KERNELS.items():
        with sdpa_kernel(list(backends), set_priority=True):
            held &= _checked(vlm, name)
    if find_spec("flash_attn"):
        vlm.model.set_attn_implementation("flash_attention_2")
        held &= _checked(vlm, "flash_attention_2")
    held &= _checked(lp.load(device_map="auto"), "the tiny model, device_map='auto'")
    del vlm
    gc.collect()
    torch.cuda.empty_cache()
    here = Path(__file__)
    subprocess.run([sys.executable, str(here.with_name("capture.py")), "--shape", "7b"], check=True)
    costs = ["--shape", "7b", "--dtype", "bfloat16", "--device", "cuda"]
    subprocess.run([sys.executable, str(here.with_name("attribution.py")), *costs], check=True)
    sys.exit(0 if held else 1)


def _checked(vlm: lp.VLM, name: str) -> bool:
    found = lp.check(vlm)
    print(f"\n{name}\n{found}", flush=True)
    return found.ok and _explained(vlm)


def _explained(vlm: lp.VLM) -> bool:
    """Whether relevance beside this kernel ranks the visual tokens as autograd through eager attention does."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
    trace = vlm.generate(picture, "What is this?", max_new_tokens=2)
    maps = [
        lp.attribute(vlm, trace, "relevance", tokens=trace.prompt_length, checkpoint=each) for each in (False, True)
    ]
    before = vlm.model.config._attn_implementation
    vlm.model.set_attn_implementation("eager")
    slow = lp.attribute(vlm, trace, "relevance", tokens=trace.prompt_length)
    vlm.model.set_attn_implementation(before)
    alike = [evaluate.spearman(m, slow, 0) for m in maps]
    print(f"relevance against eager's, rank correlation: {alike[0]:.3f}, with checkpoints {alike[1]:.3f}", flush=True)
    return min(alike) > 0.9


if __name__ == "__main__":
    main()
