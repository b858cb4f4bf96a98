"""The newest families that take a picture at its own size."""

from __future__ import annotations

from typing import Any

from transformers import (
    CohereCompassConfig,
    CohereCompassForConditionalGeneration,
    CohereCompassImageProcessor,
    CohereCompassProcessor,
    CohereCompassVideoProcessor,
    Cosmos3EdgeConfig,
    Cosmos3EdgeForConditionalGeneration,
    Cosmos3EdgeImageProcessor,
    Cosmos3EdgeProcessor,
    Cosmos3EdgeVideoProcessor,
    Cosmos3OmniConfig,
    Cosmos3OmniForConditionalGeneration,
    Glm5NextConfig,
    Glm5NextForConditionalGeneration,
    Glm5NextImageProcessor,
    Glm5NextProcessor,
    Glm5NextVideoProcessor,
    Inkling2Config,
    Inkling2ForConditionalGeneration,
    Inkling2ImageProcessor,
    Inkling2Processor,
    Lfm3VlConfig,
    Lfm3VlForConditionalGeneration,
    Lfm3VlProcessor,
    MiniMaxM3SparseForConditionalGeneration,
    MiniMaxM3VLConfig,
    MiniMaxM3VLImageProcessor,
    MiniMaxM3VLProcessor,
    MiniMaxM3VLVideoProcessor,
    MuseGlimmerConfig,
    MuseGlimmerForConditionalGeneration,
    MuseGlimmerImageProcessor,
    MuseGlimmerProcessor,
    MuseGlimmerVideoProcessor,
    Qwen2VLImageProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    Qwen4ExpConfig,
    Qwen4ExpForConditionalGeneration,
)

from tests.texts import DECODER, TOWER, ids, template, tokenizer
from tests.zoo import family
from tests.zoo.native import AXES, EYES, HYBRID, LIMITS, PAIRS, PATCHES, PICTURE, VIDEO, glm_words, named, qwen_words

MOE = {"moe_intermediate_size": 32, "num_experts_per_tok": 2}


@family("minimax_m3_vl")
def minimax_m3_vl() -> tuple[Any, Any]:
    picture, video = MiniMaxM3VLProcessor.IMAGE_TOKEN, MiniMaxM3VLProcessor.VIDEO_TOKEN
    words = tokenizer(picture, video, MiniMaxM3VLProcessor.VISION_START_TOKEN, MiniMaxM3VLProcessor.VISION_END_TOKEN)
    model = MiniMaxM3SparseForConditionalGeneration(
        MiniMaxM3VLConfig(
            vision_config={"image_size": 256, "patch_size": 8, "initializer_range": 0.2, **TOWER},
            text_config={
                "vocab_size": len(words),
                "head_dim": 16,
                **DECODER,
                "dense_intermediate_size": 96,
                "shared_intermediate_size": 32,
                "num_local_experts": 4,
                "num_experts_per_tok": 2,
                "rotary_dim": 8,
                "mlp_layer_types": ["dense", "sparse", "sparse"],
                "layer_types": ["full_attention", "minimax_m3_sparse", "minimax_m3_sparse"],
                "index_n_heads": 2,
                "index_head_dim": 16,
                "index_block_size": 8,
                "index_topk_blocks": 3,
            },
            image_token_index=ids(words, picture)[0],
            video_token_index=ids(words, video)[0],
            projector_hidden_size=64,
        )
    )
    processor = MiniMaxM3VLProcessor(
        MiniMaxM3VLImageProcessor(**PAIRS, **LIMITS),
        words,
        MiniMaxM3VLVideoProcessor(**PAIRS, **LIMITS),
        chat_template=template(picture, video),
    )
    return model, processor


@family("cohere_compass")
def cohere_compass() -> tuple[Any, Any]:
    words = tokenizer(
        image_token="<|IMAGE_PAD|>",
        video_token="<|VIDEO_PAD|>",
        vision_start_token="<|VISION_START|>",
        vision_end_token="<|VISION_END|>",
    )
    model = CohereCompassForConditionalGeneration(
        CohereCompassConfig(
            vision_config={**EYES, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
            text_config={
                "vocab_size": len(words),
                **DECODER,
                "sliding_window": 16,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
                "rope_parameters": {
                    "sliding_attention": {**AXES, "mrope_interleaved": True},
                    "full_attention": {**AXES, "mrope_interleaved": True},
                },
            },
            **named(words),
            vision_start_token_id=words.vision_start_token_id,
            vision_end_token_id=words.vision_end_token_id,
        )
    )
    processor = CohereCompassProcessor(
        CohereCompassImageProcessor(**PAIRS, **LIMITS),
        words,
        CohereCompassVideoProcessor(**PAIRS, **LIMITS),
        chat_template=template("<|VISION_START|><|IMAGE_PAD|><|VISION_END|>"),
    )
    return model, processor


@family("cosmos3_edge")
def cosmos3_edge() -> tuple[Any, Any]:
    words = qwen_words()
    model = Cosmos3EdgeForConditionalGeneration(
        Cosmos3EdgeConfig(
            vision_config={"patch_size": 8, "num_patches": 64, **TOWER},
            text_config={"vocab_size": len(words), "head_dim": 16, **DECODER, "rope_parameters": AXES},
            projector_hidden_size=64,
            **named(words),
            vision_start_token_id=words.vision_bos_token_id,
            vision_end_token_id=words.vision_eos_token_id,
        )
    )
    processor = Cosmos3EdgeProcessor(
        Cosmos3EdgeImageProcessor(**PATCHES, **LIMITS),
        words,
        Cosmos3EdgeVideoProcessor(**PATCHES, **LIMITS),
        chat_template=template(PICTURE, VIDEO),
    )
    processor.return_mm_token_type_ids = True  # generate refuses a picture without them
    return model, processor


@family("cosmos3_omni")
def cosmos3_omni() -> tuple[Any, Any]:
    words = qwen_words()
    model = Cosmos3OmniForConditionalGeneration(
        Cosmos3OmniConfig(
            vision_config={**EYES, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
            text_config={
                "model_type": "qwen3_vl_text",
                "vocab_size": len(words),
                "head_dim": 16,
                **DECODER,
                "rope_parameters": {**AXES, "mrope_interleaved": True},
            },
            **named(words),
            vision_start_token_id=words.vision_bos_token_id,
            vision_end_token_id=words.vision_eos_token_id,
        )
    )
    return model, _qwen3_processor(words)


@family("qwen4_exp")
def qwen4_exp() -> tuple[Any, Any]:
    words = qwen_words()
    model = Qwen4ExpForConditionalGeneration(
        Qwen4ExpConfig(
            vision_config={**EYES, "num_position_embeddings": 64},
            text_config={
                "vocab_size": len(words),
                **HYBRID,
                **MOE,
                "shared_expert_intermediate_size": 32,
                "num_experts": 4,
                "hc_count": 2,
                "hc_lowrank": 8,
                "ple_layer_ids": [2],
                "ple_embed_dim": 64,
                "ngram_vocab_size_base": 50,
                "heads_per_ngram": 2,
                "make_ngram_vocab_size_divisible_by": 4,
                "split_ngram_parts": 1,
                "indexer_n_heads": 2,
                "indexer_kv_heads": 1,
                "indexer_head_dim": 16,
                "indexer_budget": 16,
                "indexer_compress_ratio": 2,
            },
            **named(words),
            vision_start_token_id=words.vision_bos_token_id,
            vision_end_token_id=words.vision_eos_token_id,
        )
    )
    return model, _qwen3_processor(words)


@family("glm5_next")
def glm5_next() -> tuple[Any, Any]:
    words, marks = glm_words()
    model = Glm5NextForConditionalGeneration(
        Glm5NextConfig(
            vision_config={**EYES, "image_size": 64, "projection_intermediate_size": 48},
            text_config={
                "vocab_size": len(words),
                **DECODER,
                "num_hidden_layers": 4,
                "num_key_value_heads": 4,
                **MOE,
                "n_routed_experts": 4,
                "kv_lora_rank": 16,
                "q_lora_rank": 24,
                "v_head_dim": 16,
                "qk_nope_head_dim": 16,
                "index_topk": 16,
                "index_head_dim": 16,
                "index_n_heads": 16,
                "index_kpool": 4,
                "linear_head_dim": 16,
                "linear_num_heads": 2,
                "hc_mult": 2,
                "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
                "layer_types": ["linear_attention", "indexed_attention", "linear_attention", "indexed_attention"],
            },
            **named(words),
            **marks,
        )
    )
    processor = Glm5NextProcessor(
        Glm5NextImageProcessor(**PAIRS, min_image_tokens=4, max_image_tokens=100),
        words,
        Glm5NextVideoProcessor(**PAIRS),
        chat_template=template("<|begin_of_image|><|image|><|end_of_image|>"),
    )
    return model, processor


@family("inkling2")
def inkling2() -> tuple[Any, Any]:
    words = tokenizer(image_token="<|unused_200054|>")
    model = Inkling2ForConditionalGeneration(
        Inkling2Config(
            vision_config={
                "patch_size": 40,
                "posemb_grid_size": 8,
                "projection_hidden_dim": 48,
                "text_hidden_size": 64,
                "initializer_range": 0.2,
                **TOWER,
            },
            text_config={
                "vocab_size": len(words),
                "unpadded_vocab_size": len(words),
                "head_dim": 16,
                "swa_head_dim": 16,
                "swa_num_attention_heads": 4,
                "swa_num_key_value_heads": 2,
                "sliding_window_size": 16,
                "d_rel": 4,
                "rel_extent": 32,
                "layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding"],
                "n_routed_experts": 4,
                "n_layers_per_attn_res_block": 2,
                **MOE,
                **{name: value for name, value in DECODER.items() if name != "intermediate_size"},
            },
            image_token_id=words.image_token_id,
        )
    )
    pictures = Inkling2ImageProcessor(size={"height": 80, "width": 80})
    return model, Inkling2Processor(pictures, words, chat_template=template("<|unused_200054|>"))


@family("lfm3_vl")
def lfm3_vl() -> tuple[Any, Any]:
    words = qwen_words()
    model = Lfm3VlForConditionalGeneration(
        Lfm3VlConfig(
            vision_config={
                "patch_size": 8,
                "num_key_value_heads": 1,
                "layer_types": ["conv", "full_attention"],
                "initializer_range": 0.2,
                **TOWER,
            },
            text_config={
                "model_type": "lfm3",
                "vocab_size": len(words),
                **DECODER,
                "layer_types": ["conv", "full_attention", "conv"],
            },
            projector_hidden_size=64,
            **named(words),
            vision_start_token_id=words.vision_bos_token_id,
            vision_end_token_id=words.vision_eos_token_id,
        )
    )
    processor = Lfm3VlProcessor(
        Qwen2VLImageProcessor(**PAIRS, **LIMITS),
        words,
        Qwen3VLVideoProcessor(**PAIRS, **LIMITS),
        chat_template=template(PICTURE, VIDEO),
    )
    return model, processor


@family("muse_glimmer")
def muse_glimmer() -> tuple[Any, Any]:
    words = tokenizer(
        "<|image_start|>",
        "<|image_end|>",
        "<|vid_frame_separator|>",
        "<|vid_start|>",
        "<|vid_end|>",
        image_token="<|patch|>",
        video_token="<|video|>",
    )
    model = MuseGlimmerForConditionalGeneration(
        MuseGlimmerConfig(
            vision_config={
                "patch_size": 8,
                "pos_emb_height": 8,
                "pos_emb_width": 8,
                "max_position_embeddings": 64,
                "layer_types": ["window_attention", "full_attention"],
                **TOWER,
            },
            text_config={
                "vocab_size": len(words),
                "head_dim": 16,
                **DECODER,
                "sliding_window": 16,
                "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            },
            **named(words),
            out_hidden_size=128,
            projector_hidden_size=64,
        )
    )
    processor = MuseGlimmerProcessor(
        MuseGlimmerImageProcessor(**PAIRS, max_image_tokens=100),
        MuseGlimmerVideoProcessor(**PAIRS),
        words,
        chat_template=template("<|patch|>", "<|video|>"),
    )
    return model, processor


def _qwen3_processor(words: Any) -> Any:
    return Qwen3VLProcessor(
        Qwen2VLImageProcessor(**PAIRS, **LIMITS),
        words,
        Qwen3VLVideoProcessor(**PAIRS, **LIMITS),
        chat_template=template(PICTURE, VIDEO),
    )
