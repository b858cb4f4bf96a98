"""Chats and the model's own template: what it makes of messages, and what it writes where a picture goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from PIL import Image

from llava_probe.errors import BadInput, first_line
from llava_probe.pictures.images import open_image
from llava_probe.pictures.videos import open_video

_PICTURE_KEYS = ("image", "path", "url", "base64")
_VIDEO_KEYS = ("video", "path", "url")


def opened_chat(
    messages: Sequence[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], tuple[Image.Image, ...], list[tuple[Image.Image, ...]]]:
    """The chat with bare places, and the pictures and videos that stood in them.

    Raises:
        BadInput: it is no list of messages, or a part is none that a template knows.
    """
    plain, images, clips = [], [], []
    if isinstance(messages, Mapping | str) or not messages:
        raise BadInput("messages= is a list of {'role': ..., 'content': ...}, as for a chat template")
    for message in messages:
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise BadInput(f"a message needs 'role' and 'content'; got {message!r}")
        content = message["content"]
        if not isinstance(content, str) and not all(isinstance(part, Mapping) for part in content or [None]):
            raise BadInput(f"a message's content is text, or a list of {{'type': ...}} parts; got {content!r}")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
        kept: list[dict[str, Any]] = []
        for part in parts:
            if part.get("type") == "image_url":
                raise BadInput("a picture in a chat is {'type': 'image', 'image': path, URL or picture}, not image_url")
            if part.get("type") == "image":
                key = next((key for key in _PICTURE_KEYS if key in part), None)
                if key is not None:
                    source = part[key] if key != "base64" else f"data:image/*;base64,{part[key]}"
                    images.append(open_image(source))
                kept.append({"type": "image"})
            elif part.get("type") == "video":
                clips += [open_video(part[key]) for key in _VIDEO_KEYS if key in part][:1]
                kept.append({"type": "video"})
            else:
                kept.append(dict(part))
        plain.append({"role": message["role"], "content": kept})
    return plain, tuple(images), clips


def last_words(messages: Sequence[Mapping[str, Any]]) -> str | None:
    """The last text of a chat's user."""
    asked = [part for message in messages if message["role"] == "user" for part in message["content"]]
    texts = [str(part["text"]) for part in asked if part.get("type") == "text" and part.get("text")]
    return texts[-1] if texts else None


def templated(processor: Any, messages: Sequence[Mapping[str, Any]]) -> str:
    """The prompt that the processor's template makes of a chat, ready for the answer.

    Raises:
        BadInput: it has no template, or its template refuses the chat.
    """
    if not getattr(processor, "chat_template", None):
        raise BadInput(
            f"{type(processor).__name__} has no chat template to put plain words into; pass the whole text as prompt="
        )
    try:
        return str(processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    except Exception as error:  # jinja raises whatever the template's author chose
        raise BadInput(f"the model's chat template refused these messages: {first_line(error)}") from error


def marks_of(processor: Any, kind: str) -> list[str]:
    """What may stand for a picture (a video) in a prompt: the processor's tokens, what its template writes for one."""
    names = ("image_token", "boi_token") if kind == "image" else ("video_token",)
    marks = [str(mark) for name in names if (mark := getattr(processor, name, None))]
    written = _written(processor, kind)
    return [*marks, written] if written else marks


#: What each processor's chat template writes for a picture or a video, by the template and the kind.
_WRITTEN: WeakKeyDictionary[Any, dict[tuple[str, str], str]] = WeakKeyDictionary()


def _written(processor: Any, kind: str) -> str:
    """What the chat template writes for a picture (a video); nothing where it refuses one."""
    known = _WRITTEN.setdefault(processor, {})
    key = str(getattr(processor, "chat_template", None)), kind
    if key not in known:
        known[key] = _difference(processor, kind)
    return known[key]


def _difference(processor: Any, kind: str) -> str:
    text = {"type": "text", "text": "?"}
    try:
        without, with_one = (
            templated(processor, [{"role": "user", "content": [*place, text]}]) for place in ([], [{"type": kind}])
        )
    except BadInput:
        return ""
    before = _shared(without, with_one)
    after = _shared(without[before:][::-1], with_one[before:][::-1])
    return with_one[before : len(with_one) - after].strip()


def _shared(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
