"""Google's: PaliGemma and the Gemmas that see."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Gemma4AudioFeatureExtractor,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Gemma4ImageProcessor,
    Gemma4Processor,
    Gemma4UnifiedAudioFeatureExtractor,
    Gemma4UnifiedConfig,
    Gemma4UnifiedForConditionalGeneration,
    Gemma4UnifiedImageProcessor,
    Gemma4UnifiedProcessor,
    Gemma4UnifiedVideoProcessor,
    Gemma4VideoProcessor,
    GemmaConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    SiglipImageProcessor,
    SiglipVisionConfig,
)

from tests.texts import DECODER, TOWER, template, tokenizer
from tests.zoo import family

#: What every picture, or every crop of one, is squashed to.
SQUARE = {"height": 64, "width": 64}

#: A window smaller than any prompt, around one layer that sees everything.
SLIDING = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}


def _siglip() -> SiglipVisionConfig:
    return SiglipVisionConfig(image_size=64, patch_size=8, vision_use_head=False, **TOWER)


def _paligemma(decoder: Any, **text: Any) -> tuple[Any, Any]:
    words = tokenizer(image_token="<image>")
    processor = PaliGemmaProcessor(
        SiglipImageProcessor(size=SQUARE, image_seq_length=64), words, chat_template=template()
    )
    model = PaliGemmaForConditionalGeneration(
        PaliGemmaConfig(
            vision_config=_siglip(),
            # the processor has added the words for places and masks by now
            text_config=decoder(vocab_size=len(words), head_dim=16, **DECODER | text),
            image_token_index=words.image_token_id,
            hidden_size=64,
            projection_dim=64,
            tie_word_embeddings=False,
        )
    )
    return model, processor


@family("paligemma")
def paligemma() -> tuple[Any, Any]:
    return _paligemma(GemmaConfig, num_key_value_heads=1)


@family("paligemma gemma2")
def paligemma_gemma2() -> tuple[Any, Any]:
    return _paligemma(
        Gemma2Config, query_pre_attn_scalar=16, attn_logit_softcapping=2.0, final_logit_softcapping=5.0, **SLIDING
    )


def _gemma3(pictures: Gemma3ImageProcessor) -> tuple[Any, Any]:
    words = tokenizer(image_token="<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>")
    model = Gemma3ForConditionalGeneration(
        Gemma3Config(
            vision_config=_siglip(),
            text_config={"vocab_size": len(words), "head_dim": 16, "query_pre_attn_scalar": 16, **SLIDING, **DECODER},
            mm_tokens_per_image=16,
            boi_token_index=words.boi_token_id,
            eoi_token_index=words.eoi_token_id,
            image_token_index=words.image_token_id,
            initializer_range=0.2,
            tie_word_embeddings=False,
        )
    )
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.2)  # zeros when fresh
    processor = Gemma3Processor(pictures, words, image_seq_length=16, chat_template=template("<start_of_image>"))
    return model, processor


@family("gemma3")
def gemma3() -> tuple[Any, Any]:
    return _gemma3(Gemma3ImageProcessor(size=SQUARE))


@family("gemma3 pan")
def gemma3_pan() -> tuple[Any, Any]:
    scan = {
        "do_pan_and_scan": True,
        "pan_and_scan_min_crop_size": 32,
        "pan_and_scan_max_num_crops": 4,
        "pan_and_scan_min_ratio_to_activate": 1.2,
    }
    model, processor = _gemma3(Gemma3ImageProcessor(size=SQUARE, **scan))
    processor.images_kwargs = {**processor.images_kwargs, **scan}  # or the class's own defaults would win
    return model, processor


#: Patches of 8 pixels pooled 2 by 2, at most 70 visual tokens: the fewest that the processor knows.
POOLED = {"patch_size": 8, "pooling_kernel_size": 2}


def _gemma4_words() -> Any:
    return tokenizer(
        "<|video|>",
        image_token="<|image|>",
        boi_token="<|image>",
        eoi_token="<image|>",
        audio_token="<|audio|>",
        boa_token="<|audio>",
        eoa_token="<audio|>",
    )


def _gemma4_config(config: Any, words: Any, vision: dict[str, Any], **text: Any) -> Any:
    """Heads are wider on the layers that see everything; the last one must be such a layer."""
    return config(
        vision_config={"initializer_range": 0.2, **POOLED, **vision},
        text_config={
            "vocab_size": len(words),
            "head_dim": 16,
            "global_head_dim": 32,
            "sliding_window": 16,
            "final_logit_softcapping": 30.0,
            **DECODER,
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            **text,
        },
        boi_token_id=words.boi_token_id,
        eoi_token_id=words.eoi_token_id,
        image_token_id=words.image_token_id,
        video_token_id=words.convert_tokens_to_ids("<|video|>"),
        boa_token_id=words.boa_token_id,
        eoa_token_index=words.eoa_token_id,
        audio_token_id=words.audio_token_id,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )


def _gemma4(**text: Any) -> tuple[Any, Any]:
    words = _gemma4_words()
    tower = {**TOWER, "num_key_value_heads": 2, "head_dim": 16, "position_embedding_size": 256}
    model = Gemma4ForConditionalGeneration(
        _gemma4_config(Gemma4Config, words, tower, vocab_size_per_layer_input=len(words), **text)
    )
    torch.nn.init.normal_(model.model.vision_tower.patch_embedder.position_embedding_table, std=0.2)  # ones when fresh
    for name, weight in model.named_parameters():
        if name.endswith("q_norm.weight"):  # its scores are not scaled: ones are sharper than a trained head's
            torch.nn.init.constant_(weight, 0.25)
    processor = Gemma4Processor(
        Gemma4AudioFeatureExtractor(),
        Gemma4ImageProcessor(max_soft_tokens=70, **POOLED),
        words,
        Gemma4VideoProcessor(max_soft_tokens=70, **POOLED),
        image_seq_length=70,
        chat_template=template("<|image|>", "<|video|>"),
    )
    return model, processor


@family("gemma4")
def gemma4() -> tuple[Any, Any]:
    return _gemma4(hidden_size_per_layer_input=16, num_kv_shared_layers=2, use_double_wide_mlp=True)


@family("gemma4 moe")
def gemma4_moe() -> tuple[Any, Any]:
    return _gemma4(
        hidden_size_per_layer_input=0,
        use_bidirectional_attention="vision",
        attention_k_eq_v=True,
        num_global_key_value_heads=1,
        enable_moe_block=True,
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=32,
    )


@family("gemma4_unified")
def gemma4_unified() -> tuple[Any, Any]:
    words = _gemma4_words()
    embedder = {"mm_embed_dim": 64, "mm_posemb_size": 256, "output_proj_dims": 64}
    model = Gemma4UnifiedForConditionalGeneration(_gemma4_config(Gemma4UnifiedConfig, words, embedder))
    processor = Gemma4UnifiedProcessor(
        Gemma4UnifiedAudioFeatureExtractor(),
        Gemma4UnifiedImageProcessor(max_soft_tokens=70, **POOLED),
        words,
        Gemma4UnifiedVideoProcessor(max_soft_tokens=70, **POOLED),
        image_seq_length=70,
        chat_template=template("<|image|>", "<|video|>"),
    )
    return model, processor
