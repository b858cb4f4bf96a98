"""Tiny random models of LLaVA's kind, built from configs, and pictures to show them: seconds to make, no downloads."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from tests.texts import tokenizer

LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\n' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '\n' if message['role'] != 'assistant' else '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level tokens plus a few whole words, so that words of several tokens and of one both occur."""
    return tokenizer("<image>")


def llava_processor(*, image_processor=None, strategy: str = "default") -> LlavaProcessor:
    """A real LLaVA processor over a 48-pixel CLIP processor with patches of 8."""
    image_processor = image_processor or CLIPImageProcessorPil(
        size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=word_tokenizer(),
        patch_size=8,
        vision_feature_select_strategy=strategy,
        chat_template=LLAVA_TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    )


def random_llava(seed: int = 0, *, strategy: str = "default", kv_heads: int = 2, attention: str = "sdpa"):
    """A random LLaVA: 4 blocks of 4 heads (2 of keys), 36 visual tokens, float32."""
    tokenizer = word_tokenizer()
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=48,
            patch_size=8,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=kv_heads,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            initializer_range=0.2,
        ),
        image_token_index=3,
        image_seq_length=36,
        vision_feature_select_strategy=strategy,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation=attention).eval()
    model.generation_config.eos_token_id = 2
    model.generation_config.pad_token_id = 0
    return model


def photo(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
    """A smooth random picture."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
