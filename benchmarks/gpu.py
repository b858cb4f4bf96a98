"""Everything that wants a GPU, in one command: agreement under each attention kernel, then the cost at 7B's shape.

    python benchmarks/gpu.py

Runs ``lp.check`` (tokens, rows, places) on a random LLaVA of 7B shape in bf16 with each kernel that the card has (those
of sdpa: flash, cuDNN, memory-efficient; flash-attn where it is installed) and under ``device_map``, then
``benchmarks/capture.py --shape 7b``.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from capture import build
from torch.nn.attention import SDPBackend, sdpa_kernel

import llava_probe as lp

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
    subprocess.run([sys.executable, str(Path(__file__).with_name("capture.py")), "--shape", "7b"], check=True)
    sys.exit(0 if held else 1)


def _checked(vlm: lp.VLM, name: str) -> bool:
    found = lp.check(vlm)
    print(f"\n{name}\n{found}", flush=True)
    return found.ok


if __name__ == "__main__":
    main()
