"""What a row means, whatever its columns are called; what is broken stays in its place."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from llava_probe.errors import BadInput
from llava_probe.features import rows as rows_module
from llava_probe.features.portable import from_portable, portable
from llava_probe.features.samples import Sample, digest, read_samples
from llava_probe.pictures.images import open_image
from llava_probe.pictures.regions import read_mask
from tests.encoded import encode, noise
from tests.features.data_sets import POPE, jsonl, one, refusal

# --- what a row means -------------------------------------------------------------------------------------


def test_a_column_is_ours_by_its_name_or_by_assignment() -> None:
    row = {"question": "Q", "text": "T", "answer": "A", "label": "yes", "id": 7, "question_id": 8}
    sample = one(row)
    assert (sample.id, sample.question, sample.answer) == ("7", "Q", "A")
    assert sample.columns == {"text": "T", "label": "yes", "question_id": 8}
    sample = one(row, columns={"question": "text", "answer": "label"})
    assert (sample.question, sample.answer) == ("T", "yes")
    assert sample.columns == {"question": "Q", "answer": "A", "question_id": 8}


def test_a_system_prompt_is_the_rows_own_or_part_of_the_whole_prompt() -> None:
    row = {"question": "Q", "system": "Be brief."}
    assert one(row).system == "Be brief." and "system" not in one(row).columns
    put_in = one(row, prompt="{system} <image> {question}")
    assert (put_in.prompt, put_in.system) == ("Be brief. <image> Q", None)


@pytest.mark.parametrize("nothing", [None, "", float("nan"), np.float32("nan"), pandas.NA, pandas.NaT], ids=repr)
def test_what_pandas_has_for_nothing_is_nothing(nothing: Any) -> None:
    sample = one({"question": nothing, "image": "/a.jpg", "answer": nothing}, question="Mine?")
    assert (sample.question, sample.answer) == ("Mine?", None)


def test_columns_are_ours_in_another_spelling_unless_said_otherwise() -> None:
    row = {"imagePath": "/a.jpg", "QUESTION": "Q", "Answer": "A", "BBox": [1, 2, 3, 4]}
    (sample,) = read_samples([row], box_format="xywh")
    assert (sample.image, sample.question, sample.answer) == ("/a.jpg", "Q", "A")
    assert (sample.boxes, sample.columns) == (((1, 2, 3, 4),), {})
    assert one({**row, "image": "/b.jpg"}, columns={"answer": None}).columns["Answer"] == "A"
    assert one({**row, "image": "/b.jpg"}).image == "/b.jpg"


def test_a_picture_written_out_or_on_windows_or_inside_a_dict_is_found(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    picture = Image.fromarray(noise(32, 24))
    picture.save(tmp_path / "sub" / "a.png")
    written = base64.b64encode((tmp_path / "sub" / "a.png").read_bytes()).decode()
    ways = [written, "sub\\a.png", {"url": "sub/a.png"}, {"file_name": "sub/a.png", "id": 3}]
    for given in ways:
        sample = one({"image": given, "question": "Q"}, images=tmp_path)
        assert open_image(sample.image) == open_image(picture)
    assert "none of which holds a picture" in str(one({"image": {"height": 3}, "question": "Q"}).fault)


def test_a_column_assigned_to_none_is_carried() -> None:
    sample = one({"question": "Q", "answer": "yes", "bbox": [5, 5, 1, 1]}, columns={"answer": None, "boxes": None})
    assert (sample.answer, sample.boxes, sample.fault) == (None, (), None)
    assert sample.columns == {"answer": "yes", "bbox": [5, 5, 1, 1]}


def test_a_column_assigned_to_one_of_ours_is_not_another_too() -> None:
    sample = one({"text": "a red car", "image": "a.jpg"}, question="Describe.", columns={"answer": "text"})
    assert (sample.question, sample.answer) == ("Describe.", "a red car")


def test_the_file_name_may_be_the_id_as_well() -> None:
    sample = one({"image": "a.jpg", "question": "Q"}, images="/", columns={"id": "image"})
    assert (sample.id, sample.image) == ("a.jpg", "/a.jpg")


def test_the_question_given_is_for_rows_without() -> None:
    rows = [{"question": "Mine?"}, {"question": ""}, {"question": None}, {"question": float("nan")}, {}]
    found = read_samples(rows, question="Yours?", columns={"image": None})
    assert [s.question for s in found] == ["Mine?"] + ["Yours?"] * 4


def test_relative_pictures_lie_beside_the_file_or_in_the_folder_named(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    given = ["a.jpg", "sub/b.jpg", "/abs/c.jpg", "https://host/d.jpg?e=1", "data:image/png;base64,AAAA"]
    path = jsonl(tmp_path / "rows.jsonl", [{"image": name, "mask": "m.png", "question": "Q"} for name in given])
    assert [s.image for s in read_samples(path)] == [f"{tmp_path}/a.jpg", f"{tmp_path}/sub/b.jpg", *given[2:]]
    beside = list(read_samples(path, images=tmp_path / "elsewhere"))
    assert [s.image for s in beside[:3]] == [
        f"{tmp_path}/elsewhere/a.jpg",
        f"{tmp_path}/elsewhere/sub/b.jpg",
        "/abs/c.jpg",
    ]
    assert beside[0].mask == f"{tmp_path}/elsewhere/m.png"


def test_relative_pictures_of_a_list_start_at_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert one({"image": Path("a.jpg"), "question": "Q"}).image == str(Path.cwd() / "a.jpg")


def test_several_pictures_stay_a_list() -> None:
    sample = one({"images": ["/a.jpg", b"bytes", {"bytes": None, "path": "/c.jpg"}], "question": "Q"})
    assert sample.image == ["/a.jpg", b"bytes", "/c.jpg"]
    assert one({"images": [], "question": "Q"}, columns={"image": "images"}).image is None


@pytest.mark.parametrize("given", [[1, 2, 3, 4], [[1, 2, 3, 4]], "[1, 2, 3, 4]", np.array([1, 2, 3, 4])], ids=str)
def test_one_box_or_many_however_written(given: Any) -> None:
    assert one({"box": given, "question": "Q"}, box_format="xyxy").boxes == ((1.0, 2.0, 3.0, 4.0),)


def test_boxes_in_no_stated_format_are_carried_and_not_read() -> None:
    row = {"bbox": [1, 2, 3, 4], "question": "Q"}
    sample = one(row)
    assert (sample.boxes, sample.columns, sample.unstated) == ((), {"bbox": [1, 2, 3, 4]}, "bbox")
    with pytest.raises(BadInput, match=r"four numbers in bbox mean is not stated; pass box_format=, of xyxy"):
        sample.placed((9, 9))
    stated = one({**row, "box_format": "xywh"})  # in the row itself, whatever is said for all
    assert (stated.boxes, stated.box_format, stated.columns) == (((1.0, 2.0, 3.0, 4.0),), "xywh", {})
    assert stated.placed((9, 9)).sum() == 3 * 4
    assert "box_format='coco' is none; there are xyxy" in refusal([row], box_format="coco", columns={"image": None})


def test_a_mask_is_a_path_a_picture_or_a_bool_array() -> None:
    truth = np.array([[True, False, False], [False, True, True]])
    for given in (truth, truth.astype(np.int64) * 3, torch.from_numpy(truth), truth.tolist()):
        mask = one({"mask": given, "question": "Q"}).mask
        assert mask.dtype == bool
        assert np.array_equal(mask, truth)
    stored = one({"mask": {"bytes": encode(Image.fromarray(truth)), "path": None}, "question": "Q"}).mask
    assert np.array_equal(read_mask(stored), truth)


def test_carried_values_are_plain() -> None:
    class Odd:
        def __str__(self) -> str:
            return "odd"

    given = {
        "a": np.float32(0.5),
        "b": np.int64(3),
        "c": np.array([[1, 2]]),
        "d": {"x": (np.bool_(True), None)},
        "e": np.str_("s"),
        "f": Odd(),
        "g": {"z", "y"},
        "h": torch.tensor(2),
        "i": Path("p"),
    }
    carried = one({"question": "Q", **given}).columns
    expected = {"a": 0.5, "b": 3, "c": [[1, 2]], "d": {"x": [True, None]}, "e": "s", "f": "odd"}
    assert carried == {**expected, "g": ["y", "z"], "h": 2, "i": "p"}
    assert {type(carried[key]) for key in "abe"} == {float, int, str}
    json.dumps(carried)


def test_a_carried_picture_is_its_key() -> None:
    carried = one({"question": "Q", "second": b"bytes"}).columns["second"]
    assert carried == "sha256:" + hashlib.sha256(b"bytes").hexdigest()[:32]


# --- what is broken ---------------------------------------------------------------------------------------


def test_a_broken_line_is_a_fault_not_an_end(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [
        b'\xef\xbb\xbf{"question": "first"}',
        b'{"question": ',
        b"   ",
        b'["a list"]',
        b'{"question": "not \xff UTF-8"}',
        b"[" * 100_000,
        b"1" * 5_000,
        b'{"question": ["a", "list"], "id": "x", "note": 1}',
        b'{"image": 17, "question": "Q"}',
        b'{"note": "no question"}',
        b'{"question": "last"}',  # without a line's end
    ]
    path.write_bytes(b"\r\n".join(lines))
    samples = read_samples(path)
    found = list(samples)
    assert samples.count == len(found) == 10
    assert [s.row for s in found] == list(range(10))
    assert [s.line for s in found] == [1, 2, *range(4, 12)]
    assert [s.question for s in found if s.fault is None] == ["first", "last"]
    faults = [s.fault or "" for s in found]
    assert faults[1].startswith("line 2 is no JSON: Expecting value")
    assert faults[2].startswith("line 4 is a list; a row is a dict with a value by column, as in {'image':")
    assert faults[3].startswith("line 5 is no JSON: 'utf-8' codec can't decode")
    assert faults[6] == "question is a list, not a text"
    assert (found[6].id, found[6].columns) == ("x", {"note": 1})
    assert faults[7] == "image is of type int, not a path, URL, bytes, PIL picture or array"
    assert faults[8] == "the row has no question"
    assert all(len(fault) < 300 for fault in faults)


def test_a_broken_line_of_a_table_is_a_fault_not_an_end(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    huge = b"x" * (csv.field_size_limit() + 1)
    lines = [b"id,question", b"1,first", b"2,a,b", b"3", b"", b"4,not \xff UTF-8", b"5," + huge, b'6,"two\nlines"']
    path.write_bytes(b"\n".join(lines) + b"\n7,l\xc3\xa4st\n")
    samples = read_samples(path, columns={"image": None})
    found = list(samples)
    assert samples.count == len(found) == 7
    assert [s.question for s in found if s.fault is None] == ["first", "two\nlines", "läst"]
    assert [s.line for s in found] == [2, 3, 4, 6, 7, 9, 10]
    assert found[1].fault == "line 3 has 3 fields where the header has 2"
    assert found[2].fault == "line 4 has 1 fields where the header has 2"
    assert found[3].fault == "line 6 is not UTF-8"
    assert "field larger than field limit" in str(found[4].fault)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([1, 2, 3], "cannot be read as boxes"),
        ("here", "cannot be read as boxes"),
        (7, "cannot be read as boxes"),
    ],
    ids=str,
)
def test_what_is_no_box_is_a_fault_with_the_way_out(given: Any, said: str) -> None:
    sample = one({"bbox": given, "question": "Q"}, box_format="xyxy")
    assert said in str(sample.fault)
    assert "columns={'boxes': None}" in str(sample.fault)
    assert sample.boxes == ()


@pytest.mark.parametrize("given", [np.zeros((2, 2, 5), bool), np.full((2, 2), np.nan), np.full((2, 2), -1), 3], ids=str)
def test_what_is_no_mask_is_a_fault(given: Any) -> None:
    sample = one({"mask": given, "question": "Q"})
    assert str(sample.fault).startswith(("mask is ", "mask: the mask is an array"))
    assert sample.mask is None


@pytest.mark.parametrize("given", [b"no picture", ["m.png"], "nowhere.png", {"a": 1}], ids=str)
def test_a_mask_that_cannot_be_read_fails_who_asks_for_it(given: Any) -> None:
    sample = one({"mask": given, "question": "Q"})
    assert sample.fault is None
    with pytest.raises(BadInput, match=r"mask|polygon"):
        sample.placed((4, 4))


def test_a_source_that_is_none_is_refused_with_what_to_pass(tmp_path: Path) -> None:
    (tmp_path / "rows.xlsx").write_bytes(b"PK")
    (tmp_path / "empty.jsonl").write_bytes(b"\n\n")
    (tmp_path / "coco.json").write_text('{"info": 1, "annotations": []}')
    (tmp_path / "two.json").write_text('{"these": [{"a": 1}], "those": [{"a": 1}]}')
    (tmp_path / "bad.json").write_text("[{]")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and nothing")
    (tmp_path / "same.csv").write_text("question,question\n1,2\n")
    (tmp_path / "broken.jsonl").write_text("{\n{\n")
    (tmp_path / "folder").mkdir()
    jsonl(tmp_path / "folder" / "rows.jsonl", POPE)
    question = {"question": "Q"}
    assert "there is no file or folder" in refusal(tmp_path / "missing.jsonl")
    assert "there is no file or folder" in refusal("missing.jsonl")
    assert "there is no file or folder" in refusal("./missing")
    assert "there is no file or folder" in refusal(tmp_path / "missing")
    assert "cannot be read" in refusal("x" * 5000)
    assert "pass .jsonl, .ndjson, .json, .csv, .tsv, .parquet" in refusal(tmp_path / "rows.xlsx")
    assert "is empty: it has no rows" in refusal(tmp_path / "empty.jsonl", **question)
    assert "is empty: it has no rows" in refusal([], **question)
    assert "holds a dict with the keys info, annotations" in refusal(tmp_path / "coco.json")
    assert "holds a dict with several lists: these, those" in refusal(tmp_path / "two.json")
    assert "bad.json cannot be read" in refusal(tmp_path / "bad.json")
    assert "bad.parquet cannot be read" in refusal(tmp_path / "bad.parquet")
    assert "two columns of the same name" in refusal(tmp_path / "same.csv")
    assert "no row that can be read: line 1 is no JSON" in refusal(tmp_path / "broken.jsonl")
    assert "holds no pictures" in refusal(tmp_path / "folder")
    assert "pass one of its files: rows.jsonl" in refusal(tmp_path / "folder")
    assert "as in [row]" in refusal(POPE[0])
    assert "a source of type int is no data set" in refusal(3)
    assert "row 0 is a str" in refusal(iter(["a", "b"]))
    assert "leave split='test' out" in refusal(POPE, split="test")
    assert "is no folder" in refusal(POPE, images=tmp_path / "missing")


def test_a_column_that_no_row_has_is_refused_and_one_that_some_have_is_not() -> None:
    assert "no column 'caption'; the columns are question_id, image, text" in refusal(
        POPE, columns={"answer": "caption"}
    )
    assert "assigns id, image, question" in refusal(POPE, columns={"label": "text"})
    late = [*POPE, {"text": "T", "caption": "C"}]
    assert [s.answer for s in read_samples(late, columns={"answer": "caption"})] == [None] * 3 + ["C"]


def test_a_question_is_needed_from_somewhere() -> None:
    said = refusal([{"image": "a.jpg", "caption": "C"}])
    assert "has no question; the columns are image, caption; pass question='...'" in said
    assert "has no question" in refusal(POPE, columns={"question": None})


# --- keys and transport -----------------------------------------------------------------------------------


def test_samples_of_the_same_picture_share_a_key() -> None:
    array = noise()
    keys = {one({"image": given, "question": "Q"}).picture for given in (array, Image.fromarray(array))}
    assert len(keys) == 1
    assert keys != {one({"image": noise(8), "question": "Q"}).picture}
    assert one({"image": b"abc", "question": "Q"}).picture == "sha256:" + hashlib.sha256(b"abc").hexdigest()[:32]
    assert one({"image": "/a.jpg", "question": "Q"}).picture == "/a.jpg"
    assert one({"image": ["/a.jpg", "https://h/b"], "question": "Q"}).picture == "/a.jpg|https://h/b"
    assert len(one({"image": "data:image/png;base64," + "A" * 9999, "question": "Q"}).picture) == 39
    assert one({"question": "Q"}).picture == ""
    assert one({"image": np.full((2, 2), 7.0), "question": "Q"}).picture.startswith("unreadable: ")


def samples_of_all_kinds() -> list[Sample]:
    mask = np.array([[True, False, False], [False, True, True]])
    common = {"question": "Q", "boxes": [[0, 1, 2, 3]], "note": {"a": [1, None]}}
    given = ["/a.jpg", b"bytes", noise(), Image.fromarray(noise(8)), ["/a.jpg", noise(6)], None]
    rows = [{**common, "image": image, "mask": mask} for image in given]
    rows.append({**common, "mask": Image.fromarray(mask.astype(np.uint8) * 7)})
    rows += [{**common, "mask": given} for given in ([[0, 0, 2, 0, 2, 2]], {"size": [2, 3], "counts": [1, 5]})]
    rows.append({**common, "mask": encode(Image.fromarray(mask))})
    rows.append({"image": "/a.jpg", "prompt": "USER: <image>"})
    part = {"type": "image", "image": Image.fromarray(noise())}
    rows.append({"messages": [{"role": "user", "content": [part, {"type": "text", "text": "Q"}]}]})
    return [*read_samples([*rows, {"note": "no question"}, "no row"], box_format="xyxy")]


def test_a_sample_survives_the_way_to_another_process() -> None:
    before = samples_of_all_kinds()
    after = [from_portable(pickle.loads(pickle.dumps(portable(sample)))) for sample in before]
    for old, new in zip(before, after, strict=True):
        names = (
            "row",
            "id",
            "question",
            "answer",
            "boxes",
            "columns",
            "fault",
            "picture",
            "prompt",
            "words",
            "box_format",
        )
        for name in names:
            assert getattr(old, name) == getattr(new, name)
        assert (old.mask is None) == (new.mask is None)
        if old.mask is not None:
            assert np.array_equal(read_mask(old.mask, (3, 2)), read_mask(new.mask, (3, 2)))
    assert np.array_equal(np.asarray(open_image(after[2].image)), noise())
    assert digest(before) == digest(after)


def test_a_sample_of_paths_is_json() -> None:
    sample = one(
        {"image": ["/a.jpg", "/b.jpg"], "mask": "/m.png", "question": "Q", "box": [0, 0, 1, 1]}, box_format="xyxy"
    )
    again = from_portable(json.loads(json.dumps(portable(sample))))
    assert digest([again]) == digest([sample])
    assert again.boxes == ((0.0, 0.0, 1.0, 1.0),)


def test_a_picture_that_cannot_travel_is_a_fault() -> None:
    sample = one({"image": np.full((2, 2), 7.0), "question": "Q"})
    arrived = from_portable(portable(sample))
    assert arrived.image is None
    assert "floats must lie in 0..1" in str(arrived.fault)


def test_the_digest_changes_with_whatever_is_asked() -> None:
    row = {"id": 1, "image": "/a.jpg", "question": "Q", "answer": "A", "box": [0, 0, 1, 1], "mask": "/m.png", "note": 1}
    other = {
        "id": 2,
        "image": "/b.jpg",
        "question": "R",
        "answer": "B",
        "box": [0, 0, 1, 2],
        "mask": "/n.png",
        "note": 2,
    }
    rows = [row, *({**row, name: value} for name, value in other.items()), {**row, "box": None}]
    digests = {digest(read_samples([given], box_format="xyxy")) for given in rows}
    digests |= {digest(read_samples([row], box_format="xywh")), digest(read_samples([row]))}
    assert len(digests) == len(rows) + 2
    assert digest(read_samples([row, row])) != digest(read_samples([row]))


def test_the_digest_is_the_same_in_another_process() -> None:
    here = Path(__file__).parents[2]
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from tests.features.test_samples import samples_of_all_kinds, digest; print(digest(samples_of_all_kinds()))"
    )
    command = [sys.executable, "-c", code, str(here)]
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    there = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    assert there == digest(samples_of_all_kinds())


def test_a_portable_picture_is_a_png() -> None:
    packed = portable(one({"image": noise(), "question": "Q"}))["image"]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(packed["png"]), formats=["PNG"])), noise())


def test_a_batch_of_a_columnar_file_is_crossed_in_order(tmp_path: Path) -> None:
    rows = [{"id": n, "image": "a.png", "question": "Q"} for n in range(2 * rows_module.BATCH_ROWS + 5)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    for source in (tmp_path / "rows.parquet", datasets.Dataset.from_list(rows)):
        assert [int(s.id) for s in read_samples(source)] == list(range(len(rows)))


def test_rows_that_are_joined_keep_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, POPE[:2])) + "\n\n" + json.dumps(POPE[2]))
    found = list(read_samples(path, answers=[{"question_id": 1, "answer": "yes"}, {"question_id": 3, "answer": "no"}]))
    assert [(s.line, s.answer, s.fault is None) for s in found] == [(1, "yes", True), (2, None, False), (4, "no", True)]


def test_a_chat_may_lie_column_by_column_and_show_an_array() -> None:
    by_column = {"role": ["user", "assistant"], "content": ["Q", "A"]}
    sample = one({"messages": by_column, "image": "/a.jpg"})
    assert sample.messages == [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    shown = {"role": "user", "content": [{"type": "image", "image": noise()}, {"type": "text", "text": "Q"}]}
    (sample,) = read_samples([{"messages": [shown]}])
    assert sample.fault is None
