"""Which format a row has, told by its columns, and its messages in any of them.

    {"image", "question", "answer"}                       questions and answers
    {"image", "caption"} or {"image", "text"}             captions
    {"image", "conversations": [{"from", "value"}]}       LLaVA or ShareGPT conversations
    {"messages": [{"role", "content"}], "images"}         messages
    {"prompt", "completion", "images"}                    prompts and completions: messages, or words
    {"query", "response", "history", "images"}            queries and responses
    {"instruction", "input", "output", "history"}         instructions and outputs
    {"images", "texts": [{"user", "assistant"}]}          texts of user and assistant

Each may have a ``system`` column; ``<image>`` in a text is a place for a picture.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llava_probe.errors import BadInput, refusing, shortened
from llava_probe.features import values
from llava_probe.features.columns import OURS, as_tuple, letters
from llava_probe.features.rows import blamed, listed_names
from llava_probe.finetune.turns import ChatMessage, in_order, message, messages_of

_CONVERSATIONS, _MESSAGES, _TEXTS = "LLaVA or ShareGPT conversations", "messages", "texts of user and assistant"
_CAPTIONS = "captions"
_ROLES = ("user", "assistant")

#: What asks and what answers, and the format of both.
_PAIRS = {
    "answer": ("question", "questions and answers"),
    "response": ("query", "queries and responses"),
    "output": ("instruction", "instructions and outputs"),
    "completion": ("prompt", "prompts and completions"),
}
_QUESTIONS = tuple(question for question, _ in _PAIRS.values())

#: Formats in which ``question=`` is asked where a row asks nothing.
ASKED = (*(name for _, name in _PAIRS.values()), _CAPTIONS)

#: What is read of a row to make messages, by the names that it goes by.
_NAMES: Mapping[str, tuple[str, ...]] = {
    **{name: (name,) for name in (*_PAIRS, *_QUESTIONS, "history", "input", "texts", "text")},
    "messages": (*OURS["messages"], "conversation"),
    "caption": ("caption", "text"),
    "system": OURS["system"],
}
#: Of the columns that samples have, those that do not speak.
KEPT = ("id", "image")
#: Letters of the columns that training has no further use for: boxes and masks are not looked at.
_USED = {letters(name) for names in _NAMES.values() for name in names}
_USED |= {letters(name) for ours in OURS.keys() - {*KEPT} for name in OURS[ours]}

_UNTRAINED = ("video", "videos", "audio", "audios", "tools")


@dataclass(frozen=True)
class SpokenColumns:
    """Where the messages of a row are found.

    Attributes:
        assigned: ours to theirs, as the user said, those of pictures among them.
        question: of rows that ask nothing, with the columns that it names put in.
    """

    assigned: Mapping[str, Any]
    question: values.Pattern | None = None

    def held(self, row: Mapping[str, Any], ours: str) -> str | None:
        """Their name of one of ours, as this row spells it; None where it holds nothing."""
        names = self._names(ours)
        exact = next((name for name in names if not values.is_empty(row.get(name))), None)
        if exact is not None or ours in self.assigned:
            return exact
        alike = {letters(name) for name in names}
        return next((name for name in row if letters(name) in alike and not values.is_empty(row[name])), None)

    def blank(self, row: Mapping[str, Any], ours: str) -> str | None:
        """Their name of one of ours whose text has no letter in this row."""
        return next((name for name in self._names(ours) if row.get(name) == ""), None)

    def _names(self, ours: str) -> tuple[str, ...]:
        if ours in self.assigned:
            return as_tuple(self.assigned[ours])
        taken = {name for given in self.assigned.values() for name in as_tuple(given)}
        return tuple(name for name in _NAMES[ours] if name not in taken)

    def others(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row's other columns: pictures, the id and whatever nobody reads."""
        kept = {name for ours in KEPT for name in as_tuple(self.assigned.get(ours))}
        gone = {name for given in self.assigned.values() for name in as_tuple(given)} - kept
        return {
            name: value
            for name, value in row.items()
            if name in kept or (name not in gone and letters(name) not in _USED)
        }


@dataclass(frozen=True)
class Formatted:
    """A row whose format was told.

    Attributes:
        format: its name.
        messages: makes its messages; ``BadInput`` where they cannot be trained on.
    """

    format: str
    messages: Callable[[], list[ChatMessage]]


def formatted(row: Mapping[str, Any], columns: SpokenColumns) -> Formatted:
    """What format a row has.

    Raises:
        BadInput: none that is known.
    """
    assigned = {ours for ours in ("question", "answer") if columns.assigned.get(ours)}
    if not assigned:
        if (chat := columns.held(row, "messages")) is not None:
            return _chat(row, chat, columns)
        if (texts := columns.held(row, "texts")) is not None and _is_dialogue(row[texts]):
            return _formatted(_TEXTS, row, columns, lambda: _dialogue(row[texts]))
    answers = ("answer",) if "answer" in assigned else tuple(_PAIRS)
    found = next((answer for answer in answers if columns.held(row, answer)), None)
    found = found or next((answer for answer in answers if columns.held(row, _PAIRS[answer][0])), None)
    if found is not None:
        return _formatted(_PAIRS[found][1], row, columns, lambda: _pair(row, columns, found))
    if "answer" not in assigned and columns.held(row, "caption"):
        return _formatted(_CAPTIONS, row, columns, lambda: _pair(row, columns, "caption"))
    raise BadInput(_no_answer(row, columns))


def _formatted(
    name: str, row: Mapping[str, Any], columns: SpokenColumns, read: Callable[[], list[ChatMessage]]
) -> Formatted:
    def messages() -> list[ChatMessage]:
        if unread := next((name for name in _UNTRAINED if not values.is_empty(row.get(name))), None):
            raise BadInput(f"the row has {unread}, and only words and pictures are trained")
        given, system = in_order(read()), columns.held(row, "system")
        if system is None:
            return given
        first = message("system", _text(row, system))
        if given[0]["role"] == "system" and given[0] != first:
            raise BadInput(f"the system says one thing in {system} and another in the chat")
        return given if given[0]["role"] == "system" or not first["content"] else [first, *given]

    return Formatted(name, messages)


# --- chats ---


def _chat(row: Mapping[str, Any], column: str, columns: SpokenColumns) -> Formatted:
    turns = _turns(row, column)
    name = _CONVERSATIONS if turns[0].get("from") is not None else _MESSAGES
    return _formatted(name, row, columns, lambda: messages_of(turns))


def _turns(row: Mapping[str, Any], column: str) -> list[Mapping[str, Any]]:
    try:
        return values.turns_of(row[column])
    except BadInput as error:
        raise BadInput(blamed(column, error)) from None


def _is_dialogue(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(one, Mapping) and "assistant" in one for one in value)


def _dialogue(turns: Any) -> list[ChatMessage]:
    return messages_of([{"role": role, "content": turn.get(role)} for turn in turns for role in _ROLES])


# --- a question and its answer ---


def _pair(row: Mapping[str, Any], columns: SpokenColumns, answer: str) -> list[ChatMessage]:
    said, asked = columns.held(row, answer), _asking(row, columns, answer)
    if said is None:
        blank = columns.blank(row, answer)
        raise BadInput(_no_answer(row, columns) if blank is None else f"the answer ({blank}) is empty")
    if asked is not None and _is_list(row[asked]) and _is_list(row[said]):
        return messages_of([*_turns(row, asked), *_turns(row, said)])  # as TRL has them
    told = _text(row, said)
    if not told.strip():
        raise BadInput(f"the answer ({said}) is empty")
    if asked is not None:
        words = _text(row, asked)
    elif columns.question is not None:
        words = columns.question.of(row)
    else:
        raise BadInput("the row has no question; pass question='...' for all that have none")
    if answer == "output" and (more := columns.held(row, "input")) is not None:
        words = f"{words}\n{_text(row, more)}"
    exchanges = [*_history(row, columns), (words, told)]
    return messages_of(
        [{"role": role, "content": each} for pair in exchanges for role, each in zip(_ROLES, pair, strict=True)]
    )


def _asking(row: Mapping[str, Any], columns: SpokenColumns, answer: str) -> str | None:
    """The column that asks: the answer's own, or the only other that could; a ``text`` where nothing else does.

    Raises:
        BadInput: two others could.
    """
    if answer == "caption":
        return None
    if "question" in columns.assigned:
        return columns.held(row, "question")
    if (own := columns.held(row, _PAIRS[answer][0])) is not None:
        return own
    others = [name for ours in _QUESTIONS if (name := columns.held(row, ours)) is not None]
    if len(others) > 1:
        raise BadInput(f"{others[0]} and {others[1]} both ask; name one, as in columns={{'question': {others[0]!r}}}")
    return others[0] if others else columns.held(row, "text")


def _history(row: Mapping[str, Any], columns: SpokenColumns) -> list[Sequence[str]]:
    """What was asked and said before, in pairs."""
    name = columns.held(row, "history")
    given = [] if name is None else row[name]
    if isinstance(given, str):
        with refusing("history is a text and no JSON"):
            given = json.loads(given)
    if not isinstance(given, (list, tuple)) or not all(map(_is_exchange, given)):
        raise BadInput(f"history is a list of pairs of question and answer; got {shortened(repr(given))}")
    return list(given)


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) > 0


def _is_exchange(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(words, str) for words in value)


def _no_answer(row: Mapping[str, Any], columns: SpokenColumns) -> str:
    named = columns.assigned.get("answer")
    if named is not None and named not in row:
        return f"the row has no column {named!r}; its columns are {listed_names(row)}"
    return f"the row has no answer; its columns are {listed_names(row)}; name it with columns={{'answer': ...}}"


def _text(row: Mapping[str, Any], column: str) -> str:
    try:
        return values.text(row[column])
    except BadInput as error:
        raise BadInput(blamed(column, error)) from None
