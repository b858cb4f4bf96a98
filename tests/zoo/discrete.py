"""Families that turn a picture into words of a codebook, or into raw patches: no vision tower of their own."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Regex, normalizers
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonImageProcessor,
    ChameleonProcessor,
    Emu3Config,
    Emu3ForConditionalGeneration,
    Emu3ImageProcessor,
    Emu3Processor,
    FuyuConfig,
    FuyuForCausalLM,
    FuyuImageProcessor,
    FuyuProcessor,
)

from tests.texts import DECODER, ids, template, tokenizer
from tests.zoo import family

CODES = 32


@family("chameleon")
def chameleon() -> tuple[Any, Any]:
    codes = ["IMGIMG" + "".join(chr(ord("A") + int(digit)) for digit in str(code)) + "Z" for code in range(CODES)]
    words = tokenizer(*codes, image_token="<image>", boi_token="<racm3:break>", eoi_token="<eoss>", sep_token="<sep>")
    model = ChameleonForConditionalGeneration(
        ChameleonConfig(
            vocab_size=len(words),
            **DECODER,
            vq_config={
                "embed_dim": 16,
                "num_embeddings": CODES,
                "latent_channels": 32,
                "resolution": 64,
                "base_channels": 32,
                "channel_multiplier": [1, 1, 1, 1],
                "num_res_blocks": 1,
            },
            vocabulary_map=words.get_vocab(),
        )
    )
    pictures = ChameleonImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    processor = ChameleonProcessor(pictures, words, image_seq_length=64)
    processor.chat_template = template()
    return model, processor


@family("emu3")
def emu3() -> tuple[Any, Any]:
    codes = [f"<|visual token {code:06d}|>" for code in range(CODES)]
    words = tokenizer(
        *codes,
        "<|extra_200|>",
        image_token="<image>",
        boi_token="<|image start|>",
        eoi_token="<|image end|>",
        image_wrapper_token="<|image token|>",
        eof_token="<|extra_201|>",
    )
    model = Emu3ForConditionalGeneration(
        Emu3Config(
            vq_config={
                "codebook_size": CODES,
                "base_channels": 32,
                "channel_multiplier": [1, 1, 1, 1],
                "num_res_blocks": 1,
                "hidden_size": 32,
            },
            text_config={"vocab_size": len(words), **DECODER},
            vocabulary_map=words.get_vocab(),
        )
    )
    pictures = Emu3ImageProcessor(min_pixels=64 * 16, max_pixels=64 * 200)
    return model, Emu3Processor(pictures, words, chat_template=template())


@family("fuyu")
def fuyu() -> tuple[Any, Any]:
    # Fuyu's processor drops the first token, the space that its own tokenizer writes before a picture.
    words = tokenizer("<0x00>", "<0x01>", "<0x02>", "<0x03>", "<0x04>")
    words.backend_tokenizer.normalizer = normalizers.Replace(Regex(r"\A\|SPEAKER\|\|"), " |SPEAKER||")
    words.add_tokens([AddedToken(token, normalized=True) for token in ("|SPEAKER|", "|NEWLINE|")])
    model = FuyuForCausalLM(
        FuyuConfig(
            patch_size=16,
            text_config={
                "model_type": "persimmon",
                "vocab_size": len(words),
                **{name: value for name, value in DECODER.items() if name != "num_key_value_heads"},
                "partial_rotary_factor": 0.5,
            },
            image_token_id=ids(words, "|SPEAKER|")[0],
            initializer_range=0.2,
        )
    )
    pictures = FuyuImageProcessor(size={"height": 96, "width": 160}, patch_size={"height": 16, "width": 16})
    processor = FuyuProcessor(pictures, words)
    processor.chat_template = template("")
    return model, processor
