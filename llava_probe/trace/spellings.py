"""What the ids that a trace can show spell, so that it is read without the model.

A trace with whole logits holds a number for each entry of the vocabulary, so it keeps how each is spelled: about as
many bytes as one more token's logits and scores. A trace with only the top k keeps the texts of those. Then "how
likely was 'yes', however it is written" needs no tokenizer:

    trace.spellings.text(4874)        # " yes"
    trace.spellings.of("yes")         # ids of "yes", " yes", "Yes", " YES" ...
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llava_probe.border import checked


@checked
@dataclass(frozen=True)
class Spellings:
    """Texts of token ids, with their spaces.

    Attributes:
        texts: by id; one token's bytes that are no whole character show as "�".
        special: ids of special tokens (EOS, padding, image places).
        whole: whether ``texts`` covers the whole vocabulary.
    """

    texts: Mapping[int, str] = field(default_factory=dict, repr=False)
    special: frozenset[int] = frozenset()
    whole: bool = False

    def text(self, token: int) -> str:
        """How ``token`` is spelled; ``#id`` where that is not known."""
        return self.texts.get(token, f"#{token}")

    def of(self, word: str) -> tuple[int, ...]:
        """Ids of the single tokens that spell ``word``, whatever the case and the spaces around it."""
        wanted = word.strip().casefold()
        return tuple(token for token, text in self.texts.items() if text.strip().casefold() == wanted)


def spellings(tokenizer: Any, ids: Iterable[int] | None = None) -> Spellings:
    """The spellings of ``ids``, or of the tokenizer's whole vocabulary."""
    whole = ids is None
    numbers = list(range(len(tokenizer))) if ids is None else sorted(set(ids))
    texts = dict(zip(numbers, _texts(tokenizer, numbers), strict=True))
    return Spellings(texts, frozenset(tokenizer.all_special_ids), whole)


def ends_of(tokenizer: Any, config: Any) -> frozenset[int]:
    """The ids that are no words of an answer: the tokenizer's special ones, and what generation stops at.

    Models that end a turn with a token of its own (``<end_of_turn>``) need not call it special.
    """
    return frozenset(tokenizer.all_special_ids) | stops_at(config)


def stops_at(config: Any) -> frozenset[int]:
    """The ids at which generation stops, as its config says: none, one or a list."""
    ends = config.eos_token_id
    return frozenset(int(end) for end in (ends if isinstance(ends, list | tuple) else [ends]) if end is not None)


def _texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    pieces = tokenizer.convert_ids_to_tokens(list(ids))
    decoded = (
        tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False) for token in ids
    )
    # sentencepiece drops the space of whatever it decodes first
    return [
        " " + text if piece and piece.startswith("▁") and not text.startswith(" ") else text
        for piece, text in zip(pieces, decoded, strict=True)
    ]
