"""What capture costs: time and peak memory beside plain ``generate``, eager attention and transformers' recorders.

    python benchmarks/capture.py                      # 1.1B shape, bf16, 576 visual tokens, CPU
    python benchmarks/capture.py --shape 7b           # LLaVA-1.5-7B's shape; on a GPU where there is one

Times are ratios within rounds that run every way in turn, so that a machine that slows down slows all of them; the
median of the rounds is printed. Peak memory is taken in a fresh process for each way, over the plain one's. The model
is random: its answers mean nothing, its costs are a real model's.
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
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoProcessor,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

import llava_probe as lp
from llava_probe import tiny

SHAPES = {
    "0.1b": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8},
    "1.1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
}
VOCABULARY = 32064
QUESTION = "What is the text on the stop sign? " * 4
EVERYTHING = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
WAYS = ("plain", "ours", "recorders", "eager")


def build(shape: str, device: str) -> lp.VLM:
    """A random LLaVA of this shape with CLIP-L/336 in front, bf16."""
    small = AutoProcessor.from_pretrained(tiny.path())
    tokenizer = small.tokenizer
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
        ),
        text_config=LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=8192, **SHAPES[shape]),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = LlavaForConditionalGeneration._from_config(config, dtype=torch.bfloat16).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=small.chat_template,
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    return lp.VLM(model, processor)


def run(vlm: lp.VLM, way: str, new_tokens: int) -> int:
    """One generation; returns the bytes that it left for the user to keep."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8))
    prompt = f"USER: <image>\n{QUESTION}\nASSISTANT:"
    if way == "ours":
        trace = vlm.generate(picture, prompt=prompt, max_new_tokens=new_tokens, do_sample=False)
        assert len(trace.generated) == new_tokens
        return sum(tensor.nbytes for tensor in trace.records.values())
    inputs, _ = vlm.model_inputs(picture, prompt=prompt)
    extra = {
        "plain": {},
        "recorders": {**EVERYTHING, "output_hidden_states": True},
        "eager": {**EVERYTHING, "output_hidden_states": True, "output_attentions": True},
    }[way]
    if way == "eager":
        vlm.model.set_attn_implementation("eager")
    try:
        out = vlm.model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False, **extra)
    finally:
        vlm.model.set_attn_implementation("sdpa")
    if way == "plain":
        return 0
    steps = [*out.scores, *out.logits, *_flat(out.hidden_states), *_flat(out.get("attentions") or ())]
    return sum(tensor.nbytes for tensor in steps)


def _flat(steps):
    return [layer for step in steps for layer in step if layer is not None]


def timed(vlm: lp.VLM, way: str, new_tokens: int, device: str) -> float:
    """Seconds of one generation."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    run(vlm, way, new_tokens)
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure_memory(shape: str, way: str, new_tokens: int, device: str) -> dict[str, float]:
    """Peak bytes of one generation in this process, and of what it kept."""
    vlm = build(shape, device)
    gc.collect()
    run(vlm, "plain", 2)
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        kept = run(vlm, way, new_tokens)
        return {"peak": torch.cuda.max_memory_allocated(), "kept": kept}
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of building the model is not the one we mean
    kept = run(vlm, way, new_tokens)
    return {"peak": _resident("VmHWM"), "kept": kept}


def _resident(field: str) -> int:
    """Bytes of this process by /proc/self/status: VmHWM the peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def fresh_memory(arguments: argparse.Namespace, way: str) -> dict[str, float]:
    """``measure_memory`` in a process of its own; on the CPU the median of three, since the peak wanders."""
    command = [sys.executable, __file__, "--shape", arguments.shape, "--device", arguments.device]
    command += ["--new-tokens", str(arguments.new_tokens), "--memory-of", way]
    # Freed memory goes back at once and from one pool, so that a peak is of what was held and not of fragments.
    steady = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "0"}
    repeats = 1 if arguments.device == "cuda" else arguments.memory_runs
    results = []
    for _ in range(repeats):
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **steady})
        results.append(json.loads(done.stdout.splitlines()[-1]))
    return {"peak": statistics.median(r["peak"] for r in results), "kept": results[0]["kept"]}


def time_ratios(arguments: argparse.Namespace) -> tuple[float, dict[str, list[float]]]:
    """Median seconds of plain, and of each other way its ratios to plain, round by round."""
    vlm = build(arguments.shape, arguments.device)
    run(vlm, "plain", 2), run(vlm, "ours", 2)
    ratios: dict[str, list[float]] = {way: [] for way in WAYS[1:]}
    plain_seconds = []
    for number in range(arguments.rounds):
        ways = WAYS if number < arguments.slow_rounds else WAYS[:2]
        ways = ways if number % 2 else ways[::-1]
        seconds = {way: timed(vlm, way, arguments.new_tokens, arguments.device) for way in ways}
        plain_seconds.append(seconds["plain"])
        for way in ways:
            if way != "plain":
                ratios[way].append(seconds[way] / seconds["plain"])
        print(f"  round {number + 1}: " + "  ".join(f"{way} {seconds[way]:.2f} s" for way in ways), flush=True)
    return statistics.median(plain_seconds), ratios


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1.1b")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=11, help="interleaved rounds of plain and ours")
    parser.add_argument("--slow-rounds", type=int, default=3, help="rounds that run eager and the recorders too")
    parser.add_argument("--memory-runs", type=int, default=3)
    parser.add_argument("--memory-of", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(json.dumps(measure_memory(arguments.shape, arguments.memory_of, arguments.new_tokens, arguments.device)))
        return

    name = torch.cuda.get_device_name() if arguments.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{arguments.shape} shape, bf16, {arguments.new_tokens} new tokens, {name}, torch {torch.__version__}")
    seconds, ratios = time_ratios(arguments)
    memory = {way: fresh_memory(arguments, way) for way in WAYS}
    print(f"\nplain: {seconds:.2f} s, peak {memory['plain']['peak'] / 1e6:.0f} MB")
    print(f"{'way':<10} {'time / plain':>14} {'rounds':>7} {'peak over plain':>16} {'kept':>10} {'peak / kept':>12}")
    for way in WAYS[1:]:
        over = memory[way]["peak"] - memory["plain"]["peak"]
        kept = memory[way]["kept"]
        print(
            f"{way:<10} {statistics.median(ratios[way]):>13.3f}× {len(ratios[way]):>7} {over / 1e6:>13.0f} MB "
            f"{kept / 1e6:>7.0f} MB {over / kept:>11.2f}×"
        )


if __name__ == "__main__":
    main()
