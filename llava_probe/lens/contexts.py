"""Which words of which sentences a bank keeps: each word's last token, behind all that the model read before it.

A state knows only what stands before it, so two sentences that begin alike have the same states there: a beginning
counts once. The first two tokens are left out, since what a model keeps there is its attention sink and no meaning. Of
a word that stands everywhere ("the") the first contexts are kept, as in LatentLens (arXiv 2602.00462, appendix).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from llava_probe.asking.prompts import pose
from llava_probe.errors import ProbeError, shortened
from llava_probe.model import VLM
from llava_probe.trace.tokens import Token, divided, parts_words, tokens_of

#: Positions at the start of a sequence that hold no word's meaning.
SINKS = 2
#: Sentences that go through the processor together.
_TOGETHER = 64


@dataclass(frozen=True)
class Context:
    """One word where it stands.

    Attributes:
        word: as it is written there, without punctuation around it.
        position: of its last token in the sequence.
        start, stop: of the word in the sentence as the model read it.
        time: how many contexts its word has before this one.
    """

    word: str
    position: int
    start: int
    stop: int
    time: int


@dataclass(frozen=True)
class SentenceWords:
    """A sentence with the words that are kept of it.

    Attributes:
        given: as somebody wrote it; ``read``: as its tokens spell it.
        contexts: in their order.
    """

    given: str
    read: str
    contexts: tuple[Context, ...]

    @property
    def row(self) -> dict[str, Any]:
        """The same as ``lp.extract`` takes it, ``positions="at"``."""
        columns = {"at": "position", "words": "word", "starts": "start", "stops": "stop"}
        listed = {name: [getattr(each, part) for each in self.contexts] for name, part in columns.items()}
        return {"prompt": self.given, "sentence": self.read, **listed}


@dataclass(frozen=True)
class ChosenWords:
    """What a bank is made of.

    Attributes:
        sentences: those of which something is kept.
        read: how many there were in all.
        refused: why sentences were left out, the first of them; ``refusals``: how many.
        beyond: contexts that ``most`` left out.
    """

    sentences: tuple[SentenceWords, ...]
    read: int
    refused: str
    refusals: int
    beyond: int


def choose_words(vlm: VLM, sentences: Iterable[str], each: int, most: int) -> ChosenWords:
    """Choose contexts.

    Args:
        vlm: whose processor reads the sentences.
        sentences: in their order.
        each: contexts of a word at most, whatever its case.
        most: in all. Where there are more, every word keeps its first before any keeps another.
    """
    counts: Counter[str] = Counter()
    known: set[bytes] = set()
    planned, read, refused, refusals = [], 0, "", 0
    for sentence, tokens in _read(vlm, sentences):
        read += 1
        if isinstance(tokens, ProbeError):
            refused, refusals = refused or f"{shortened(repr(sentence))}: {tokens}", refusals + 1
            continue
        texts = _texts(tokens)
        if contexts := _contexts(tokens, texts, counts, known, each):
            planned.append(SentenceWords(sentence, "".join(texts), contexts))
    kept, beyond = _within(planned, most)
    return ChosenWords(kept, read, refused, refusals, beyond)


def _read(vlm: VLM, sentences: Iterable[str]) -> Iterator[tuple[str, tuple[Token, ...] | ProbeError]]:
    """Each sentence with its tokens as the model is fed, or why it cannot be read."""
    rest = iter(sentences)
    while some := list(islice(rest, _TOGETHER)):
        try:
            yield from zip(some, _tokens(vlm, some), strict=True)
        except ProbeError:
            yield from ((sentence, _alone(vlm, sentence)) for sentence in some)


def _alone(vlm: VLM, sentence: str) -> tuple[Token, ...] | ProbeError:
    try:
        return _tokens(vlm, [sentence])[0]
    except ProbeError as error:
        return error


def _tokens(vlm: VLM, sentences: Sequence[str]) -> list[tuple[Token, ...]]:
    tensors, prompts = vlm.prepare([pose(vlm.processor, prompt=sentence) for sentence in sentences], {})
    rows = zip(tensors["input_ids"].tolist(), prompts, strict=True)
    fed = [row[prompt.padding :] for row, prompt in rows]
    return [tokens_of(vlm.processor.tokenizer, ids, len(ids), vlm.visual_ids) for ids in fed]


def _texts(tokens: Sequence[Token]) -> list[str]:
    """What each token adds to the sentence; the first one's space is none of it."""
    texts = [token.text if token.role == "prompt" else "" for token in tokens]
    first = next((place for place, text in enumerate(texts) if text), None)
    if first is not None:
        texts[first] = texts[first].lstrip()
    return texts


def _contexts(
    tokens: Sequence[Token], texts: Sequence[str], counts: Counter[str], known: set[bytes], each: int
) -> tuple[Context, ...]:
    starts = np.cumsum([0, *map(len, texts)]).tolist()
    ids = np.array([token.id for token in tokens], np.int64)
    found = []
    for first, last in _words(tokens):
        word = "".join(texts[first : last + 1])
        bare = _bare(word)
        key = bare.casefold()
        if not bare or last < SINKS or counts[key] >= each:
            continue
        beginning = hashlib.sha256(ids[: last + 1].tobytes()).digest()
        if beginning in known:
            continue
        known.add(beginning)
        start = starts[first] + word.index(bare)
        found.append(Context(bare, last, start, start + len(bare), counts[key]))
        counts[key] += 1
    return tuple(found)


def _words(tokens: Sequence[Token]) -> list[tuple[int, int]]:
    """First and last token of each word; where a script does not part its words, of each of its tokens."""
    special = {token.id for token in tokens if token.role != "prompt"}
    found = []
    for word in divided(tokens, special):
        lettered = [place for place in word if any(letter.isalnum() for letter in tokens[place].text)]
        if not lettered:
            continue
        if parts_words("".join(tokens[place].text for place in word)):
            found.append((word[0], lettered[-1]))
        else:
            found += [(place, place) for place in lettered]
    return found


def _bare(word: str) -> str:
    """Without the punctuation and space around it."""
    lettered = [place for place, letter in enumerate(word) if letter.isalnum()]
    return word[lettered[0] : lettered[-1] + 1] if lettered else ""


def _within(planned: Sequence[SentenceWords], most: int) -> tuple[tuple[SentenceWords, ...], int]:
    """The sentences with ``most`` contexts in all, and how many others there were."""
    pairs = [(context.time, number, context) for number, one in enumerate(planned) for context in one.contexts]
    if len(pairs) <= most:
        return tuple(planned), 0
    kept: dict[int, list[Context]] = {}
    for _, number, context in sorted(pairs, key=lambda pair: pair[:2])[:most]:
        kept.setdefault(number, []).append(context)
    chosen = [
        SentenceWords(planned[number].given, planned[number].read, tuple(sorted(of, key=lambda one: one.position)))
        for number, of in sorted(kept.items())
    ]
    return tuple(chosen), len(pairs) - most
