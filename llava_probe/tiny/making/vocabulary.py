"""The tokenizer, the processor and the chat template, made from the questions themselves.

A byte-level BPE, so that any text can be put in, in which every word of the questions is one token, but the words on
signs are spelled letter by letter: reading a sign takes as many predictions as it has letters. ``USER:`` and
``ASSISTANT:`` are tokens of their own, as plain text, so that decoding shows them.
"""

from __future__ import annotations

import random
import re
from string import ascii_uppercase

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from llava_probe.tiny.plan import UNITS, WORDS, plan
from llava_probe.tiny.questions import all_questions, vary

PATCH = 8
IMAGE_TOKEN, BOS, EOS, PAD = "<image>", "<s>", "</s>", "<pad>"
_CORPUS_SEEDS = range(1_000_000, 1_001_500)

# The form of LLaVA-1.5's template: system text first, pictures before the words of their turn, answers closed by EOS.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- set parts = message['content'] -%}
{%- if parts is string -%}{%- set parts = [{'type': 'text', 'text': parts}] -%}{%- endif -%}
{%- if message['role'] != 'system' -%}{{ message['role'] | upper + ':' }}{%- endif -%}
{%- if message['role'] == 'user' -%}{{ ' ' }}{%- endif -%}
{%- for part in parts if part['type'] == 'image' -%}{{ '<image>\\n' }}{%- endfor -%}
{%- for part in parts if part['type'] == 'text' -%}
{%- if message['role'] == 'assistant' -%}
{% generation %}{{ ' ' + part['text'] | trim + '</s>' }}{% endgeneration %}
{%- else -%}{{ part['text'] + '\\n' }}{%- endif -%}
{%- endfor -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}"""


def build_processor() -> LlavaProcessor:
    """The processor that ships with the weights: CLIP's picture path at 112 pixels, and the tokenizer."""
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": UNITS},
        crop_size={"height": UNITS, "width": UNITS},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train the BPE until every word of the questions is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [PAD, BOS, EOS, IMAGE_TOKEN]
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        min_frequency=1,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.add_tokens([AddedToken(role, normalized=False) for role in ("USER:", "ASSISTANT:")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
        extra_special_tokens={"image_token": IMAGE_TOKEN},
    )


def _corpus() -> list[str]:
    """Questions and answers without the signs' words, and single capitals, which is what those are spelled with."""
    rng = random.Random(0)
    sign_words = re.compile(rf"\b({'|'.join(WORDS)})\b")
    lines = [f" {letter}" for letter in ascii_uppercase]
    for seed in _CORPUS_SEEDS:
        for question in all_questions(plan(seed), rng):
            answer = sign_words.sub("", question.answer)
            lines += [vary(question, rng), f" {vary(question, rng)}", f" {answer}"]
    return lines
