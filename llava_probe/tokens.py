"""The tokens of one prompt and its answer: text, role and place, and where a word is among them.

A token's text is what it adds to the text decoded so far, so the texts of a run join to exactly what the tokenizer
decodes: spaces are kept, and a character spread over several tokens belongs to the last of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llava_probe.errors import BadInput

ROLES = ("special", "image", "prompt", "generated")

#: How far back a token's text may depend on the ones before it (byte pieces of one character, spaces of a word).
_CONTEXT = 8


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


def tokens_of(tokenizer: Any, ids: Sequence[int], prompt_length: int, image_token_id: int) -> tuple[Token, ...]:
    """The tokens of ``ids``, prompt and answer."""
    special = set(tokenizer.all_special_ids)
    roles = [_role(token, place, prompt_length, image_token_id, special) for place, token in enumerate(ids)]
    texts = _texts(tokenizer, ids, roles)
    return tuple(Token(*parts, place) for place, parts in enumerate(zip(ids, texts, roles, strict=True)))


def _role(token: int, place: int, prompt_length: int, image_token_id: int, special: set[int]) -> str:
    if place >= prompt_length:
        return "generated"
    if token == image_token_id:
        return "image"
    return "special" if token in special else "prompt"


def _texts(tokenizer: Any, ids: Sequence[int], roles: Sequence[str]) -> list[str]:
    alone = set(tokenizer.all_special_ids)
    image = {token for token, role in zip(ids, roles, strict=True) if role == "image"}
    names = {token: tokenizer.convert_ids_to_tokens(token) for token in (alone | image) & set(ids)}
    texts: list[str] = []
    run: list[int] = []
    for place, token in enumerate(ids):
        if place and (roles[place] == "generated") != (roles[place - 1] == "generated"):
            run = []
        if token in names:
            texts.append(names[token])
            run = []
            continue
        # The token before the run gives the first one its space, where the tokenizer writes words with a leading one.
        before = run[-_CONTEXT:]
        texts.append(_added(tokenizer, before, token))
        run = [*before, token] if texts[-1] or not run else [*run, token]
    return texts


def _added(tokenizer: Any, before: list[int], token: int) -> str:
    """What ``token`` adds after ``before``; nothing while it leaves a character unfinished."""
    old = _decode(tokenizer, before)
    new = _decode(tokenizer, [*before, token])
    if not before and tokenizer.convert_ids_to_tokens(token).startswith("▁") and not new.startswith(" "):
        new = " " + new  # sentencepiece drops the space of whatever it decodes first
    if new.endswith("�") and not old.endswith("�"):
        return ""
    return new.removeprefix(old.removesuffix("�")) if new.startswith(old.rstrip("�")) else new[len(old) :]


def _decode(tokenizer: Any, ids: list[int]) -> str:
    if not ids:
        return ""
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def find(tokens: Sequence[Token], text: str, role: str | None = None, occurrence: int | None = None) -> tuple[int, ...]:
    """Positions of the tokens that spell ``text``: whole words, whatever the case.

    Args:
        tokens: of the whole sequence.
        text: one or several words.
        role: look only among tokens of this role.
        occurrence: which time the text occurs, from 0; all of them when None.

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
    words = r"\s+".join(re.escape(word) for word in text.split())
    matches = list(re.finditer(rf"(?<!\w){words}(?!\w)", joined, re.IGNORECASE))
    if occurrence is not None:
        matches = matches[occurrence : occurrence + 1]
    return tuple(sorted({owners[place] for match in matches for place in range(*match.span())}))
