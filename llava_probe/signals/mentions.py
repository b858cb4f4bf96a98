"""Which objects a caption names, by the rules of CHAIR (Rohrbach et al. 2018, arXiv 1809.02156), in plain code.

    named("Two baby elephants by a stop sign.", Synonyms.own())    # elephant, stop sign; no person

Words are looked up in lower case, singular or plural. Two neighbours that are one thing are one word, and are looked
for before single ones: a hot dog is no dog. Who is young or rides along is no person: "baby elephant", "passenger jet".
A bow tie is a tie, a toilet seat a toilet, and where a caption has a toilet, a seat in it is no chair.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from llava_probe.signals.synonyms import Synonyms

#: What no regular ending makes.
_PLURALS = {
    "man": "men", "woman": "women", "child": "children", "person": "people", "mouse": "mice", "goose": "geese",
    "ox": "oxen", "foot": "feet", "tooth": "teeth", "knife": "knives", "calf": "calves", "wolf": "wolves",
    "loaf": "loaves", "leaf": "leaves", "shelf": "shelves", "half": "halves", "wife": "wives",
}  # fmt: skip
_ANIMALS = (
    *("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"),
    *("animal", "cub"),
)
_YOUNG = ("baby", "adult")
_VEHICLES = ("jet", "train")
#: Pairs that are another word, or no object at all.
_PAIRS = {
    **{(age, animal): animal for age in _YOUNG for animal in _ANIMALS},
    **{("passenger", vehicle): vehicle for vehicle in _VEHICLES},
    ("bow", "tie"): "tie",
    ("toilet", "seat"): "toilet",
    ("home", "plate"): "home plate",
    ("train", "track"): "train track",
}
#: Words with their hyphens, and each mark by itself, so that no pair reaches over one.
_TOKENS = re.compile(r"[^\W_]+(?:-[^\W_]+)*|[^\w\s]")


@dataclass(frozen=True)
class Mention:
    """One time that a caption names an object.

    Attributes:
        word: as the list has it; ``object``: its name in the annotations.
        start, end: of the letters in the caption.
    """

    word: str
    object: str
    start: int
    end: int


def named(caption: str, synonyms: Synonyms) -> tuple[Mention, ...]:
    """The objects that a caption names, each time that it does, in their order."""
    singular, pairs = _lookup(synonyms)
    tokens = [(match[0].lower(), match.start(), match.end()) for match in _TOKENS.finditer(caption)]
    words = list(_joined(tokens, singular, pairs))
    if {"toilet", "seat"} <= {word for word, *_ in words}:
        words = [entry for entry in words if entry[0] != "seat"]
    objects = synonyms.object_of
    return tuple(Mention(word, objects[word], start, end) for word, start, end in words if word in objects)


def plurals(word: str) -> set[str]:
    """How more than one may be written, after the regular endings and the few words that have their own."""
    found = {f"{word}s"}
    if word in _PLURALS:
        found.add(_PLURALS[word])
    if word.endswith(("s", "x", "z", "ch", "sh", "o")):
        found.add(f"{word}es")
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        found.add(f"{word[:-1]}ies")
    return found


def _joined(
    tokens: list[tuple[str, int, int]], singular: dict[str, str], pairs: dict[tuple[str, str], str]
) -> Iterator[tuple[str, int, int]]:
    """The words in the singular, two neighbours as one where they are one thing; with their letters."""
    place = 0
    while place < len(tokens):
        word, start, end = tokens[place]
        beside = tokens[place + 1] if place + 1 < len(tokens) else None
        pair = None if beside is None else _pair(word, beside[0], singular, pairs)
        if beside is not None and pair is not None:
            yield pair, start, beside[2]
            place += 2
        else:
            yield singular.get(word, word), start, end
            place += 1


def _pair(word: str, beside: str, singular: dict[str, str], pairs: dict[tuple[str, str], str]) -> str | None:
    for first in dict.fromkeys((word, singular.get(word, word))):
        for second in dict.fromkeys((beside, singular.get(beside, beside))):
            if (found := pairs.get((first, second))) is not None:
                return found
    return None


@lru_cache(maxsize=8)
def _lookup_of(words: frozenset[str]) -> tuple[dict[str, str], dict[tuple[str, str], str]]:
    """Every word by its singular and plurals, and the pairs that are one word."""
    pairs = {
        (first, second): f"{first} {second}" for first, _, second in (word.partition(" ") for word in words) if second
    }
    pairs = {pair: word for pair, word in pairs.items() if " " not in pair[1]} | _PAIRS
    single = {word for word in words if " " not in word} | {part for pair in pairs for part in pair}
    singular = {plural: word for word in sorted(single) for plural in plurals(word)}
    return singular | {word: word for word in single}, pairs


def _lookup(synonyms: Synonyms) -> tuple[dict[str, str], dict[tuple[str, str], str]]:
    return _lookup_of(frozenset(synonyms.object_of))
