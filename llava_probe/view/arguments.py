"""What was typed behind a verb, as Python values: pictures, numbers, columns, options, and flags for ``generate``."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from llava_probe.errors import BadInput, OutOfRange

if TYPE_CHECKING:
    from PIL import Image

    from llava_probe.trace.explained import Place

#: Arguments of ``VLM.generate`` that no flag can give: ours to set, or Python objects.
NO_FLAGS = {"image", "question", "prompt", "messages", "inputs", "capture", "processor_kwargs"}
NO_FLAGS |= {"streamer", "logits_processor", "stopping_criteria", "generation_config", "prefix_allowed_tokens_fn"}

_WORDS = {"true": True, "false": False, "none": None, "null": None}
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a word", type(None): "none"}


def pictures(text: str) -> list[Image.Image]:
    """The pictures that the first argument names. An address may hold commas: one that parts it starts the next."""
    from llava_probe.pictures.images import open_image

    parts = text.split(",")
    whole = _is_file(text) or text.startswith("data:")
    whole = whole or ("://" in text and not all(_is_address(part) or _is_file(part) for part in parts))
    return [open_image(part) for part in ([text] if whole else parts)]


def check_order(image: str, question: str) -> None:
    """Refuse a flag that stands where the picture or the question belongs."""
    for word in (image, question):
        if word.startswith("--"):
            raise BadInput(
                f"{word} stands before the picture or the question; flags of generate come after both:  "
                f"llava-probe run PICTURE QUESTION {word} ..."
            )


def generation_flags(words: list[str]) -> dict[str, Any]:
    """``--num-beams 4 --do-sample`` as generate's arguments; values are read as JSON where they are JSON."""
    flags: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise BadInput(f"{word!r} belongs to no flag; flags of generate are given as --name value")
        name, given, value = word[2:].partition("=")
        if not given:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        argument = name.replace("-", "_")
        if argument in NO_FLAGS:
            raise BadInput(f"--{name} is no flag of this command; from Python, vlm.generate takes {argument}=")
        try:
            flags[argument] = json.loads(value)
        except json.JSONDecodeError:
            flags[argument] = {"True": True, "False": False, "None": None}.get(value, value)
        if argument in ("num_beams", "num_return_sequences") and not _counts(flags[argument]):
            raise BadInput(f"--{name} takes a whole number of at least 1; got {value!r}")
    return flags


def method_options(method: str, given: Sequence[str]) -> dict[str, Any]:
    """``window=3`` and ``on=pixels`` as the options of a method: Python literals where they are such, else text.

    Raises:
        BadInput: an unknown method or option, or a value of another kind than the option's.
    """
    from llava_probe.attribution import method_of

    pairs = [pair.partition("=") for pair in given]
    for text, (_, sign, _) in zip(given, pairs, strict=True):
        if not sign:
            raise BadInput(f"--option takes NAME=VALUE; got {text!r}")
    options = {name.strip().replace("-", "_"): _literal(value.strip()) for name, _, value in pairs}
    hints = get_type_hints(method_of(method, options).run)
    for name, value in options.items():
        kinds = get_args(hints[name]) or (hints[name],)
        if all(kind in _KINDS for kind in kinds) and not _is_a(value, kinds):
            told = " or ".join(_KINDS[kind] for kind in kinds)
            raise BadInput(f"--option {name} of {method} takes {told}; got {value!r}")
    return options


def place_or_word(text: str | None) -> str | Place | None:
    """``lp.ANSWER`` as the place that Python knows by this name; anything else is a word."""
    from llava_probe.trace.explained import PLACES

    return next((place for place in PLACES.values() if repr(place) == text), text)


def flag_numbers(flag: str, text: str | None) -> list[int] | None:
    """``10,11,12`` as numbers."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise BadInput(f"{flag} takes whole numbers with commas between them; got {text!r}") from None


def check_there(name: str, chosen: list[int] | None, count: int) -> None:
    """Refuse layers or heads that the model does not have.

    Raises:
        OutOfRange: one of them; the message says which there are.
    """
    for number in chosen or ():
        if not -count <= number < count:
            raise OutOfRange(f"--{name} {number} is not there: this model has {name} 0 to {count - 1}")


def parts(text: str | None) -> list[str] | None:
    """``8,vision_-2`` as names."""
    return None if text is None else [part.strip() for part in text.split(",")]


def assignments(text: str | None) -> dict[str, str | None] | None:
    """``question=text,answer=`` as {"question": "text", "answer": None}."""
    if text is None:
        return None
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(sign for _, sign, _ in pairs):
        raise BadInput(f"--columns takes OURS=THEIRS with commas between them; got {text!r}")
    return {ours.strip(): theirs.strip() or None for ours, _, theirs in pairs}


def _literal(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _is_a(value: Any, kinds: Sequence[type]) -> bool:
    return type(value) in kinds or (type(value) is int and float in kinds)


def _is_address(text: str) -> bool:
    return text.lower().startswith(("http://", "https://"))


def _is_file(text: str) -> bool:
    try:
        return Path(text).expanduser().is_file()
    except (OSError, RuntimeError):  # a name too long for any file, a home that is not there
        return False


def _counts(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def part(given: str) -> tuple[int, int]:
    """``"2/8"`` as (2, 8).

    Raises:
        BadInput: anything else.
    """
    number, slash, parts = given.partition("/")
    if not slash or not number.strip().isdecimal() or not parts.strip().isdecimal():
        raise BadInput(f"--part takes a share of the questions such as 1/4; got {given!r}")
    return int(number), int(parts)
