"""What was typed behind a verb, as Python values: pictures, numbers, columns, options, and flags for ``generate``."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from llava_probe.errors import BadInput, OutOfRange, shortened

if TYPE_CHECKING:
    from PIL import Image

    from llava_probe.trace.explained import Place

#: Arguments of ``VLM.generate`` that no flag can give: ours to set, or Python objects.
NO_FLAGS = {"image", "question", "prompt", "messages", "inputs", "capture", "processor_kwargs"}
NO_FLAGS |= {"streamer", "logits_processor", "stopping_criteria", "generation_config", "prefix_allowed_tokens_fn"}

_ROWS = {".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"}
_NAME_LENGTH = 80  # of a folder made of a row's id
_DIGITS = 9  # of a number of parts

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


def generation_flags(words: list[str], own: Sequence[str] = ()) -> dict[str, Any]:
    """``--num-beams 4 --do-sample`` as generate's arguments; values are read as JSON where they are JSON.

    Args:
        words: as they were typed.
        own: the verb's own flags, one of which may have been meant.

    Raises:
        BadInput: a flag that generate does not have either, or that a flag cannot give.
    """
    known = _of_generate() if words else frozenset()
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
        if argument not in known:
            near = get_close_matches(f"--{name}", [*own, *(f"--{each.replace('_', '-')}" for each in known)], 1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise BadInput(f"--{name} is a flag of neither this command nor transformers' generate{meant}")
        try:
            flags[argument] = json.loads(value)
        except (ValueError, RecursionError):
            flags[argument] = {"True": True, "False": False, "None": None}.get(value, value)
        if argument in ("num_beams", "num_return_sequences") and not _counts(flags[argument]):
            raise BadInput(f"--{name} takes a whole number of at least 1; got {value!r}")
    return flags


def _of_generate() -> frozenset[str]:
    """The arguments that generate takes."""
    from transformers import GenerationConfig, GenerationMixin

    return frozenset({*GenerationConfig().to_dict(), *signature(GenerationMixin.generate).parameters} - {"self"})


def method_options(method: str, given: Sequence[str]) -> dict[str, Any]:
    """``window=3`` and ``on=pixels`` as the options of a method: Python literals where they are such, else text.

    Raises:
        BadInput: an unknown method or option, or a value of another kind than the option's.
    """
    from llava_probe.attribution import method_of

    options = named_values("--option", given)
    hints = get_type_hints(method_of(method, options).run)
    for name, value in options.items():
        kinds = get_args(hints[name]) or (hints[name],)
        if all(kind in _KINDS for kind in kinds) and not _is_a(value, kinds):
            told = " or ".join(_KINDS[kind] for kind in kinds)
            raise BadInput(f"--option {name} of {method} takes {told}; got {value!r}")
    return options


def named_values(flag: str, given: Sequence[str] | None) -> dict[str, Any]:
    """``["do_pan_and_scan=true", ...]`` as settings: Python literals where they are such, else text."""
    pairs = [pair.partition("=") for pair in given or ()]
    for name, sign, value in pairs:
        if not sign:
            raise BadInput(f"{flag} takes NAME=VALUE; got {name + value!r}")
    return {name.strip().replace("-", "_"): _literal(value.strip()) for name, _, value in pairs}


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


def is_data(text: str) -> bool:
    """Whether the first argument names a folder or a file of rows and no picture."""
    return _is_file(text, folders=True) and (Path(text).expanduser().is_dir() or Path(text).suffix.lower() in _ROWS)


def typed(options: Mapping[str, Any]) -> list[str]:
    """Options by name as words of a command: of True the flag alone, of several one behind another, of nothing none."""
    words: list[str] = []
    for name, given in options.items():
        flag = f"--{name.replace('_', '-')}"
        for each in given if isinstance(given, list | tuple) else (given,):
            words += [] if each is None or each is False else [flag] if each is True else [flag, str(each)]
    return words


def file_name(text: str) -> str:
    """A row's id as the name of a folder, fit for any file system."""
    return re.sub(r"[^\w.-]+", "_", text).strip("._")[:_NAME_LENGTH] or "row"


def _is_address(text: str) -> bool:
    return text.lower().startswith(("http://", "https://"))


def _is_file(text: str, *, folders: bool = False) -> bool:
    if not text.strip():  # to Path it is the folder one stands in
        return False
    try:
        path = Path(text).expanduser()
        return path.is_file() or (folders and path.is_dir())
    except (OSError, ValueError, RuntimeError):  # a name too long for any file, a home that is not there
        return False


def _counts(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def part(given: str) -> tuple[int, int]:
    """``"2/8"`` as (2, 8).

    Raises:
        BadInput: anything else.
    """
    number, slash, parts = given.partition("/")
    told = (number.strip(), parts.strip())
    if not slash or not all(each.isdecimal() and len(each) <= _DIGITS for each in told):
        raise BadInput(f"--part takes a share of the questions such as 1/4; got {shortened(given)!r}")
    return int(number), int(parts)
