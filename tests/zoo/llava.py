"""LLaVA and those that are built like it."""

from __future__ import annotations

from typing import Any

from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
)

from zoo import family
from zoo.text import DECODER, TOWER, template, tokenizer


@family("llava_next")
def llava_next() -> tuple[Any, Any]:
    words = tokenizer(image_token="<image>")
    pinpoints = [[64, 128], [128, 64], [128, 128], [192, 64], [64, 192]]
    model = LlavaNextForConditionalGeneration(
        LlavaNextConfig(
            vision_config=CLIPVisionConfig(image_size=64, patch_size=8, initializer_range=0.2, **TOWER),
            text_config=LlamaConfig(vocab_size=len(words), **DECODER),
            image_token_index=words.image_token_id,
            image_grid_pinpoints=pinpoints,
            image_seq_length=64,
        )
    )
    processor = LlavaNextProcessor(
        LlavaNextImageProcessor(
            size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, image_grid_pinpoints=pinpoints
        ),
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template(),
    )
    return model, processor
