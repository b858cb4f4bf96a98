"""Run-length masks of COCO come out as they went in, from lists and from pycocotools' text."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llava_probe as lp
from llava_probe.pictures.run_length import decode


def runs(mask):
    """Lengths of the runs down the columns, the first of zeros."""
    lengths, value = [], False
    for key, group in itertools.groupby(mask.T.reshape(-1).tolist()):
        lengths += [0] if key and not lengths and not value else []
        lengths.append(len(list(group)))
    return lengths


def packed(lengths):
    """pycocotools' text, in Python's whole numbers of any size: groups of five bits until only the sign is left."""
    text = ""
    for place, length in enumerate(lengths):
        number = length - (lengths[place - 2] if place > 2 else 0)
        while True:
            group, number = number % 32, number // 32
            done = number == (-1 if group >= 16 else 0)
            text += chr(48 + group + (0 if done else 32))
            if done:
                break
    return text


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]))
def test_a_mask_comes_back(height, width, seed, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    for counts in (runs(mask), packed(runs(mask)), packed(runs(mask)).encode()):
        found = decode({"size": [height, width], "counts": counts})
        assert found.dtype == bool
        np.testing.assert_array_equal(found, mask)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 400_000), min_size=1, max_size=9))
def test_long_runs_come_back(lengths):
    total = sum(lengths)
    if total:
        found = decode({"size": [total, 1], "counts": packed(lengths)})
        expected = np.concatenate([np.full(length, place % 2 == 1) for place, length in enumerate(lengths)])
        np.testing.assert_array_equal(found[:, 0], expected)


def test_pycocotools_own_text_is_read():
    """What its ``encode`` gives for this mask, with runs that grow, shrink and need two characters."""
    mask = np.zeros((9, 10), dtype=bool)
    mask[6, 0] = True
    mask[2:6, 5:8] = True
    np.testing.assert_array_equal(decode({"size": [9, 10], "counts": "61X13mN000`0"}), mask)
    np.testing.assert_array_equal(decode({"size": [9, 10], "counts": [6, 1, 40, 4, 5, 4, 5, 4, 21]}), mask)
    assert packed([6, 1, 40, 4, 5, 4, 5, 4, 21]) == "61X13mN000`0"


def test_runs_go_down_the_columns():
    assert decode({"size": [2, 3], "counts": [1, 2, 3]}).tolist() == [[False, True, False], [True, False, False]]
    assert decode({"size": [2, 3], "counts": [0, 6]}).all()


@pytest.mark.parametrize(
    ("rle", "why"),
    [
        ({"counts": [6]}, "size"),
        ({"size": [2], "counts": [2]}, "size"),
        ({"size": [0, 3], "counts": [0]}, "size"),
        ({"size": [2.0, 3], "counts": [6]}, "size"),
        ({"size": [10**6, 10**6], "counts": [10**12]}, "size"),
        ({"size": [2, 3]}, "got None"),
        ({"size": [2, 3], "counts": [1, 2]}, "these sum to 3"),
        ({"size": [2, 3], "counts": [1, 2, 4]}, "these sum to 7"),
        ({"size": [2, 3], "counts": [8, -2]}, "whole numbers"),
        ({"size": [2, 3], "counts": [True, 5]}, "whole numbers"),
        ({"size": [2, 3], "counts": [3.0, 3]}, "whole numbers"),
        ({"size": [2, 3], "counts": "6 "}, "cannot be there"),
        ({"size": [2, 3], "counts": "6é"}, "cannot be there"),
        ({"size": [2, 3], "counts": "X"}, "cut short"),
        ({"size": [2, 3], "counts": "X" * 50}, "cannot be there"),
        ({"size": [2, 3], "counts": "N"}, "whole numbers"),  # minus two
    ],
)
def test_what_is_no_mask_is_refused_in_a_sentence(rle, why):
    with pytest.raises(lp.BadInput, match=why) as refused:
        decode(rle)
    assert "\n" not in str(refused.value)
