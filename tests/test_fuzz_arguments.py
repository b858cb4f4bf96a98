"""Wrong arguments for everything public end in an error of ours, or are taken."""

import fuzz_arguments as fuzz
import pytest


@pytest.fixture(scope="module")
def known():
    return {name.partition(",")[0] for name in fuzz.bases()} | fuzz.INNER


def test_valid_arguments_of_everything_public_are_known(known):
    assert set(fuzz.public()) <= known


def test_nothing_foreign_slow_or_large_comes_of_wrong_arguments(known):
    wrong = [
        f"{each}: {told}"
        for each in fuzz.tries(150, seed=7)
        for what, told in [fuzz.outcome(each)]
        if what not in ("accepted", "refused")
    ]
    assert not wrong
