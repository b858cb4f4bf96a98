"""The text halves of the models that the tests build: a tokenizer, a small decoder's sizes, a chat template."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

WORDS = "what is the text on a stop sign red blue circle square USER ASSISTANT yes no colour where look at this one two"

#: Widths that every small decoder of the zoo has; grouped-query attention, weights wide enough to matter.
DECODER = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

#: Widths of every small vision tower.
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


def tokenizer(*special: str, **named: str) -> PreTrainedTokenizerFast:
    """Byte-level tokens plus a few whole words; ids 0 to 3 are pad, bos, eos and the first of the special ones.

    Args:
        *special: further special tokens, with ids from 3 in this order.
        **named: special tokens that a processor reads as attributes (``image_token="<image>"``).
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    heads = list(dict.fromkeys(["<pad>", "<s>", "</s>", *named.values(), *special]))
    vocabulary = {piece: index for index, piece in enumerate([*heads, *alphabet])}
    merges: list[tuple[str, str]] = []
    for word in WORDS.split():
        for spelled in (word, "Ġ" + word):
            for end in range(2, len(spelled) + 1):
                if spelled[:end] not in vocabulary:
                    vocabulary[spelled[:end]] = len(vocabulary)
                    merges.append((spelled[: end - 1], spelled[end - 1]))
    inside = Tokenizer(models.BPE(vocabulary, merges))
    inside.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inside.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inside,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side="left",
        extra_special_tokens=dict(named),
    )
    fast.add_special_tokens({"additional_special_tokens": list(heads[3:])})
    return fast


def template(image: str = "<image>", video: str | None = None) -> str:
    """A chat template that writes ``image`` for each picture (and ``video`` for each video), then the words."""
    places = f"{{% if part['type'] == 'image' %}}{{{{ '{image}' }}}}{{% endif %}}"
    if video is not None:
        places += f"{{% if part['type'] == 'video' %}}{{{{ '{video}' }}}}{{% endif %}}"
    return (
        "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
        f"{{% for part in message['content'] %}}{places}{{% endfor %}}"
        "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
        "{{ '\\n' if message['role'] != 'assistant' else '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    )


def ids(fast: Any, *tokens: str) -> list[int]:
    """The ids of special tokens."""
    return [fast.convert_tokens_to_ids(token) for token in tokens]
