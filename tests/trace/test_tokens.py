"""Token texts join to what the tokenizer decodes; words are found where they stand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import llava_probe as lp
from llava_probe.trace.tokens import Token, find, parts_words, tokens_of
from tests.models import word_tokenizer


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """As Llama's: words begin with ▁, unknown characters fall back to bytes, decoding drops the first space."""
    pieces = ["<pad>", "<s>", "</s>", "<image>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    pieces += ["▁stop", "▁sign", "▁a", "red", "▁red", ":", ".", *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    fast.add_special_tokens({"additional_special_tokens": ["<image>"]})
    return fast


TOKENIZERS = {"byte-level": word_tokenizer(), "sentencepiece": sentencepiece_like()}


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(
    text=st.text(st.one_of(st.sampled_from("stop sign red .:"), st.characters(exclude_categories=["Cs"])), min_size=1)
)
def test_texts_join_to_what_the_tokenizer_decodes(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False).input_ids
    tokens = tokens_of(tokenizer, ids, 0, [3])
    joined = "".join(token.text for token in tokens)
    assert joined.lstrip(" ") == tokenizer.decode(ids, clean_up_tokenization_spaces=False).lstrip(" ")


def test_a_character_of_several_tokens_belongs_to_the_last():
    tokenizer = TOKENIZERS["byte-level"]
    ids = tokenizer("é", add_special_tokens=False).input_ids
    assert len(ids) == 2
    assert [token.text for token in tokens_of(tokenizer, ids, 0, [3])] == ["", "é"]


def test_roles_and_spaces():
    tokenizer = TOKENIZERS["sentencepiece"]
    names = ["<s>", "<image>", "<image>", "▁stop", ":", "▁stop", "▁sign", "</s>"]
    tokens = tokens_of(tokenizer, tokenizer.convert_tokens_to_ids(names), 5, [3])
    assert [token.role for token in tokens] == ["special", "image", "image", "prompt", "prompt", *["generated"] * 3]
    assert [token.text for token in tokens] == ["<s>", "<image>", "<image>", " stop", ":", " stop", " sign", "</s>"]


@pytest.fixture
def spoken():
    tokenizer = TOKENIZERS["byte-level"]
    ids = tokenizer("what is the stop sign", add_special_tokens=False).input_ids
    answer = tokenizer(" a red STOP sign, a stop  sign coloured red", add_special_tokens=False).input_ids
    return tokens_of(tokenizer, ids + answer, len(ids), [3]), len(ids)


def test_a_word_of_several_tokens_is_found_whole(spoken):
    tokens, prompt_length = spoken
    for asked, said in (("STOP sign", "STOP sign"), ("stop sign", "stop  sign"), ("Stop sign", "STOP sign")):
        found = find(tokens, asked, role="generated", occurrence=0)
        assert "".join(tokens[place].text for place in found).strip() == said
        assert min(found) >= prompt_length


def test_every_occurrence_is_found_and_none_inside_another_word(spoken):
    tokens, _ = spoken
    assert len(find(tokens, "red", occurrence=0)) + len(find(tokens, "red", occurrence=1)) == len(find(tokens, "red"))
    assert find(tokens, "red", occurrence=2) == ()
    assert find(tokens, "colour") == ()
    assert find(tokens, "zebra") == ()


def test_an_occurrence_below_zero_counts_from_the_end(spoken):
    tokens, _ = spoken
    first, last = find(tokens, "red", occurrence=0), find(tokens, "red", occurrence=1)
    assert find(tokens, "red", occurrence=-1) == last != first
    assert find(tokens, "red", occurrence=-2) == first
    assert find(tokens, "red", occurrence=-3) == ()


def written(*texts: str) -> tuple[Token, ...]:
    return tuple(Token(place, text, "prompt", place) for place, text in enumerate(texts))


@pytest.mark.parametrize(
    ("texts", "sought", "expected"),
    [
        ((" sign", "?", "\n"), "?", (1,)),
        ((" dog", "'s", " bowl"), "'s", (1,)),
        ((" dog", "'s", " bowl"), "dog's bowl", (0, 1, 2)),
        ((" red", "</s>"), "</s>", (1,)),
        (("</s>", "red"), "red", (1,)),
        (("停车", "标志"), "停车", (0,)),
        (("停", "车", "标志"), "车标", (1, 2)),
        (("ストップ", "の", "標識"), "標識", (2,)),
        (("정지", "를"), "정지", (0,)),
        (("写着", "STOP", "的"), "stop", (1,)),
        ((" dog", "'st"), "'s", ()),
        ((" col", "oured"), "red", ()),
        ((" redder",), "red", ()),
        ((" красный",), "красн", ()),
        ((" café",), "caf", ()),
    ],
    ids=repr,
)
def test_text_is_parted_as_its_script_parts_words(texts, sought, expected):
    assert find(written(*texts), sought) == expected


def test_a_script_is_known_to_part_its_words_or_not():
    assert all(map(parts_words, ["stop", "Größe", "мир", "سلام", "42", "", "?!"]))
    assert not any(map(parts_words, ["赤い", "빨간", "แดง", "a赤"]))


def test_words_are_not_joined_across_a_picture():
    tokenizer = TOKENIZERS["byte-level"]
    ids = [
        *tokenizer("stop", add_special_tokens=False).input_ids,
        3,
        *tokenizer(" sign", add_special_tokens=False).input_ids,
    ]
    assert find(tokens_of(tokenizer, ids, len(ids), [3]), "stop sign") == ()


def test_an_empty_word_or_unknown_role_is_refused(spoken):
    with pytest.raises(lp.BadInput, match="empty"):
        find(spoken[0], "  ")
    with pytest.raises(lp.BadInput, match="'answer' is not one of"):
        find(spoken[0], "red", role="answer")
