"""The parts of a message: one thing each, a text, a picture or a video, in whoever's spelling, read or refused by name.

    {"type": "image", "image": picture}                              # transformers
    {"image": picture}                                               # the first Qwen-VL
    {"type": "image_url", "image_url": {"url": "..."}}               # OpenAI; input_image, input_text too
    {"type": "image", "source": {"type": "base64", "data": "..."}}   # Anthropic

A part that is none of these is refused: what a template does not know it passes over, and a picture would vanish.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from llava_probe.errors import BadInput, shortened

#: What each kind of part is called, and the keys under which it holds what it shows.
_TYPES = {
    "text": ("text", "input_text", "output_text"),
    "image": ("image", "image_url", "input_image", "images"),
    "video": ("video", "video_url", "input_video"),
}
_SOURCES = {
    "text": ("text",),
    "image": ("image", "images", "image_url", "path", "url", "base64", "source"),
    "video": ("video", "video_url", "path", "url"),
}
_KINDS = {spelling: kind for kind, spellings in _TYPES.items() for spelling in spellings}

#: What a picture's own dict may hold: an address, bytes (as data sets and clouds hand them over), or base64.
_INSIDE = ("url", "path", "bytes", "data", "source", "base64")
_BESIDE = {"type", "media_type", "mime_type", "format"}


def read_part(part: Any, read: Iterable[str]) -> tuple[str, list[Any], dict[str, Any]]:
    """What a part is.

    Args:
        part: of a message's content.
        read: the words of the chat template: other keys that stand in it go to it as they are.

    Returns:
        Its kind (``"text"``, ``"image"``, ``"video"``), what it shows (nothing for a bare place), and the part as it
        goes to the template.

    Raises:
        BadInput: it is none of these, or holds something that neither we nor the template read.
    """
    if not isinstance(part, Mapping):
        raise BadInput(f"a message's content is text, or a list of {{'type': ...}} parts; got {shortened(repr(part))}")
    kind = _kind(part)
    keys = [key for key in _SOURCES[kind] if part.get(key) is not None]
    if len(keys) > 1:
        raise BadInput(f"a part of a message shows one thing; got {' and '.join(keys)} in one")
    others = {key: value for key, value in part.items() if key not in ("type", *_SOURCES[kind]) and _told(key, value)}
    unread = sorted(set(map(str, others)) - set(read))
    if unread:
        raise BadInput(
            f"a part of type {kind!r} holds {', '.join(map(repr, unread))}, which the model's chat template does not "
            "read; leave it out, or pass what the processor reads as processor_kwargs="
        )
    if kind == "text":
        if not keys or not isinstance(part["text"], str):
            raise BadInput(f"a text part is {{'type': 'text', 'text': words}}; got {shortened(repr(dict(part)))}")
        return kind, [part["text"]], {"type": "text", "text": part["text"], **others}
    return kind, [one for key in keys for one in _shown(part, key)], {"type": kind, **others}


def _kind(part: Mapping[str, Any]) -> str:
    given = part.get("type")
    if given is None:
        own = {kind: _TYPES[kind] + _SOURCES[kind][:3] for kind in _TYPES}
        kinds = [kind for kind, keys in own.items() if any(part.get(key) is not None for key in keys)]
        if len(kinds) != 1:
            raise BadInput(
                f"a part of a message has a type, 'text', 'image' or 'video'; got {shortened(repr(dict(part)))}"
            )
        return kinds[0]
    kind = _KINDS.get(given.lower()) if isinstance(given, str) else None
    if kind is None:
        raise BadInput(
            f"a part of a message is of type 'text', 'image' or 'video'; got {given!r}, which no model is shown here"
        )
    return kind


def _told(key: str, value: Any) -> bool:
    """Whether a further key says anything: OpenAI's ``detail: auto`` does not."""
    return value is not None and value != "" and (key, value) != ("detail", "auto")


def _shown(part: Mapping[str, Any], key: str) -> list[Any]:
    """What stands under a key, as ``open_image`` and ``open_video`` take it."""
    value = part[key]
    if key != "images":
        return [_source(value, key == "base64")]
    if not isinstance(value, list | tuple):
        raise BadInput(f"images is a list of pictures; got {shortened(repr(value))}")
    return [_source(one) for one in value]


def _source(value: Any, base64: bool = False) -> Any:
    """What is behind a service's wrapping: ``{"url": ...}``, ``{"type": "base64", "data": ...}`` and the like."""
    if isinstance(value, Mapping):
        keys = [key for key in _INSIDE if value.get(key) is not None]
        if "bytes" in keys:  # a data set's: with the path that they were read from
            keys = ["bytes"]
        strange = {str(key) for key in value if _told(key, value[key])} - set(_INSIDE) - _BESIDE
        if len(keys) != 1 or strange:
            told = ", ".join(map(repr, sorted(strange) or value))
            raise BadInput(f"a picture in a chat is a path, URL, bytes or picture; got a dict with {told}")
        return _source(value[keys[0]], keys[0] in ("data", "base64"))
    if base64 and isinstance(value, str):
        return value if value.startswith("data:") else f"data:image/*;base64,{value}"
    return value
