"""What it costs to know a model by every bit of it: the first time, each time after, and after one weight changed.

    python benchmarks/fingerprint.py                  # 1.1B shape, bf16, CPU
    python benchmarks/fingerprint.py --shape 7b       # 14 GB; on a GPU where there is one

The weights are not initialised (their values cost nothing); a model's shape is all that counts here.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from capture import SHAPES, VOCABULARY
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from llava_probe.asking.identity import model_of
from llava_probe.inside.anatomy import anatomy


def build(shape: str, device: str) -> Any:
    """A LLaVA of this shape with CLIP-L/336 in front, bf16, its weights a pattern."""
    tower = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    text = LlamaConfig(vocab_size=VOCABULARY, **SHAPES[shape])
    with torch.device("meta"):
        model = LlavaForConditionalGeneration._from_config(
            LlavaConfig(vision_config=tower, text_config=text), dtype=torch.bfloat16
        ).eval()
    model = model.to_empty(device=device)
    with torch.no_grad():
        for number, tensor in enumerate((*model.parameters(), *model.buffers())):
            tensor.fill_(number % 7)
    return model


def main() -> None:
    """Print the costs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1.1b")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="of torch; its own number if left")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    on_gpu = arguments.device == "cuda"
    model = build(arguments.shape, arguments.device)
    parts, weight = anatomy(model), model.lm_head.weight
    tensors = [*model.parameters(), *model.buffers()]
    total = sum(tensor.nbytes for tensor in tensors)

    def seconds(call: Callable[[], object]) -> float:
        if on_gpu:
            torch.cuda.synchronize()
        started = time.perf_counter()
        call()
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    name = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    print(f"{arguments.shape} shape, {total / 1e9:.1f} GB in {len(tensors)} tensors, {name}")
    first = seconds(lambda: model_of(parts, model))
    print(f"the first time                {first * 1e3:8.0f} ms  ({total / first / 1e9:.1f} GB/s)")
    again = statistics.median(seconds(lambda: model_of(parts, model)) for _ in range(5))
    print(f"each time after               {again * 1e3:8.1f} ms")
    with torch.no_grad():
        weight[0, 0] += 1
    changed = seconds(lambda: model_of(parts, model))
    print(f"after one weight changed      {changed * 1e3:8.1f} ms")
    anew = seconds(lambda: model_of(parts, model, in_full=True))
    print(f"anew, as for a store          {anew * 1e3:8.0f} ms")


if __name__ == "__main__":
    main()
