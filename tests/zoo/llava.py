"""LLaVA and those that are built like it."""

from __future__ import annotations

from typing import Any

from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaNextVideoProcessor,
    LlavaNextVideoVideoProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    MistralConfig,
    PixtralImageProcessor,
    PixtralProcessor,
    PixtralVisionConfig,
    Qwen2Config,
    SiglipImageProcessor,
    SiglipVisionConfig,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
    VideoLlavaImageProcessor,
    VideoLlavaProcessor,
    VideoLlavaVideoProcessor,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

from tests.texts import DECODER, TOWER, template, tokenizer
from tests.zoo import family

PINPOINTS = [[64, 128], [128, 64], [128, 128], [192, 64], [64, 192]]

#: What a CLIP processor of 64 pixels is given.
CROP = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}


def clip(**changes: Any) -> CLIPVisionConfig:
    """8 by 8 patches of 8 pixels and a class token."""
    return CLIPVisionConfig(**{"image_size": 64, "patch_size": 8, "initializer_range": 0.2, **TOWER, **changes})


def _llava(tower: Any, pictures: Any, *, class_token: bool, strategy: str) -> tuple[Any, Any]:
    words = tokenizer(image_token="<image>")
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=tower,
            text_config=LlamaConfig(vocab_size=len(words), **DECODER),
            image_token_index=words.image_token_id,
            image_seq_length=64 + (class_token and strategy == "full"),
            vision_feature_select_strategy=strategy,
        )
    )
    processor = LlavaProcessor(
        pictures,
        words,
        patch_size=8,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=int(class_token),
        chat_template=template("<image>\\n"),
    )
    return model, processor


@family("llava")
def llava() -> tuple[Any, Any]:
    return _llava(clip(), CLIPImageProcessor(**CROP), class_token=True, strategy="default")


@family("llava full")
def llava_full() -> tuple[Any, Any]:
    return _llava(clip(), CLIPImageProcessor(**CROP), class_token=True, strategy="full")


@family("llava siglip")
def llava_siglip() -> tuple[Any, Any]:
    tower = SiglipVisionConfig(image_size=64, patch_size=8, vision_use_head=False, **TOWER)
    pictures = SiglipImageProcessor(size={"height": 64, "width": 64})
    return _llava(tower, pictures, class_token=False, strategy="full")


@family("llava pixtral")
def llava_pixtral() -> tuple[Any, Any]:
    words = tokenizer("[IMG_BREAK]", "[IMG_END]", image_token="[IMG]")
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=PixtralVisionConfig(image_size=128, patch_size=8, initializer_range=0.2, **TOWER),
            text_config=MistralConfig(vocab_size=len(words), head_dim=16, sliding_window=None, **DECODER),
            image_token_index=words.image_token_id,
            image_seq_length=1,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        )
    )
    processor = PixtralProcessor(
        PixtralImageProcessor(size={"longest_edge": 128}, patch_size={"height": 8, "width": 8}),
        words,
        patch_size=8,
        chat_template=template("[IMG]"),
    )
    return model, processor


@family("vipllava")
def vipllava() -> tuple[Any, Any]:
    words = tokenizer(image_token="<image>")
    model = VipLlavaForConditionalGeneration(
        VipLlavaConfig(
            vision_config=clip(num_hidden_layers=4),
            text_config=LlamaConfig(vocab_size=len(words), **DECODER),
            image_token_index=words.image_token_id,
            image_seq_length=64,
            vision_feature_layer=[-2, -4, 2],
        )
    )
    processor = LlavaProcessor(
        CLIPImageProcessor(**CROP),
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template("<image>\\n"),
    )
    return model, processor


@family("llava_next")
def llava_next() -> tuple[Any, Any]:
    words = tokenizer(image_token="<image>")
    model = LlavaNextForConditionalGeneration(
        LlavaNextConfig(
            vision_config=clip(),
            text_config=LlamaConfig(vocab_size=len(words), **DECODER),
            image_token_index=words.image_token_id,
            image_grid_pinpoints=PINPOINTS,
            image_seq_length=64,
        )
    )
    processor = LlavaNextProcessor(
        LlavaNextImageProcessor(image_grid_pinpoints=PINPOINTS, **CROP),
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template(),
    )
    return model, processor


@family("llava_next_video")
def llava_next_video() -> tuple[Any, Any]:
    words = tokenizer(image_token="<image>", video_token="<video>")
    model = LlavaNextVideoForConditionalGeneration(
        LlavaNextVideoConfig(
            vision_config=clip(),
            text_config=LlamaConfig(vocab_size=len(words), **DECODER),
            image_token_index=words.image_token_id,
            video_token_index=words.video_token_id,
            image_grid_pinpoints=PINPOINTS,
            image_seq_length=64,
            video_seq_length=16,
        )
    )
    processor = LlavaNextVideoProcessor(
        LlavaNextVideoVideoProcessor(**CROP),
        LlavaNextImageProcessor(image_grid_pinpoints=PINPOINTS, **CROP),
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template("<image>\\n", "<video>\\n"),
    )
    return model, processor


@family("llava_onevision")
def llava_onevision() -> tuple[Any, Any]:
    words = tokenizer(image_token="<image>", video_token="<video>")
    side = 48  # up to 6 by 6 tiles: past 9 the features of the tiles are shrunk
    pinpoints = [[side * rows, side * columns] for rows in range(1, 7) for columns in range(1, 7)]
    model = LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(
            vision_config=SiglipVisionConfig(image_size=side, patch_size=8, vision_use_head=False, **TOWER),
            text_config=Qwen2Config(vocab_size=len(words), **DECODER),
            image_token_index=words.image_token_id,
            video_token_index=words.video_token_id,
            image_grid_pinpoints=pinpoints,
            vision_aspect_ratio="anyres_max_9",
        )
    )
    square = {"height": side, "width": side}
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=square, image_grid_pinpoints=pinpoints),
        words,
        LlavaOnevisionVideoProcessor(size=square),
        num_image_tokens=36,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
        chat_template=template("<image>\\n", "<video>\\n"),
    )
    return model, processor


@family("video_llava")
def video_llava() -> tuple[Any, Any]:
    words = tokenizer(image_token="<image>", video_token="<video>")
    model = VideoLlavaForConditionalGeneration(
        VideoLlavaConfig(
            vision_config=clip(),
            text_config=LlamaConfig(vocab_size=len(words), **DECODER),
            image_token_index=words.image_token_id,
            video_token_index=words.video_token_id,
            image_seq_length=64,
            video_seq_length=65,
        )
    )
    processor = VideoLlavaProcessor(
        VideoLlavaImageProcessor(**CROP),
        VideoLlavaVideoProcessor(**CROP),
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template("<image>\\n", "<video>\\n"),
    )
    return model, processor
