"""One way of opening and reading: what is no regular file, no path or of another type is one sentence."""

from __future__ import annotations

import math
import os
import socket

import pytest
from fuzz_files import limited

import llava_probe as lp
from llava_probe.stored import Natural, Stored, contents, decoded, opened, path_of


class Line(Stored, frozen=True):
    name: str
    counts: tuple[Natural, ...]
    score: float = 0.0


@pytest.mark.parametrize(
    ("path", "why"),
    [
        (None, "None"),
        (3, "3"),
        (b"x", "bytes"),
        ("", "empty"),
        ("a\0b", "NUL"),
        ("a\udc00\ud800b", "no file can be called"),
        ("~nobody-of-this-name/x", "no such user"),
        ("x" * 300, "longer"),
    ],
)
def test_a_path_that_cannot_be_is_one_sentence(path, why):
    with pytest.raises(lp.BadFile, match=f"the path of the trace is .*{why}"):
        path_of("trace", path)
    with pytest.raises(lp.BadFile, match="the path of the trace"):
        opened("trace", path)


def test_only_a_regular_file_is_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    (tmp_path / "link").symlink_to("/dev/zero")
    (tmp_path / "file").write_text("hello")
    expected = {"pipe": "a pipe", "socket": "a socket", "link": "a device", ".": "a folder"}
    with limited(5):
        for name, kind in expected.items():
            with pytest.raises(lp.BadFile, match=f"is {kind}, and no map"):
                opened("map", tmp_path / name)
        for load in (lp.Trace.load, lp.Probe.load, lp.ImageMap.load):
            for name in ("pipe", "link"):
                with pytest.raises(lp.BadFile, match=r"is a (pipe|device)"):
                    load(tmp_path / name)
    with pytest.raises(lp.BadFile, match=r"there is no map at .*: what should be its folder is a file"):
        opened("map", tmp_path / "file" / "map.npz")
    with pytest.raises(lp.BadFile, match="has 5 bytes; a map has 4 at most"):
        contents("map", tmp_path / "file", 4)
    assert contents("map", tmp_path / "file", 5) == b"hello"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"name": "a"}', "missing required field `counts`"),
        ('{"name": "a", "counts": [], "more": 1}', "unknown field `more`"),
        ('{"name": "a", "counts": [1, "2"]}', r"expected `int`, got `str` - at `counts\[1\]`"),
        ('{"name": "a", "counts": [true]}', "expected `int`, got `bool`"),
        ('{"name": "a", "counts": [-1]}', "`int` >= 0"),
        (f'{{"name": "a", "counts": [{10**30}]}}', "at `counts"),
        ('{"name": "\\ud800", "counts": []}', "half a character"),
        ("[" * 100_000, "nested too deep"),
        (b"\xff", "half a character"),
        ("3", "expected `object`"),
        ("{", "no JSON"),
        ("", "no JSON"),
    ],
)
def test_json_of_another_type_is_one_sentence_that_says_where(text, why):
    with pytest.raises(lp.BadFile, match=f"^line 2 .*{why}") as told:
        decoded(Line, text, "line 2")
    assert "\n" not in str(told.value)


def test_json_is_read_as_python_writes_it():
    line = decoded(Line, '{"name": "é", "counts": [0, 9], "score": NaN}', "it")
    assert (line.name, line.counts) == ("é", (0, 9)) and math.isnan(line.score)
