"""What it costs to split a logit: ``lp.written_by`` beside one plain forward pass over the same tokens.

    python benchmarks/written_by.py                   # 1.1B shape, bf16, 576 visual tokens, CPU
    python benchmarks/written_by.py --shape 7b        # LLaVA-1.5-7B's shape; on a GPU where there is one

Ratios within rounds that run each in turn; the median of the rounds is printed. Peak memory is that of the process (or
of the GPU) over what the model holds, each in a process of its own.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from capture import QUESTION, SHAPES, _resident, build
from PIL import Image

import llava_probe as lp

LITTLE = lp.Capture(attention=False, hidden_states=False, scores=False, logits=False)


def asked(vlm: lp.VLM, new_tokens: int) -> lp.Trace:
    """An answer whose last token is split."""
    picture = Image.effect_noise((600, 400), 60).convert("RGB")
    prompt = f"USER: <image>\n{QUESTION}\nASSISTANT:"
    return vlm.generate(picture, prompt=prompt, max_new_tokens=new_tokens, capture=LITTLE)


def forward(vlm: lp.VLM, trace: lp.Trace) -> None:
    """A plain pass over the same tokens: the prompt is prepared, and its pictures are, as they are for the split."""
    inputs, _ = vlm.model_inputs(trace.images, prompt=trace.request.prompt)
    ids = trace.generated_ids[None, :-1].to(inputs["input_ids"])
    inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], 1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.no_grad():
        vlm.model(**inputs, use_cache=False, logits_to_keep=1)


WAYS = {
    "forward": forward,
    "written_by": lambda vlm, trace: lp.written_by(vlm, trace, -1, contrast=7),
}


def seconds(vlm: lp.VLM, trace: lp.Trace, way: str, device: str) -> float:
    """Of one run."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    WAYS[way](vlm, trace)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def peak(shape: str, way: str, new_tokens: int, device: str) -> float:
    """Bytes at most in this process, over those before the run."""
    vlm = build(shape, device)
    trace = asked(vlm, new_tokens)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        WAYS[way](vlm, trace)
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of what came before is not the one we mean
    before = _resident("VmRSS")
    WAYS[way](vlm, trace)
    return _resident("VmHWM") - before


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1.1b")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--new-tokens", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(json.dumps(peak(arguments.shape, arguments.peak, arguments.new_tokens, arguments.device)))
        return
    vlm = build(arguments.shape, arguments.device)
    trace = asked(vlm, arguments.new_tokens)
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(arguments.rounds + 1):
        for way in WAYS if number % 2 else [*WAYS][::-1]:
            found[way].append(seconds(vlm, trace, way, arguments.device))
    ratios = [split / plain for split, plain in zip(found["written_by"][1:], found["forward"][1:], strict=True)]
    print(f"{arguments.shape} shape, {len(trace.tokens)} tokens, {arguments.rounds} rounds, {arguments.device}")
    for way, own in found.items():
        extra = [sys.executable, __file__, "--peak", way, "--shape", arguments.shape, "--device", arguments.device]
        bytes_ = float(json.loads(subprocess.run(extra, capture_output=True, check=True).stdout.splitlines()[-1]))
        print(f"{way:>12}: {statistics.median(own[1:]):7.3f} s, peak {bytes_ / 1e6:7.0f} MB over what was there")
    print(f"{'':>12}  {statistics.median(ratios):.2f} forwards ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
