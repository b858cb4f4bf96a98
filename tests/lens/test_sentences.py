"""The same sentences, however somebody keeps them."""

import json

import pytest

import llava_probe as lp
from llava_probe.lens.sentences import read_sentences

TWO = ["A red star.", "Ein grüner Ring."]


def test_a_line_is_a_sentence(tmp_path):
    path = tmp_path / "s.txt"
    path.write_bytes("\ufeffA red star.\r\n\n  Ein grüner Ring. \n".encode())
    assert list(read_sentences(path)) == list(read_sentences(str(path))) == TWO


@pytest.mark.parametrize("name", ["s.jsonl", "s.csv", "s.json"])
def test_a_column_of_a_data_set_is_read(tmp_path, name):
    path = tmp_path / name
    rows = [{"id": number, "caption": text} for number, text in enumerate(TWO)]
    written = {
        "s.jsonl": "\n".join(map(json.dumps, rows)),
        "s.csv": "id,caption\n0,A red star.\n1,Ein grüner Ring.\n",
        "s.json": json.dumps({"annotations": rows}),
    }
    path.write_text(written[name], encoding="utf-8")
    assert list(read_sentences(path)) == TWO


def test_a_column_may_be_named_and_hold_lists():
    rows = [{"text": "no", "five": ["A red star.", " "]}, {"five": "Ein grüner Ring."}, {"five": None}]
    assert list(read_sentences(rows, "five")) == TWO
    assert list(read_sentences([{"captions": TWO}])) == TWO
    assert list(read_sentences(TWO)) == list(read_sentences(tuple(TWO))) == TWO


@pytest.mark.parametrize(
    ("given", "column", "told"),
    [
        ([{"words": "A star."}], None, r"no column of sentences .*it has words: name one with column="),
        ([{"text": "A star."}], "caption", r"no column 'caption'; it has text"),
        ("nowhere.jsonl", None, "there is no file or folder"),
        (7, None, "is no data set"),
    ],
    ids=["no-such-column", "not-this-column", "no-such-file", "a-number"],
)
def test_what_holds_no_sentences_is_told(given, column, told):
    with pytest.raises(lp.BadInput, match=told):
        list(read_sentences(given, column))


def test_a_picture_is_no_file_of_sentences(tmp_path):
    path = tmp_path / "s.txt"
    path.write_bytes(b"fine\n\xff\xd8\xff")
    with pytest.raises(lp.BadInput, match=r"line 2 of .* is no text in UTF-8"):
        list(read_sentences(path))
