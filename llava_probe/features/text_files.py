"""Rows of text files: JSON lines, JSON and tables, as people name them and not only as their suffix says.

A file called .json may hold JSON lines, as POPE's do, or an object with the list inside; a .csv may be parted by
semicolons. What is settled by looking is told in ``Source.told``.
"""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from llava_probe.errors import BadInput, first_line, shortened
from llava_probe.features.annotations import list_inside
from llava_probe.features.rows import LINE_BYTES, Broken, LineRow, Row, Source, dict_row, listed_names, reading

#: Bytes of a JSON file that is read whole: twice COCO's largest. JSON lines are read one by one.
JSON_BYTES = 1_000_000_000

_PARTED_BY = (",", ";", "\t", "|")


def of_jsonl(path: Path, name: str) -> Source:
    """A row a line."""

    def rows() -> Iterator[Row]:
        with reading(name), path.open("rb") as file:
            for number, line in enumerate(lines_of(file), start=1):
                if line is None:
                    yield Broken(f"line {number} is longer than {LINE_BYTES:,} bytes, which no row should be", number)
                elif line.strip():
                    yield _json_row(line, number)

    def count() -> int:
        with reading(name), path.open("rb") as file:
            return sum(1 for line in lines_of(file) if line is None or not line.isspace())

    return Source(name, rows, count, path.parent)


def of_json(path: Path, name: str) -> Source:
    """A list of objects, an object with such a list inside, or JSON lines under this name."""
    if _holds_lines(path, name):
        source = of_jsonl(path, name)
        told = (f"{name} holds JSON lines",)
        return Source(name, source.rows, source.count, source.folder, told=told)
    whole = _read_whole(path, name)
    if isinstance(whole, dict):
        return list_inside(whole, name, path.parent)
    if not isinstance(whole, list):
        raise BadInput(f"{name} holds a {type(whole).__name__}, not a list of objects")

    def rows() -> Iterator[Row]:
        return (dict_row(row, f"entry {place}") for place, row in enumerate(whole))

    return Source(name, rows, lambda: len(whole), path.parent)


def _read_whole(path: Path, name: str) -> Any:
    """What a JSON file holds.

    Raises:
        BadInput: it is larger than ``JSON_BYTES``, or no JSON.
    """
    with reading(name):
        if path.stat().st_size > JSON_BYTES:
            raise BadInput(f"{name} is larger than {JSON_BYTES:,} bytes, too large to be read whole; write JSON lines")
        return json.loads(path.read_text(encoding="utf-8-sig"))


def _holds_lines(path: Path, name: str) -> bool:
    """Whether the first line is an object by itself, and another follows or nothing in it is a list of rows."""
    with reading(name), path.open("rb") as file:
        lines = (line for line in lines_of(file) if line is None or line.strip())
        first, second = next(lines, None), next(lines, None)
    if first is None or not first.lstrip(b"\xef\xbb\xbf \t").startswith(b"{"):
        return False
    if second is not None and not second.lstrip().startswith(b"{"):
        return False
    try:
        row = json.loads(first.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return second is not None and first.rstrip().endswith(b"}")  # a broken first line among others
    return second is not None or not any(isinstance(value, (list, dict)) for value in row.values())


def lines_of(file: IO[bytes]) -> Iterator[bytes | None]:
    """The lines; None for one that is too long to be held."""
    while line := file.readline(LINE_BYTES + 1):
        if len(line) <= LINE_BYTES or line.endswith(b"\n"):
            yield line
            continue
        while (rest := file.readline(LINE_BYTES)) and not rest.endswith(b"\n"):
            pass
        yield None


def _json_row(line: bytes, number: int) -> Row:
    try:
        row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except (ValueError, RecursionError) as error:
        return Broken(f"line {number} is no JSON: {shortened(first_line(error))}", number)
    return dict_row(row, f"line {number}", number)


def of_table(path: Path, name: str) -> Source:
    """A row a line, columns by the header, parted by whatever parts the header."""
    with reading(name), path.open("rb") as file:
        first = next(lines_of(file), b"") or b""
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise BadInput(f"{name} is in UTF-16, as spreadsheets save it; save it as CSV in UTF-8")
    header = first.decode("utf-8-sig", "replace").rstrip("\r\n")
    own = "\t" if path.suffix.lower() == ".tsv" else ","
    delimiter = own if own in header else next((mark for mark in _PARTED_BY if mark in header), own)
    spaced = all(field.startswith(" ") for field in header.split(delimiter)[1:])
    told = () if delimiter == own else (f"{name} is parted by {delimiter!r}, as its first line is",)

    def rows() -> Iterator[Row]:
        with reading(name), path.open("rb") as file:
            reader = csv.reader(_TextLines(file), delimiter=delimiter, skipinitialspace=spaced)
            try:
                header = next(reader, [])
            except csv.Error as error:
                raise BadInput(f"the first line of {name} is no header: {first_line(error)}") from None
            if len(set(header)) < len(header):
                raise BadInput(f"{name} has two columns of the same name among {listed_names(header)}; rename one")
            while True:
                try:
                    fields = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield Broken(f"line {reader.line_num} cannot be read: {error}", reader.line_num)
                    continue
                if fields:
                    yield _table_row(header, fields, reader.line_num)

    return Source(name, rows, lambda: sum(1 for _ in rows()), path.parent, told=told)


class _TextLines:
    """Lines of a table as text, and an error in place of one that is too long."""

    def __init__(self, file: IO[bytes]) -> None:
        self._lines, self._first = lines_of(file), True

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        if line is None:
            raise csv.Error(f"it is longer than {LINE_BYTES:,} bytes")
        encoding, self._first = "utf-8-sig" if self._first else "utf-8", False
        # bytes that are no UTF-8 pass as surrogates, so that they cost their own row and not the file
        return line.decode(encoding, "surrogateescape")


def _table_row(header: list[str], fields: list[str], line: int) -> Row:
    if len(fields) != len(header):
        return Broken(f"line {line} has {len(fields)} fields where the header has {len(header)}", line)
    if any("\udc80" <= letter <= "\udcff" for value in fields if not value.isascii() for letter in value):
        return Broken(f"line {line} is not UTF-8", line)
    return LineRow(dict(zip(header, fields, strict=True)), line)
