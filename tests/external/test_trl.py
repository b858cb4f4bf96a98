"""What TRL's trainer makes of the same rows: which tokens it trains, and in which it differs.

With prompts and completions it trains the last answer and what the template writes behind it, an end or none; with
messages, everything that is no padding, the question and the picture's tokens too, unless ``assistant_only_loss`` is
asked for and the template marks its answers. Its ids begin without the BOS that ``generate`` puts before the prompt.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

import llava_probe as lp
from llava_probe import tiny
from llava_probe.finetune.conversations import Conversation, read_conversations
from llava_probe.finetune.passes import passed
from llava_probe.finetune.rows import RowMaker

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

ROLES = ("user", "assistant")
SCENE = tiny.scene(3)
ASKED = [(each.question, each.answer) for each in SCENE.questions[:3]]


def prompted(*turns: tuple[str, str]) -> dict[str, Any]:
    """A row of prompt and completion: the last answer completes what was said before."""
    said = [{"role": role, "content": words} for turn in turns for role, words in zip(ROLES, turn, strict=True)]
    return {"images": [SCENE.image], "prompt": said[:-1], "completion": said[-1:]}


def whole(row: dict[str, Any]) -> dict[str, Any]:
    """The same as messages."""
    return {"images": row["images"], "messages": row["prompt"] + row["completion"]}


ROWS = [*(prompted(turn) for turn in ASKED), prompted(*ASKED)]


def of_trl(vlm: lp.VLM, rows: list[dict[str, Any]], folder: Path, **settings: Any) -> tuple[Tensor, Tensor]:
    """[B, K] the ids that TRL's trainer gives the model for these rows, and their labels: -100 is not trained."""
    settings = {"max_length": None, "report_to": [], "use_cpu": True, "bf16": False, **settings}
    trainer = trl.SFTTrainer(
        vlm.model,
        args=trl.SFTConfig(str(folder), **settings),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=vlm.processor,
    )
    batch = trainer.data_collator([trainer.train_dataset[place] for place in range(len(rows))])
    return batch["input_ids"], batch["labels"]


def trained(labels: Tensor) -> list[list[int]]:
    return [row[row != -100].tolist() for row in labels]


def ours(vlm: lp.VLM, rows: list[dict[str, Any]]) -> list[list[int]]:
    """The ids that we train of the same rows."""
    made, faults = RowMaker(vlm)(read_conversations(rows))
    assert not faults
    return [passed(vlm, [[row]]).ids.tolist() for row in made]


def answers(vlm: lp.VLM, conversation: Conversation) -> list[list[int]]:
    """The ids of each answer and its end, as they are scored behind the chat before them."""
    messages = conversation.messages
    return [
        vlm.score(
            conversation.images[0],
            messages=messages[:place],
            answer="".join(part["text"] for part in messages[place]["content"]),
        ).generated_ids.tolist()
        for place in range(len(messages))
        if messages[place]["role"] == "assistant"
    ]


def test_of_a_prompt_and_its_completion_the_completion_is_trained(tmp_path: Path) -> None:
    vlm = lp.load()
    _, labels = of_trl(vlm, ROWS, tmp_path)
    read = list(read_conversations(ROWS))
    assert trained(labels) == [answers(vlm, each)[-1] for each in read]
    assert trained(labels)[:-1] == ours(vlm, ROWS)[:-1], "of one turn it is the same"
    assert len(answers(vlm, read[-1])) == 3, "the two answers before it are not"


def test_with_marked_answers_each_answer_is_trained(tmp_path: Path) -> None:
    vlm = lp.load()
    rows = [whole(row) for row in ROWS]
    _, labels = of_trl(vlm, rows, tmp_path, assistant_only_loss=True)
    read = read_conversations(rows)
    assert trained(labels) == [[token for answer in answers(vlm, each) for token in answer] for each in read]
    assert trained(labels) == ours(vlm, rows)


def test_of_messages_alone_everything_is_trained_the_picture_too(tmp_path: Path) -> None:
    vlm = lp.load()
    ids, labels = of_trl(vlm, [whole(row) for row in ROWS], tmp_path)
    assert trained(labels) == [row[row != vlm.processor.tokenizer.pad_token_id].tolist() for row in ids]
    assert (labels == vlm.model.config.image_token_id).any()


def test_behind_a_template_that_writes_no_end_no_end_is_trained(tmp_path: Path) -> None:
    """As LLaVA-1.5's on the Hub is: a model that is trained so has no reason to stop."""
    vlm = lp.load()
    vlm.processor.chat_template = vlm.processor.chat_template.replace(" + '</s>'", "")
    _, labels = of_trl(vlm, ROWS[:1], tmp_path)
    (read,) = read_conversations(ROWS[:1])
    ((*words, end),) = answers(vlm, read)
    assert (trained(labels), end) == ([words], vlm.processor.tokenizer.eos_token_id)


def test_its_ids_are_generates_but_for_the_first(tmp_path: Path) -> None:
    vlm = lp.load()
    ids, labels = of_trl(vlm, ROWS[:1], tmp_path)
    trace = vlm.score(SCENE.image, *ASKED[0])
    assert [vlm.processor.tokenizer.bos_token_id, *ids[0].tolist()] == [token.id for token in trace.tokens]
    assert (labels[0] == -100).sum() == trace.prompt_length - 1
