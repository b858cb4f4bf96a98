"""Whatever a data set lies in, its samples are the same, in order, one at a time."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pyarrow
import pyarrow.parquet
import pytest

from llava_probe.errors import BadInput
from llava_probe.features.samples import read_samples
from llava_probe.pictures.images import open_image
from llava_probe.pictures.regions import read_mask
from tests.encoded import noise
from tests.features.data_sets import POPE, jsonl, pictures, refusal, seen, table


class ByNumber:
    """As torch's data sets are: no iterator of their own."""

    def __len__(self) -> int:
        return len(POPE)

    def __getitem__(self, place: int) -> Any:
        return POPE[place]


def column_file(path: Path) -> Path:
    path.write_text(json.dumps({name: [row[name] for row in POPE] for name in POPE[0]}))
    return path


def pope_sources(folder: Path) -> dict[str, Any]:
    array = folder / "pope.json"
    array.write_text(json.dumps(POPE, indent=2), encoding="utf-8-sig")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(POPE), folder / "pope.parquet")
    saved = folder / "saved"
    datasets.Dataset.from_list(POPE).save_to_disk(str(saved))
    return {
        "jsonl": jsonl(folder / "pope.jsonl", POPE),
        "ndjson as text": str(jsonl(folder / "pope.ndjson", POPE)),
        "json": array,
        "csv": table(folder / "pope.csv", POPE),
        "tsv": table(folder / "pope.TSV", POPE, "\t"),
        "parquet": folder / "pope.parquet",
        "saved": saved,
        "data set": datasets.Dataset.from_list(POPE),
        "iterable data set": datasets.Dataset.from_list(POPE).to_iterable_dataset(),
        "list": POPE,
        "generator": (row for row in POPE),
        "frame": pandas.DataFrame(POPE),
        "Arrow table": pyarrow.Table.from_pylist(POPE),
        "dict of lists": {name: [row[name] for row in POPE] for name in POPE[0]},
        "by number": ByNumber(),
        "json by column": column_file(folder / "columns.json"),
    }


KINDS = (
    *("jsonl", "ndjson", "json", "csv", "tsv", "parquet", "saved", "data_set", "iterable_data_set", "list"),
    *("generator", "frame", "arrow", "lists", "number", "columns"),
)


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=KINDS)
def test_every_source_gives_the_same_samples(tmp_path: Path, kind: int) -> None:
    source = list(pope_sources(tmp_path).values())[kind]
    assert seen(read_samples(source, images=tmp_path)) == [
        (0, "1", f"{tmp_path}/a.jpg", "Is there a snowboard in the image?", None, {"label": "yes"}, None),
        (1, "2", f"{tmp_path}/a.jpg", "Is there a car in the image?", None, {"label": "no"}, None),
        (2, "3", f"{tmp_path}/b.jpg", "Is there a dog in the image?", None, {"label": "no"}, None),
    ]


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=KINDS)
def test_a_source_is_counted_and_read_again_where_that_is_possible(tmp_path: Path, kind: int) -> None:
    samples = read_samples(list(pope_sources(tmp_path).values())[kind], images=tmp_path)
    assert samples.count == {"iterable_data_set": None, "generator": None}.get(KINDS[kind], 3)
    assert len(list(samples)) == 3
    if KINDS[kind] == "generator":
        with pytest.raises(BadInput, match="pass a list or a file"):
            list(samples)
    else:
        assert len(list(samples)) == 3


def test_sources_are_named_for_a_manifest(tmp_path: Path) -> None:
    found = pope_sources(tmp_path)
    assert read_samples(found["jsonl"]).name == "pope.jsonl"
    assert read_samples(found["saved"]).name == "saved"
    assert read_samples(found["generator"]).name == "generator"
    assert read_samples(found["data set"]).name == "Dataset"


def test_a_generator_is_not_read_ahead_of_its_use() -> None:
    given = []

    def rows():
        for row in POPE:
            given.append(row)
            yield row

    samples = iter(read_samples(rows()))
    assert len(given) == 1
    assert next(samples).id == "1"
    assert len(given) == 1


def test_a_long_file_is_never_held(tmp_path: Path) -> None:
    """Neither its text nor as much as four bytes a row, such as a place in a list."""
    path, rows = tmp_path / "long.jsonl", 30_000
    with path.open("w") as file:
        file.writelines(f'{{"image": "{n}.jpg", "question": "What is {"very " * 80} {n}?"}}\n' for n in range(rows))
    assert path.stat().st_size > 10_000_000
    tracemalloc.start()
    samples = read_samples(path)
    assert samples.count == rows
    assert sum(1 for _ in samples) == rows
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100_000


def test_a_folder_gives_its_pictures_in_order(tmp_path: Path) -> None:
    root = pictures(tmp_path / "photos", "b.png", "cats/2.JPG", "cats/10.jpg", "a.jpeg", "._b.png", "x/.thumbs/b.png")
    (root / "notes.txt").write_text("no picture")
    samples = read_samples(root, question="What is this?")
    assert samples.count == 4
    assert [(s.id, s.image, s.columns) for s in samples] == [
        ("a.jpeg", f"{root}/a.jpeg", {}),
        ("b.png", f"{root}/b.png", {}),
        ("cats/10.jpg", f"{root}/cats/10.jpg", {"folder": "cats"}),
        ("cats/2.JPG", f"{root}/cats/2.JPG", {"folder": "cats"}),
    ]
    assert {s.question for s in samples} == {"What is this?"}


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_folder_with_metadata_is_what_the_metadata_say(tmp_path: Path, suffix: str) -> None:
    root = pictures(tmp_path / "photos", "train/a.png", "unnamed.png")
    rows = [{"file_name": "train/a.png", "image": "a title", "question": "What is this?"}]
    if suffix == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), root / "metadata.parquet")
    else:
        {"jsonl": jsonl, "csv": table}[suffix](root / f"metadata.{suffix}", rows)
    (sample,) = read_samples(root)
    assert (sample.image, sample.question) == (f"{root}/train/a.png", "What is this?")
    assert sample.columns == {"image": "a title"}


def hugging_face() -> datasets.Dataset:
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "question": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "mask": datasets.Image(),
            "bbox": datasets.List(datasets.List(datasets.Value("float32"))),
        }
    )
    mask = np.array([[0, 255], [0, 0]], dtype=np.uint8)
    rows = {
        "image": [noise(), noise(8, 8)],
        "question": ["What?", "Where?"],
        "label": [1, 0],
        "mask": [mask, None],
        "bbox": [[[0, 1, 2, 3]], []],
    }
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.mark.parametrize("kind", ["in memory", "saved", "streamed", "formatted", "transformed", "selected"])
def test_pictures_of_a_hugging_face_data_set_arrive(tmp_path: Path, kind: str) -> None:
    data: Any = hugging_face()
    if kind == "saved":
        data.save_to_disk(str(tmp_path / "saved"))
    given = {
        "in memory": data,
        "saved": tmp_path / "saved",
        "streamed": data.to_iterable_dataset(),
        "formatted": data.with_format("numpy", columns=["question"]),
        "transformed": data.with_transform(lambda batch: batch),
        "selected": data.select([1, 0]).select([1, 0]),
    }[kind]
    first, second = read_samples(given, box_format="xyxy")
    assert np.array_equal(np.asarray(open_image(first.image)), noise())
    assert np.array_equal(np.asarray(open_image(second.image)), noise(8, 8))
    assert read_mask(first.mask).tolist() == [[False, True], [False, False]]
    assert second.mask is None
    assert (first.boxes, second.boxes) == (((0.0, 1.0, 2.0, 3.0),), ())
    assert (int(first.columns["label"]), first.columns["label_name"]) == (1, "yes")


def test_pictures_of_a_hugging_face_data_set_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = hugging_face().remove_columns("mask")
    given = [data, data.to_iterable_dataset()]
    monkeypatch.setattr(datasets.Image, "decode_example", lambda *_, **__: pytest.fail("decoded"))
    for source in given:
        assert all(type(sample.image) is bytes for sample in read_samples(source))


def test_a_data_set_of_several_splits_wants_one() -> None:
    whole = datasets.Dataset.from_list(POPE)
    splits = datasets.DatasetDict({"train": whole, "test": whole.select([2])})
    assert [s.id for s in read_samples(splits, split="test")] == ["3"]
    assert [s.id for s in read_samples(datasets.DatasetDict({"only": whole}))] == ["1", "2", "3"]
    assert "pass one, such as split='train'" in refusal(splits)
    assert "split='val' is none of them" in refusal(splits, split="val")


def test_a_name_is_loaded_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, split: str | None = None) -> Any:
        asked.append((name, split))
        whole = datasets.Dataset.from_list(POPE)
        return whole if split else datasets.DatasetDict({"test": whole})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read_samples("lmms-lab/POPE").name == "lmms-lab/POPE"
    assert len(list(read_samples("lmms-lab/POPE", split="test[:3]"))) == 3
    assert asked == [("lmms-lab/POPE", None), ("lmms-lab/POPE", "test[:3]")]


def test_a_name_that_is_nowhere_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, split: str | None = None) -> Any:
        raise ConnectionError(f"Couldn't reach {name!r} on the Hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert "'nobody/nothing' is no file or folder here" in refusal("nobody/nothing")


def test_a_missing_library_is_named_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("datasets", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, library, None)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    for source in ("org/name", tmp_path / "rows.parquet"):
        assert "pip install 'llava_probe[features]'" in refusal(source)


def test_importing_samples_imports_no_data_set_library() -> None:
    code = "import sys, llava_probe.features.samples; print({'datasets', 'pyarrow', 'numpy'} & set(sys.modules))"
    bare = "import sys; import llava_probe; print({'datasets', 'pyarrow', 'numpy'} & set(sys.modules))"
    run = [subprocess.run([sys.executable, "-c", c], capture_output=True, text=True, check=True) for c in (code, bare)]
    assert "datasets" not in run[0].stdout
    assert run[0].stdout == run[1].stdout


@pytest.mark.parametrize("mark", [";", "|", "\t"])
def test_a_table_is_parted_as_its_header_is(tmp_path: Path, mark: str) -> None:
    samples = read_samples(table(tmp_path / "rows.csv", POPE, mark))
    assert [s.question for s in samples] == [row["text"] for row in POPE]
    assert samples.told == (f"rows.csv is parted by {mark!r}, as its first line is",)


def test_a_column_of_type_image_is_the_picture_by_any_name() -> None:
    features = {"file_name": datasets.Value("string"), "shot": datasets.Image(), "question": datasets.Value("string")}
    rows = {"file_name": ["a.png"], "shot": [noise()], "question": ["Q"]}
    (sample,) = read_samples(datasets.Dataset.from_dict(rows, features=datasets.Features(features)))
    assert np.array_equal(np.asarray(open_image(sample.image)), noise())
    two = datasets.Dataset.from_dict(
        {"left": [noise()], "right": [noise(8)], "question": ["Q"]},
        features=datasets.Features(
            {"left": datasets.Image(), "right": datasets.Image(), "question": features["question"]}
        ),
    )
    assert "several columns of pictures: left, right; say columns={'image': 'left'}" in refusal(two)
    (both,) = read_samples(two, columns={"image": ["left", "right"]})
    assert [np.asarray(open_image(one)).shape for one in both.image] == [noise().shape, noise(8).shape]
    listed = datasets.Dataset.from_dict(
        {"pages": [[noise(), noise(8)]], "question": ["Q"]},
        features=datasets.Features({"pages": datasets.List(datasets.Image()), "question": features["question"]}),
    )
    (pages,) = read_samples(listed)
    assert len(pages.image) == 2


def test_a_picture_that_is_only_carried_along_is_named() -> None:
    rows = [{"image": "a.png", "second": "b.png", "question": "Q"}]
    with pytest.warns(UserWarning, match="second of list looks like a picture and is only carried along"):
        read_samples(rows)
    with pytest.warns(UserWarning, match="1 of 2 rows of list have no picture"):
        list(read_samples([{"image": "a.png", "question": "Q"}, {"image": None, "question": "Q"}]))


def test_a_line_longer_than_any_row_costs_its_own_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_probe.features.text_files.LINE_BYTES", 200)
    path = jsonl(tmp_path / "rows.jsonl", [POPE[0], {**POPE[1], "more": "x" * 1000}, POPE[2]])
    samples = read_samples(path)
    assert samples.count == 3
    assert [bool(s.fault) for s in samples] == [False, True, False]
    for number, long in enumerate((False, True, False)):
        fault = list(samples)[number].fault
        assert (fault == "line 2 is longer than 200 bytes, which no row should be") == long


def test_columns_of_several_lengths_or_one_name_are_refused() -> None:
    assert "image: 2, question: 1" in refusal({"image": ["a.jpg", "b.jpg"], "question": ["Q"]})
    twice = pandas.DataFrame([["a.jpg", "b.jpg"]], columns=["image", "image"])
    assert "two columns 'image'" in refusal(twice)


def test_a_table_of_a_spreadsheet_is_refused_and_spaces_after_its_marks_are_none(tmp_path: Path) -> None:
    wide = tmp_path / "wide.csv"
    wide.write_text("image,question\n/a.jpg,Q\n", encoding="utf-16")
    assert "UTF-16" in refusal(wide)
    spaced = tmp_path / "spaced.csv"
    spaced.write_text('image, question\n/a.jpg, "What, then?"\n')
    (sample,) = read_samples(spaced)
    assert (sample.image, sample.question) == ("/a.jpg", "What, then?")
