"""Families that take a picture at its own size: patches on a grid as large as it, merged two by two."""

from __future__ import annotations

from typing import Any

from transformers import (
    Ernie4_5_VLMoeConfig,
    Ernie4_5_VLMoeForConditionalGeneration,
    Ernie4_5_VLMoeImageProcessor,
    Ernie4_5_VLMoeProcessor,
    Ernie4_5_VLMoeVideoProcessor,
    Exaone4_5_Config,
    Exaone4_5_ForConditionalGeneration,
    Exaone4_5_Processor,
    Glm46VForConditionalGeneration,
    Glm46VImageProcessor,
    Glm46VProcessor,
    Glm46VVideoProcessor,
    GlmgaConfig,
    GlmgaImageProcessor,
    GlmgaVideoProcessor,
    GlmOcrConfig,
    GlmOcrForConditionalGeneration,
    HunYuanVLConfig,
    HunYuanVLForConditionalGeneration,
    HunYuanVLImageProcessor,
    HunYuanVLProcessor,
    HyperCLOVAXVisionV2Config,
    HyperCLOVAXVisionV2ForConditionalGeneration,
    HyperCLOVAXVisionV2Processor,
    Kimi_K25Config,
    Kimi_K25ForConditionalGeneration,
    Kimi_K25ImageProcessor,
    Kimi_K25Processor,
    Kimi_K25VideoProcessor,
    PaddleOCRVLConfig,
    PaddleOCRVLForConditionalGeneration,
    PaddleOCRVLImageProcessor,
    PaddleOCRVLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    VideoLlama3Config,
    VideoLlama3ForConditionalGeneration,
    VideoLlama3ImageProcessor,
    VideoLlama3Processor,
    VideoLlama3VideoProcessor,
)

from tests.texts import DECODER, TOWER, ids, template, tokenizer
from tests.zoo import family

#: At least 16 patches of 8 pixels, at most 400: 4 to 100 visual tokens.
LIMITS = {"size": {"shortest_edge": 64 * 16, "longest_edge": 64 * 400}}
PATCHES = {"patch_size": 8, "merge_size": 2}
PAIRS = {**PATCHES, "temporal_patch_size": 2}

#: The vision tower of Qwen2-VL's descendants.
EYES = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "patch_size": 8,
    "spatial_merge_size": 2,
    "out_hidden_size": 64,
    "initializer_range": 0.2,
}
AXES = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}

#: Qwen3.5's decoder: three layers of linear attention, then one of full attention.
HYBRID = {
    **DECODER,
    "num_hidden_layers": 4,
    "head_dim": 32,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "rope_parameters": {
        "rope_type": "default",
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.25,
    },
}
PICTURE, VIDEO = "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>"


def qwen_words(**more: str) -> Any:
    return tokenizer(
        image_token="<|image_pad|>",
        video_token="<|video_pad|>",
        vision_bos_token="<|vision_start|>",
        vision_eos_token="<|vision_end|>",
        **more,
    )


def named(words: Any) -> dict[str, int]:
    return {"image_token_id": words.image_token_id, "video_token_id": words.video_token_id}


def glm_words() -> tuple[Any, dict[str, int]]:
    """GLM's tokens, and the ids that its config wants to know."""
    marks = {
        "image_start_token_id": "<|begin_of_image|>",
        "image_end_token_id": "<|end_of_image|>",
        "video_start_token_id": "<|begin_of_video|>",
        "video_end_token_id": "<|end_of_video|>",
    }
    words = tokenizer(*marks.values(), image_token="<|image|>", video_token="<|video|>")
    return words, {name: ids(words, token)[0] for name, token in marks.items()}


@family("kimi_k25")
def kimi_k25() -> tuple[Any, Any]:
    words = tokenizer(
        "<|media_begin|>", "<|media_content|>", "<|media_end|>", image_token="<|media_pad|>", video_token="<|video|>"
    )
    model = Kimi_K25ForConditionalGeneration(
        Kimi_K25Config(
            vision_config={"patch_size": 8, "pos_emb_height": 8, "pos_emb_width": 8, **TOWER},
            text_config={
                "model_type": "deepseek_v3",
                "vocab_size": len(words),
                **DECODER,
                "num_key_value_heads": 4,
                "moe_intermediate_size": 32,
                "n_routed_experts": 8,
                "num_experts_per_tok": 2,
                "n_group": 2,
                "topk_group": 1,
                "first_k_dense_replace": 1,
                "kv_lora_rank": 16,
                "q_lora_rank": 24,
                "qk_rope_head_dim": 8,
                "qk_nope_head_dim": 16,
                "v_head_dim": 16,
            },
            projection_hidden_size=32,
            **named(words),
            vision_start_token_id=ids(words, "<|media_begin|>")[0],
            vision_end_token_id=ids(words, "<|media_end|>")[0],
        )
    )
    processor = Kimi_K25Processor(
        Kimi_K25ImageProcessor(**PATCHES, max_patches=400, size={"max_height": 256, "max_width": 256}),
        words,
        Kimi_K25VideoProcessor(**PATCHES),
        chat_template=template("<|media_begin|>image<|media_content|><|media_pad|><|media_end|>", "<|video|>"),
    )
    return model, processor


@family("qwen3_5_moe")
def qwen3_5_moe() -> tuple[Any, Any]:
    words = qwen_words()
    model = Qwen3_5MoeForConditionalGeneration(
        Qwen3_5MoeConfig(
            vision_config={**EYES, "num_position_embeddings": 64},
            text_config={
                "vocab_size": len(words),
                **HYBRID,
                "moe_intermediate_size": 32,
                "shared_expert_intermediate_size": 32,
                "num_experts": 4,
                "num_experts_per_tok": 2,
            },
            **named(words),
            vision_start_token_id=words.vision_bos_token_id,
            vision_end_token_id=words.vision_eos_token_id,
        )
    )
    processor = Qwen3VLProcessor(
        Qwen2VLImageProcessor(**PAIRS, **LIMITS),
        words,
        Qwen3VLVideoProcessor(**PAIRS, **LIMITS),
        chat_template=template(PICTURE, VIDEO),
    )
    return model, processor


@family("glm_ocr")
def glm_ocr() -> tuple[Any, Any]:
    words, marks = glm_words()
    model = GlmOcrForConditionalGeneration(
        GlmOcrConfig(
            vision_config={**EYES, "image_size": 64},
            text_config={"vocab_size": len(words), **DECODER, "rope_parameters": AXES},
            **named(words),
            **marks,
        )
    )
    processor = Glm46VProcessor(
        Glm46VImageProcessor(**PAIRS, **LIMITS),
        words,
        Glm46VVideoProcessor(**PAIRS, **LIMITS),
        chat_template=template(
            "<|begin_of_image|><|image|><|end_of_image|>", "<|begin_of_video|><|video|><|end_of_video|>"
        ),
    )
    return model, processor


@family("paddleocr_vl")
def paddleocr_vl() -> tuple[Any, Any]:
    words = qwen_words()
    model = PaddleOCRVLForConditionalGeneration(
        PaddleOCRVLConfig(
            vision_config={"image_size": 64, "patch_size": 8, **TOWER},
            text_config={"vocab_size": len(words), "head_dim": 16, **DECODER, "rope_parameters": AXES},
            **named(words),
            vision_start_token_id=words.vision_bos_token_id,
            vision_end_token_id=words.vision_eos_token_id,
        )
    )
    pictures = PaddleOCRVLImageProcessor(**PATCHES, **LIMITS)
    return model, PaddleOCRVLProcessor(pictures, words, chat_template=template(PICTURE))


@family("video_llama_3")
def video_llama_3() -> tuple[Any, Any]:
    words = qwen_words()
    model = VideoLlama3ForConditionalGeneration(
        VideoLlama3Config(
            vision_config={"patch_size": 8, "initializer_range": 0.2, **TOWER},
            text_config={"model_type": "qwen2", "vocab_size": len(words), **DECODER},
            **named(words),
        )
    )
    processor = VideoLlama3Processor(
        VideoLlama3ImageProcessor(patch_size=8, **LIMITS),
        words,
        VideoLlama3VideoProcessor(patch_size=8, **LIMITS),
        chat_template=template("<|image_pad|>", "<|video_pad|>"),
    )
    return model, processor


@family("ernie4_5_vl_moe")
def ernie4_5_vl_moe() -> tuple[Any, Any]:
    words = tokenizer(
        image_token="<|IMAGE_PLACEHOLDER|>",
        image_start_token="<|IMAGE_START|>",
        image_end_token="<|IMAGE_END|>",
        video_token="<|VIDEO_PLACEHOLDER|>",
        video_start_token="<|VIDEO_START|>",
        video_end_token="<|VIDEO_END|>",
    )
    eyes = {name: value for name, value in EYES.items() if name != "out_hidden_size"}
    model = Ernie4_5_VLMoeForConditionalGeneration(
        Ernie4_5_VLMoeConfig(
            vision_config=eyes,
            text_config={
                "vocab_size": len(words),
                **DECODER,
                "moe_intermediate_size": [32, 16],
                "moe_k": 2,
                "moe_num_experts": 4,
                "moe_num_shared_experts": 1,
                "rope_parameters": {"rope_type": "default", "mrope_section": [3, 3, 2], "rope_theta": 10000.0},
            },
            **named(words),
            image_start_token_id=words.image_start_token_id,
            image_end_token_id=words.image_end_token_id,
            video_start_token_id=words.video_start_token_id,
            video_end_token_id=words.video_end_token_id,
        )
    )
    processor = Ernie4_5_VLMoeProcessor(
        Ernie4_5_VLMoeImageProcessor(**PATCHES, **LIMITS),
        words,
        Ernie4_5_VLMoeVideoProcessor(**PAIRS, **LIMITS),
        chat_template=template(
            "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>", "<|VIDEO_START|><|VIDEO_PLACEHOLDER|><|VIDEO_END|>"
        ),
    )
    return model, processor


@family("exaone4_5")
def exaone4_5() -> tuple[Any, Any]:
    words = qwen_words()
    model = Exaone4_5_ForConditionalGeneration(
        Exaone4_5_Config(
            vision_config={**EYES, "num_key_value_heads": 1, "window_size": 32, "fullatt_block_indexes": [1]},
            text_config={
                "model_type": "exaone4",
                "vocab_size": len(words),
                **DECODER,
                "sliding_window": 16,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
            **named(words),
        )
    )
    processor = Exaone4_5_Processor(
        Qwen2VLImageProcessor(**PAIRS, **LIMITS),
        words,
        Qwen2VLVideoProcessor(**PAIRS, **LIMITS),
        chat_template=template(PICTURE, VIDEO),
    )
    return model, processor


@family("hunyuan_vl")
def hunyuan_vl() -> tuple[Any, Any]:
    words = tokenizer(
        "<newline>", image_token="<image>", image_start_token="<image_start>", image_end_token="<image_end>"
    )
    model = HunYuanVLForConditionalGeneration(
        HunYuanVLConfig(
            vision_config={"patch_size": 8, "max_image_size": 128, "out_hidden_size": 64, **TOWER},
            text_config={
                "vocab_size": len(words),
                "head_dim": 16,
                **DECODER,
                "rope_parameters": {
                    "rope_type": "default",
                    "mrope_section": [2, 2, 2, 2],
                    "rope_theta": 10000.0,
                },
            },
            image_token_id=words.image_token_id,
            im_start_id=words.image_start_token_id,
            im_end_id=words.image_end_token_id,
            im_newline_id=ids(words, "<newline>")[0],
        )
    )
    processor = HunYuanVLProcessor(
        HunYuanVLImageProcessor(**PATCHES, **LIMITS),
        words,
        chat_template=template("<image_start><image><image_end>"),
    )
    return model, processor


@family("glmga")
def glmga() -> tuple[Any, Any]:
    words, marks = glm_words()
    model = Glm46VForConditionalGeneration(
        GlmgaConfig(
            vision_config={"model_type": "glm4v_vision", **EYES, "image_size": 64},
            text_config={"model_type": "glm4v_text", "vocab_size": len(words), **DECODER, "rope_parameters": AXES},
            **named(words),
            **marks,
        )
    )
    processor = Glm46VProcessor(
        GlmgaImageProcessor(**PAIRS, **LIMITS),
        words,
        GlmgaVideoProcessor(**PAIRS, **LIMITS),
        chat_template=template("<|begin_of_image|><|image|><|end_of_image|>"),
    )
    return model, processor


@family("hyperclovax_vision_v2")
def hyperclovax_vision_v2() -> tuple[Any, Any]:
    words = qwen_words()
    model = HyperCLOVAXVisionV2ForConditionalGeneration(
        HyperCLOVAXVisionV2Config(
            vision_config={
                "model_type": "qwen2_5_vl_vision",
                **EYES,
                "window_size": 32,
                "fullatt_block_indexes": [1],
            },
            text_config={"model_type": "hyperclovax", "vocab_size": len(words), **DECODER},
            **named(words),
        )
    )
    processor = HyperCLOVAXVisionV2Processor(
        Qwen2VLImageProcessor(**PAIRS, **LIMITS),
        words,
        Qwen2VLVideoProcessor(**PAIRS, **LIMITS),
        chat_template=template(PICTURE, VIDEO),
    )
    return model, processor
