"""A prompt longer than the model is refused before it runs; where positions may reach further, it is told."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import llava_probe as lp
from llava_probe.asking.lengths import check_length
from llava_probe.tiny import scene


def of(**config) -> SimpleNamespace:
    text = SimpleNamespace(**config)
    text.get_text_config = lambda: text
    return SimpleNamespace(model=object(), decoder=SimpleNamespace(owner=SimpleNamespace(config=text)))


def test_a_longer_prompt_is_refused_with_both_lengths():
    vlm, question = lp.load(), "word " * 2500
    for ask in (lambda: vlm.generate(scene(34).image, question), lambda: vlm.score(scene(34).image, question, "red")):
        with pytest.raises(lp.BadInput, match=r"the prompt has 2,\d\d\d tokens; .* reads 2,048 \("):
            ask()


def test_the_answer_counts_and_its_last_token_is_not_read():
    check_length(of(max_position_embeddings=10), 8, 2)
    with pytest.raises(lp.BadInput, match="the prompt has 8 tokens and the answer 4"):
        check_length(of(max_position_embeddings=10), 8, 3)


@pytest.mark.parametrize(
    "rope", [{"rope_type": "dynamic"}, {"full_attention": {"rope_type": "yarn"}}, {"mrope_section": [2, 3, 3]}], ids=str
)
def test_positions_that_may_reach_further_are_told(rope):
    with pytest.warns(UserWarning, match="reads 10"):
        check_length(of(max_position_embeddings=10, rope_parameters=rope), 11)


def test_a_model_that_says_no_length_takes_any():
    check_length(of(), 10**6)
