"""The same conversation, whatever format it lies in; what cannot be trained on is told with its line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pandas
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from llava_probe.errors import BadInput
from llava_probe.features.samples import read_samples
from llava_probe.finetune.conversations import Conversation, Fault, read_conversations
from tests.features.data_sets import jsonl, pictures, table

PLACE = {"type": "image"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return pictures(tmp_path, "a.png", "b.png")


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": [text(part) if isinstance(part, str) else part for part in parts]}


def assistant(words: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [text(words)]}


def system(words: str) -> dict[str, Any]:
    return {"role": "system", "content": [text(words)]}


def said(
    *words: str, roles: tuple[str, str] = ("human", "gpt"), keys: tuple[str, str] = ("from", "value")
) -> list[Any]:
    """Words in turn, as LLaVA writes them or with other roles and keys."""
    return [{keys[0]: roles[number % 2], keys[1]: each} for number, each in enumerate(words)]


def chat(*words: str) -> list[Any]:
    return said(*words, roles=("user", "assistant"), keys=("role", "content"))


def one(row: dict[str, Any], folder: Path, **options: Any) -> Conversation:
    (found,) = read_conversations([row], images=folder, **options)
    assert isinstance(found, Conversation), found
    return found


def fault(row: dict[str, Any], folder: Path, **options: Any) -> str:
    """Why a row cannot be used, behind one that can."""
    good = {"image": "a.png", "conversations": said("Q", "A")} if "conversations" in row else {}
    good = good or ({"image": "a.png", "messages": chat("Q", "A")} if "messages" in row else {})
    good = good or {"image": "a.png", "question": "Q", "answer": "A"}
    fine, found = read_conversations([good, row], images=folder, **options)
    assert isinstance(fine, Conversation)
    assert isinstance(found, Fault), found.messages
    assert (found.row, found.line) == (1, "row 1")
    return found.why


# --- a case of each format ---------------------------------------------------------------------------------

TWO_TURNS = [user(PLACE, "What is red?"), assistant("The circle."), user("And blue?"), assistant("The square.")]
LOOK = [user("Compare", PLACE, "with", PLACE), assistant("They differ.")]
BRIEF = [system("Be brief."), user(PLACE, "What is red?"), assistant("The circle.")]
SINGLE = [user(PLACE, "What is red?"), assistant("The circle.")]

#: A format's name, a row, the pictures and the messages that it means.
CASES: dict[str, tuple[str, dict[str, Any], list[str], list[Any]]] = {
    "question": (
        "questions and answers",
        {"image": "a.png", "question": "What is red?", "answer": "The circle."},
        ["a.png"],
        SINGLE,
    ),
    "text-and-answer": (
        "questions and answers",
        {"image_path": "a.png", "text": "What is red?", "Answer": "The circle."},
        ["a.png"],
        SINGLE,
    ),
    "number": (
        "questions and answers",
        {"image": "a.png", "question": "How many?", "answer": 3},
        ["a.png"],
        [user(PLACE, "How many?"), assistant("3")],
    ),
    "llava": (
        "LLaVA or ShareGPT conversations",
        {
            "image": "a.png",
            "conversations": said("<image>\nWhat is red?", "The circle.", "And blue?", "The square."),
        },
        ["a.png"],
        TWO_TURNS,
    ),
    "llava-mark-behind": (
        "LLaVA or ShareGPT conversations",
        {"image": "a.png", "conversations": said("What is red?\n<image>", "The circle.")},
        ["a.png"],
        [user("What is red?", PLACE), assistant("The circle.")],
    ),
    "llava-two-pictures": (
        "LLaVA or ShareGPT conversations",
        {"image": ["a.png", "b.png"], "conversations": said("Compare <image> with <image>", "They differ.")},
        ["a.png", "b.png"],
        LOOK,
    ),
    "llava-without-marks": (
        "LLaVA or ShareGPT conversations",
        {"image": ["a.png", "b.png"], "conversations": said("Compare them.", "They differ.")},
        ["a.png", "b.png"],
        [user(PLACE, PLACE, "Compare them."), assistant("They differ.")],
    ),
    "llava-words-alone": (
        "LLaVA or ShareGPT conversations",
        {"conversations": said("Say hello.", "Hello.")},
        [],
        [user("Say hello."), assistant("Hello.")],
    ),
    "llava-as-json": (
        "LLaVA or ShareGPT conversations",
        {"image": "a.png", "conversations": json.dumps(said("<image>\nWhat is red?", "The circle."))},
        ["a.png"],
        SINGLE,
    ),
    "llava-by-column": (
        "LLaVA or ShareGPT conversations",
        {"image": "a.png", "conversations": {"from": ["human", "gpt"], "value": ["What is red?", "The circle."]}},
        ["a.png"],
        SINGLE,
    ),
    "sharegpt": (
        "LLaVA or ShareGPT conversations",
        {
            "images": ["a.png"],
            "system": "Be brief.",
            "conversations": said("<image>What is red?", "The circle.", roles=("user", "assistant")),
        },
        ["a.png"],
        BRIEF,
    ),
    "sharegpt-system-turn": (
        "LLaVA or ShareGPT conversations",
        {
            "images": ["a.png"],
            "conversations": [{"from": "system", "value": "Be brief."}, *said("<image>What is red?", "The circle.")],
        },
        ["a.png"],
        BRIEF,
    ),
    "llama-factory-messages": (
        "messages",
        {
            "images": ["a.png"],
            "messages": chat("<image>What is red?", "The circle.", "And blue?", "The square."),
        },
        ["a.png"],
        TWO_TURNS,
    ),
    "messages-with-parts": (
        "messages",
        {"messages": [user({"type": "image", "image": "a.png"}, "What is red?"), assistant("The circle.")]},
        ["a.png"],
        SINGLE,
    ),
    "messages-of-openai": (
        "messages",
        {
            "messages": [
                {"role": "developer", "content": "Be brief."},
                user({"type": "image_url", "image_url": {"url": "https://host/a.png", "detail": "auto"}}, "What?"),
                {"role": "assistant", "content": "A circle."},
            ]
        },
        ["https://host/a.png"],
        [system("Be brief."), user(PLACE, "What?"), assistant("A circle.")],
    ),
    "messages-as-columns-fill-them": (
        "messages",
        {
            "images": [{"bytes": None, "path": "a.png"}],
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"index": None, "text": "What is red?", "type": "text"},
                        {"index": 0, "text": None, "type": "image"},
                    ],
                },
                {"role": "assistant", "content": [{"index": None, "text": "The circle.", "type": "text"}]},
            ],
        },
        ["a.png"],
        [user("What is red?", PLACE), assistant("The circle.")],
    ),
    "pictures-in-a-message-of-their-own": (
        "messages",
        {"messages": [user({"type": "image", "path": "a.png"}), *chat("What is red?", "The circle.")]},
        ["a.png"],
        SINGLE,
    ),
    "pictures-inside-and-beside": (
        "messages",
        {
            "image": "b.png",
            "messages": [user({"type": "image", "image": "a.png"}, "and", PLACE), *chat("Q", "A")[1:]],
        },
        ["a.png", "b.png"],
        [user(PLACE, "and", PLACE), assistant("A")],
    ),
    "trl": (
        "prompts and completions",
        {"images": ["a.png"], "prompt": chat("What is red?"), "completion": chat("", "The circle.")[1:]},
        ["a.png"],
        SINGLE,
    ),
    "trl-of-words": (
        "prompts and completions",
        {"image": "a.png", "prompt": "What is red?", "completion": "The circle."},
        ["a.png"],
        SINGLE,
    ),
    "ms-swift": (
        "queries and responses",
        {
            "query": "And blue?",
            "response": "The square.",
            "history": [["<image>What is red?", "The circle."]],
            "images": ["a.png"],
        },
        ["a.png"],
        TWO_TURNS,
    ),
    "alpaca": (
        "instructions and outputs",
        {
            "instruction": "What is red?",
            "input": "Say the shape.",
            "output": "The circle.",
            "system": "Be brief.",
            "image": "a.png",
        },
        ["a.png"],
        [system("Be brief."), user(PLACE, "What is red?\nSay the shape."), assistant("The circle.")],
    ),
    "cauldron": (
        "texts of user and assistant",
        {
            "images": ["a.png"],
            "texts": [
                {"user": "What is red?", "assistant": "The circle.", "source": "x"},
                {"user": "And blue?", "assistant": "The square.", "source": "x"},
            ],
        },
        ["a.png"],
        TWO_TURNS,
    ),
}


@pytest.mark.filterwarnings("ignore:.*have no picture")
@pytest.mark.parametrize("case", list(CASES))
def test_a_row_of_each_format_means_what_is_written_out_here(folder: Path, case: str) -> None:
    name, row, shown, messages = CASES[case]
    columns = {"image": None} if not shown else None
    found = read_conversations([{"id": "x", **row}], images=folder, columns=columns)
    assert found.format == name
    (conversation,) = found
    assert isinstance(conversation, Conversation), conversation
    assert conversation.messages == messages
    assert conversation.images == [one if "://" in one else str(folder / one) for one in shown]
    assert (conversation.id, conversation.row, conversation.line) == ("x", 0, "row 0")


@pytest.mark.parametrize("column", ["caption", "text"])
def test_a_caption_answers_the_question_that_is_given(folder: Path, column: str) -> None:
    rows = [{"image": "a.png", "kind": "circle", column: "A red one."}]
    found = read_conversations(rows, images=folder, question="Which {kind}?")
    assert found.format == "captions"
    assert [each.messages for each in found] == [[user(PLACE, "Which circle?"), assistant("A red one.")]]
    with pytest.raises(BadInput, match=r"the row has no question; pass question='\.\.\.'"):
        read_conversations(rows, images=folder)


def test_columns_that_go_by_no_known_name_are_assigned(folder: Path) -> None:
    row = {"photo": "a.png", "text": "Is there a car?", "label": "no", "conversations": "of another day"}
    for columns in ({"answer": "label"}, {"answer": "label", "question": "text", "image": "photo"}):
        assert one(row, folder, columns=columns).messages == [user(PLACE, "Is there a car?"), assistant("no")]
    talk = {"image": "a.png", "dialogue": said("What is red?", "The circle."), "question": "another"}
    assert one(talk, folder, columns={"messages": "dialogue"}).messages == SINGLE
    with pytest.raises(BadInput, match="no column 'lable'; its columns are photo, text, label"):
        read_conversations([row], columns={"answer": "lable"})
    with pytest.raises(BadInput, match="columns= assigns id, image, question"):
        read_conversations([row], columns={"label": "answer"})


def test_the_only_column_that_could_ask_asks_and_of_two_none_is_guessed(folder: Path) -> None:
    row = {"image": "a.png", "prompt": "What is red?", "answer": "The circle.", "text": "a title"}
    assert one(row, folder).messages == SINGLE
    assert "query and prompt both ask" in fault({**row, "query": "Q"}, folder)


def test_the_question_given_is_for_rows_that_ask_nothing(folder: Path) -> None:
    rows = [{"image": "a.png", "question": asked, "answer": "A"} for asked in ("Mine?", None, "")]
    found = read_conversations(rows, images=folder, question="Yours?")
    assert [each.messages[0]["content"][1]["text"] for each in found] == ["Mine?", "Yours?", "Yours?"]
    talks = read_conversations([CASES["llava"][1]], images=folder, question="Yours?")
    assert talks.told[-1] == "question= is asked of no row: LLaVA or ShareGPT conversations have their own"
    assert found.told[-1] == "list holds questions and answers"


# --- sources -----------------------------------------------------------------------------------------------

ROWS = [{"id": str(n), "image": "a.png", "conversations": said(f"<image>\n{n}?", f"{n}.")} for n in range(3)]


def parquet(path: Path, rows: list[Any]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def array(path: Path, rows: list[Any]) -> Path:
    path.write_text(json.dumps(rows))
    return path


SOURCES: dict[str, Callable[[Path], Any]] = {
    "jsonl": lambda folder: jsonl(folder / "r.jsonl", ROWS),
    "json": lambda folder: array(folder / "r.json", ROWS),
    "csv": lambda folder: table(
        folder / "r.csv", [{**row, "conversations": json.dumps(row["conversations"])} for row in ROWS]
    ),
    "parquet": lambda folder: parquet(folder / "r.parquet", ROWS),
    "frame": lambda folder: pandas.read_parquet(parquet(folder / "r.parquet", ROWS)),
    "data-set": lambda _: datasets.Dataset.from_list(ROWS),
    "generator": lambda _: (row for row in ROWS),
}


@pytest.mark.parametrize("kind", list(SOURCES))
def test_every_source_gives_the_same_conversations(folder: Path, kind: str) -> None:
    found = read_conversations(SOURCES[kind](folder), images=folder)
    assert found.format == "LLaVA or ShareGPT conversations"
    assert found.count == (None if kind == "generator" else 3)
    read = list(found)
    assert [(each.id, each.messages) for each in read] == [
        (str(n), [user(PLACE, f"{n}?"), assistant(f"{n}.")]) for n in range(3)
    ]
    first = {"jsonl": 1, "csv": 2}.get(kind)
    lines = [f"row {n}" if first is None else f"line {first + n}" for n in range(3)]
    assert [each.line for each in read] == lines
    if kind != "generator":
        assert [each.messages for each in found] == [each.messages for each in read]


def test_pictures_of_a_hugging_face_data_set_are_its_bytes(folder: Path) -> None:
    row = {"images": [Image.new("RGB", (4, 3))], "texts": [{"user": "Q", "assistant": "A"}]}
    (found,) = read_conversations(datasets.Dataset.from_list([row]))
    assert found.images[0].startswith(b"\x89PNG")
    assert found.messages == [user(PLACE, "Q"), assistant("A")]


def test_conversations_of_one_picture_share_its_key(folder: Path) -> None:
    rows = [*ROWS[:2], {**ROWS[2], "image": "b.png"}]
    first, same, other = read_conversations(rows, images=folder)
    assert first.picture == same.picture != other.picture
    (sample,) = read_samples([ROWS[0]], images=folder)
    inside = one(CASES["messages-with-parts"][1], folder)
    assert first.picture == sample.picture == inside.picture


# --- what is refused ---------------------------------------------------------------------------------------

MIXES = {
    "two-kinds-of-turns": ("llava", "llama-factory-messages"),
    "turns-and-columns": ("llava", "question"),
    "two-names-of-columns": ("ms-swift", "alpaca"),
}


@pytest.mark.parametrize("mix", list(MIXES))
def test_a_file_of_two_formats_is_refused_with_the_first_line_of_each(folder: Path, mix: str) -> None:
    (one_name, one_row, *_), (other_name, other_row, *_) = (CASES[name] for name in MIXES[mix])
    path = folder / "mixed.jsonl"
    path.write_text("\n\n".join(map(json.dumps, [one_row, one_row, other_row])) + "\n")
    found = read_conversations(path)
    with pytest.raises(BadInput) as refused:
        list(found)
    told = f"mixed.jsonl mixes two formats, {one_name} (line 1) and {other_name} (line 5); make a file of each"
    assert str(refused.value) == told


def test_keys_that_other_rows_have_and_this_one_does_not_are_nothing(folder: Path) -> None:
    """As columnar files fill them in."""
    filled = [
        {**each, "role": None, "content": None, "weight": None} for each in said("<image>What is red?", "The circle.")
    ]
    talk = {"image": "a.png", "conversations": filled, "question": None, "answer": None, "videos": [], "system": None}
    assert one(talk, folder).messages == SINGLE


def test_cocos_captions_are_captions(folder: Path) -> None:
    path = folder / "captions.json"
    images = [{"id": n, "file_name": f"{name}.png"} for n, name in enumerate("ab")]
    captions = [{"id": 9 - n, "image_id": n, "caption": f"Picture {n}."} for n in (0, 1)]
    path.write_text(json.dumps({"images": images, "annotations": captions}))
    found = read_conversations(path, question="Describe it.")
    assert found.format == "captions"
    assert [(each.images, each.messages) for each in found] == [
        ([str(folder / f"{name}.png")], [user(PLACE, "Describe it."), assistant(f"Picture {n}.")])
        for n, name in enumerate("ab")
    ]


def test_lists_in_a_frame_are_lists(folder: Path) -> None:
    row = {"images": ["a.png", "b.png"], "messages": [user(PLACE, "and", PLACE), assistant("A")]}
    (found,) = read_conversations(pandas.read_parquet(parquet(folder / "r.parquet", [row])), images=folder)
    assert found.images == [str(folder / "a.png"), str(folder / "b.png")]
    assert found.messages == [user(PLACE, "and", PLACE), assistant("A")]


def test_a_row_without_its_answer_is_of_the_same_format(folder: Path) -> None:
    assert fault({"image": "a.png", "question": "Q"}, folder).startswith("the row has no answer; its columns are image")
    captioned = {"image": "a.png", "question": "Q", "caption": "of what is no answer"}
    assert fault(captioned, folder).startswith("the row has no answer")


def test_lines_are_those_of_the_file(folder: Path) -> None:
    good = json.dumps({"image": "a.png", "question": "Q", "answer": "A"})
    path = folder / "rows.jsonl"
    path.write_text(f"\n{good}\n\n\n" + '{"image": "a.png", "question": "Q", "answer": ""}\n{"image": \n  \n' + good)
    found = list(read_conversations(path))
    assert [(each.row, each.line) for each in found] == [(0, "line 2"), (1, "line 5"), (2, "line 6"), (3, "line 8")]
    assert [isinstance(each, Fault) for each in found] == [False, True, True, False]
    assert str(found[1]) == "line 5: the answer (answer) is empty"
    assert str(found[2]).startswith("line 6 is no JSON")
    spread = folder / "rows.csv"
    spread.write_text('image,question,answer\na.png,Q,"two\nlines"\na.png,,A\n')
    fine, wrong = read_conversations(spread)
    assert (fine.line, str(wrong)) == (
        "line 3",
        "line 4: the row has no question; pass question='...' for all that have none",
    )


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no-answer": ({"question": "Q", "answer": None}, "the row has no answer; its columns are"),
    "empty-answer": ({"question": "Q", "answer": " \n"}, "the answer (answer) is empty"),
    "no-question": ({"answer": "A"}, "the row has no question; pass question='...' for all that have none"),
    "answers-in-a-list": ({"question": "Q", "answer": ["A", "B"]}, "answer is a list, not a text"),
    "question-as-a-list": ({"question": ["Q"], "answer": "A"}, "question is a list, not a text"),
    "picture-missing": ({"image": "c.png", "question": "Q", "answer": "A"}, "there is no picture '"),
    "no-picture": ({"image": 7, "question": "Q", "answer": "A"}, "image is of type int, not a path"),
    "more-places": (
        {"conversations": said("<image><image>Q", "A")},
        "the row has 2 places (<image>) for 1 picture",
    ),
    "fewer-places": (
        {"image": ["a.png", "b.png"], "conversations": said("<image>Q", "A")},
        "the row has 1 place (<image>) for 2 pictures",
    ),
    "places-for-nothing": ({"image": None, "messages": chat("<image>Q", "A")}, "has 1 place (<image>) for 0 pictures"),
    "no-place-beside-its-own": (
        {"messages": [user({"type": "image", "image": "a.png"}), assistant("A")]},
        "the row has 0 places (<image>) for 1 picture",
    ),
    "another-order": (
        {
            "image": ["a.png", "b.png"],
            "messages": [user({**PLACE, "index": 1}, {**PLACE, "index": 0}), assistant("A")],
        },
        "in another order than it holds them (index)",
    ),
    "picture-in-an-answer": (
        {"conversations": said("Q", "Here: <image>")},
        "turn 2 is an answer with a picture (<image>), not of words",
    ),
    "picture-in-an-answer-beside-its-question": (
        {"question": "Q", "answer": "Here: <image>"},
        "turn 2 is an answer with a picture (<image>), not of words",
    ),
    "unknown-role": (
        {"conversations": [*said("Q", "A"), {"from": "observation", "value": "20 °C"}, *said("Q", "A")]},
        "turn 3 is of 'observation'; those of user (human), assistant (gpt) and system are trained",
    ),
    "no-role": ({"messages": [{"content": "Q"}, *chat("", "A")[1:]]}, "turn 1 is of None"),
    "two-of-the-assistant": (
        {"conversations": [*said("Q", "A"), *said("", "B")[1:]]},
        "turns 2 and 3 are both of the assistant",
    ),
    "two-of-the-user": ({"messages": [*chat("Q"), *chat("R", "A")]}, "turns 1 and 2 are both of the user"),
    "assistant-first": ({"conversations": said("", "Hello!")[1:] + said("Q", "A")}, "turn 1 is an answer, and nobody"),
    "last-question-open": ({"conversations": said("Q", "A", "R")}, "the last turn, 3, has no answer"),
    "empty-turn": ({"messages": chat("Q", "A", "R", "  ")}, "turn 4 is an empty answer"),
    "nothing-asked-first": ({"image": None, "messages": chat(" ", "A")}, "the first question is empty, and"),
    "nothing-asked": ({"messages": chat("Q", "A", " ", "B")}, "turn 3 asks nothing"),
    "system-later": (
        {"messages": [*chat("Q", "A"), {"role": "system", "content": "S"}, *chat("Q", "A")]},
        "turn 3 is of the system, which speaks once and first",
    ),
    "two-systems": (
        {"system": "Be brief.", "messages": [{"role": "system", "content": "Be long."}, *chat("Q", "A")]},
        "the system says one thing in system and another in the chat",
    ),
    "tool-calls": (
        {"messages": [*chat("Q"), {"role": "assistant", "content": "A", "tool_calls": [{"id": 1}]}]},
        "turn 2 holds tool_calls beside its words, which is not trained",
    ),
    "not-to-be-trained": (
        {"messages": [*chat("Q"), {"role": "assistant", "content": "A", "weight": 0}, *chat("Q", "A")]},
        "turn 2 is not to be trained (weight or loss 0); all answers are",
    ),
    "a-film": ({"messages": chat("<video>Q", "A"), "videos": ["a.mp4"]}, "the row has videos, and only words and"),
    "a-film-inside": (
        {"messages": [user({"type": "video", "video": "a.mp4"}), assistant("A")]},
        "turn 1 shows a video; pictures are trained",
    ),
    "no-part": ({"messages": [user({"type": "sound"}), assistant("A")]}, "turn 1: a part of a message is of type"),
    "no-chat": ({"conversations": "Q? A."}, "conversations is no chat: it is a text and no JSON"),
    "no-history": ({"query": "Q", "response": "A", "history": ["Q", "A"]}, "history is a list of pairs of question"),
}


@pytest.mark.filterwarnings("ignore:.*have no picture")
@pytest.mark.parametrize("case", list(FAULTS))
def test_what_cannot_be_trained_on_is_a_fault_in_its_place(folder: Path, case: str) -> None:
    row, why = FAULTS[case]
    row = {"image": "a.png", **row}
    if "query" in row:
        (good, found) = read_conversations([{**row, "history": []}, row], images=folder)
        assert isinstance(good, Conversation)
        assert found.why.startswith(why)
    else:
        assert why in fault(row, folder)


def test_a_source_without_a_row_to_train_on_is_refused(folder: Path) -> None:
    with pytest.raises(
        BadInput, match=r"no row that can be read: the row has no answer; its columns are image, remark"
    ):
        read_conversations([{"image": "a.png", "remark": "T"}])
    with pytest.raises(BadInput, match="question= is what rows are asked, in words"):
        read_conversations(ROWS, question=" ")


# --- rows without pictures ---------------------------------------------------------------------------------

SPOKEN = {"conversations": said("Say hello.", "Hello.")}
SHOWN = {"image": "a.png", "conversations": said("<image>\nWhat is red?", "The circle.")}
NO_PICTURE = "none of its first rows has a picture"


def shown_last(rows: list[dict[str, Any]], folder: Path, **options: Any) -> list[Any]:
    """The pictures of the last of rows that can all be trained on."""
    *_, last = found = list(read_conversations(rows, images=folder, **options))
    assert len(found) == len(rows)
    assert all(isinstance(each, Conversation) for each in found), found
    return last.images


@pytest.mark.filterwarnings("ignore:.*have no picture")
@pytest.mark.parametrize("before", [3, 150])
@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_llavas_rows_of_words_may_come_first(folder: Path, kind: str, before: int) -> None:
    rows = [SPOKEN] * before + [SHOWN]
    path = folder / f"mix.{kind}"
    path.write_text(json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows)))
    read = read_conversations(path)
    assert any(NO_PICTURE in told for told in read.told) == (before > 100)
    *words, last = read
    assert last.images == [str(folder / "a.png")]
    assert [each.messages for each in words] == [[user("Say hello."), assistant("Hello.")]] * before


@pytest.mark.filterwarnings("ignore:.*have no picture")
@pytest.mark.parametrize(
    ("row", "columns"),
    [
        pytest.param({"image": "a.png"}, None, id="ours"),
        pytest.param({"imagePath": "a.png"}, None, id="another-spelling"),
        pytest.param({"seen": "a.png"}, {"image": "seen"}, id="assigned"),
        pytest.param({"seen": "a.png"}, {"image": ["seen", "image"]}, id="one-of-several"),
    ],
)
def test_a_picture_that_comes_late_is_kept(folder: Path, row: dict[str, Any], columns: dict[str, Any] | None) -> None:
    blank = {"image": None, "question": "Q", "answer": "A"}
    late = {"question": "Q", "answer": "A", **row}
    assert shown_last([blank] * 150 + [late], folder, columns=columns) == [str(folder / "a.png")]


@pytest.mark.filterwarnings("ignore:.*have no picture")
def test_a_row_without_the_number_of_its_picture_has_none(folder: Path) -> None:
    rows = [{"question": "Q", "answer": "A"}] * 150 + [{"question": "Q", "answer": "A", "image_id": "a"}]
    read = list(read_conversations(rows, images=f"{folder}/{{image_id}}.png"))
    assert [each.images for each in read] == [[]] * 150 + [[f"{folder}/a.png"]]


@pytest.mark.filterwarnings("ignore:.*have no picture")
@pytest.mark.parametrize("before", [0, 70, 150])
def test_pictures_held_by_rows_of_an_assigned_column_are_no_numbers(folder: Path, before: int) -> None:
    picture = Image.new("RGB", (8, 8))
    asked = {"question": "Q", "answer": "A"}
    assert shown_last([asked] * before + [asked | {"image": picture}], folder, columns={"image": "image"}) == [picture]


@pytest.mark.filterwarnings("ignore:.*have no picture")
@pytest.mark.parametrize("blank", [{}, {"image": None}, {"image": ""}, {"images": []}])
@pytest.mark.parametrize("count", [3, 150])
def test_a_data_set_without_any_picture_is_trained_and_told(folder: Path, blank: dict[str, Any], count: int) -> None:
    read = read_conversations([SPOKEN | blank] * count, images=folder)
    assert f"list: {NO_PICTURE}" in read.told
    assert [each.images for each in read] == [[]] * count
    with pytest.raises(BadInput, match="has no picture"):
        read_samples([SPOKEN | blank] * count)


@pytest.mark.filterwarnings("ignore:.*have no picture")
@pytest.mark.parametrize("count", [3, 150])
def test_a_column_for_pictures_that_no_row_has_is_refused(folder: Path, count: int) -> None:
    with pytest.raises(BadInput, match=r"column 'imgae'"):
        list(
            read_conversations([SHOWN | {"conversations": SPOKEN["conversations"]}] * count, columns={"image": "imgae"})
        )


@pytest.mark.filterwarnings("ignore:.*have no picture")
def test_a_column_that_looks_like_pictures_is_not_passed_over(folder: Path) -> None:
    blank, late = {"question": "Q", "answer": "A"}, {"shot": "a.png", "question": "Q", "answer": "A"}
    *_, found = read_conversations([blank] * 150 + [late], images=folder)
    assert str(found) == "row 150: shot looks like a picture; say columns={'image': 'shot'} if it is one"
    with pytest.raises(BadInput, match="shot looks like one"):
        read_conversations([{"shot": "a.png", "question": "Q", "answer": "A"}], images=folder)


# --- one conversation, two formats -------------------------------------------------------------------------

WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), min_size=1).filter(str.strip)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4), st.none() | WORDS, st.integers(0, 2))
@pytest.mark.filterwarnings("ignore:.*have no picture")
def test_a_conversation_reads_the_same_in_every_format(
    folder: Path, turns: list[tuple[str, str]], first: str | None, shown: int
) -> None:
    files = ["a.png", "b.png"][:shown]
    words = [each for turn in turns for each in turn]
    marked = ["<image>" * shown + words[0], *words[1:]]
    listed = [message for pair in turns for message in (user(pair[0]), assistant(pair[1]))]
    inside = [{**PLACE, "image": str(folder / name)} for name in files]
    listed[0] = {"role": "user", "content": [*inside, *listed[0]["content"]]}
    beside = {"images": files, **({} if first is None else {"system": first})}
    before = [] if first is None else [{"role": "system", "content": first}]
    pairs = zip(marked[::2], marked[1::2], strict=True)
    history = [list(pair) for pair in zip(marked[:-2:2], marked[1:-2:2], strict=True)]
    rows = [
        {**beside, "conversations": said(*marked)},
        {**beside, "conversations": said(*words)},
        {**beside, "messages": chat(*marked)},
        {"images": files, "messages": [*before, *chat(*words)]},
        {"messages": [*before, *listed]},
        {"images": files, "prompt": [*before, *chat(*marked[:-1])], "completion": chat("", words[-1])[1:]},
        {**beside, "query": marked[-2], "response": words[-1], "history": history},
        {**beside, "instruction": marked[-2], "output": words[-1], "history": history},
        {**beside, "texts": [{"user": asked, "assistant": told} for asked, told in pairs]},
    ]
    columns = None if shown else {"image": None}
    read = [one(row, folder, columns=columns) for row in rows]
    assert all(each.messages == read[0].messages for each in read)
    assert all(each.images == read[0].images == [str(folder / name) for name in files] for each in read)
    asked, *later = [user(each.strip()) if number % 2 == 0 else assistant(each) for number, each in enumerate(words)]
    whole = [user(*[PLACE] * shown, *asked["content"]), *later]
    assert read[0].messages == [*([] if first is None else [system(first.strip())]), *whole]


def test_importing_the_reader_imports_nothing_heavy() -> None:
    code = "import sys, llava_probe.finetune.conversations; print({'torch', 'transformers', 'numpy'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
