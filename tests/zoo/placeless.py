"""Families that keep pictures out of the sequence, or squeeze them into queries with no place on the photograph."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPImageProcessor,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
    Idefics2Config,
    Idefics2ForConditionalGeneration,
    Idefics2ImageProcessor,
    Idefics2Processor,
    IdeficsConfig,
    IdeficsForVisionText2Text,
    IdeficsImageProcessor,
    IdeficsProcessor,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    Kosmos2_5Config,
    Kosmos2_5ForConditionalGeneration,
    Kosmos2_5ImageProcessor,
    Kosmos2_5Processor,
    Kosmos2Config,
    Kosmos2ForConditionalGeneration,
    Kosmos2Processor,
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaImageProcessor,
    MllamaProcessor,
)

from tests.texts import DECODER, TOWER, ids, template, tokenizer
from tests.zoo import family

SQUARE = {"height": 64, "width": 64}
EYES = {"image_size": 64, "patch_size": 8, "initializer_range": 0.2, **TOWER}
QFORMER = {"cross_attention_frequency": 2, "initializer_range": 0.2, "vocab_size": 600, **TOWER}


@family("mllama")
def mllama() -> tuple[Any, Any]:
    words = tokenizer("<|python_tag|>", image_token="<|image|>")
    model = MllamaForConditionalGeneration(
        MllamaConfig(
            vision_config={
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_hidden_layers": 2,
                "num_global_layers": 1,
                "attention_heads": 2,
                "vision_output_dim": 64,
                "image_size": 64,
                "patch_size": 8,
                "intermediate_layers_indices": [0],
                "initializer_range": 0.2,
            },
            text_config={"vocab_size": len(words), "cross_attention_layers": [1], **DECODER},
            image_token_index=words.image_token_id,
        )
    )
    for name, weight in model.named_parameters():
        if name.endswith(("gate", "cross_attn_attn_gate", "cross_attn_mlp_gate")):
            torch.nn.init.constant_(weight, 0.7)
    pictures = MllamaImageProcessor(size=SQUARE, max_image_tiles=4)
    return model, MllamaProcessor(pictures, words, chat_template=template("<|image|>"))


@family("blip-2")
def blip2() -> tuple[Any, Any]:
    words = tokenizer("<image>")
    processor = Blip2Processor(BlipImageProcessor(size=SQUARE), words, num_query_tokens=8)
    processor.chat_template = template("")
    model = Blip2ForConditionalGeneration(
        Blip2Config(
            vision_config=EYES,
            qformer_config=QFORMER,
            text_config={
                "model_type": "opt",
                "vocab_size": len(words),
                "hidden_size": 64,
                "word_embed_proj_dim": 64,
                "ffn_dim": 96,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "init_std": 0.2,
                "pad_token_id": 0,
            },
            num_query_tokens=8,
            image_token_index=ids(words, "<image>")[0],
            initializer_range=0.2,
        )
    )
    torch.nn.init.normal_(model.query_tokens)
    return model, processor


@family("instructblip")
def instructblip() -> tuple[Any, Any]:
    words = tokenizer("<image>")
    processor = InstructBlipProcessor(BlipImageProcessor(size=SQUARE), words, tokenizer(), num_query_tokens=8)
    processor.chat_template = template("")
    model = InstructBlipForConditionalGeneration(
        InstructBlipConfig(
            vision_config=EYES,
            qformer_config=QFORMER,
            text_config={"model_type": "llama", "vocab_size": len(words), **DECODER},
            num_query_tokens=8,
            image_token_index=ids(words, "<image>")[0],
            initializer_range=0.2,
        )
    )
    torch.nn.init.normal_(model.query_tokens)
    return model, processor


@family("idefics2")
def idefics2() -> tuple[Any, Any]:
    words = tokenizer(image_token="<image>", image_boundary_token="<fake_token_around_image>")
    pictures = Idefics2ImageProcessor(size={"shortest_edge": 48, "longest_edge": 96}, do_image_splitting=True)
    processor = Idefics2Processor(pictures, words, image_seq_len=4, chat_template=template())
    model = Idefics2ForConditionalGeneration(
        Idefics2Config(
            vision_config={"image_size": 96, "patch_size": 8, "initializer_range": 0.2, **TOWER},
            perceiver_config={
                "hidden_size": 64,
                "resampler_n_latents": 4,
                "resampler_depth": 2,
                "resampler_n_heads": 4,
                "resampler_head_dim": 16,
                "num_key_value_heads": 2,
                "initializer_range": 0.2,
            },
            text_config={"model_type": "mistral", "vocab_size": len(words), "sliding_window": 16, **DECODER},
            image_token_id=words.image_token_id,
        )
    )
    torch.nn.init.normal_(model.model.connector.perceiver_resampler.latents)
    return model, processor


@family("git")
def git() -> tuple[Any, Any]:
    words = tokenizer()
    config = GitConfig(
        vision_config=EYES,
        vocab_size=len(words),
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
    )
    pictures = CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=SQUARE)
    processor = GitProcessor(pictures, words)
    processor.chat_template = template("")
    return GitForCausalLM(config), processor


@family("blip")
def blip() -> tuple[Any, Any]:
    words = tokenizer()
    model = BlipForConditionalGeneration(
        BlipConfig(
            vision_config=EYES,
            text_config={
                "vocab_size": len(words),
                "hidden_size": 64,
                "intermediate_size": 96,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "initializer_range": 0.2,
                "bos_token_id": 1,
                "sep_token_id": 2,
            },
            initializer_range=0.2,
        )
    )
    processor = BlipProcessor(BlipImageProcessor(size=SQUARE), words)
    processor.chat_template = template("")
    return model, processor


@family("idefics")
def idefics() -> tuple[Any, Any]:
    words = tokenizer("<fake_token_around_image>", image_token="<image>")
    model = IdeficsForVisionText2Text(
        IdeficsConfig(
            vocab_size=len(words),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=4,
            num_attention_heads=4,
            initializer_range=0.2,
            alpha_initializer="ones",
            cross_layer_interval=2,
            qk_layer_norms=True,
            use_resampler=True,
            vision_config={"embed_dim": 32, **{name: value for name, value in EYES.items() if name != "hidden_size"}},
            perceiver_config={
                "use_resampler": True,
                "resampler_n_latents": 4,
                "resampler_depth": 2,
                "resampler_n_heads": 2,
                "resampler_head_dim": 16,
            },
        )
    )
    processor = IdeficsProcessor(IdeficsImageProcessor(image_size=64), words)
    processor.chat_template = template("")
    return model, processor


@family("kosmos-2")
def kosmos2() -> tuple[Any, Any]:
    words = tokenizer()
    pictures = CLIPImageProcessor(size={"shortest_edge": 64}, crop_size=SQUARE)
    processor = Kosmos2Processor(pictures, words, num_patch_index_tokens=16)
    processor.num_image_tokens = 8
    processor.first_image_token_id = ids(words, "a")[0]
    processor.chat_template = template("")
    model = Kosmos2ForConditionalGeneration(
        Kosmos2Config(vision_config=EYES, text_config=_kosmos(words), latent_query_num=8)
    )
    _widen(model.image_to_text_projection)
    return model, processor


@family("kosmos-2.5")
def kosmos2_5() -> tuple[Any, Any]:
    words = tokenizer(image_token="<image>", boi_token="<image_start>", eoi_token="<image_end>")
    model = Kosmos2_5ForConditionalGeneration(
        Kosmos2_5Config(
            vision_config={
                "patch_embed_hidden_size": 192,
                "head_dim": 16,
                "max_num_patches": 64,
                "initializer_range": 0.2,
                **TOWER,
            },
            text_config=_kosmos(words),
            latent_query_num=8,
        )
    )
    _widen(model.vision_model, model.image_to_text_projection)
    pictures = Kosmos2_5ImageProcessor(patch_size={"height": 8, "width": 8}, max_patches=64)
    processor = Kosmos2_5Processor(pictures, words, num_image_tokens=8)
    processor.images_kwargs = {"max_patches": 64, "return_tensors": "pt"}
    processor.chat_template = template("")
    return model, processor


def _kosmos(words: Any) -> dict[str, Any]:
    widths = {"embed_dim": 64, "layers": 3, "ffn_dim": 96, "attention_heads": 4, "init_std": 0.2, "dropout": 0.0}
    return {"vocab_size": len(words), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **widths}


def _widen(*parts: torch.nn.Module) -> None:
    """Weights wide enough to matter where the config has no say."""
    for part in parts:
        for weight in part.parameters():
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.2)
