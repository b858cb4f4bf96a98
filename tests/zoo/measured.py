"""Families whose processors cut a picture into crops or fit it to one square."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AriaConfig,
    AriaForConditionalGeneration,
    AriaImageProcessor,
    AriaProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    DeepseekVLConfig,
    DeepseekVLForConditionalGeneration,
    DeepseekVLHybridConfig,
    DeepseekVLHybridForConditionalGeneration,
    DeepseekVLHybridImageProcessor,
    DeepseekVLHybridProcessor,
    DeepseekVLImageProcessor,
    DeepseekVLProcessor,
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    GotOcr2ForConditionalGeneration,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusImageProcessor,
    JanusProcessor,
    Lfm2VlConfig,
    Lfm2VlForConditionalGeneration,
    Lfm2VlImageProcessor,
    Lfm2VlProcessor,
    LlamaConfig,
    LlavaProcessor,
    Molmo2Config,
    Molmo2ForConditionalGeneration,
    Molmo2ImageProcessor,
    Molmo2Processor,
    Molmo2VideoProcessor,
    Ovis2Config,
    Ovis2ForConditionalGeneration,
    Ovis2ImageProcessor,
    Ovis2Processor,
    PerceptionLMConfig,
    PerceptionLMForConditionalGeneration,
    PerceptionLMImageProcessor,
    PerceptionLMProcessor,
    PerceptionLMVideoProcessor,
    PPChart2TableConfig,
    PPChart2TableImageProcessor,
    PPChart2TableProcessor,
    ResNetConfig,
)

from tests.texts import DECODER, TOWER, ids, template, tokenizer
from tests.zoo import family


@family("ovis2")
def ovis2() -> tuple[Any, Any]:
    words = tokenizer("<image>", "<IMG_ATOM>", "<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
    model = Ovis2ForConditionalGeneration(
        Ovis2Config(
            vision_config={
                "image_size": 64,
                "patch_size": 8,
                "hidden_stride": 2,
                "vocab_size": 80,
                "initializer_range": 0.2,
                **TOWER,
            },
            text_config={"model_type": "qwen2", "vocab_size": len(words), **DECODER},
            image_token_id=ids(words, "<IMG_ATOM>")[0],
            visual_indicator_token_ids=ids(words, "<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"),
            vocab_size=len(words),
            hidden_size=64,
        )
    )
    pictures = Ovis2ImageProcessor(size={"height": 64, "width": 64}, crop_to_patches=True, max_patches=6)
    return model, Ovis2Processor(pictures, words, chat_template=template(), image_seq_length=16)


@family("lfm2_vl")
def lfm2_vl() -> tuple[Any, Any]:
    rows = [f"<|img_row_{row}_col_{col}|>" for row in range(1, 7) for col in range(1, 7)]
    words = tokenizer(
        *rows,
        image_token="<image>",
        image_start_token="<|image_start|>",
        image_end_token="<|image_end|>",
        image_thumbnail_token="<|img_thumbnail|>",
    )
    model = Lfm2VlForConditionalGeneration(
        Lfm2VlConfig(
            vision_config={"model_type": "siglip2_vision_model", "patch_size": 8, "num_patches": 64, **TOWER},
            text_config={
                "model_type": "lfm2",
                "vocab_size": len(words),
                **DECODER,
                "layer_types": ["conv", "full_attention", "conv"],
                "block_multiple_of": 16,
            },
            image_token_id=words.image_token_id,
            projector_hidden_size=64,
        )
    )
    pictures = Lfm2VlImageProcessor(
        encoder_patch_size=8, tile_size=64, max_tiles=6, min_image_tokens=4, max_image_tokens=48
    )
    return model, Lfm2VlProcessor(pictures, words, chat_template=template())


@family("molmo2")
def molmo2() -> tuple[Any, Any]:
    begins, ends = ("<im_start>", "<low_res_im_start>", "<frame_start>"), ("<im_end>", "<frame_end>")
    words = tokenizer(
        "<im_patch>", "<im_col>", *begins, *ends, "<im_low>", image_token="<|image|>", video_token="<|video|>"
    )
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.2}
    model = Molmo2ForConditionalGeneration(
        Molmo2Config(
            vision_config={**TOWER, "num_hidden_layers": 3, "image_size": [48, 48], "patch_size": 8, **heads},
            adapter_config={
                "vision_feature_layer": [2, 1],
                "hidden_size": 32,
                "intermediate_size": 96,
                "text_hidden_size": 64,
                **heads,
            },
            text_config={"vocab_size": len(words), "additional_vocab_size": 16, "head_dim": 16, **DECODER},
            image_patch_id=ids(words, "<im_patch>")[0],
            image_start_token_id=ids(words, "<im_start>")[0],
            low_res_image_start_token_id=ids(words, "<low_res_im_start>")[0],
            image_end_token_id=ids(words, "<im_end>")[0],
            frame_start_token_id=ids(words, "<frame_start>")[0],
            frame_end_token_id=ids(words, "<frame_end>")[0],
            initializer_range=0.2,
        )
    )
    sizes = {"patch_size": 8, "size": {"height": 48, "width": 48}}
    processor = Molmo2Processor(
        Molmo2ImageProcessor(max_crops=6, overlap_margins=[1, 1], **sizes),
        Molmo2VideoProcessor(**sizes),
        words,
        chat_template=template("<|image|>", "<|video|>"),
    )
    return model, processor


@family("deepseek_vl")
def deepseek_vl() -> tuple[Any, Any]:
    words = tokenizer(image_token="<image_placeholder>")
    model = DeepseekVLForConditionalGeneration(
        DeepseekVLConfig(
            vision_config={"model_type": "siglip_vision_model", "image_size": 64, "patch_size": 8, **TOWER},
            text_config=LlamaConfig(vocab_size=len(words), **DECODER),
            image_token_id=words.image_token_id,
        )
    )
    pictures = DeepseekVLImageProcessor(size={"height": 64, "width": 64}, min_size=4)
    processor = DeepseekVLProcessor(pictures, words, chat_template=template("<image_placeholder>"), num_image_tokens=64)
    return model, processor


@family("deepseek_vl_hybrid")
def deepseek_vl_hybrid() -> tuple[Any, Any]:
    words = tokenizer(image_token="<image_placeholder>")
    model = DeepseekVLHybridForConditionalGeneration(
        DeepseekVLHybridConfig(
            vision_config={"model_type": "siglip_vision_model", "image_size": 64, "patch_size": 8, **TOWER},
            high_res_vision_config={
                "model_type": "sam_vision_model",
                "image_size": 128,
                "patch_size": 8,
                "output_channels": 32,
                "mlp_dim": 48,
                "window_size": 4,
                "global_attn_indexes": [1],
                "initializer_range": 0.2,
                **TOWER,
            },
            text_config=LlamaConfig(vocab_size=len(words), **DECODER),
            image_token_id=words.image_token_id,
        )
    )
    pictures = DeepseekVLHybridImageProcessor(
        size={"height": 64, "width": 64}, high_res_size={"height": 128, "width": 128}, min_size=4
    )
    processor = DeepseekVLHybridProcessor(
        pictures, words, chat_template=template("<image_placeholder>"), num_image_tokens=64
    )
    return model, processor


@family("janus")
def janus() -> tuple[Any, Any]:
    words = tokenizer(image_token="<image_placeholder>", boi_token="<begin_of_image>", eoi_token="<end_of_image>")
    model = JanusForConditionalGeneration(
        JanusConfig(
            vision_config={
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "mlp_ratio": 2,
                "image_size": 64,
                "patch_size": 8,
                "projection_dim": 64,
                "num_image_tokens": 64,
                "initializer_range": 0.2,
            },
            vq_config={
                "embed_dim": 8,
                "num_embeddings": 32,
                "latent_channels": 32,
                "base_channels": 32,
                "channel_multiplier": [1, 1],
                "num_res_blocks": 1,
                "projection_dim": 64,
                "image_token_embed_dim": 64,
            },
            text_config=LlamaConfig(vocab_size=len(words), **DECODER),
            image_token_id=words.image_token_id,
        )
    )
    pictures = JanusImageProcessor(size={"height": 64, "width": 64}, min_size=4)
    return model, JanusProcessor(pictures, words, chat_template=template("<image_placeholder>"), num_image_tokens=64)


@family("aria")
def aria() -> tuple[Any, Any]:
    words = tokenizer(image_token="<|img|>")
    model = AriaForConditionalGeneration(
        AriaConfig(
            vision_config={
                "model_type": "idefics3_vision",
                "image_size": 490,
                "patch_size": 70,
                "initializer_range": 0.2,
                **TOWER,
            },
            text_config={"vocab_size": len(words), "moe_num_experts": 4, **DECODER},
            projector_patch_to_query_dict={49: 16, 196: 32},
            image_token_index=words.image_token_id,
            initializer_range=0.2,
        )
    )
    torch.nn.init.normal_(model.model.multi_modal_projector.query, std=0.2)
    pictures = AriaImageProcessor(split_resolutions=[[490, 980], [980, 490], [980, 980], [490, 1470], [1470, 490]])
    processor = AriaProcessor(pictures, words, chat_template=template("<|img|>"), size_conversion={490: 16, 980: 32})
    processor.images_kwargs = {"max_image_size": 490, "split_image": True}
    return model, processor


@family("perception_lm")
def perception_lm() -> tuple[Any, Any]:
    words = tokenizer(image_token="<|image|>", video_token="<|video|>")
    # Its own tower is timm's, which the tests do without.
    tower = CLIPVisionConfig(image_size=64, patch_size=8, initializer_range=0.2, **TOWER)
    tower.model_args = {"embed_dim": 32}
    model = PerceptionLMForConditionalGeneration(
        PerceptionLMConfig(
            vision_config=tower,
            text_config=LlamaConfig(vocab_size=len(words), **DECODER),
            image_token_id=words.image_token_id,
            video_token_id=words.video_token_id,
            projector_pooling_ratio=2,
        )
    )
    processor = PerceptionLMProcessor(
        PerceptionLMVideoProcessor(size={"height": 64, "width": 64}),
        PerceptionLMImageProcessor(tile_size=64, max_num_tiles=6),
        words,
        patch_size=8,
        chat_template=template("<|image|>", "<|video|>"),
        pooling_ratio=2,
    )
    return model, processor


@family("fast_vlm")
def fast_vlm() -> tuple[Any, Any]:
    words = tokenizer(image_token="<image>")
    # Its own tower is timm's FastViT, which the tests do without: like it, this one ends in a map, not a sequence.
    tower = ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic")
    tower.hidden_size = 32
    model = FastVlmForConditionalGeneration(
        FastVlmConfig(
            vision_config=tower,
            text_config={"model_type": "qwen2", "vocab_size": len(words), **DECODER},
            image_token_index=words.image_token_id,
            image_seq_length=64,
        )
    )
    pictures = CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    processor = LlavaProcessor(
        pictures,
        words,
        patch_size=8,
        vision_feature_select_strategy="full",
        chat_template=template(),
        num_additional_image_tokens=0,
    )
    return model, processor


@family("pp_chart2table")
def pp_chart2table() -> tuple[Any, Any]:
    words = tokenizer("<img>", "</img>", image_token="<imgpad>")
    model = GotOcr2ForConditionalGeneration(
        PPChart2TableConfig(
            vision_config={
                "image_size": 128,
                "patch_size": 8,
                "output_channels": 16,
                "mlp_dim": 48,
                "window_size": 7,
                "global_attn_indexes": [1],
                "initializer_range": 0.2,
                **TOWER,
            },
            text_config={"model_type": "qwen2", "vocab_size": len(words), **DECODER},
            image_token_index=words.image_token_id,
            image_seq_length=16,
        )
    )
    pictures = PPChart2TableImageProcessor(size={"height": 128, "width": 128})
    # This processor writes no image tokens: the chat template does.
    return model, PPChart2TableProcessor(pictures, words, chat_template=template(f"<img>{'<imgpad>' * 16}</img>"))
