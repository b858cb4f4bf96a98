"""Tokens of two answers stand for one another as a reader would say, and by as few changes as can be."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_probe.compare.alignment import align, fewest_changes
from tests.synthetic import ANSWER, P, synthetic_trace

CASES = {
    "the same": ("a red star", "a red star", [(0, 0), (1, 1), (2, 2)]),
    "one word replaced": ("a red star", "a blue star", [(0, 0), (1, 1), (2, 2)]),
    "one put in": ("a star", "a red star", [(0, 0), (None, 1), (1, 2)]),
    "two left out": ("there is a star", "a star", [(0, None), (1, None), (2, 0), (3, 1)]),
    "one replaced, one left out": ("at the bottom left", "at the right", [(0, 0), (1, 1), (2, 2), (3, None)]),
    "nothing said": ("", "red", [(None, 0)]),
    "nothing shared": ("red", "blue star", [(0, 0), (None, 1)]),
}


@pytest.mark.parametrize("name", CASES)
def test_by_hand(name):
    one, other, pairs = CASES[name]
    assert fewest_changes(one.split(), other.split()) == pairs


def edits(one, other):
    """The distance by its recursive definition, over all alignments: too slow for more than a few words."""
    if not one or not other:
        return len(one) + len(other)
    ways = edits(one[1:], other[1:]) + (one[0] != other[0]), edits(one[1:], other) + 1, edits(one, other[1:]) + 1
    return min(ways)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from("abc"), max_size=5), st.lists(st.sampled_from("abc"), max_size=5))
def test_no_alignment_takes_fewer_changes(one, other):
    pairs = fewest_changes(one, other)
    assert [i for i, _ in pairs if i is not None] == list(range(len(one)))
    assert [j for _, j in pairs if j is not None] == list(range(len(other)))
    changes = sum(i is None or j is None or one[i] != other[j] for i, j in pairs)
    assert changes == edits(one, other)


def test_answers_part_at_the_first_word_that_differs():
    a, b = synthetic_trace(), synthetic_trace(answer=[" ST", " sign", "</s>"])
    found = align(a, b)
    assert found.answer == ((P, P), (P + 1, None), (P + 2, P + 1), (P + 3, P + 2))
    assert found.parted and not found.same and found.shared == ((P, P), (P + 1, P + 1))
    assert found.fed == {place: place for place in range(P + 1)}
    same = align(a, a)
    assert same.same and same.shared == same.answer == tuple((P + t, P + t) for t in range(len(ANSWER)))
    longer = align(a, synthetic_trace(answer=ANSWER[:2]))
    assert not longer.parted and not longer.same and longer.shared == ((P, P), (P + 1, P + 1))


def test_a_picture_of_another_size_stands_for_none_of_the_visual_tokens():
    a = synthetic_trace()
    tokens = [token for token in a.tokens if token.position != 4]
    shorter = [type(token)(token.id, token.text, token.role, place) for place, token in enumerate(tokens)]
    b = synthetic_trace(tokens=tuple(shorter), prompt_length=P - 1)
    words = [place for place in range(P) if a.tokens[place].role != "image"]
    assert align(a, b).prompt == tuple(
        zip(words, [p for p in range(P - 1) if b.tokens[p].role != "image"], strict=True)
    )
    assert align(a, a).prompt == tuple((place, place) for place in range(P))
