"""What the second model is kept saying without a picture is nothing that its card asks."""

import smol_card

from llava_probe.smol.making.talk import questions


def test_the_cards_questions_are_not_trained():
    asked = list(questions())
    assert len(set(asked)) == len(asked) > 400
    assert not set(asked) & set(smol_card.PROMPTS)
