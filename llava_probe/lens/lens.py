"""What each layer would say at each token, were it the last: the logit lens, and with a ``TunedLens`` the tuned one.

    found = lp.lens(vlm, trace, words=["red", "blue"])   # at every visual token, of every layer
    found.texts[12][40]                                  # the likeliest words of hidden state 12 at the 40th patch
    found.map("red", layer=12).overlay()
    found.first("red")                                   # the first layer that says it anywhere

Logit lens (nostalgebraist 2020): softmax(U · norm(h)); tuned lens (Belrose et al. 2023, arXiv 2303.08112, eq. 3):
softmax(U · norm(h + A h + b)). Norm and unembedding are the model's own code (``inside/ending.py``), so the last layer
gives the model's logits themselves, caps and scales and all.

What a patch's lens says is a reading and no proof of what is there: in deep layers of these models most of what a patch
holds is no longer about its own place (arXiv 2602.01530).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from llava_probe.analyzers.table import Table
from llava_probe.border import Count, checked
from llava_probe.errors import BadInput, OutOfRange
from llava_probe.inside.ending import Ending
from llava_probe.lens.at_tokens import AtTokens
from llava_probe.lens.reading import said_by
from llava_probe.lens.states import states_at
from llava_probe.lens.tuned import TunedLens
from llava_probe.maps.maps import ImageMap
from llava_probe.model import VLM
from llava_probe.trace.explained import IMAGE, At, placed
from llava_probe.trace.kept import kept_columns, kept_rows
from llava_probe.trace.spellings import Spellings, spellings
from llava_probe.trace.tokens import Token
from llava_probe.trace.trace import Trace

#: What is known of what a lens at a visual token does not tell.
LENS_LIMITS = "deep layers say little about a patch's own place (arXiv 2602.01530)"

_NO_TOKEN = -1


@checked
@dataclass(frozen=True, eq=False)
class Lens(AtTokens):
    """What some layers would say at some tokens.

    Attributes:
        layers: hidden states, by transformers' index; ``positions``: of the tokens in the sequence.
        ids, probability: [layers, N, top] of the likeliest tokens, best first.
        entropy: [layers, N] in nats.
        words: those that were weighed; ``word_ids``: the ids that were summed for each.
        word_probability: [words, layers, N]; ``word_rank``: [words, layers, N] how many tokens besides its spellings
            are likelier than its likeliest one: 0 where it is on top.
        kind: ``"logit lens"`` or ``"tuned lens"``.
        spelled: what the ids spell.
        trace: what was read.
    """

    layers: tuple[int, ...]
    positions: tuple[int, ...]
    ids: Tensor
    probability: Tensor
    entropy: Tensor
    words: tuple[str, ...]
    word_ids: tuple[tuple[int, ...], ...]
    word_probability: Tensor
    word_rank: Tensor
    kind: str
    spelled: Spellings = field(repr=False)
    trace: Trace = field(repr=False)

    @cached_property
    def texts(self) -> tuple[tuple[tuple[str, ...], ...], ...]:
        """The likeliest tokens' texts, with their spaces: by layer, token and place."""
        text = self.spelled.text
        return tuple(tuple(tuple(map(text, token)) for token in layer) for layer in self.ids.tolist())

    @property
    def told(self) -> str:
        """What was read where, in words."""
        return f"{self.kind} at {len(self.positions)} token{'s' * (len(self.positions) != 1)}"

    def row(self, layer: int) -> int:
        """Where a hidden state, by the model's own number, stands along the axis of layers.

        Raises:
            OutOfRange: it was not read.
        """
        total = self.trace.sizes.hidden_layers
        if layer % total not in self.layers or not -total <= layer < total:
            told = ", ".join(map(str, self.layers))
            raise OutOfRange(f"layer {layer} was not read, only {told}; lens(..., layers=[{layer}]) reads it")
        return self.layers.index(layer % total)

    def map(self, word: str, layer: int, image: int = 0) -> ImageMap:
        """How likely a word is at each visual token of one picture.

        Args:
            word: one of ``words``.
            layer: which hidden state.
            image: which picture.

        Raises:
            OutOfRange: the word was not weighed, or the layer not read.
            BadInput: not at all visual tokens of this picture, or their places are not known.
        """
        number, row, columns = self._number(word), self.row(layer), self.columns(image)
        return ImageMap(
            values=self.word_probability[number, row, columns][None],
            layout=placed(self.trace, image),
            image=self.trace.images[image],
            tokens=(Token(_NO_TOKEN, word, "special", _NO_TOKEN),),
            method=self.kind,
            about={"unit": f"probability at layer {self.layers[row]}", "layer": self.layers[row]},
        )

    def first(self, word: str, position: int | None = None) -> int | None:
        """The first layer at which a word is on top; None where it never is.

        Args:
            word: one of ``words``.
            position: at which token; at any of them when None.

        Raises:
            OutOfRange: the word was not weighed, or the lens not read there.
        """
        ranks = self.word_rank[self._number(word)]
        if position is not None:
            if position not in self.positions:
                raise OutOfRange(f"the lens was not read at position {position}")
            ranks = ranks[:, [self.positions.index(position)]]
        on_top = (ranks == 0).any(1).tolist()
        return next((layer for layer, there in zip(self.layers, on_top, strict=True) if there), None)

    # --- as data, as text ---

    def to_dict(self) -> dict[str, list[Any]]:
        """Plain lists by name, an entry for each layer and token, ready for JSON."""
        return self._columns().data

    def table(self) -> str:
        """A line for each layer, to print."""
        return self._by_layer().text()

    def __repr__(self) -> str:
        told = f", words {', '.join(self.words)}" if self.words else ""
        return f"Lens({self.kind}: {len(self.layers)} layers at {len(self.positions)} tokens{told})"

    def __str__(self) -> str:
        return f"{self.table()}\n{self.told}"

    def _repr_html_(self) -> str:
        return self._by_layer().html(self.told)

    def _by_layer(self) -> Table:
        """Of each layer: how sure it is, what it says most often, and how far each word came."""
        said = [Counter(token[0].strip() or token[0] for token in layer).most_common(1)[0] for layer in self.texts]
        data: dict[str, list[Any]] = {
            "layer": list(self.layers),
            "entropy": self.entropy.mean(1).tolist(),
            "commonest": [text for text, _ in said],
            "share": [count / len(self.positions) for _, count in said],
        }
        for word, shares, ranks in zip(self.words, self.word_probability, self.word_rank, strict=True):
            data |= {word: shares.amax(1).tolist(), f"{word}, best rank": ranks.amin(1).tolist()}
        return Table(data)

    def _columns(self) -> Table:
        count = len(self.positions)
        tokens = [token.text for token in self.tokens]
        data: dict[str, list[Any]] = {
            "layer": [layer for layer in self.layers for _ in range(count)],
            "position": [*self.positions] * len(self.layers),
            "token": tokens * len(self.layers),
            "word": [token[0] for layer in self.texts for token in layer],
            "probability": self.probability[..., 0].flatten().tolist(),
            "entropy": self.entropy.flatten().tolist(),
        }
        for word, shares, ranks in zip(self.words, self.word_probability, self.word_rank, strict=True):
            data |= {f"probability of {word}": shares.flatten().tolist(), f"rank of {word}": ranks.flatten().tolist()}
        return Table(data)

    def _number(self, word: str) -> int:
        if word not in self.words:
            told = f"only {list(self.words)}" if self.words else "none was"
            raise OutOfRange(f"{word!r} was not weighed, {told}; lens(..., words=[{word!r}]) weighs it")
        return self.words.index(word)


@checked
def lens(
    vlm: VLM,
    trace: Trace,
    layers: int | Sequence[int] | None = None,
    at: At = IMAGE,
    top: Count = 5,
    words: str | Sequence[str] | None = None,
    tuned: TunedLens | None = None,
) -> Lens:
    """What each layer would say at some tokens, in bounded memory.

    States that the trace kept are read; where one is missing, the model runs once over prompt and answer.

    Args:
        vlm: the model of the trace.
        trace: whose tokens are read.
        layers: hidden states by transformers' index, negative from the end; when None all, or all that ``tuned``
            has and the last.
        at: the tokens, as ``trace.positions`` reads them; every visual one by default.
        top: how many of the likeliest tokens to keep of each.
        words: to be weighed everywhere. A word counts in every spelling that is one token, with or without a space, in
            whatever case, as in ``lp.confidence(trace).choices``; where none is, by the first token of each spelling.
        tuned: a lens that was fitted to this model; the logit lens when None.

    Raises:
        OutOfRange: a layer, position or word that is not there.
        BadInput: no token, or a trace or tuned lens of another model.
        BadModel: the model has no output embedding, or its layers carry streams that its norm does not read.
        NotANumber: a state or logit is NaN.
    """
    inside = vlm.anatomy
    total = inside.layers + 1
    if layers is None and tuned is not None:
        layers = [*tuned.layers, inside.layers]
    numbers = tuple(dict.fromkeys(kept_columns(layers, tuple(range(total)), total, "hidden state", "layers")))
    fed = tuple(range(len(trace.tokens) - 1))
    positions = tuple(dict.fromkeys(kept_rows(trace, at, fed, "hidden states", "positions")))
    if not positions or not numbers:
        raise BadInput(f"at={at!r} names no token" if numbers else "layers= names no layer; leave it out for all")
    if tuned is not None:
        tuned.check(vlm)
    named = () if words is None else tuple(dict.fromkeys([words] if isinstance(words, str) else words))
    ids = spelled_as(vlm, trace, named)
    states, ending = states_at(vlm, trace, numbers, positions), Ending(inside, a_word(trace))
    visual = torch.tensor([trace.tokens[position].role == "image" for position in positions])
    parts = []
    for layer in numbers:
        rows, normed = states.pop(layer), layer == inside.layers
        if tuned is not None and not normed:
            rows = tuned.translate(rows, layer, visual)
        with torch.no_grad():
            parts.append(said_by(ending, rows, top, ids, normed=normed, vocabulary=inside.vocabulary))
    found = torch.stack([part.ids for part in parts])
    return Lens(
        layers=numbers,
        positions=positions,
        ids=found,
        probability=torch.stack([part.probability for part in parts]),
        entropy=torch.stack([part.entropy for part in parts]),
        words=named,
        word_ids=ids,
        word_probability=torch.stack([part.word_probability for part in parts], dim=1),
        word_rank=torch.stack([part.word_rank for part in parts], dim=1),
        kind="logit lens" if tuned is None else "tuned lens",
        spelled=spellings(vlm.processor.tokenizer, [token for token in found.unique().tolist() if _known(vlm, token)]),
        trace=trace,
    )


def a_word(trace: Trace) -> int:
    """The id of a token that stands for no picture."""
    return next((token.id for token in trace.tokens if token.role in ("prompt", "generated")), 0)


def spelled_as(vlm: VLM, trace: Trace, words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """The ids that stand for each word: single tokens that spell it, else the first token of each spelling.

    Raises:
        BadInput: an empty word; OutOfRange: one that the tokenizer does not know.
    """
    if not words:
        return ()
    tokenizer = vlm.processor.tokenizer
    vocabulary = trace.spellings if trace.spellings.whole else spellings(tokenizer)
    found = []
    for word in words:
        if not isinstance(word, str) or not word.strip():
            raise BadInput(f"words= takes words, as text; got {word!r}")
        ids = vocabulary.of(word) or tuple(dict.fromkeys(_first_tokens(tokenizer, word.strip())))
        if not ids:
            raise OutOfRange(f"{word!r} is no word of this tokenizer")
        found.append(ids)
    return tuple(found)


def _first_tokens(tokenizer: Any, word: str) -> list[int]:
    """The first token that is no space of each spelling of a word."""
    cases = dict.fromkeys([word, word.lower(), word.capitalize(), word.upper()])
    found = []
    for text in (f"{space}{case}" for case in cases for space in ("", " ")):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        found += [token for token in ids if tokenizer.decode([token]).strip()][:1]
    return [token for token in found if token not in tokenizer.all_special_ids]


def _known(vlm: VLM, token: int) -> bool:
    """Whether the tokenizer has a word for an id: a vocabulary may be rounded up."""
    return token < len(vlm.processor.tokenizer)
