"""From a conversation to what is trained of it: the answers and their ends, found among the ids that the model reads.

Nothing is tokenised in pieces. The prompt of each answer is what the model's template makes of the chat up to there,
as ``generate`` would be given it, and the answer's ids are those that it would generate behind it. Earlier answers are
looked for in the ids of the last prompt, which holds them; a template that writes them otherwise (drops how the model
thought, say) gives a row for each answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from llava_probe.asking.answers import answer_ids, check_answer
from llava_probe.asking.chats import asked_chat
from llava_probe.asking.lengths import check_length
from llava_probe.asking.prompts import PosedQuestion
from llava_probe.errors import BadInput, ProbeError, first_line
from llava_probe.features.packs import text_ids
from llava_probe.features.samples import Sample
from llava_probe.finetune.conversations import Conversation, Fault
from llava_probe.model import VLM
from llava_probe.pictures.images import open_image

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class TrainingRow:
    """A prompt with its answer, and what of both is trained.

    Attributes:
        line: where it stands in the data, to be told.
        sample: pictures, the chat up to the last answer, and that answer.
        earlier: the trained tokens of the prompt, answers of earlier turns: (start, stop) counted from its end.
        length: tokens in all, visual ones included, as far as the model reads them.
        trained: how many tokens are predicted and counted in the loss.
        visual: how many of the tokens are a picture's.
    """

    line: str
    sample: Sample
    earlier: tuple[tuple[int, int], ...]
    length: int
    trained: int
    visual: int

    @property
    def picture(self) -> str:
        """Equal for rows about the same picture."""
        return self.sample.picture


@dataclass
class RowMaker:
    """Makes rows for one model.

    Attributes:
        vlm: whose template and tokenizer read them.
        longest: tokens that a row may have; the model's own limit holds too.
    """

    vlm: VLM
    longest: int | None = None
    _sizes: dict[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    _beside: dict[tuple[tuple[int, int], ...], tuple[int, int]] = field(default_factory=dict)

    def __call__(self, given: Iterable[Conversation | Fault]) -> tuple[list[TrainingRow], list[Fault]]:
        """The rows of all conversations, and what cannot be trained on, with lines and reasons."""
        rows: list[TrainingRow] = []
        faults: list[Fault] = []
        for each in given:
            if isinstance(each, Fault):
                faults.append(each)
                continue
            try:
                rows += self.rows_of(each)
            except ProbeError as error:
                faults.append(Fault(each.row, each.line, first_line(error)))
        return rows, faults

    def rows_of(self, conversation: Conversation) -> list[TrainingRow]:
        """The rows of one conversation: one, where its last prompt holds its earlier answers as they were given.

        Raises:
            BadInput: the template refuses it, no token of it would be trained, or it is too long.
        """
        turns = [number for number, each in enumerate(conversation.messages) if each["role"] == "assistant"]
        asked = [self._asked(conversation, number) for number in turns]
        *before, last = asked
        within = {turn: _within(turn, last) for turn in before}
        spans = tuple(span for span in within.values() if span is not None)
        apart = [turn for turn, span in within.items() if span is None]
        return [*(self._row(conversation, turn, ()) for turn in apart), self._row(conversation, last, spans)]

    def _asked(self, conversation: Conversation, number: int) -> _Turn:
        chat = [dict(message) for message in conversation.messages[:number]]
        pictures = sum(part["type"] == "image" for message in chat for part in _parts(message))
        prompt, _ = asked_chat(self.vlm.processor, chat, None, None, (pictures, 0))
        (ids,) = text_ids(self.vlm.processor.tokenizer, [prompt])
        answer = "".join(part["text"] for part in _parts(conversation.messages[number]))
        told = answer_ids(self.vlm.processor, PosedQuestion((), prompt), ids, answer, self.vlm.answer_ends)
        check_answer(told, self.vlm.anatomy.vocabulary, self.vlm.visual_ids)
        tokenizer = self.vlm.processor.tokenizer
        if {*self.vlm.answer_ends, tokenizer.pad_token_id} & set(told[:-1]):
            raise BadInput(f"the answer {answer!r} holds the token that ends an answer: what follows is never said")
        if not tokenizer.decode(told, skip_special_tokens=True).strip():
            raise BadInput(f"nothing of the answer {answer!r} would be trained: it has no words")
        return _Turn(number, pictures, prompt, tuple(ids), answer, told)

    def _row(self, conversation: Conversation, turn: _Turn, spans: tuple[tuple[int, int], ...]) -> TrainingRow:
        images = list(conversation.images[: turn.pictures])
        sample = Sample(
            conversation.row, conversation.id, images or None, None, turn.answer,
            messages=[dict(message) for message in conversation.messages[: turn.number]],
        )  # fmt: skip
        beside, visual = self._visual(sample, turn.prompt, len(turn.ids))
        length = len(turn.ids) + beside + len(turn.told) - 1
        if self.longest is not None and length > self.longest:
            raise BadInput(f"the row has {length:,} tokens, {visual:,} of them visual, and max_length={self.longest:,}")
        check_length(self.vlm.anatomy, len(turn.ids) + beside, len(turn.told))
        trained = len(turn.told) + sum(stop - start for start, stop in spans)
        return TrainingRow(conversation.line, sample, spans, length, trained, visual)

    def _visual(self, sample: Sample, prompt: str, ids: int) -> tuple[int, int]:
        """How many ids the processor writes beside the prompt's own for pictures of these sizes; the visual ones.

        Raises:
            BadImage: a picture cannot be read to its end.
        """
        if (sizes := self._sizes.get(sample.picture)) is None:
            sizes = self._sizes[sample.picture] = tuple(open_image(image).size for image in sample.images)
        if sizes not in self._beside:
            blank = tuple(Image.new("RGB", size) for size in sizes)
            _, (told,) = self.vlm.prepare([PosedQuestion(blank, prompt)], {})
            self._beside[sizes] = told.length - ids, len(told.image_positions)
        return self._beside[sizes]


@dataclass(frozen=True)
class _Turn:
    """One answer, and the prompt that it follows."""

    number: int
    pictures: int
    prompt: str
    ids: tuple[int, ...]
    answer: str
    told: tuple[int, ...]


def _within(turn: _Turn, last: _Turn) -> tuple[int, int] | None:
    """Where an earlier answer lies in the last prompt, counted from its end.

    None where it is written otherwise, or where a picture comes behind it, whose tokens would have to be counted.
    """
    if turn.pictures < last.pictures:
        return None
    start = len(turn.ids)
    for told in (turn.told, turn.told[:-1]):  # some templates write no end behind it
        stop = start + len(told)
        if told and last.ids[:stop] == (*turn.ids, *told):
            return start - len(last.ids), stop - len(last.ids)
    return None


def _parts(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
