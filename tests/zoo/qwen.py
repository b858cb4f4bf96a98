"""Qwen-VL and those that take pictures at their own size like it."""

from __future__ import annotations

from typing import Any

from transformers import (
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from zoo import family
from zoo.text import DECODER, template, tokenizer


@family("qwen2_vl")
def qwen2_vl() -> tuple[Any, Any]:
    words = tokenizer(
        image_token="<|image_pad|>",
        video_token="<|video_pad|>",
        vision_bos_token="<|vision_start|>",
        vision_eos_token="<|vision_end|>",
    )
    model = Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(
            vision_config={
                "depth": 2,
                "embed_dim": 32,
                "hidden_size": 64,
                "num_heads": 2,
                "mlp_ratio": 2,
                "patch_size": 8,
                "spatial_merge_size": 2,
                "temporal_patch_size": 2,
                "initializer_range": 0.2,
            },
            text_config={
                "vocab_size": len(words),
                **DECODER,
                "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0},
            },
            image_token_id=words.image_token_id,
            video_token_id=words.video_token_id,
            vision_start_token_id=words.vision_bos_token_id,
            vision_end_token_id=words.vision_eos_token_id,
        )
    )
    sizes = {"patch_size": 8, "merge_size": 2, "temporal_patch_size": 2}
    limits = {"size": {"shortest_edge": 64 * 16, "longest_edge": 64 * 400}}
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(**sizes, **limits),
        words,
        Qwen2VLVideoProcessor(**sizes, **limits),
        chat_template=template("<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>"),
    )
    return model, processor
