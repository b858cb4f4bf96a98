"""The more recent families whose processors cut a picture into slices."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    DeepseekOcr2Config,
    DeepseekOcr2ForConditionalGeneration,
    DeepseekOcr2ImageProcessor,
    DeepseekOcr2Processor,
    GotOcr2ImageProcessor,
    Granite4VisionConfig,
    Granite4VisionForConditionalGeneration,
    Granite4VisionProcessor,
    LlavaNextImageProcessor,
    MiniCPMOcrConfig,
    MiniCPMOcrForConditionalGeneration,
    MiniCPMOcrImageProcessor,
    MiniCPMOcrProcessor,
    MiniCPMOcrVideoProcessor,
    MiniCPMV4_6Config,
    MiniCPMV4_6ForConditionalGeneration,
    MiniCPMV4_6ImageProcessor,
    MiniCPMV4_6Processor,
    MiniCPMV4_6VideoProcessor,
    MiniCPMV4_7Config,
    MiniCPMV4_7ForConditionalGeneration,
    MiniCPMV4_7Processor,
    QianfanOCRConfig,
    QianfanOCRForConditionalGeneration,
    QianfanOCRProcessor,
    Step3p7Config,
    Step3p7ForConditionalGeneration,
    Step3p7ImageProcessor,
    Step3p7Processor,
    UnlimitedOcrConfig,
    UnlimitedOcrForConditionalGeneration,
    UnlimitedOcrImageProcessor,
    UnlimitedOcrProcessor,
)

from tests.texts import DECODER, TOWER, ids, template, tokenizer
from tests.zoo import family
from tests.zoo.native import HYBRID


def _minicpm(config: Any, model: Any, processor: Any, pictures: Any, videos: Any, **more: Any) -> tuple[Any, Any]:
    words = tokenizer(
        image_token="<|image_pad|>",
        video_token="<|video_pad|>",
        image_start_token="<image>",
        image_end_token="</image>",
        slice_start_token="<slice>",
        slice_end_token="</slice>",
        image_id_start_token="<image_id>",
        image_id_end_token="</image_id>",
    )
    slices = {"patch_size": 8, "scale_resolution": 128, "max_slice_nums": 6}
    made = model(
        config(
            vision_config={"image_size": 128, "patch_size": 8, **TOWER},
            text_config={"model_type": "qwen3_5_text", "vocab_size": len(words), **HYBRID},
            insert_layer_id=0,
            image_token_id=words.image_token_id,
            video_token_id=words.video_token_id,
            **{name: ids(words, token)[0] for name, token in more.items()},
        )
    )
    return made, processor(
        pictures(**slices), videos(**slices), words, chat_template=template("<|image_pad|>", "<|video_pad|>")
    )


@family("minicpmv4_6")
def minicpmv4_6() -> tuple[Any, Any]:
    return _minicpm(
        MiniCPMV4_6Config,
        MiniCPMV4_6ForConditionalGeneration,
        MiniCPMV4_6Processor,
        MiniCPMV4_6ImageProcessor,
        MiniCPMV4_6VideoProcessor,
    )


@family("minicpmv4_7")
def minicpmv4_7() -> tuple[Any, Any]:
    return _minicpm(
        MiniCPMV4_7Config,
        MiniCPMV4_7ForConditionalGeneration,
        MiniCPMV4_7Processor,
        MiniCPMV4_6ImageProcessor,
        MiniCPMV4_6VideoProcessor,
        image_start_id="<image>",
        image_end_id="</image>",
        slice_start_id="<slice>",
        slice_end_id="</slice>",
        newline_id="Ċ",
    )


@family("minicpm_ocr")
def minicpm_ocr() -> tuple[Any, Any]:
    return _minicpm(
        MiniCPMOcrConfig,
        MiniCPMOcrForConditionalGeneration,
        MiniCPMOcrProcessor,
        MiniCPMOcrImageProcessor,
        MiniCPMOcrVideoProcessor,
    )


@family("granite4_vision")
def granite4_vision() -> tuple[Any, Any]:
    words = tokenizer(image_token="<image>")
    pinpoints = [[64, 128], [128, 64], [128, 128], [192, 64], [64, 192]]
    eyes = {**TOWER, "hidden_size": 64}
    model = Granite4VisionForConditionalGeneration(
        Granite4VisionConfig(
            vision_config=CLIPVisionConfig(image_size=64, patch_size=8, initializer_range=0.2, **eyes),
            text_config={"vocab_size": len(words), "attention_multiplier": 0.1, **DECODER},
            qformer_config={
                "model_type": "blip_2_qformer",
                "num_hidden_layers": 1,
                "intermediate_size": 48,
                "cross_attention_frequency": 1,
                "initializer_range": 0.2,
            },
            image_token_index=words.image_token_id,
            image_grid_pinpoints=pinpoints,
            image_seq_length=16,
            vision_feature_select_strategy="default",
            downsample_rate="1/2",
            deepstack_layer_map=[[-1, 0], [-2, 1]],
            spatial_target_layers=[1, 2],
        )
    )
    processor = Granite4VisionProcessor(
        LlavaNextImageProcessor(
            size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, image_grid_pinpoints=pinpoints
        ),
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        downsample_rate="1/2",
        chat_template=template(),
    )
    return model, processor


@family("deepseek_ocr2")
def deepseek_ocr2() -> tuple[Any, Any]:
    words = tokenizer(image_token="<image>")
    model = DeepseekOcr2ForConditionalGeneration(
        DeepseekOcr2Config(
            vision_config={
                "sam_config": {
                    "image_size": 208,
                    "patch_size": 4,
                    "output_channels": 16,
                    "downsample_channels": [24, 32],
                    "mlp_dim": 48,
                    "window_size": 13,
                    "global_attn_indexes": [1],
                    "initializer_range": 0.2,
                    **TOWER,
                },
                "encoder_config": {"num_key_value_heads": 1, "initializer_range": 0.2, **TOWER},
            },
            text_config={
                "vocab_size": len(words),
                **DECODER,
                "n_routed_experts": 4,
                "n_shared_experts": 1,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 32,
                "mlp_layer_types": ["dense", "sparse", "sparse"],
            },
            image_token_id=words.image_token_id,
        )
    )
    # The numbers of queries are written into the model's code; fewer will do.
    model.model.vision_tower.query_768_resolution = torch.nn.Embedding(16, 32)
    model.model.vision_tower.query_1024_resolution = torch.nn.Embedding(169, 32)
    processor = DeepseekOcr2Processor(
        DeepseekOcr2ImageProcessor(size={"height": 208, "width": 208}, tile_size=64),
        words,
        chat_template=template(),
        patch_size=4,
    )
    return model, processor


@family("qianfan_ocr")
def qianfan_ocr() -> tuple[Any, Any]:
    words = tokenizer(
        "<image>", start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>"
    )
    model = QianfanOCRForConditionalGeneration(
        QianfanOCRConfig(
            vision_config={"image_size": [64, 64], "patch_size": [8, 8], "initializer_range": 0.2, **TOWER},
            text_config={"model_type": "qwen3", "vocab_size": len(words), "head_dim": 16, **DECODER},
            image_token_id=words.context_image_token_id,
            image_seq_length=16,
        )
    )
    processor = QianfanOCRProcessor(
        GotOcr2ImageProcessor(size={"height": 64, "width": 64}, crop_to_patches=True, max_patches=6),
        words,
        image_seq_length=16,
        chat_template=template(),
    )
    return model, processor


@family("unlimited_ocr")
def unlimited_ocr() -> tuple[Any, Any]:
    words = tokenizer(image_token="<image>")
    model = UnlimitedOcrForConditionalGeneration(
        UnlimitedOcrConfig(
            vision_config={
                "sam_config": {
                    "image_size": 128,
                    "patch_size": 4,
                    "output_channels": 16,
                    "downsample_channels": [24, 32],
                    "mlp_dim": 48,
                    "window_size": 7,
                    "global_attn_indexes": [1],
                    "initializer_range": 0.2,
                    **TOWER,
                },
                "encoder_config": {"image_size": 64, "patch_size": 8, "initializer_range": 0.2, **TOWER},
            },
            text_config={
                "vocab_size": len(words),
                **DECODER | {"num_key_value_heads": 4},  # as the real one: its eager attention takes no fewer
                "n_routed_experts": 4,
                "n_shared_experts": 1,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 32,
                "sliding_window": 16,
            },
            image_token_id=words.image_token_id,
        )
    )
    processor = UnlimitedOcrProcessor(
        UnlimitedOcrImageProcessor(
            size={"height": 128, "width": 128}, tile_size=64, max_patches=6, maximum_pad_value=64
        ),
        words,
        chat_template=template(),
        patch_size=4,
    )
    return model, processor


@family("step3p7")
def step3p7() -> tuple[Any, Any]:
    marks = ("<patch_start>", "<patch_end>", "<patch_newline>", "<im_start>", "<im_end>")
    words = tokenizer(*marks, image_token="<im_patch>")
    model = Step3p7ForConditionalGeneration(
        Step3p7Config(
            vision_config={
                "image_size": 96,
                "patch_size": 4,
                "mlp_ratio": 1.5,
                "max_position_embeddings": 576,
                "layer_scale_init_value": 0.5,
                **TOWER,
            },
            text_config={
                "vocab_size": len(words),
                "head_dim": 16,
                **DECODER,
                "n_routed_experts": 4,
                "num_experts_per_tok": 2,
                "moe_intermediate_size": 32,
                "share_expert_dim": 32,
                "sliding_window": 16,
                "num_sliding_attention_heads": 8,
                "layer_types": ["full_attention", "sliding_attention", "full_attention"],
                "mlp_layer_types": ["dense", "sparse", "sparse"],
            },
            image_token_id=words.image_token_id,
        )
    )
    pictures = Step3p7ImageProcessor(size={"height": 96, "width": 96}, patch_size=64, max_image_size=192)
    pictures.vision_patch_size = 4
    return model, Step3p7Processor(pictures, words, chat_template=template("<im_patch>"))
