"""Chats as people write them: the pictures in them, and the messages as the model's template is given them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from PIL import Image
from transformers.utils import get_json_schema

from llava_probe.asking.templates import templated
from llava_probe.errors import BadInput
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


def asked_chat(
    processor: Any, chat: Sequence[Mapping[str, Any]], system: str | None, template_kwargs: Mapping[str, Any] | None
) -> tuple[str, dict[str, Any]]:
    """The prompt that the template makes of a chat, and its arguments as plain data.

    Args:
        processor: whose template is applied.
        chat: messages with bare places for pictures.
        system: a system message in plain words, put before them.
        template_kwargs: arguments of the template.

    Raises:
        BadInput: the template refuses the chat, or leaves the system message out.
    """
    template = {name: _plain_argument(name, value) for name, value in (template_kwargs or {}).items()}
    if system is None:
        return templated(processor, chat, template), template
    if not isinstance(system, str) or not system.strip():
        raise BadInput(f"system= is empty; give the system message in plain words (got {system!r})")
    if any(message["role"] == "system" for message in chat):
        raise BadInput("a system message was given both inside messages= and as system=; give it in one place")
    for content in ([{"type": "text", "text": system}], system):  # templates read one, or the other, or both
        text = templated(processor, [{"role": "system", "content": content}, *chat], template)
        if _stands(system, text):
            return text, template
    raise BadInput(
        f"the chat template of {type(processor).__name__} leaves the system message out; put its words before the "
        "question, or write the whole prompt="
    )


def _plain_argument(name: str, value: Any) -> Any:
    """Our own copy; a tool given as a function is told by its schema, as transformers does it."""
    if name == "tools" and isinstance(value, list | tuple):
        return [get_json_schema(tool) if callable(tool) else deepcopy(tool) for tool in value]
    return deepcopy(value)


def _stands(words: str, text: str) -> bool:
    """Whether words stand in a text, however it is spaced, and not as Python writes a list of parts."""
    return " ".join(words.split()) in " ".join(text.split()) and "{'type':" not in text


def last_words(messages: Sequence[Mapping[str, Any]]) -> str | None:
    """The last text of a chat's user."""
    asked = [part for message in messages if message["role"] == "user" for part in message["content"]]
    texts = [str(part["text"]) for part in asked if part.get("type") == "text" and part.get("text")]
    return texts[-1] if texts else None
