"""A chat that can be trained on: a system message at most, then user and assistant in turn, an answer at the end.

What is not so is refused with the number of the turn, from 1: a turn left out or joined by guess is an answer trained
to a question that nobody asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llava_probe.asking.parts import read_part
from llava_probe.errors import BadInput, shortened
from llava_probe.features import values
from llava_probe.features.rows import blamed

#: Of a message: what would be passed over, and with it a picture, a call, a thought or the wish not to train it.
_NOT_READ = ("images", "image", "videos", "audios", "tool_calls", "function_call", "reasoning_content", "thinking")
_OWN_WEIGHT = ("weight", "loss")

ChatMessage = dict[str, Any]


def message(role: str, content: Any) -> ChatMessage:
    """A message whose content is a list of texts and places for pictures, a picture in its place if one was there.

    Raises:
        BadInput: it shows what is no picture, or an answer shows one.
    """
    content = content.tolist() if hasattr(content, "tolist") else content
    parts: list[dict[str, Any]] = []
    for part in content if isinstance(content, (list, tuple)) else [content]:
        parts += _parts(part, role)
    return {"role": role, "content": parts}


def message_of(turn: Mapping[str, Any]) -> ChatMessage:
    """The message of a turn with role and content, or with from and value.

    Raises:
        BadInput: it is of another role, or holds something that is not trained.
    """
    given = _first(turn, "from", "role")
    role = "system" if given == "developer" else values.ROLE_NAMES.get(str(given))
    if role is None:
        raise BadInput(f"is of {shortened(repr(given))}; those of user (human), assistant (gpt) and system are trained")
    if passed := [name for name in _NOT_READ if not values.is_empty(turn.get(name)) and turn[name] != {}]:
        raise BadInput(f"holds {passed[0]} beside its words, which is not trained")
    if role == "assistant" and any(name in turn and turn[name] in (0, "0", False) for name in _OWN_WEIGHT):
        raise BadInput("is not to be trained (weight or loss 0); all answers are")
    return message(role, _first(turn, "value", "content"))


def messages_of(turns: Sequence[Mapping[str, Any]]) -> list[ChatMessage]:
    """The messages of turns; a fault names its turn.

    Raises:
        BadInput: as ``message_of``.
    """
    messages = []
    for number, turn in enumerate(turns, start=1):
        try:
            messages.append(message_of(turn))
        except BadInput as error:
            raise BadInput(blamed(f"turn {number}", error)) from None
    return messages


def in_order(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """The messages, users' pictures joined with the words that follow or precede them.

    Raises:
        BadInput: who speaks is not who should, an answer is empty, or the last question has none.
    """
    ordered: list[ChatMessage] = []
    for number, each in enumerate(messages, start=1):
        before, role = ordered[-1]["role"] if ordered else None, each["role"]
        if role == "system" and not each["content"]:
            continue
        if role == "user" and before == "assistant" and not each["content"]:
            raise BadInput(f"turn {number} asks nothing")
        if role == "assistant" and not any(part["text"].strip() for part in each["content"]):
            raise BadInput(f"turn {number} is an empty answer")
        if role == "system" and ordered:
            raise BadInput(f"turn {number} is of the system, which speaks once and first")
        if role == "assistant" and before in (None, "system"):
            raise BadInput(f"turn {number} is an answer, and nobody asked")
        if role == before == "user" and (_only_pictures(each) or _only_pictures(ordered[-1])):
            ordered[-1] = {"role": role, "content": [*ordered[-1]["content"], *each["content"]]}
            continue
        if role == before:
            raise BadInput(f"turns {number - 1} and {number} are both of the {role}")
        ordered.append(each)
    if not ordered or ordered[-1]["role"] != "assistant":
        raise BadInput(f"the last turn, {len(messages)}, has no answer")
    return ordered


def _first(turn: Mapping[str, Any], *names: str) -> Any:
    return next((turn[name] for name in names if turn.get(name) is not None), None)


def _only_pictures(each: ChatMessage) -> bool:
    return bool(each["content"]) and all(part["type"] == "image" for part in each["content"])


def _parts(part: Any, role: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    if isinstance(part, str):
        kind, shown = "text", [part]
    else:
        kind, shown, plain = read_part(part, ("index",))
    if role == "assistant":
        if kind != "text" or values.MARK in shown[0]:
            raise BadInput(f"is an answer with a picture ({kind if kind != 'text' else values.MARK}), not of words")
        return [{"type": "text", "text": shown[0]}] if shown[0] else []
    if kind == "text":
        return values.marked_parts(shown[0])
    if kind != "image":
        raise BadInput(f"shows a {kind}; pictures are trained")
    if not shown:
        return [{"type": "image"} | ({"index": plain["index"]} if "index" in plain else {})]
    return [{"type": "image", "image": one} for one in shown]
