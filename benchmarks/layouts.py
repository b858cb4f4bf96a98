"""What a layout costs: a written one in milliseconds, a measured one in runs of the vision path and in milliseconds.

    python benchmarks/layouts.py [FAMILY ...]

The families are the tiny random models of the tests with their real processors; ``llava_next 336`` has the geometry of
the real one (336 pixels, patches of 14, 2,880 tokens at most) over a narrow tower. Medians over pictures of different
sizes, each seen for the first time.
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests import torchvision_half

torchvision_half.present()

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
)

import llava_probe as lp
from llava_probe.layout import asking
from tests import zoo
from tests.models import photo
from tests.texts import DECODER, TOWER, template, tokenizer

SIZES = [(640, 480), (480, 640), (1024, 768), (300, 900), (1500, 1100), (250, 250), (333, 90), (1280, 720)]
FAMILIES = ["llava", "llava_next", "llava_next 336", "llava_onevision", "mistral3", "qwen2_5_vl", "paligemma"]
FAMILIES += ["gemma3 pan", "idefics3", "smolvlm", "internvl"]


def full_size() -> lp.VLM:
    words = tokenizer(image_token="<image>")
    pinpoints = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(image_size=336, patch_size=14, initializer_range=0.2, **TOWER),
        text_config=LlamaConfig(vocab_size=len(words), **DECODER),
        image_token_index=words.image_token_id,
        image_grid_pinpoints=pinpoints,
    )
    crop = {"height": 336, "width": 336}
    pictures = LlavaNextImageProcessor(size={"shortest_edge": 336}, crop_size=crop, image_grid_pinpoints=pinpoints)
    told = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    processor = LlavaNextProcessor(pictures, words, chat_template=template(), **told)
    return lp.VLM(LlavaNextForConditionalGeneration(config).eval(), processor)


def costs(vlm: lp.VLM) -> list[tuple[float, int]]:
    """(milliseconds, runs of the vision path) for each size; what the processor itself takes is left out."""
    found, run = [], asking.entering
    for size in SIZES:
        _, question = vlm.model_inputs(photo(*size), "what")
        tensors, prompts = vlm.prepare([question], {})
        passes: list[int] = []

        def counted(model: Any, inputs: Any, passes: list[int] = passes) -> Any:
            passes.append(len(inputs["input_ids"]))
            return run(model, inputs)

        asking.entering = counted
        start = time.perf_counter()
        vlm.layouts_of([question], 0, prompts[0], tensors, {})
        found.append(((time.perf_counter() - start) * 1e3, sum(passes)))
    asking.entering = run
    return found


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    print(f"{'family':<18} {'written, ms':>12} {'largest':>8}   {'measured, ms':>12} {'runs at most':>12}")
    for name in sys.argv[1:] or FAMILIES:
        given = full_size() if name == "llava_next 336" else zoo.vlm(name)
        costs(lp.VLM(given.model, given.processor))  # imports and first calls
        written = [ms for ms, _ in costs(lp.VLM(given.model, given.processor))]
        measurement = costs(lp.VLM(given.model, given.processor, layout="measured"))
        runs = max(passes for _, passes in measurement)
        told = statistics.median(written), max(written), statistics.median(ms for ms, _ in measurement), runs
        print(f"{name:<18} {told[0]:>12.1f} {told[1]:>8.1f}   {told[2]:>12.0f} {told[3]:>12}", flush=True)


if __name__ == "__main__":
    main()
