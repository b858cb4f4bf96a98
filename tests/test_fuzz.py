"""Damaged and crafted files of every kind that carries a description, a few of each: ``make fuzz`` tries thousands."""

from __future__ import annotations

import warnings

import pytest
from fuzz_files import Target, targets, tried

COUNT = 60


@pytest.fixture(scope="module")
def kinds() -> dict[str, Target]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return targets()


@pytest.mark.parametrize("kind", ["trace", "probe", "map", "scores"])
def test_damaged_and_crafted_files_are_read_right_or_refused_in_a_sentence(kinds, kind):
    found = tried(kind, kinds[kind], COUNT, seed=1)
    assert found.failures == []
    assert found.outcomes["refused"] > COUNT / 3
