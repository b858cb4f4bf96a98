"""Mistral's: pictures at their own shape, rows of visual tokens ended by break tokens."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    LightOnOcrConfig,
    LightOnOcrForConditionalGeneration,
    LightOnOcrProcessor,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Mistral4Config,
    MistralConfig,
    MistralLarge4Config,
    MistralLarge4ForConditionalGeneration,
    MistralLarge4TextConfig,
    PixtralImageProcessor,
    PixtralProcessor,
    PixtralVisionConfig,
    Qwen3Config,
)

from tests.texts import DECODER, TOWER, template, tokenizer
from tests.zoo import family

#: Experts of which each token meets two; latent keys and values.
_LATENT = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
}


def _tower() -> PixtralVisionConfig:
    """Patches of 8 pixels, up to 32 by 32 of them, merged 2 by 2 afterwards."""
    return PixtralVisionConfig(image_size=256, patch_size=8, hidden_act="silu", initializer_range=0.2, **TOWER)


def _processor(words: Any) -> PixtralProcessor:
    return PixtralProcessor(
        PixtralImageProcessor(size={"longest_edge": 256}, patch_size={"height": 8, "width": 8}),
        words,
        patch_size=8,
        spatial_merge_size=2,
        chat_template=template("[IMG]"),
    )


def _mistral3(text: Any, words: Any) -> tuple[Any, Any]:
    config = Mistral3Config(
        vision_config=_tower(),
        text_config=text,
        image_token_index=words.image_token_id,
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )
    return Mistral3ForConditionalGeneration(config), _processor(words)


@family("mistral3")
def mistral3() -> tuple[Any, Any]:
    words = tokenizer("[IMG_BREAK]", "[IMG_END]", image_token="[IMG]")
    return _mistral3(MistralConfig(vocab_size=len(words), head_dim=16, sliding_window=None, **DECODER), words)


@family("mistral3 mistral4")
def mistral3_mistral4() -> tuple[Any, Any]:
    words = tokenizer("[IMG_BREAK]", "[IMG_END]", image_token="[IMG]")
    text = Mistral4Config(
        vocab_size=len(words),
        q_lora_rank=24,
        first_k_dense_replace=1,
        **DECODER | {"num_key_value_heads": 4},
        **_LATENT,
    )
    return _mistral3(text, words)


@family("mistral_large4")
def mistral_large4() -> tuple[Any, Any]:
    words = tokenizer("[IMG_BREAK]", "[IMG_END]", image_token="[IMG]")
    text = MistralLarge4TextConfig(
        vocab_size=len(words),
        index_topk=16,  # keys that a query attends to: fewer than the prompt has
        index_head_dim=16,
        index_n_heads=16,  # of few, many keys score zero alike, and which of them are kept is chance
        indexer_types=["full", "full", "shared"],
        no_rope_layers=[1, 0, 1],
        **DECODER | {"num_key_value_heads": 4},
        **_LATENT,
    )
    config = MistralLarge4Config(
        vision_config=_tower(), text_config=text, image_token_index=words.image_token_id, spatial_merge_size=2
    )
    model = MistralLarge4ForConditionalGeneration(config)
    for name, weight in model.named_parameters():
        if name.endswith("softmax_scaling.scale"):
            torch.nn.init.normal_(weight, std=0.2)  # zeros when fresh
    return model, _processor(words)


@family("lighton_ocr")
def lighton_ocr() -> tuple[Any, Any]:
    words = tokenizer(image_token="<|image_pad|>", image_break_token="<|vision_pad|>", image_end_token="<|vision_end|>")
    model = LightOnOcrForConditionalGeneration(
        LightOnOcrConfig(
            vision_config=_tower(),
            text_config=Qwen3Config(vocab_size=len(words), head_dim=16, sliding_window=None, **DECODER),
            image_token_id=words.image_token_id,
            spatial_merge_size=2,
            tie_word_embeddings=False,
        )
    )
    processor = LightOnOcrProcessor(
        PixtralImageProcessor(size={"longest_edge": 256}, patch_size={"height": 16, "width": 16}),
        words,
        patch_size=8,
        spatial_merge_size=2,
        chat_template=template("<|image_pad|>"),
    )
    return model, processor
