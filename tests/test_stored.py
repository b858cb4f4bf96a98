"""Every file of ours is opened in one way: what cannot be read is one sentence, and nothing hangs."""

from __future__ import annotations

import math
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from llava_probe import stored
from llava_probe.errors import BadFile, BadInput

IMPOSSIBLE = [
    pytest.param("~nobody-of-this-name/x", "names no user", id="no user"),
    pytest.param("./a\0b", "no NUL", id="NUL"),
    pytest.param("./" + "x" * 300, "too long", id="long name"),
    pytest.param("x/" * 3000, "too long", id="long path"),
    pytest.param("", "empty", id="empty"),
    pytest.param(" ", "empty", id="blank"),
    pytest.param("\ud800", "no file name", id="surrogate"),
    pytest.param(None, "got None", id="None"),
    pytest.param(3, "got 3", id="number"),
    pytest.param(b"x", "got b'x'", id="bytes"),
]


@pytest.mark.parametrize(("path", "told"), IMPOSSIBLE)
def test_a_path_that_cannot_be_is_one_sentence_for_reading_and_writing(path: Any, told: str) -> None:
    with pytest.raises(BadFile, match=told):
        stored.read_bytes("trace", path, 10)
    with pytest.raises(BadFile, match=told):
        stored.write_text("page", path, "")
    with pytest.raises(BadFile, match=told):
        stored.made_folder("page", path)
    with pytest.raises(BadInput, match=told):
        stored.place("list of cases", path, BadInput)


@pytest.fixture
def ten_seconds() -> Iterator[None]:
    """What hangs fails."""

    def late(*_: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("ten_seconds")
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        (tmp_path / "link").symlink_to("/dev/zero")
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        for name, told in {
            "pipe": "is a pipe",
            "socket": "is a socket",
            "link": "is a device",
            "loop": "cannot be opened",
            ".": "is a folder",
            "missing": "there is no trace",
            "pipe/x": "cannot be opened",
        }.items():
            with pytest.raises(BadFile, match=told):
                stored.read_bytes("trace", tmp_path / name, 10)
        for name in ("pipe", "socket", "link", "."):
            with pytest.raises(BadFile, match="could not be written"):
                stored.write_text("page", tmp_path / name, "text")
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "socket", "link", "loop"}


def test_a_file_is_read_up_to_the_limit_that_is_stated(tmp_path: Path) -> None:
    (tmp_path / "ten").write_bytes(bytes(10))
    assert stored.read_bytes("trace", tmp_path / "ten", 10) == bytes(10)
    with pytest.raises(BadFile, match="has 10 bytes; a trace has at most 9"):
        stored.read_bytes("trace", tmp_path / "ten", 9)
    status = Path("/proc/self/status")  # says of itself that it is empty
    if status.exists():
        with pytest.raises(BadFile, match="more than 9 bytes"):
            stored.read_bytes("trace", status, 9)


@dataclass(frozen=True)
class Told:
    count: int
    score: float
    names: dict[int, str] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        pytest.param(b"", "truncated", id="nothing"),
        pytest.param(b"[1]", "Expected `object`, got `array`", id="list"),
        pytest.param(b'{"count": 1}', "missing required field `score`", id="missing"),
        pytest.param(b'{"count": true, "score": 1}', r"Expected `int`, got `bool` - at `\$.count`", id="bool"),
        pytest.param(b'{"count": NaN, "score": 1}', r"Expected `int`, got `float` - at `\$.count`", id="no count"),
        pytest.param(b'{"count": 1, "score": 1, "names": {"x": ""}}', "Expected `int`", id="key"),
        pytest.param(b'{"count": 1' + b"0" * 5000 + b', "score": 1}', "out of range", id="huge"),
        pytest.param(b'{"count": 1, "score": "\xff"}', "it is no Told: ", id="no UTF-8"),
        pytest.param(b'{"count": 1, "score": NaN, "names": {"1": "\\ud800"}}', "surrogates", id="surrogate"),
        pytest.param(b"[" * 100_000, "Expected `object`", id="deep"),
    ],
)
def test_json_that_is_something_else_is_one_sentence(data: bytes, told: str) -> None:
    with pytest.raises(BadFile, match=told):
        stored.decoded("it is no Told", data, Told)


def test_json_that_nests_without_end_is_refused_where_anything_is_taken() -> None:
    for data in (b"[" * 100_000, b'{"a":' * 100_000, b"NaN" + b"[" * 100_000, b"[NaN," + b"[" * 100_000):
        with pytest.raises(BadFile, match="it is no list: "):
            stored.decoded("it is no list", data, list[Any])


def test_json_is_read_into_the_described_type() -> None:
    told = stored.decoded("it is no Told", b'{"count": 1, "score": NaN, "names": {"7": "\xc3\xa9"}}', Told)
    assert (told.count, told.names, math.isnan(told.score)) == (1, {7: "é"}, True)


def test_what_is_written_over_something_is_whole_or_not_at_all(tmp_path: Path) -> None:
    page = tmp_path / "page"
    stored.write_text("page", page, "old")
    with pytest.raises(BadFile, match=r"could not be written .* No space"), stored.whole("page", page) as part:
        part.write_text("ne")
        raise OSError(28, "No space left on device")
    with pytest.raises(KeyboardInterrupt), stored.whole("page", page) as part:
        part.write_text("ne")
        raise KeyboardInterrupt
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("page", "old")]
    stored.write_text("page", page, "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("page", "new")]


def test_a_name_of_the_longest_kind_can_be_written(tmp_path: Path) -> None:
    assert stored.write_text("page", tmp_path / ("x" * 250), "text").read_text() == "text"


LEFT = ".page.0123456789abcdef0123456789abcdef.part"


def test_what_a_killed_process_left_is_removed_and_what_another_writes_is_not(tmp_path: Path) -> None:
    for name in (LEFT, ".page.part", f".other{LEFT[5:]}", "page.mine"):
        (tmp_path / name).write_text("something")
    with stored.whole("page", tmp_path / "page") as theirs:
        theirs.write_text("theirs")
        stored.write_text("page", tmp_path / "page", "mine")
        assert (tmp_path / "page").read_text() == "mine"
    assert (tmp_path / "page").read_text() == "theirs"
    assert {path.name for path in tmp_path.iterdir()} == {".page.part", f".other{LEFT[5:]}", "page.mine", "page"}


def test_what_another_writes_is_kept_where_its_library_replaces_the_file(tmp_path: Path) -> None:
    with stored.whole("page", tmp_path / "page") as theirs:
        safetensors.torch.save_file({"theirs": torch.zeros(1)}, theirs)  # writes beside it and moves
        stored.write_text("page", tmp_path / "page", "mine")
    assert list(safetensors.torch.load_file(tmp_path / "page")) == ["theirs"]
    assert [path.name for path in tmp_path.iterdir()] == ["page"]


def test_several_files_move_together_the_one_that_is_read_first(tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_text("old")
    (tmp_path / "map").write_text("old")
    (tmp_path / f".map{LEFT[5:]}").mkdir()
    (tmp_path / f".map{LEFT[5:]}" / "map").write_text("left")
    with pytest.raises(KeyboardInterrupt), stored.together("map", tmp_path, "map", ["old.txt"]) as part:
        (part / "map").write_text("new")
        raise KeyboardInterrupt
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"old.txt": "old", "map": "old"}
    with stored.together("map", tmp_path, "map", ["old.txt", "map", "gone"]) as part:
        (part / "map").write_text("new")
        (part / "a.txt").write_text("a")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"map": "new", "a.txt": "a"}
    (tmp_path / "b.txt").mkdir()
    (tmp_path / "b.txt" / "in the way").touch()
    with pytest.raises(BadFile, match="could not be written"), stored.together("map", tmp_path, "map") as part:
        (part / "map").write_text("newer")
        (part / "b.txt").write_text("b")
    assert (tmp_path / "map").read_text() == "newer"
    assert not list(tmp_path.glob(".*"))
