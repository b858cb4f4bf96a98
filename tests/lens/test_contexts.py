"""Of each sentence the words that a bank keeps, beside what a reader would mark with a pencil."""

import pytest

import llava_probe as lp
from llava_probe.lens.contexts import choose_words
from tests.models import llava_processor, random_llava


@pytest.fixture(scope="module")
def vlm() -> lp.VLM:
    return lp.VLM(random_llava(), llava_processor())


def kept(vlm, sentences, each=50, most=5000):
    made = choose_words(vlm, sentences, each, most)
    return [[context.word for context in sentence.contexts] for sentence in made.sentences]


def test_each_word_behind_the_first_two_tokens_is_kept_without_punctuation(tiny_vlm):
    sentence = 'A star, "red" and blue, isn\'t there.'
    assert kept(tiny_vlm, [sentence]) == [["star", "red", "and", "blue", "isn't", "there"]]


def test_a_words_last_token_stands_for_it(tiny_vlm):
    (sentence,) = choose_words(tiny_vlm, ["A sign says STOP."], 50, 5000).sentences
    tokenizer = tiny_vlm.processor.tokenizer
    ids = tokenizer("A sign says STOP.").input_ids
    (stop,) = [context for context in sentence.contexts if context.word == "STOP"]
    assert tokenizer.decode(ids[: stop.position + 1], skip_special_tokens=True) == "A sign says STOP"
    assert sentence.read[stop.start : stop.stop] == "STOP"
    assert sentence.row["prompt"] == "A sign says STOP."
    assert sentence.row["at"][-1] == stop.position


def test_sentences_that_begin_alike_have_their_beginning_once(tiny_vlm):
    found = kept(tiny_vlm, ["There is a red star.", "There is a red ring.", "There is a red star."])
    assert found == [["There", "is", "a", "red", "star"], ["ring"]]


def test_a_word_is_kept_so_many_times_whatever_its_case(tiny_vlm):
    found = kept(tiny_vlm, ["Is it red?", "Is it Red?", "What is RED?", "It is red there."], each=2)
    assert [[word for word in words if word.casefold() == "red"] for words in found] == [["red"], ["Red"], [], []]


def test_every_word_keeps_its_first_before_any_keeps_another(tiny_vlm):
    sentences = ["Is it red?", "Is that red?", "Is there red?", "Is the star white?"]
    made = choose_words(tiny_vlm, sentences, 50, 7)
    words = [context.word for sentence in made.sentences for context in sentence.contexts]
    assert sorted(words) == ["it", "red", "star", "that", "the", "there", "white"]
    assert made.beyond == 2


def test_a_script_without_spaces_is_kept_token_by_token(vlm):
    (words,) = kept(vlm, ["一只红色的猫"])
    assert len(words) > 3 and "".join(words) in "一只红色的猫"


def test_a_sentence_that_cannot_be_read_is_counted_and_the_others_kept(vlm):
    made = choose_words(vlm, ["What is on the <image> here?", "A dog on the road."], 50, 5000)
    assert (made.read, made.refusals, len(made.sentences)) == (2, 1, 1)
    assert "<image>" in made.refused
