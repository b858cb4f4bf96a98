"""Families that listen as well as look; pictures only, here."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    Dots3NoteConfig,
    Dots3NoteForConditionalGeneration,
    Dots3NoteProcessor,
    InklingConfig,
    InklingFeatureExtractor,
    InklingForConditionalGeneration,
    InklingImageProcessor,
    InklingProcessor,
    MuseGlimmerImageProcessor,
    MuseGlimmerVideoProcessor,
    MuseSparkConfig,
    MuseSparkFeatureExtractor,
    MuseSparkForConditionalGeneration,
    MuseSparkProcessor,
    NemotronH_Omni_Reasoning_V3,
    NemotronH_Omni_Reasoning_V3_Config,
    NemotronH_Omni_Reasoning_V3ImageProcessor,
    NemotronH_Omni_Reasoning_V3Processor,
    NemotronH_Omni_Reasoning_V3VideoProcessor,
    ParakeetFeatureExtractor,
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3OmniMoeProcessor,
    Qwen3OmniMoeThinkerConfig,
    Qwen3OmniMoeThinkerForConditionalGeneration,
    WhisperFeatureExtractor,
)

from tests.texts import DECODER, TOWER, template, tokenizer
from tests.zoo import family
from tests.zoo.native import AXES, EYES, LIMITS, PAIRS


def _omni_processor(kind: Any) -> tuple[Any, Any]:
    words = tokenizer(
        image_token="<|IMAGE|>",
        video_token="<|VIDEO|>",
        audio_token="<|AUDIO|>",
        vision_bos_token="<|vision_bos|>",
        vision_eos_token="<|vision_eos|>",
        audio_bos_token="<|audio_bos|>",
        audio_eos_token="<|audio_eos|>",
    )
    processor = kind(
        Qwen2VLImageProcessor(**PAIRS, **LIMITS),
        Qwen2VLVideoProcessor(**PAIRS, **LIMITS),
        WhisperFeatureExtractor(feature_size=16),
        words,
        chat_template=template("<|vision_bos|><|IMAGE|><|vision_eos|>", "<|vision_bos|><|VIDEO|><|vision_eos|>"),
    )
    return words, processor


EARS = {
    "num_mel_bins": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "d_model": 32,
    "output_dim": 64,
}


@family("qwen2_5_omni_thinker")
def qwen2_5_omni_thinker() -> tuple[Any, Any]:
    words, processor = _omni_processor(Qwen2_5OmniProcessor)
    model = Qwen2_5OmniThinkerForConditionalGeneration(
        Qwen2_5OmniThinkerConfig(
            vision_config={**EYES, "window_size": 32, "fullatt_block_indexes": [1]},
            audio_config=EARS,
            text_config={"vocab_size": len(words), **DECODER, "rope_parameters": AXES},
            image_token_index=words.image_token_id,
            video_token_index=words.video_token_id,
            audio_token_index=words.audio_token_id,
            audio_start_token_id=words.audio_bos_token_id,
            vision_start_token_id=words.vision_bos_token_id,
            audio_end_token_id=words.audio_eos_token_id,
            initializer_range=0.2,
        )
    )
    return model, processor


@family("qwen3_omni_moe_thinker")
def qwen3_omni_moe_thinker() -> tuple[Any, Any]:
    words, processor = _omni_processor(Qwen3OmniMoeProcessor)
    model = Qwen3OmniMoeThinkerForConditionalGeneration(
        Qwen3OmniMoeThinkerConfig(
            vision_config={**EYES, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
            audio_config={**EARS, "downsample_hidden_size": 16},
            text_config={
                "vocab_size": len(words),
                **DECODER,
                "moe_intermediate_size": 32,
                "num_experts": 4,
                "num_experts_per_tok": 2,
                "rope_parameters": {**AXES, "mrope_interleaved": True},
            },
            image_token_id=words.image_token_id,
            video_token_id=words.video_token_id,
            audio_token_id=words.audio_token_id,
            audio_start_token_id=words.audio_bos_token_id,
            vision_start_token_id=words.vision_bos_token_id,
            initializer_range=0.2,
        )
    )
    return model, processor


@family("nemotron_h_omni")
def nemotron_h_omni() -> tuple[Any, Any]:
    words = tokenizer(
        "<so_start>",
        "<so_end>",
        image_token="<image>",
        video_token="<video>",
        audio_token="<so_embedding>",
        image_start_token="<img>",
        image_end_token="</img>",
    )
    model = NemotronH_Omni_Reasoning_V3(
        NemotronH_Omni_Reasoning_V3_Config(
            vision_config={
                "model_type": "radio",
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "mlp_ratio": 2.0,
                "patch_size": 8,
                "image_size": 64,
                "max_img_size": 256,
                "num_registers": 2,
                "video_temporal_patch_size": 2,
                "initializer_range": 0.2,
            },
            text_config={
                "model_type": "nemotron_h",
                "vocab_size": len(words),
                "head_dim": 16,
                **{name: value for name, value in DECODER.items() if name != "num_hidden_layers"},
                "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
                "ssm_state_size": 8,
                "mamba_num_heads": 4,
                "mamba_head_dim": 16,
                "n_groups": 2,
                "chunk_size": 16,
                "time_step_min": 1e-6,  # a scan holds its time steps above this, a single step does not (5.23)
                "n_routed_experts": 4,
                "moe_intermediate_size": 32,
                "moe_shared_expert_intermediate_size": 32,
            },
            projector_hidden_size=64,
            vision_hidden_size=32,
            image_token_id=words.image_token_id,
            video_token_id=words.video_token_id,
            audio_token_id=words.audio_token_id,
        )
    )
    with torch.no_grad():
        model.multi_modal_projector.linear_2.weight.mul_(0.1)  # pictures no louder than words
    processor = NemotronH_Omni_Reasoning_V3Processor(
        NemotronH_Omni_Reasoning_V3ImageProcessor(
            patch_size=8, min_num_patches=16, max_num_patches=400, max_model_len=400
        ),
        NemotronH_Omni_Reasoning_V3VideoProcessor(patch_size=8),
        words,
        ParakeetFeatureExtractor(feature_size=16),
        chat_template=template("<image>", "<video>"),
    )
    return model, processor


@family("dots3_note")
def dots3_note() -> tuple[Any, Any]:
    words = tokenizer(
        "<|img|>",
        "<|endofimg|>",
        image_token="<|imgpad|>",
        video_token="<|video_pad|>",
        audio_token="<|audio_comp_pad|>",
    )
    latent = {"q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "v_head_dim": 16}
    model = Dots3NoteForConditionalGeneration(
        Dots3NoteConfig(
            vision_config={
                "patch_size": 8,
                "adapter_in_dim": 32,
                "adapter_out_dim": 64,
                "moe_intermediate_size": 32,
                "pyramid_num_routed": [-1, 4],
                "initializer_range": 0.2,
                **TOWER,
            },
            audio_config={
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "feature_size": 16,
                "downsample_hidden_size": 16,
                "adapter_input_size": 32,
                "adapter_out_dim": 64,
            },
            text_config={
                "vocab_size": len(words),
                **DECODER,
                "num_key_value_heads": 4,
                **latent,
                "qk_rope_head_dim": 8,
                "head_dim": 24,
                "moe_intermediate_size": 32,
                "shared_experts_intermediate_size": 32,
                "n_routed_experts": 4,
                "num_experts_per_tok": 2,
                "index_topk": 16,
                "index_head_dim": 16,
                "index_n_heads": 16,
                "sliding_window": 16,
                "layer_types": ["indexed_attention", "sliding_attention", "indexed_attention"],
                **{f"swa_{name}": value for name, value in latent.items()},
                "swa_num_attention_heads": 4,
                "swa_num_key_value_heads": 4,
                "swa_head_dim": 24,
            },
            image_token_id=words.image_token_id,
            video_token_id=words.video_token_id,
            audio_token_id=words.audio_token_id,
        )
    )
    processor = Dots3NoteProcessor(
        Qwen2VLImageProcessor(patch_size=8, merge_size=2, temporal_patch_size=1, **LIMITS),
        words,
        Qwen2VLVideoProcessor(patch_size=8, merge_size=2, temporal_patch_size=1, **LIMITS),
        WhisperFeatureExtractor(feature_size=16),
        chat_template=template("<|img|><|imgpad|><|endofimg|>"),
    )
    return model, processor


@family("inkling_mm_model")
def inkling_mm_model() -> tuple[Any, Any]:
    words = tokenizer(
        "<|content_image|>", "<|content_audio_input|>", image_token="<|unused_200054|>", audio_token="<|unused_200053|>"
    )
    model = InklingForConditionalGeneration(
        InklingConfig(
            vision_config={
                "patch_size": 40,
                "hidden_size": 32,
                "num_hidden_layers": 6,
                "num_attention_heads": 2,
                "initializer_range": 0.2,
            },
            audio_config={"n_mel_bins": 16, "mel_vocab_size": 16},
            text_config={
                "vocab_size": len(words),
                "unpadded_vocab_size": len(words),
                "head_dim": 16,
                **DECODER,
                "swa_head_dim": 16,
                "swa_num_attention_heads": 4,
                "swa_num_key_value_heads": 2,
                "sliding_window_size": 16,
                "d_rel": 4,
                "rel_extent": 32,
                "layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding"],
                "mlp_layer_types": ["dense", "sparse", "sparse"],
                "moe_intermediate_size": 32,
                "n_routed_experts": 4,
                "num_experts_per_tok": 2,
                "n_shared_experts": 1,
                "logits_mup_width_multiplier": 1.0,
            },
            image_token_id=words.image_token_id,
            audio_token_id=words.audio_token_id,
        )
    )
    processor = InklingProcessor(
        InklingFeatureExtractor(),
        InklingImageProcessor(rescale_image_frac=0.5),
        words,
        chat_template=template("<|content_image|><|unused_200054|>"),
    )
    return model, processor


@family("muse_spark")
def muse_spark() -> tuple[Any, Any]:
    words = tokenizer(
        "<|image_start|>",
        "<|image_end|>",
        "<|vid_frame_separator|>",
        "<|vid_start|>",
        "<|vid_end|>",
        "<|soft_audio_start|>",
        "<|soft_audio_end|>",
        image_token="<|patch|>",
        video_token="<|video|>",
        audio_token="<|audio|>",
    )
    model = MuseSparkForConditionalGeneration(
        MuseSparkConfig(
            vision_config={
                "patch_size": 8,
                "pos_emb_height": 8,
                "pos_emb_width": 8,
                "max_position_embeddings": 64,
                "layer_types": ["window_attention", "full_attention"],
                **TOWER,
            },
            audio_config={"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "out_hidden_size": 64},
            text_config={
                "vocab_size": len(words),
                "head_dim": 16,
                **DECODER,
                "sliding_window": 16,
                "layer_types": ["full_attention", "sliding_attention", "full_attention"],
                "moe_intermediate_size": 32,
                "moe_hidden_size": 32,
                "num_local_experts": 4,
                "num_experts_per_tok": 2,
            },
            image_token_id=words.image_token_id,
            video_token_id=words.video_token_id,
            audio_token_id=words.audio_token_id,
            out_hidden_size=128,
            projector_hidden_size=64,
        )
    )
    processor = MuseSparkProcessor(
        MuseGlimmerImageProcessor(**PAIRS, max_image_tokens=100),
        MuseGlimmerVideoProcessor(**PAIRS),
        words,
        MuseSparkFeatureExtractor(),
        chat_template=template("<|patch|>", "<|video|>"),
    )
    return model, processor
