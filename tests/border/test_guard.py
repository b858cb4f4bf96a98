"""What a public function takes stands in its signature: all else is one sentence of ours, before anything runs."""

import inspect
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, Unpack

import numpy as np
import pytest
import torch

import llava_probe as lp
from llava_probe.border import Count, Limits, Numeric, Portion, Seed, checked


class Options(TypedDict, total=False):
    """Options that two functions share."""

    width: Count


@checked
def taking(**given: Any) -> Any:
    """Whatever."""
    return given


def reads(annotation, value):
    """What a function with one argument of this kind is given."""

    def function(argument):
        return argument

    function.__annotations__ = {"argument": annotation}
    return checked(function)(value)


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), torch.tensor(3), np.array(3)], ids=repr)
def test_a_whole_number_is_whatever_counts(value):
    assert type(reads(int, value)) is int
    assert reads(int, value) == reads(int | None, value) == reads(Count, value) == 3


@pytest.mark.parametrize("value", [True, np.bool_(True), torch.tensor(True), 1.0, "1", None, torch.tensor([3]), 1j])
def test_nothing_else_is_a_whole_number(value):
    with pytest.raises(lp.BadInput, match=r"function\(argument=...\) takes a whole number; got "):
        reads(int, value)


def test_the_sentence_says_what_was_given_and_what_is_taken():
    numbers = int | Sequence[int] | None
    with pytest.raises(lp.BadInput) as refused:
        reads(numbers, 1.5)
    told = "takes a whole number, a list of whole numbers or None; got 1.5 (float)"
    assert str(refused.value) == f"function(argument=...) {told}"
    with pytest.raises(lp.BadInput, match=r"got a list of 2, whose entry 1 is 'x' \(str\)"):
        reads(numbers, [1, "x"])
    with pytest.raises(lp.BadInput, match="ndarray of shape \\[2\\] and dtype float64"):
        reads(numbers, np.zeros(2))


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Portion, float("nan")),
        (Portion, 1.01),
        (Count, 0),
        (Count, 10**400),
        (Seed, -1),
        (Annotated[float, Limits(above=0)], float("inf")),
        (bool, 1),
        (str, "\ud800"),
        (Sequence[str], "abc"),
        (Sequence[int], {1: 2}),
        (str | Path, "a\0b"),
        (str | Path, ""),
        (str | Path, "x" * 300),
        (str | Path, "~nobody-of-this-name/x"),
        (str | Path, "\ud800"),
        (Literal["a", "b"], "c"),
        (Mapping[str, int], {"a": "b"}),
        (tuple[int, int], (1, 2, 3)),
        (Numeric, np.array(["a"])),
        (Numeric, torch.zeros(2, device="meta")),
        (Numeric, [[1, 2], [3]]),
        (Hashable, []),
        (lp.Capture | None, lp.Capture),
    ],
)
def test_what_lies_outside_is_refused(annotation, value):
    with pytest.raises(lp.BadInput, match="function"):
        reads(annotation, value)


def test_an_iterator_is_read_while_it_is_used_up():
    taken = []

    def numbers():
        for each in (1, 2, "three"):
            taken.append(each)
            yield each

    given = reads(Iterable[int], numbers())
    assert taken == []
    with pytest.raises(lp.BadInput, match="'three'"):
        list(given)


def test_options_that_are_named_elsewhere_are_refused_by_name():
    @checked
    def drawn(**options: Unpack[Options]) -> Any:
        return options

    assert drawn(width=np.int8(3)) == {"width": 3}
    with pytest.raises(lp.BadInput, match="drawn has no option widht=; it takes width"):
        drawn(widht=3)


def test_a_guarded_function_looks_like_itself():
    assert list(inspect.signature(lp.attention_map).parameters)[:2] == ["trace", "image"]
    assert lp.attention_map.__name__ == "attention_map"
    assert lp.attention_map.__module__ == "llava_probe.analyzers.attention"
    with pytest.raises(TypeError, match="unexpected keyword argument 'layer'"):
        lp.attention_map(layer=3)
    assert taking(a=1) == {"a": 1}


class Hostile:
    """Raises wherever it is looked at."""

    def __getattr__(self, name):
        raise ZeroDivisionError(name)

    __len__ = __iter__ = __repr__ = __str__ = __eq__ = lambda *_: 1 / 0
    __hash__ = None


@pytest.mark.parametrize(
    "annotation", [int, float, str, Sequence[int], Mapping[str, int], np.ndarray, Path, lp.Capture]
)
def test_what_cannot_be_looked_at_is_refused(annotation):
    with pytest.raises(lp.BadInput, match="Hostile"):
        reads(annotation, Hostile())
