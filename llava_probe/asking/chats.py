"""Chats as people write them, and the prompt that the model's template makes of them: nothing given is left out.

A message reaches the template with all its keys and its content as it was given, a text or a list. A template may read
only one of these forms, and passes over what it does not know without a word; so the prompt is looked through for
every text and every picture, the other form is tried, and what still is not there is refused by name.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

from PIL import Image
from transformers.utils import get_json_schema

from llava_probe.asking.marks import marks_of, puts_pictures
from llava_probe.asking.parts import read_part
from llava_probe.asking.templates import source_of, templated, words_of
from llava_probe.errors import BadInput, shortened
from llava_probe.pictures.images import open_image
from llava_probe.pictures.videos import open_video

Chat = list[dict[str, Any]]

#: Keys that name a message or a call and say nothing to a model: no loss where a template has no use for them.
_LABELS = ("name", "id", "tool_call_id")

#: Pictures of a message beside its content, as a part has them.
_SHOWN = ("images", "image", "image_url", "video", "video_url")

#: One thing under three names; transformers hands it to a template under each.
_REASONING = ("reasoning", "reasoning_content", "thinking")


def opened_chat(
    processor: Any, messages: Any, template_kwargs: Mapping[str, Any] | None = None
) -> tuple[Chat, tuple[Image.Image, ...], list[tuple[Image.Image, ...]]]:
    """The chat with bare places, and the pictures and videos that stood in them.

    Raises:
        BadInput: it is no list of messages, or holds something that the template does not read.
        BadImage: a picture that cannot be opened.
    """
    if not isinstance(messages, list | tuple) or not messages:
        raise BadInput("messages= is a list of {'role': ..., 'content': ...}, as for a chat template")
    read = words_of(source_of(processor, template_kwargs))
    chat: Chat = []
    images: list[Image.Image] = []
    clips: list[tuple[Image.Image, ...]] = []
    for message in messages:
        parts, others = _divided(message, read)
        if not isinstance(parts, list | tuple):  # a text, or nothing beside a call
            chat.append(others if parts is ... else {**others, "content": parts})
            continue
        content: list[dict[str, Any]] = []
        for part in parts:
            kind, shown, plain = read_part(part, read)
            if kind == "image":
                images += [open_image(one) for one in shown]
            elif kind == "video":
                clips += [open_video(one) for one in shown]
            content += [dict(plain) for _ in range(len(shown) if kind == "image" and shown else 1)]
        chat.append({**others, "content": content})
    return chat, tuple(images), clips


def asked_chat(
    processor: Any, chat: Chat, system: str | None, template_kwargs: Mapping[str, Any] | None, pictures: tuple[int, int]
) -> tuple[str, dict[str, Any]]:
    """The prompt that the template makes of a chat, and its arguments as plain data.

    Args:
        processor: whose template is applied.
        chat: messages with bare places for pictures.
        system: a system message in plain words, put before them.
        template_kwargs: arguments of the template.
        pictures: how many pictures and videos were given.

    Raises:
        BadInput: the template refuses the chat, or leaves out a text or a picture.
    """
    template = {name: _plain_argument(name, value) for name, value in (template_kwargs or {}).items()}
    if system is not None:
        if not isinstance(system, str) or not system.strip():
            raise BadInput(f"system= is empty; give the system message in plain words (got {system!r})")
        if any(message["role"] == "system" for message in chat):
            raise BadInput("a system message was given both inside messages= and as system=; give it in one place")
        chat = [{"role": "system", "content": [{"type": "text", "text": system}]}, *chat]

    def render(form: Chat) -> str:
        return templated(processor, form, template)

    refusals = []
    for form in _forms(chat):
        try:
            text = render(form)
            _check_words(processor, form, text, render)
        except BadInput as error:
            refusals.append(error)
            continue
        for kind, given in zip(("image", "video"), pictures, strict=True):
            _check_places(processor, form, text, kind, given, render)
        return text, template
    raise refusals[0]


def last_words(chat: Sequence[Mapping[str, Any]]) -> str | None:
    """The last text of a chat's user."""
    texts = [text for message in chat if message["role"] == "user" for text in _texts(message) if text]
    return texts[-1] if texts else None


# --- messages ---


def _divided(message: Any, read: frozenset[str]) -> tuple[Any, dict[str, Any]]:
    """A message's content, its own list of pictures put before it, and its other keys."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise BadInput(f"a message needs 'role' and 'content'; got {shortened(repr(message))}")
    content = message.get("content", ...)
    shown = {key: message[key] for key in _SHOWN if message.get(key) is not None}
    others = {key: deepcopy(value) for key, value in message.items() if key not in ("content", *shown)}
    known = {*read, "role", *(_REASONING if {*_REASONING} & read else ())}
    unread = [key for key, value in others.items() if key not in known and value not in (None, "", [], {})]
    if lost := [key for key in unread if key not in _LABELS]:
        raise BadInput(
            f"a message holds {', '.join(map(repr, lost))}, which the model's chat template does not read; leave it out"
        )
    if unread:
        told = ", ".join(map(repr, unread))
        warnings.warn(
            f"the model's chat template does not read {told} of a message: the model is not told", stacklevel=2
        )
    if shown:
        if content is ... or isinstance(content, Mapping):
            raise BadInput(f"a message's {' and '.join(shown)} stand beside its content; it has none")
        return [*({key: value} for key, value in shown.items()), *_listed(content)], others
    if content in (..., None) and message["role"] not in ("user", "system") and len(others) > 1:
        return content, others
    if not isinstance(content, str | list | tuple):
        got = shortened(repr(message.get("content")))
        raise BadInput(f"a message's content is text, or a list of {{'type': ...}} parts; got {got}")
    return content, others


def _plain_argument(name: str, value: Any) -> Any:
    """Our own copy; a tool given as a function is told by its schema, as transformers does it."""
    if name == "tools" and isinstance(value, list | tuple):
        return [get_json_schema(tool) if callable(tool) else deepcopy(tool) for tool in value]
    return deepcopy(value)


def _forms(chat: Chat) -> Iterator[Chat]:
    """The chat as it was given; with every content a list; with every content that is words a text."""
    yield chat
    listed = [{**message, "content": _listed(message.get("content"))} for message in chat]
    if listed != chat:
        yield listed
    spelled = [
        message | ({"content": "\n".join(_texts(message))} if _only_words(message["content"]) else {})
        for message in listed
    ]
    if spelled != chat:
        yield spelled


def _listed(content: Any) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content or ())


def _only_words(content: Sequence[Mapping[str, Any]]) -> bool:
    return all(part["type"] == "text" for part in content)


def _texts(message: Mapping[str, Any]) -> list[str]:
    return [part["text"] for part in _listed(message.get("content")) if part["type"] == "text"]


# --- what the template made of them ---


def _check_words(processor: Any, chat: Chat, text: str, render: Callable[[Chat], str]) -> None:
    """Every text is in the prompt, as often as it was given: as it stands, or as the template writes it."""
    written = " ".join(text.split())
    given = [(number, message["role"], words) for number, message in enumerate(chat) for words in _texts(message)]
    python = "{'type':" in text and not any("{'type':" in words for *_, words in given)
    bare = [" ".join(_said(role, words).split()) for _, role, words in given]
    counts = Counter(bare)
    for (number, role, words), sought in zip(given, bare, strict=True):
        if not python and written.count(sought) >= counts[sought]:
            continue
        if python or render([*chat[:number], _reworded(chat[number], words), *chat[number + 1 :]]) == text:
            what = "the system message" if role == "system" else f"the words {shortened(words)!r} of role {role!r}"
            raise BadInput(
                f"the chat template of {type(processor).__name__} leaves out {what}; ask in another way, or write the "
                "whole prompt="
            )


def _reworded(message: Mapping[str, Any], words: str) -> dict[str, Any]:
    """A message with other words in the place of these."""
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": f"? {words} ?"}
    parts = [{**part, "text": f"? {words} ?"} if part.get("text") == words else part for part in content]
    return {**message, "content": parts}


def _said(role: str, words: str) -> str:
    """What a template keeps of an earlier answer: not how the model thought about it."""
    return re.sub(r"(?s)^.*</think>", "", words) if role == "assistant" else words


def _check_places(processor: Any, chat: Chat, text: str, kind: str, given: int, render: Callable[[Chat], str]) -> None:
    """The prompt has one place for each picture (video): none vanishes, none is in the words."""
    what = "picture" if kind == "image" else "video"
    places = [
        (number, place)
        for number, message in enumerate(chat)
        for place, part in enumerate(_listed(message.get("content")))
        if part["type"] == kind
    ]
    marks = marks_of(processor, kind)
    if kind == "video":
        marks = [mark for mark in marks if mark not in marks_of(processor, "image")]
    mark = max(marks, key=text.count) if marks else ""
    if marks and text.count(mark) == given:  # those in the words are places too where no other is given
        return
    if len(places) != given:
        raise BadInput(miscounted(text, f"an {kind} part", len(places), given, what))
    if kind == "image" and not any(mark in text for mark in marks) and puts_pictures(processor):
        return
    if any(mark in words for mark in marks for message in chat for words in _texts(message)):
        raise BadInput(miscounted(text, mark, text.count(mark), given, what))
    for number, place in places if marks else ():  # a mark with a number in it, say: each makes a difference
        parts = _listed(chat[number]["content"])
        without = {**chat[number], "content": parts[:place] + parts[place + 1 :]}
        if render([*chat[:number], without, *chat[number + 1 :]]) == text:
            raise BadInput(
                f"the chat template of {type(processor).__name__} writes no place for the {what} in a message of role "
                f"{chat[number]['role']!r}; put it into a message of role 'user'"
            )


def miscounted(text: str, mark: str, places: int, given: int, what: str) -> str:
    """That a prompt has more or fewer places than there are pictures."""
    were = f"1 {what} was" if given == 1 else f"{given} {what}s were"
    has = "1 place" if places == 1 else f"{places} places"
    return f"the prompt has {has} for a {what} ({mark}) but {were} given: {text!r}"
