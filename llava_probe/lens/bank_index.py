"""Which word in which sentence each state of a bank is of, as the index of its store says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from llava_probe.described import Stored
from llava_probe.errors import BadFile, NotCaptured
from llava_probe.features.reading import Features
from llava_probe.stored import converted


@dataclass(frozen=True)
class ContextualWord:
    """A word as it stands in a sentence of a bank.

    Attributes:
        word: without punctuation around it.
        sentence: as the model read it; ``start``, ``stop``: of the word in it.
    """

    word: str
    sentence: str
    start: int
    stop: int

    @property
    def marked(self) -> str:
        """The sentence with the word between brackets; only what stands before it was read."""
        return f"{self.sentence[: self.start]}[{self.word}]{self.sentence[self.stop :]}"


def read_contexts(features: Features, spans: Tensor, count: int) -> tuple[ContextualWord, ...]:
    """The word of each state.

    Args:
        features: the bank's store.
        spans: [sentences, 2] which states are of each sentence.
        count: how many states there are.

    Raises:
        BadFile: it is no bank's, or its words do not fit its states.
    """
    damaged = f"{features.folder} is no bank of words, or a damaged one"
    try:
        told = features.table(_Columns.__struct_fields__).to_pydict()
    except NotCaptured:
        raise BadFile(no_bank(features.folder)) from None
    held = converted(damaged, told, _Columns)
    found: list[ContextualWord | None] = [None] * count
    rows = zip(spans.tolist(), held.sentence, held.words, held.starts, held.stops, strict=True)
    for (first, last), sentence, words, starts, stops in rows:
        if not len(words) == len(starts) == len(stops) == last - first:
            raise BadFile(f"{damaged}: a sentence has {last - first} states and other numbers of words")
        found[first:last] = map(ContextualWord, words, [sentence] * len(words), starts, stops)
    if None in found:
        raise BadFile(f"{damaged}: some of its states are of no word")
    return tuple(found)  # type: ignore[arg-type]


def no_bank(folder: Path) -> str:
    """What to say of a store that is none."""
    return f"{folder} is a store of features and no bank of words; lp.word_bank(...) makes one"


class _Columns(Stored, frozen=True):
    """What the index says of each sentence: as it was read, and of each of its states the word and its place."""

    sentence: list[str]
    words: list[list[str]]
    starts: list[list[int]]
    stops: list[list[int]]
