"""The tokens of one prompt and its answer: text, role and place, and where a word is among them.

A token's text is what it adds to the text decoded so far, so the texts of a run join to exactly what the tokenizer
decodes: spaces are kept, and a character spread over several tokens belongs to the last of them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from llava_probe.border import checked
from llava_probe.errors import BadInput

ROLES = ("special", "image", "prompt", "generated")

#: A letter or digit of a script that parts its words. Chinese, Japanese and the scripts of South-East Asia do not, and
#: Korean writes particles onto its words: there any run of characters may be looked for.
_PARTED = r"[^\W\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u31ff\u3400-\u9fff\ua960-\ua97f"
_PARTED += r"\uac00-\ud7ff\uf900-\ufaff\uff66-\uffdc\U0001aff0-\U0001b16f\U00020000-\U0003ffff]"

#: Bytes of the longest character in UTF-8: as many tokens may share one.
_LONGEST_CHARACTER = 4


@checked
@dataclass(frozen=True)
class Token:
    """One token of the whole sequence.

    Attributes:
        id: in the model's vocabulary.
        text: what it adds to the decoded text, with its spaces.
        role: ``"special"``, ``"image"``, ``"prompt"`` or ``"generated"`` (an ending EOS included).
        position: its place in the whole sequence, from 0.
    """

    id: int
    text: str
    role: str
    position: int


def tokens_of(
    tokenizer: Any, ids: Sequence[int], prompt_length: int, visual: Collection[int], pictures: Collection[int] = ()
) -> tuple[Token, ...]:
    """The tokens of ``ids``, prompt and answer; ids in ``visual`` stand for pictures and frames.

    Some models put pictures where ordinary ids stand: ``pictures`` are the positions of theirs.
    """
    special = set(tokenizer.all_special_ids)
    roles = [_role(token, place, prompt_length, visual, special) for place, token in enumerate(ids)]
    texts = _texts(tokenizer, ids, roles)
    for place in pictures:
        roles[place] = "image"
    return tuple(Token(*parts, place) for place, parts in enumerate(zip(ids, texts, roles, strict=True)))


def _role(token: int, place: int, prompt_length: int, visual: Collection[int], special: set[int]) -> str:
    if place >= prompt_length:
        return "generated"
    if token in visual:
        return "image"
    return "special" if token in special else "prompt"


def _texts(tokenizer: Any, ids: Sequence[int], roles: Sequence[str]) -> list[str]:
    named = set(tokenizer.all_special_ids) | {token for token, role in zip(ids, roles, strict=True) if role == "image"}
    texts: list[str] = []
    settled = read = 0  # ids[settled:read] is context: decoding it again gives the text that is already out
    for place, token in enumerate(ids):
        if token in named:
            texts.append(str(tokenizer.convert_ids_to_tokens(token)))
            settled = read = place + 1
            continue
        before, now = _decode(tokenizer, ids[settled:read]), _decode(tokenizer, ids[settled : place + 1])
        last = place + 1 == len(ids) or ids[place + 1] in named
        if now.endswith("�") and not last and place - read < _LONGEST_CHARACTER:
            texts.append("")  # the character goes on in the next token
            continue
        first = settled == read and str(tokenizer.convert_ids_to_tokens(token)).startswith("▁")
        texts.append(" " * first + now[len(before) :].lstrip(" " * first))
        settled, read = read, place + 1
    return texts


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    if not ids:
        return ""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def find(tokens: Sequence[Token], text: str, role: str | None = None, occurrence: int | None = None) -> tuple[int, ...]:
    """Positions of the tokens that spell ``text``; "red" is not found in "coloured".

    Where it stands in exactly this case, it is found in this case only: "STOP" is not the "stop" of "a stop sign".
    Where it does not, it is found whatever the case.

    Args:
        tokens: of the whole sequence.
        text: one or several words, or anything else that is written: ``"?"``, ``"'s"``, ``"</s>"``.
        role: look only among tokens of this role.
        occurrence: which time the text occurs, from 0, or from the end when negative; all of them when None.

    Returns:
        Sequence positions in order; empty where the text does not occur.

    Raises:
        BadInput: an empty text or an unknown role.
    """
    if not text.strip():
        raise BadInput("find takes a word or words to look for; got an empty text")
    if role is not None and role not in ROLES:
        raise BadInput(f"role={role!r} is not one of {', '.join(ROLES)}")
    joined, owners = "", []
    previous = None
    for token in tokens:
        if role is not None and token.role != role:
            continue
        piece = token.text if token.role != "image" else "\0"
        if previous is not None and token.position != previous + 1:
            piece = "\0" + piece
        joined += piece
        owners += [token.position] * len(piece)
        previous = token.position
    sought = text.strip()
    pattern = r"\s+".join(re.escape(word) for word in sought.split())
    if re.match(_PARTED, sought[0]):
        pattern = f"(?<!{_PARTED}){pattern}"
    if re.match(_PARTED, sought[-1]):
        pattern = f"{pattern}(?!{_PARTED})"
    matches = list(re.finditer(pattern, joined)) or list(re.finditer(pattern, joined, re.IGNORECASE))
    if occurrence is not None:
        there = -len(matches) <= occurrence < len(matches)
        matches = [matches[occurrence]] if there else []
    return tuple(sorted({owners[place] for match in matches for place in range(*match.span())}))


def parts_words(text: str) -> bool:
    """Whether every letter and digit of a text is of a script that writes space between its words."""
    return all(re.match(_PARTED, letter) is not None for letter in text if letter.isalnum())


def divided(tokens: Sequence[Token], special: Collection[int]) -> list[list[int]]:
    """Indices of the tokens of each word; ``special`` ids belong to none.

    A word starts at a token that opens with space, or after one that closed with it.
    """
    words: list[list[int]] = []
    text = ""
    inside = False
    for index, token in enumerate(tokens):
        if token.id in special:
            inside = False
            continue
        parted = token.text[:1].isspace() or text[-1:].isspace()
        if not inside or (parted and text.strip()):
            words.append([])
            text, inside = "", True
        words[-1].append(index)
        text += token.text
    return words
