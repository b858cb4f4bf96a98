"""Families that cut a picture into tiles of one size, a thumbnail beside them, and merge patches by shuffling."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    AyaVisionProcessor,
    Cohere2Config,
    Cohere2VisionConfig,
    Cohere2VisionForConditionalGeneration,
    Cohere2VisionImageProcessor,
    Cohere2VisionProcessor,
    GotOcr2Config,
    GotOcr2ForConditionalGeneration,
    GotOcr2ImageProcessor,
    GotOcr2Processor,
    GraniteDoclingConfig,
    GraniteDoclingForConditionalGeneration,
    GraniteDoclingImageProcessor,
    GraniteDoclingProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    Llama4Config,
    Llama4ForConditionalGeneration,
    Llama4ImageProcessor,
    Llama4Processor,
    LlamaConfig,
    Qwen2Config,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)
from transformers.models.smolvlm import processing_smolvlm

from tests.texts import DECODER, TOWER, template, tokenizer
from tests.zoo import family

SQUARE = {"height": 64, "width": 64}

#: 8 by 8 patches of 8 pixels a tile.
TILE = {"image_size": 64, "patch_size": 8, "initializer_range": 0.2, **TOWER}

#: Up to 4 by 4 tiles.
SPLIT = {"size": {"longest_edge": 256}, "max_image_size": {"longest_edge": 64}}

_ROWS = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]


def _idefics_words(**named: str) -> Any:
    return tokenizer(
        "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *_ROWS, image_token="<image>", **named
    )


@family("idefics3")
def idefics3() -> tuple[Any, Any]:
    words = _idefics_words()
    model = Idefics3ForConditionalGeneration(
        Idefics3Config(
            vision_config=TILE,
            text_config=LlamaConfig(vocab_size=len(words), **DECODER),
            image_token_id=words.image_token_id,
            scale_factor=2,
        )
    )
    processor = Idefics3Processor(Idefics3ImageProcessor(**SPLIT), words, image_seq_len=16, chat_template=template())
    return model, processor


@family("smolvlm")
def smolvlm() -> tuple[Any, Any]:
    words = _idefics_words(video_token="<video>")
    model = SmolVLMForConditionalGeneration(
        SmolVLMConfig(
            vision_config=TILE,
            text_config=LlamaConfig(vocab_size=len(words), **DECODER),
            image_token_id=words.image_token_id,
            scale_factor=4,
        )
    )
    if processing_smolvlm.num2words is None:
        processing_smolvlm.num2words = str  # a package that only spells how many frames a video has
    processor = SmolVLMProcessor(
        SmolVLMImageProcessor(**SPLIT),
        words,
        SmolVLMVideoProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 64}),
        image_seq_len=4,
        chat_template=template("<image>", "<video>"),
    )
    return model, processor


@family("internvl")
def internvl() -> tuple[Any, Any]:
    words = tokenizer(
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    model = InternVLForConditionalGeneration(
        InternVLConfig(
            vision_config=TILE,
            text_config=Qwen2Config(vocab_size=len(words), **DECODER),
            image_token_id=words.context_image_token_id,
            image_seq_length=16,
            tie_word_embeddings=False,
        )
    )
    torch.nn.init.normal_(model.model.vision_tower.embeddings.position_embeddings, std=0.2)  # zeros when fresh
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size=SQUARE, crop_to_patches=True, min_patches=1, max_patches=12),
        words,
        InternVLVideoProcessor(size=SQUARE),
        image_seq_length=16,
        chat_template=template("<IMG_CONTEXT>\\n", "<video>\\n"),
    )
    return model, processor


def _granite_docling(*, fine: bool) -> tuple[Any, Any]:
    words = _idefics_words()
    model = GraniteDoclingForConditionalGeneration(
        GraniteDoclingConfig(
            vision_config={
                "out_hidden_size": 64,
                "scale_factor": 4,
                "deepstack_visual_indexes": [0, 1],
                **TILE,
            },
            text_config={
                "vocab_size": len(words),
                "embedding_multiplier": 1.0,
                "attention_multiplier": 0.25,
                **DECODER,
            },
            image_token_id=words.image_token_id,
            pad_token_id=0,
            initializer_range=0.2,
            tie_word_embeddings=False,
        )
    )
    processor = GraniteDoclingProcessor(
        GraniteDoclingImageProcessor(size=SQUARE, max_patches=12, fine_route=fine),
        words,
        image_seq_len=4,
        chat_template=template(),
    )
    return model, processor


@family("granite_docling")
def granite_docling() -> tuple[Any, Any]:
    return _granite_docling(fine=False)


@family("granite_docling fine")
def granite_docling_fine() -> tuple[Any, Any]:
    return _granite_docling(fine=True)


def _cohere2(words: Any) -> Cohere2Config:
    """Windows of 16 tokens around one layer that sees everything."""
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    return Cohere2Config(vocab_size=len(words), sliding_window=16, layer_types=kinds, logit_scale=0.25, **DECODER)


def _siglip() -> SiglipVisionConfig:
    return SiglipVisionConfig(image_size=64, patch_size=8, vision_use_head=False, **TOWER)


@family("aya_vision")
def aya_vision() -> tuple[Any, Any]:
    marks = ["<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "TILE", "TILE_GLOBAL"]
    words = tokenizer(*marks, *(f"TILE_{number}" for number in range(1, 13)), image_token="<image>")
    model = AyaVisionForConditionalGeneration(
        AyaVisionConfig(
            vision_config=_siglip(),
            text_config=_cohere2(words),
            downsample_factor=2,
            image_token_index=words.convert_tokens_to_ids("<|IMG_PATCH|>"),
            initializer_range=0.2,
            tie_word_embeddings=False,
        )
    )
    processor = AyaVisionProcessor(
        GotOcr2ImageProcessor(size=SQUARE, crop_to_patches=True, max_patches=12),
        words,
        patch_size=8,
        img_size=64,
        downsample_factor=2,
        chat_template=template(),
    )
    return model, processor


@family("cohere2_vision")
def cohere2_vision() -> tuple[Any, Any]:
    words = tokenizer(
        image_token="<|IMG_PATCH|>",
        boi_token="<|START_OF_IMG|>",
        eoi_token="<|END_OF_IMG|>",
        img_line_break_token="<|IMG_LINE_BREAK|>",
    )
    model = Cohere2VisionForConditionalGeneration(
        Cohere2VisionConfig(
            vision_config=_siglip(),
            text_config=_cohere2(words),
            downsample_factor=2,
            image_token_id=words.image_token_id,
            alignment_intermediate_size=96,
            initializer_range=0.2,
            tie_word_embeddings=False,
        )
    )
    processor = Cohere2VisionProcessor(
        # what it calls its patch size is how many tokens a side of a tile gives
        Cohere2VisionImageProcessor(size=SQUARE, patch_size=4, crop_to_patches=True, max_patches=12),
        words,
        chat_template=template("<|IMG_PATCH|>"),
    )
    return model, processor


def _got_ocr2() -> tuple[Any, Any]:
    words = tokenizer("<|im_start|>", "<|im_end|>", "<img>", "</img>", image_token="<imgpad>")
    model = GotOcr2ForConditionalGeneration(
        GotOcr2Config(
            vision_config={
                "hidden_size": 32,
                "output_channels": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "mlp_dim": 48,
                "image_size": 64,
                "patch_size": 4,
                "window_size": 6,
                "global_attn_indexes": [1],
                "initializer_range": 0.2,
            },
            text_config=Qwen2Config(vocab_size=len(words), **DECODER),
            image_token_index=words.image_token_id,
            image_seq_length=16,
            initializer_range=0.2,
            tie_word_embeddings=False,
        )
    )
    for name, weight in model.named_parameters():
        if name.endswith(("pos_embed", "rel_pos_h", "rel_pos_w")):
            torch.nn.init.normal_(weight, std=0.2)  # zeros when fresh
    processor = GotOcr2Processor(
        GotOcr2ImageProcessor(size=SQUARE, max_patches=12), words, chat_template=template("<img><imgpad></img>\\n")
    )
    processor.num_image_tokens = 16
    return model, processor


@family("got_ocr2")
def got_ocr2() -> tuple[Any, Any]:
    return _got_ocr2()


@family("got_ocr2 crop")
def got_ocr2_crop() -> tuple[Any, Any]:
    model, processor = _got_ocr2()
    processor.images_kwargs = {**processor.images_kwargs, "crop_to_patches": True}
    return model, processor


@family("llama4")
def llama4() -> tuple[Any, Any]:
    marks = ["<|image_start|>", "<|image_end|>", "<|patch|>", "<|tile_x_separator|>", "<|tile_y_separator|>"]
    words = tokenizer(*marks, image_token="<|image|>")
    model = Llama4ForConditionalGeneration(
        Llama4Config(
            vision_config={
                **TILE,
                "intermediate_size": 128,  # four patches side by side
                "projector_input_dim": 48,
                "projector_output_dim": 48,
                "vision_output_dim": 48,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            },
            text_config={
                "vocab_size": len(words),
                "head_dim": 16,
                "intermediate_size_mlp": 96,
                "num_local_experts": 4,
                "moe_layers": [1, 2],
                "no_rope_layers": [1, 0, 1],
                "attention_chunk_size": 16,
                "floor_scale": 16,
                **DECODER,
            },
            boi_token_index=words.convert_tokens_to_ids("<|image_start|>"),
            eoi_token_index=words.convert_tokens_to_ids("<|image_end|>"),
            image_token_index=words.convert_tokens_to_ids("<|patch|>"),
            initializer_range=0.2,
        )
    )
    processor = Llama4Processor(
        Llama4ImageProcessor(size=SQUARE, max_patches=12), words, patch_size=8, chat_template=template("<|image|>")
    )
    return model, processor
