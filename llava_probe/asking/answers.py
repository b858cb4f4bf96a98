"""Answers that somebody gives: their ids as the model would have generated them, and whether a model could say them."""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

from llava_probe.asking.prompts import PosedQuestion
from llava_probe.asking.templates import has_template, templated
from llava_probe.errors import BadInput

#: Stands for an answer, to see what a template writes behind one.
_ANSWER = "zq"


def answer_ends(processor: Any, stops: Collection[int]) -> tuple[int, ...]:
    """The ids that end an answer, that with which this model ends its own first.

    Chat models end a turn with a token of its own (``<end_of_turn>``): what their template writes behind an answer,
    where generation stops at it. Others end with the tokenizer's EOS.
    """
    tokenizer = processor.tokenizer
    ends = [end for end in (_written_end(processor, stops), tokenizer.eos_token_id) if end is not None]
    return tuple(dict.fromkeys([*ends, *sorted(stops)]))


def _written_end(processor: Any, stops: Collection[int]) -> int | None:
    if not set(stops) - {processor.tokenizer.eos_token_id} or not has_template(processor):
        return None
    for parts in ([{"type": "text", "text": _ANSWER}], _ANSWER):
        chat = [{"role": "user", "content": parts}, {"role": "assistant", "content": parts}]
        with suppress(BadInput):
            behind = templated(processor, chat, {"add_generation_prompt": False}).rpartition(_ANSWER)[2].lstrip()
            ids = processor.tokenizer(behind, add_special_tokens=False).input_ids
            if ids and ids[0] in stops:
                return int(ids[0])
    return None


def answer_ids(
    processor: Any, question: PosedQuestion, prompt_ids: Sequence[int], answer: str | Any, ends: Sequence[int]
) -> tuple[int, ...]:
    """Ids of a given answer as the model would have generated it.

    Args:
        processor: its tokenizer splits the text.
        question: what the answer follows; a space goes between where its prompt does not end in one.
        prompt_ids: the prompt's ids, to see how it ends.
        answer: text (a whole answer: its end is added), or ids, taken as they are.
        ends: of ``answer_ends``.

    Raises:
        BadInput: an empty answer.
    """
    if not isinstance(answer, str):
        try:
            ids = tuple(operator.index(token) for token in answer)
        except TypeError:
            raise BadInput(f"an answer to score is text, or a flat list of token ids; got {answer!r}") from None
        if not ids:
            raise BadInput("the answer to score has no tokens")
        return ids
    if not answer.strip():
        raise BadInput(f"the answer to score is empty (got {answer!r}); give words or token ids")
    tokenizer = processor.tokenizer
    text = question.prompt if question.prompt is not None else tokenizer.decode(prompt_ids)
    for special in tokenizer.all_special_tokens:
        text = text.rsplit(special, 1)[-1]  # only what follows the last special token can merge with the answer
    between = " " if text and not text[-1].isspace() and not answer[0].isspace() else ""
    before = tokenizer(text, add_special_tokens=False).input_ids
    both = tokenizer(text + between + answer, add_special_tokens=False).input_ids
    if both[: len(before)] != before:
        before, both = [], tokenizer(between + answer, add_special_tokens=False).input_ids
    ids = both[len(before) :]
    return (*ids, *(() if ids[-1] in ends else ends[:1]))


def check_answer(ids: Sequence[int], vocabulary: int, visual: Collection[int]) -> None:
    """A model could say these ids, and no picture would have to stand in their place.

    Raises:
        BadInput: an id that it does not have, or one that stands for a picture.
    """
    wrong = [token for token in ids if not 0 <= token < vocabulary]
    if wrong:
        raise BadInput(f"the answer holds id {wrong[0]}; this model has ids 0 to {vocabulary - 1}")
    if set(visual) & set(ids):
        raise BadInput(
            "the answer holds the image token, which stands for a picture: in one pass over both it would "
            "be taken for one, so it cannot be scored or attributed; the ids before it can, vlm.score(..., answer=ids)"
        )
