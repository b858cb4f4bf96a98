"""What a patch holds, in words that were read in a sentence: the contextual states of your own sentences, searched.

    bank = lp.word_bank(vlm, "captions.txt", "bank/")       # once
    trace = vlm.generate(photo, "What is this?", capture=lp.Capture(positions=["predicting", "image"]))
    found = lp.WordBank("bank/").words(trace, layer=12)     # milliseconds
    print(found); found.map("dog").overlay(); lp.figures.contextual_words(found)

A logit lens asks which word a state would *write*; many states of a patch would write none that means anything. A bank
asks beside which word, read in which sentence, a state *lies*, over several layers of the text (LatentLens, arXiv
2602.00462). Its words are those of your sentences: what is not in them cannot be found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava_probe.analyzers.table import Table
from llava_probe.asking.identity import in_brief, other_numbers
from llava_probe.border import Count, checked
from llava_probe.errors import BadFile, BadInput, NotANumber, OutOfRange
from llava_probe.features.reading import Features, Ragged
from llava_probe.lens.at_tokens import AtTokens
from llava_probe.lens.bank_index import ContextualWord, no_bank, read_contexts
from llava_probe.lens.nearest import lengths_of, nearest, similarity
from llava_probe.maps.maps import ImageMap
from llava_probe.trace.explained import FUNCTION_WORDS, IMAGE, At, placed
from llava_probe.trace.tokens import Token
from llava_probe.trace.trace import Trace

#: The position of a bank's states in its store: those that the column ``at`` lists.
AT = "at"

#: What is known of what it does not tell.
BANK_LIMITS = (
    "something is always nearest: only words of the bank can be found, and deep layers say little about a patch's own "
    "place (arXiv 2602.01530)"
)

_NO_TOKEN = -1
#: Words that a table lists.
_LISTED = 20


@checked
class WordBank:
    """Contextual states of words, as ``lp.word_bank`` keeps them; ``lp.Features`` reads the same folder.

    Args:
        folder: of the bank.

    Raises:
        BadFile: it is none, damaged, or its run did not end.
    """

    def __init__(self, folder: str | Path) -> None:
        self.features = Features(folder)
        self.folder = self.features.folder
        if not self.features.complete:
            raise BadFile(f"the run in {self.folder} did not end; the same word_bank call goes on with it")
        held = {key: self.features[key] for key in self.features.keys()}  # noqa: SIM118 - no mapping
        states = {what: one for (what, position), one in held.items() if position == AT and isinstance(one, Ragged)}
        if not states or len(states) < len(held) or any(one.values.ndim != 2 for one in states.values()):
            raise BadFile(no_bank(self.folder))
        self.layers = tuple(int(what.removeprefix("layer_")) for what in states)
        self._states: tuple[Tensor, ...] = tuple(one.values for one in states.values())
        self._spans: Tensor = next(iter(states.values())).spans

    def __len__(self) -> int:
        return len(self._states[0])

    def __repr__(self) -> str:
        layers = ", ".join(map(str, self.layers))
        return (
            f"WordBank({str(self.folder)!r}: {len(self.vocabulary):,} words in {len(self):,} contexts of "
            f"{len(self.features):,} sentences; layers {layers})"
        )

    @cached_property
    def contexts(self) -> tuple[ContextualWord, ...]:
        """Each word in its sentence, in the order of the states.

        Raises:
            BadFile: the words do not fit the states.
        """
        return read_contexts(self.features, self._spans, len(self))

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """How many contexts each word has, whatever its case, the most first."""
        counts = {word: len(rows) for word, rows in self._folded.items()}
        return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))

    @cached_property
    def content(self) -> tuple[str, ...]:
        """The words of the vocabulary that have content of their own: not "the", "at" or "is"; of English."""
        return tuple(word for word in self.vocabulary if word not in FUNCTION_WORDS)

    def states(self, layer: int) -> Tensor:
        """[contexts, D] hidden states of one of ``layers``, as the model computed them, mapped from the file.

        Raises:
            OutOfRange: another layer.
        """
        if layer not in self.layers:
            told = ", ".join(map(str, self.layers))
            raise OutOfRange(
                f"this bank has no layer {layer}; it has {told}: word_bank(..., layers=[{layer}]) keeps it"
            )
        return self._states[self.layers.index(layer)]

    def words(
        self, trace: Trace, layer: int, at: At = IMAGE, top: Count = 5, among: str | Sequence[str] | None = None
    ) -> ContextualWords:
        """The nearest words to some tokens' states, over all layers of the bank.

        Args:
            trace: of the bank's model, with these states.
            layer: of the tokens, by the model's own number, negative from the end.
            at: the tokens, as ``trace.positions`` reads them; every visual one by default.
            top: how many contexts of each; a context counts once, at the layer where it is nearest.
            among: the words that may be found, ``bank.content`` say; all when None.

        Raises:
            NotCaptured: the trace has not kept these states; the message says what to capture.
            OutOfRange: a layer, position or word that is not there.
            BadInput: a trace of another model, or no token.
            NotANumber: a state is NaN.
        """
        self._check(trace.provenance)
        states = trace.hidden(layer=[layer], at=at)
        states = states.reshape(-1, states.shape[-1])  # of a single position too
        positions = trace.positions(at)[: len(states)]  # the last one of an answer was never fed
        if not positions:
            raise BadInput(f"at={at!r} names no token")
        if not bool(torch.isfinite(states).all()):
            raise NotANumber(f"hidden states of layer {layer} are not all finite; float16 overflows in many models")
        found = nearest(states, self._states, self._lengths, top, self._mask(among))
        return ContextualWords(
            layer=layer % trace.sizes.hidden_layers,
            positions=tuple(positions),
            contexts=found.rows,
            layers=torch.tensor(self.layers)[found.layers],
            similarity=found.similarity,
            bank=self,
            trace=trace,
        )

    def similarity(self, word: str, states: Tensor) -> Tensor:
        """[N] float32: of [N, D] states the best cosine with any context of a word, at any layer.

        Args:
            word: in this case, or where it does not stand so in whatever case.
            states: of the bank's model.

        Raises:
            OutOfRange: the word is in no sentence of the bank.
            BadInput: states of another width.
        """
        rows, states, width = torch.tensor(self.rows(word)), torch.as_tensor(states), self._states[0].shape[1]
        if states.ndim != 2 or states.shape[1] != width:
            raise BadInput(f"this bank is of hidden states [N, {width}]; got {list(states.shape)}")
        layers = zip(self._states, self._lengths, strict=True)
        found = [similarity(states, layer[rows], lengths[rows]).amax(1) for layer, lengths in layers]
        return torch.stack(found).amax(0).clamp(-1, 1)

    def rows(self, word: str) -> list[int]:
        """Which contexts are of a word: in this case, or where it does not stand so in whatever case.

        Raises:
            BadInput: an empty one; OutOfRange: it is in no sentence of the bank.
        """
        sought = word.strip()
        if not sought:
            raise BadInput(f"a word is meant; got {word!r}")
        found = self._rows.get(sought) or self._folded.get(sought.casefold())
        if not found:
            told = "words are looked for one by one" if " " in sought else "its words are in bank.vocabulary"
            raise OutOfRange(f"{word!r} is no word of this bank ({told}); word_bank(...) of sentences with it has it")
        return found

    def _mask(self, among: str | Sequence[str] | None) -> Tensor | None:
        """[contexts] bool: those of some words."""
        if among is None:
            return None
        mask = torch.zeros(len(self), dtype=torch.bool)
        for word in [among] if isinstance(among, str) else among:
            mask[self.rows(word)] = True
        if not bool(mask.any()):
            raise BadInput("among= names no word; leave it out for all")
        return mask

    @cached_property
    def _rows(self) -> dict[str, list[int]]:
        return _by(context.word for context in self.contexts)

    @cached_property
    def _folded(self) -> dict[str, list[int]]:
        return _by(context.word.casefold() for context in self.contexts)

    @cached_property
    def _lengths(self) -> Tensor:
        """[layers, contexts] of the states."""
        found = torch.stack([lengths_of(layer) for layer in self._states])
        if not bool(torch.isfinite(found).all()):
            wrong = self.layers[int((~torch.isfinite(found)).any(1).nonzero()[0])]
            raise NotANumber(f"states of layer {wrong} in {self.folder} are not all finite; leave it out: layers=[...]")
        return found

    def _check(self, here: Any) -> None:
        """That a record is of the model that made this bank.

        Raises:
            BadInput: it is of another one.
        """
        if other := other_numbers(in_brief(self.features.manifest["settings"]["model"]), here):
            raise BadInput(f"this bank is of another model than the trace ({'; '.join(other)}); make one of that model")


@checked
@dataclass(frozen=True, eq=False)
class ContextualWords(AtTokens):
    """Of N tokens of one layer the nearest words.

    Attributes:
        layer: of the tokens; ``positions``: theirs in the sequence.
        contexts: [N, top] which of ``bank.contexts`` are nearest, best first.
        layers: [N, top] the layer of the text where each came nearest.
        similarity: [N, top] cosines.
        bank, trace: what was searched, and for what.
    """

    layer: int
    positions: tuple[int, ...]
    contexts: Tensor
    layers: Tensor
    similarity: Tensor
    bank: WordBank = field(repr=False)
    trace: Trace = field(repr=False)

    @cached_property
    def found(self) -> tuple[tuple[ContextualWord, ...], ...]:
        """[N][top] the words in their sentences, best first."""
        return tuple(tuple(self.bank.contexts[row] for row in rows) for rows in self.contexts.tolist())

    @property
    def texts(self) -> tuple[tuple[str, ...], ...]:
        """[N][top] the words alone."""
        return tuple(tuple(each.word for each in token) for token in self.found)

    def map(self, word: str, image: int = 0) -> ImageMap:
        """How near each visual token of one picture comes to a word: the best cosine with any of its contexts.

        Args:
            word: of the bank, in this case, or where it does not stand so in whatever case.
            image: which picture.

        Raises:
            OutOfRange: the bank has no such word.
            BadInput: not at all visual tokens of this picture, or their places are not known.
        """
        layout = placed(self.trace, image)
        self.columns(image)
        states = self.trace.hidden(layer=[self.layer], at=layout.positions.tolist())[:, 0]
        return ImageMap(
            values=self.bank.similarity(word, states)[None],
            layout=layout,
            image=self.trace.images[image],
            tokens=(Token(_NO_TOKEN, word, "special", _NO_TOKEN),),
            method="contextual words",
            about={"unit": f"cosine at layer {self.layer}", "layer": self.layer},
        )

    # --- as data, as text ---

    def to_dict(self) -> dict[str, list[Any]]:
        """Plain lists by name, an entry for each token and rank, ready for JSON."""
        return self._columns().data

    def table(self) -> str:
        """A line for each word that is nearest to a token, the commonest first, to print."""
        return self._by_word().text()

    def __str__(self) -> str:
        return f"{self.table()}\n{self._told()}"

    def _repr_html_(self) -> str:
        return self._by_word().html(self._told())

    def _told(self) -> str:
        words = len({each[0].casefold() for each in self.texts})
        more = f", {words - _LISTED} words more" if words > _LISTED else ""
        return f"nearest contexts to {len(self.positions)} tokens of layer {self.layer}{more}"

    def _by_word(self) -> Table:
        """Of each word that is on top somewhere: at how many tokens, and where it comes nearest."""
        tops = [each[0] for each in self.texts]
        counts = Counter(word.casefold() for word in tops)
        data: dict[str, list[Any]] = {name: [] for name in ("word", "tokens", "similarity", "layer", "sentence")}
        for folded, count in counts.most_common(_LISTED):
            own = [token for token, word in enumerate(tops) if word.casefold() == folded]
            best = max(own, key=lambda token: float(self.similarity[token, 0]))
            found = self.found[best][0]
            line = (found.word, count, float(self.similarity[best, 0]), int(self.layers[best, 0]), found.marked)
            for name, cell in zip(data, line, strict=True):
                data[name].append(cell)
        return Table(data)

    def _columns(self) -> Table:
        flat = [(token, rank) for token in range(len(self.positions)) for rank in range(self.similarity.shape[1])]
        found = [self.found[token][rank] for token, rank in flat]
        return Table(
            {
                "position": [self.positions[token] for token, _ in flat],
                "token": [self.tokens[token].text for token, _ in flat],
                "rank": [rank for _, rank in flat],
                "word": [each.word for each in found],
                "similarity": self.similarity.flatten().tolist(),
                "layer": self.layers.flatten().tolist(),
                "sentence": [each.sentence for each in found],
                "start": [each.start for each in found],
            }
        )


def _by(words: Iterator[str]) -> dict[str, list[int]]:
    """Where each word stands among them."""
    found: dict[str, list[int]] = {}
    for row, word in enumerate(words):
        found.setdefault(word, []).append(row)
    return found
