"""Data sets of cases: read from JSON lines, refused by line, made from tiny scenes, written and read back equal."""

import json
import re
import tracemalloc
from dataclasses import fields, replace

import numpy as np
import pytest
from PIL import Image

import llava_probe as lp
from llava_probe import tiny
from llava_probe.evaluate import Case, read_cases, tiny_cases, write_cases
from llava_probe.trace.tokens import Token, find

MASK = np.zeros((20, 30), dtype=bool)
MASK[4:9, 10:16] = True
ROW = {"image": "photo.png", "question": "What is there?", "mask": "mask.png"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    folder = tmp_path / "data"
    Image.new("RGB", (30, 20), "red").save(folder / "photo.png")
    Image.fromarray(MASK).save(folder / "mask.png")
    return folder


def written(folder, *rows, name="cases.jsonl"):
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


def only(folder, **changes):
    row = {name: value for name, value in {**ROW, **changes}.items() if value is not None}
    (case,) = read_cases(written(folder, row))
    return case


# --- reading ---


def test_a_case_asks_as_its_row_says(folder):
    rows = [ROW, {**ROW, "system": "Be brief."}, {**ROW, "question": None, "prompt": "<image> What?"}]
    asking = [
        {"question": "What is there?"},
        {"question": "What is there?", "system": "Be brief."},
        {"prompt": "<image> What?"},
    ]
    cases = list(read_cases(written(folder, *rows)))
    assert [case.asking for case in cases] == asking
    again = read_cases(write_cases(cases, folder / "sent"))
    assert [case.asking for case in again] == asking
    (whole,) = read_cases(written(folder, ROW), prompt="<image> {question} ASSISTANT:")
    assert whole.asking == {"prompt": "<image> What is there? ASSISTANT:"}


def test_a_line_is_a_case(folder, monkeypatch):
    path = written(
        folder,
        {**ROW, "id": 7, "word": "dog", "occurrence": 1, "answer": "a dog and a dog", "kind": "animal"},
        "",
        {**ROW, "token": 0, "function_words": ["a", "and"], "box": [1, 2, 3, 4], "box_format": "xyxy"},
        {**ROW, "token": "dog"},
    )
    monkeypatch.chdir(folder.parent)
    for source in (path, "data/cases.jsonl"):
        one, two, three = read_cases(source)
        assert (one.id, one.question, one.word, one.occurrence) == ("7", "What is there?", "dog", 1)
        assert (one.answer, one.kind, one.token) == ("a dog and a dog", "animal", None)
        assert (two.id, two.word, two.token, two.function_words) == ("1", None, 0, ("a", "and"))
        assert two.boxes == ((1, 2, 3, 4),)
        assert (three.word, three.token) == ("dog", None)
        assert one.image == str(folder / "photo.png")
        for case in (one, two, three):
            np.testing.assert_array_equal(case.mask(), MASK)
    assert one.picture == two.picture


def saved(folder, name, array, **options):
    Image.fromarray(array, **options).save(folder / name)
    return name


@pytest.mark.parametrize("kind", ["bool", "grey", "sixteen", "colour", "palette", "clear", "grey and clear", "tiff"])
def test_a_mask_is_what_is_not_black(folder, kind):
    labels = MASK * np.uint8(1)
    if kind == "palette":
        picture = Image.fromarray(1 - labels, "P")  # black is the second of its colours
        picture.putpalette([128, 0, 0, 0, 0, 0])
        picture.save(folder / "m.png")
        name = "m.png"
    else:
        arrays = {
            "bool": MASK,
            "grey": labels,
            "sixteen": labels.astype(np.uint16),  # a label of one in 65,535
            "colour": np.stack([labels * 0, labels, labels * 0], -1),
            "clear": np.stack([labels * 0 + 9] * 3 + [labels * 255], -1),
            "grey and clear": np.stack([labels * 0 + 9, labels * 255], -1),
            "tiff": labels * 255,
        }
        name = saved(folder, "m.tiff" if kind == "tiff" else "m.png", arrays[kind])
    np.testing.assert_array_equal(only(folder, mask=name).mask(), MASK)


def test_a_run_length_mask_is_read(folder):
    counts = [10 * 20 + 4, *[5, 15] * 5, 5, 30 * 20 - (15 * 20 + 9)]
    np.testing.assert_array_equal(only(folder, mask={"size": [20, 30], "counts": counts}).mask(), MASK)


def test_a_box_is_the_place_where_there_is_no_mask(folder):
    np.testing.assert_array_equal(only(folder, mask=None, bbox=[10, 4, 16, 9], box_format="xyxy").mask(), MASK)
    np.testing.assert_array_equal(
        only(folder, mask=None, box=[9.6, 3.6, 15.6, 8.6], box_format="xyxy").mask(), MASK
    )  # by pixel centres


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"image": None}, "one picture; this row has 0"),
        ({"image": ["photo.png", "photo.png"]}, "this row has 2"),
        ({"image": "none.png"}, "no picture .*none.png"),
        ({"image": "x" * 5000}, "picture|name too long"),
        ({"question": None}, "no question"),
        ({"question": {"a": 1}}, "is a dict, not a text"),
        ({"mask": None}, "neither a mask nor a box"),
        ({"mask": "none.png"}, "no mask .*none.png"),
        ({"mask": 3}, "mask is a int"),
        ({"mask": {"size": [20, 30], "counts": [5]}}, "these sum to 5"),
        ({"mask": None, "box": [5, 5, 4, 9]}, "four numbers in box mean is not stated"),
        ({"mask": None, "box": [5, 5, 4, 9], "box_format": "corners"}, "box_format='corners' is none"),
        ({"word": " "}, "not a word"),
        ({"word": 4}, "not a word"),
        ({"word": "dog", "token": 1}, "both a word and a token"),
        ({"token": -1}, "count from 0"),
        ({"token": 1.5}, "not a whole number"),
        ({"occurrence": "first"}, "not a whole number"),
        ({"function_words": "a the"}, "not a list of words"),
    ],
)
def test_a_line_that_is_no_case_is_named_in_a_sentence(folder, changes, why):
    bad = {name: value for name, value in {**ROW, **changes}.items() if value is not None}
    cases = read_cases(written(folder, ROW, "", bad, ROW))
    next(cases)
    with pytest.raises(lp.BadInput, match=f"^cases.jsonl, line 3: .*({why})") as refused:
        next(cases)
    assert "\n" not in str(refused.value)


def test_a_broken_line_is_named_once(folder):
    cases = read_cases(written(folder, ROW, '{"image": '))
    next(cases)
    with pytest.raises(lp.BadInput, match=r"^cases.jsonl, line 2: is no JSON: "):
        next(cases)


def test_what_is_no_file_of_cases_is_refused(folder):
    with pytest.raises(lp.BadInput, match=r"no kind that can be read as a data set; pass .jsonl"):
        read_cases(folder / "photo.png")
    with pytest.raises(lp.BadInput, match="no file or folder"):
        read_cases(folder / "none.jsonl")
    with pytest.raises(lp.BadInput, match="empty"):
        read_cases(written(folder, name="empty.jsonl"))
    (folder / "bad.png").write_bytes((folder / "mask.png").read_bytes()[:40])
    Image.new("L", (30, 20)).save(folder / "lossy.jpg")
    for mask in ("bad.png", "lossy.jpg"):
        case = only(folder, mask=mask)
        with pytest.raises(lp.BadInput, match=rf"the mask .*{mask}"):
            case.mask()


# --- tiny scenes ---


def tokens_of(answer):
    """An answer as words and stops, the way that a tokenizer splits it."""
    return tuple(Token(0, text, "generated", place) for place, text in enumerate(re.findall(r"\s?\w+|\.", answer)))


SEEDS = range(40)


def test_the_right_place_is_the_object_that_was_asked_for():
    cases = list(tiny_cases(SEEDS))
    scenes = {seed: tiny.scene(seed) for seed in SEEDS}
    assert {case.kind for case in cases} == {"colour", "shape", "where", "text", "describe"}
    assert len({case.id for case in cases}) == len(cases)
    for case in cases:
        scene = scenes[int(case.id.split("-")[0])]
        (shown,) = (each for each in scene.objects if np.array_equal(each.mask, case.mask()))
        assert case.boxes == (shown.box,)
        said = {"colour": shown.colour, "shape": shown.kind, "where": shown.place, "text": shown.text}
        assert case.word == said.get(case.kind, shown.kind)
        asked = next(question for question in scene.questions if question.question == case.question)
        assert case.answer == asked.answer
        assert len(find(tokens_of(case.answer), case.word, occurrence=case.occurrence or 0)) == len(case.word.split())


def test_each_word_of_a_description_is_of_its_own_object():
    """The sentence in which the word is found names that object's colour, or its text, and its place."""
    repeated = 0
    for case in tiny_cases(SEEDS, ["describe"]):
        shown = next(each for each in tiny.scene(int(case.id.split("-")[0])).objects if each.box == case.boxes[0])
        tokens = tokens_of(case.answer)
        at = find(tokens, case.word, occurrence=case.occurrence)[0]
        sentence = case.answer.split(".")[sum(token.text == "." for token in tokens[:at])]
        assert (shown.text or shown.colour) in sentence
        assert sentence.endswith(f" {shown.place}")
        repeated += case.occurrence
    assert repeated > 5


def test_a_description_has_a_case_an_object_and_its_function_words():
    for seed in SEEDS:
        scene, cases = tiny.scene(seed), list(tiny_cases([seed], ["describe"]))
        assert len(cases) == len(scene.objects)
        assert len({(case.picture, case.question, case.answer) for case in cases}) == 1
        functions = set(cases[0].function_words)
        assert functions <= {"There", "is", "a", "an", "at", "in", "the", "that", "says"}
        words = set(re.findall(r"\w+", cases[0].answer)) - functions
        named = {
            word for each in scene.objects for word in f"{each.colour} {each.kind} {each.place} {each.text}".split()
        }
        assert words <= named


def test_kinds_that_rest_on_no_single_object_are_refused():
    with pytest.raises(lp.BadInput, match="some of colour, shape, where, text, describe"):
        tiny_cases([0], ["count"])
    with pytest.raises(lp.BadInput, match=r"takes a list of texts; got 'colour' \(str\)"):
        tiny_cases([0], "colour")


# --- writing ---


def test_cases_come_back_equal(tmp_path):
    cases = list(tiny_cases(range(4)))
    cases.append(replace(cases[0], id="é", word=None, token=3, boxes=(), kind="", answer=None))
    back = list(read_cases(write_cases(cases, tmp_path / "new" / "folder")))
    assert len(back) == len(cases)
    plain = [each.name for each in fields(Case) if each.name not in ("image", "where")]
    for one, other in zip(cases, back, strict=True):
        assert [getattr(one, name) for name in plain] == [getattr(other, name) for name in plain]
        np.testing.assert_array_equal(one.mask(), other.mask())
        np.testing.assert_array_equal(np.asarray(lp.open_image(one.image)), np.asarray(lp.open_image(other.image)))
    assert len({case.picture for case in back}) == 4
    again = list(read_cases(write_cases(back, tmp_path / "again")))
    assert [case.id for case in again] == [case.id for case in cases]
    (tmp_path / "new").rename(tmp_path / "moved")  # paths in it are relative
    assert len(list(read_cases(tmp_path / "moved" / "folder" / "cases.jsonl"))) == len(cases)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(lp.BadFile, match="could not be written"):
        write_cases(tiny_cases([0]), tmp_path / "file")


def test_cases_written_over_others_leave_their_masks_as_they_were(tmp_path):
    first, second = list(tiny_cases([0])), list(tiny_cases([1]))
    write_cases(first, tmp_path)
    kept = (tmp_path / "cases.jsonl").read_text()
    write_cases(second, tmp_path)
    (tmp_path / "cases.jsonl").write_text(kept)  # as if the second had been killed before its last file
    for case, back in zip(first, read_cases(tmp_path / "cases.jsonl"), strict=True):
        assert np.array_equal(back.mask(), case.mask())


def test_a_line_that_is_longer_than_a_row_is_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr("llava_probe.features.text_files.LINE_BYTES", 1_000_000)
    path = tmp_path / "cases.jsonl"
    path.write_text("\n")
    with path.open("r+b") as file:
        file.truncate(50_000_000)
    tracemalloc.start()
    with pytest.raises(lp.BadInput, match="line 2"):
        list(read_cases(path))
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()
