"""``finetune.json``: what a run is made of, written before its first step and again when it ended.

It tells a run that goes on from another one, which is refused, and an adapter's reader how it came about.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch
import transformers

from llava_probe import __version__
from llava_probe.asking.identity import differences
from llava_probe.described import Stored
from llava_probe.errors import BadFile, BadInput
from llava_probe.loading.check_row import CHECK_ROW
from llava_probe.stored import JSON_LIMIT, made_folder, read_json, write_text

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

RECORD = "finetune.json"

_FORMAT = "llava_probe.finetune"

#: What a finished run has beside its record.
_NEEDED = ("*model*.safetensors", "*config.json", CHECK_ROW)


class _Told(Stored, frozen=True):
    """Of a finished run, the fields of ``Finetuned``."""

    parts: list[str]
    losses: list[dict[str, float]]
    held_out: list[dict[str, float]]
    rows: int
    trained: int
    moved: float
    merged: float | None


class _Record(Stored, frozen=True, kw_only=True):
    """What the file holds.

    Attributes:
        settings: all that decides what the weights become.
        finished: whether the run came to its end.
        told: of the result, once it did; None before.
    """

    format: str
    settings: dict[str, Any]
    finished: bool = False
    told: _Told | None = None


@contextmanager
def alone_in(folder: Path, *, first: bool) -> Iterator[None]:
    """One run at a time in a folder, where the file system knows locks.

    Args:
        folder: made where there is none.
        first: whether this process speaks for the run.

    Raises:
        BadInput: another is at work there.
    """
    if not first or fcntl is None:
        yield
        return
    held = os.open(made_folder("adapter", folder), os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(f"another run is at work in {folder}; wait for it, or choose another folder") from None
        except OSError:
            pass  # no locks here
        yield
    finally:
        os.close(held)


def begin_run(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Begin a run in a folder, or go on with the one there; what a finished one told of its result.

    Raises:
        BadInput: another run is there, or something else.
        BadFile: the record is damaged, a finished run has lost a file, or the folder cannot be written.
    """
    asked = json.loads(json.dumps({**settings, "versions": _versions()}))
    made_folder("adapter", folder)
    there = sorted(entry.name for entry in folder.iterdir())
    if RECORD not in there:
        if there:
            raise BadInput(f"{folder} holds other things ({', '.join(there[:4])}); choose an empty folder")
        _write(folder, _Record(format=_FORMAT, settings=asked))
        return None
    held = read_json("record of the run", folder / RECORD, _Record, JSON_LIMIT)
    if held.format != _FORMAT:
        raise BadFile(f"{folder / RECORD} is no record of a fine-tuning")
    if others := differences(held.settings, asked):
        raise BadInput(f"{folder} holds another run: {'; '.join(others)}; give its settings, or choose an empty folder")
    if held.finished and (gone := [name for name in _NEEDED if not list(folder.glob(name))]):
        raise BadFile(
            f"the run in {folder} was finished, and its {gone[0]} is gone; choose an empty folder to train anew"
        )
    return msgspec.structs.asdict(held.told) if held.finished and held.told is not None else None


def finish_run(folder: Path, told: Mapping[str, Any]) -> None:
    """Note that the run came to its end, and what it tells."""
    held = read_json("record of the run", folder / RECORD, _Record, JSON_LIMIT)
    _write(folder, _Record(format=_FORMAT, settings=held.settings, finished=True, told=_Told(**told)))


def _write(folder: Path, record: _Record) -> None:
    write_text("record of the run", folder / RECORD, json.dumps(msgspec.to_builtins(record), indent=1))


def _versions() -> dict[str, str]:
    import peft

    return {
        "llava_probe": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
    }
