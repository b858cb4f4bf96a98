"""Qwen-VL and those that take pictures at their own size like it."""

from __future__ import annotations

from typing import Any

from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Glm4vImageProcessor,
    Glm4vMoeConfig,
    Glm4vMoeForConditionalGeneration,
    Glm4vProcessor,
    Glm4vVideoProcessor,
    Glm46VConfig,
    Glm46VForConditionalGeneration,
    Glm46VImageProcessor,
    Glm46VProcessor,
    Glm46VVideoProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from tests.texts import DECODER, template, tokenizer
from tests.zoo import family

#: Patches of 8 pixels and 2 frames, merged 2 by 2.
PATCHES = {"patch_size": 8, "temporal_patch_size": 2}

#: At least 4 and at most 100 visual tokens a picture.
LIMITS = {"size": {"shortest_edge": 64 * 16, "longest_edge": 64 * 400}}

#: The same where the two frames of a patch are counted.
LIMITS_OF_FRAMES = {"size": {"shortest_edge": 2 * 64 * 16, "longest_edge": 2 * 64 * 400}}

TOWER = {"depth": 2, "num_heads": 2, "spatial_merge_size": 2, "initializer_range": 0.2, **PATCHES}

WIDTHS = {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64}

#: Experts of which each token meets two.
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}


def rope(*sections: int, **more: Any) -> dict[str, Any]:
    """Rotary angles shared out among time, height and width."""
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections), **more}


def _qwen_words() -> Any:
    return tokenizer(
        image_token="<|image_pad|>",
        video_token="<|video_pad|>",
        vision_bos_token="<|vision_start|>",
        vision_eos_token="<|vision_end|>",
    )


def _qwen_ids(words: Any) -> dict[str, int]:
    return {
        "image_token_id": words.image_token_id,
        "video_token_id": words.video_token_id,
        "vision_start_token_id": words.vision_bos_token_id,
        "vision_end_token_id": words.vision_eos_token_id,
    }


_QWEN_TEMPLATE = template("<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>")


@family("qwen2_vl")
def qwen2_vl() -> tuple[Any, Any]:
    words = _qwen_words()
    model = Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(
            vision_config={"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2, **TOWER},
            text_config={"vocab_size": len(words), "rope_parameters": rope(2, 3, 3), **DECODER},
            **_qwen_ids(words),
        )
    )
    processor = Qwen2VLProcessor(
        Qwen2VLImageProcessor(merge_size=2, **PATCHES, **LIMITS),
        words,
        Qwen2VLVideoProcessor(merge_size=2, **PATCHES, **LIMITS),
        chat_template=_QWEN_TEMPLATE,
    )
    return model, processor


@family("qwen2_5_vl")
def qwen2_5_vl() -> tuple[Any, Any]:
    words = _qwen_words()
    model = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            vision_config={"window_size": 32, "fullatt_block_indexes": [1], **TOWER, **WIDTHS},
            text_config={"vocab_size": len(words), "rope_parameters": rope(2, 3, 3), **DECODER},
            **_qwen_ids(words),
        )
    )
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(merge_size=2, **PATCHES, **LIMITS),
        words,
        Qwen2VLVideoProcessor(merge_size=2, **PATCHES, **LIMITS),
        chat_template=_QWEN_TEMPLATE,
    )
    return model, processor


def _qwen3_processor(words: Any) -> Qwen3VLProcessor:
    return Qwen3VLProcessor(
        Qwen2VLImageProcessor(merge_size=2, **PATCHES, **LIMITS),
        words,
        Qwen3VLVideoProcessor(merge_size=2, **PATCHES, **LIMITS_OF_FRAMES),
        chat_template=template("<|vision_start|><|image_pad|><|vision_end|>", "<|video_pad|>"),
    )


def _qwen3_text(words: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(words),
        "head_dim": 16,
        "rope_parameters": rope(4, 2, 2, mrope_interleaved=True),
        **DECODER,
    }


@family("qwen3_vl")
def qwen3_vl() -> tuple[Any, Any]:
    words = _qwen_words()
    model = Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(
            vision_config={"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1], **TOWER, **WIDTHS},
            text_config=_qwen3_text(words),
            **_qwen_ids(words),
        )
    )
    return model, _qwen3_processor(words)


@family("qwen3_vl_moe")
def qwen3_vl_moe() -> tuple[Any, Any]:
    words = _qwen_words()
    model = Qwen3VLMoeForConditionalGeneration(
        Qwen3VLMoeConfig(
            vision_config={"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1], **TOWER, **WIDTHS},
            text_config={"num_experts": 4, **EXPERTS, **_qwen3_text(words)},
            **_qwen_ids(words),
        )
    )
    return model, _qwen3_processor(words)


@family("qwen3_5")
def qwen3_5() -> tuple[Any, Any]:
    words = _qwen_words()
    text = {
        **_qwen3_text(words),
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "head_dim": 32,
        "rope_parameters": rope(4, 2, 2, mrope_interleaved=True, partial_rotary_factor=0.5),
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    }
    model = Qwen3_5ForConditionalGeneration(
        Qwen3_5Config(
            vision_config={"num_position_embeddings": 64, **TOWER, **WIDTHS}, text_config=text, **_qwen_ids(words)
        )
    )
    return model, _qwen3_processor(words)


_GLM_TOKENS = ("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>")


def _glm_words() -> Any:
    return tokenizer(*_GLM_TOKENS, image_token="<|image|>", video_token="<|video|>")


def _glm(config: Any, words: Any, **text: Any) -> Any:
    starts = dict(
        zip(
            ("image_start_token_id", "image_end_token_id", "video_start_token_id", "video_end_token_id"),
            words.convert_tokens_to_ids(list(_GLM_TOKENS)),
            strict=True,
        )
    )
    return config(
        vision_config={"model_type": "glm4v_vision", "image_size": 64, **TOWER, **WIDTHS},
        text_config={
            "model_type": "glm4v_text",
            "vocab_size": len(words),
            "rope_parameters": rope(2, 1, 1, partial_rotary_factor=0.5),
            **DECODER,
            **text,
        },
        image_token_id=words.image_token_id,
        video_token_id=words.video_token_id,
        **starts,
    )


_GLM_TEMPLATE = template("<|begin_of_image|><|image|><|end_of_image|>", "<|begin_of_video|><|video|><|end_of_video|>")


def _glm4v_processor(words: Any) -> Glm4vProcessor:
    return Glm4vProcessor(
        Glm4vImageProcessor(merge_size=2, **PATCHES, **LIMITS_OF_FRAMES),
        words,
        Glm4vVideoProcessor(merge_size=2, **PATCHES, **LIMITS_OF_FRAMES),
        chat_template=_GLM_TEMPLATE,
    )


@family("glm4v")
def glm4v() -> tuple[Any, Any]:
    words = _glm_words()
    return Glm4vForConditionalGeneration(_glm(Glm4vConfig, words)), _glm4v_processor(words)


@family("glm46v")
def glm46v() -> tuple[Any, Any]:
    words = _glm_words()
    processor = Glm46VProcessor(
        Glm46VImageProcessor(merge_size=2, **PATCHES, **LIMITS_OF_FRAMES),
        words,
        Glm46VVideoProcessor(merge_size=2, **PATCHES, **LIMITS_OF_FRAMES),
        chat_template=_GLM_TEMPLATE,
    )
    return Glm46VForConditionalGeneration(_glm(Glm46VConfig, words)), processor


@family("glm4v_moe")
def glm4v_moe() -> tuple[Any, Any]:
    words = _glm_words()
    config = _glm(Glm4vMoeConfig, words, model_type="glm4v_moe_text", n_routed_experts=4, **EXPERTS)
    return Glm4vMoeForConditionalGeneration(config), _glm4v_processor(words)
