"""A folder of features, written one shard at a time: safetensors for the numbers, parquet for what they are of.

    features/
      manifest.json              settings; once finished also rows, shards with their checksums, names of the tensors
      shards/00000.safetensors   layer_16/last_prompt [n, D]; ragged: layer_16/image [values, D], spans/image [n, 2]
      index/00000.parquet        one row a sample; its presence says that the shard is whole
      errors/00000.parquet       samples of that shard that failed, where there are any
      errors.parquet             all of them, once finished

Every file is written beside its place and moved there when complete, the index last: a killed run leaves whole shards
and none in between, and the same command goes on from there. There is no clock and no path inside, so the same run
gives the same bytes. One shard's files are ``shards.py`` and ``tables.py``; ``reading.Features`` reads it all.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava_probe.asking.identity import differences
from llava_probe.errors import BadFile, BadInput, first_line, shortened
from llava_probe.features.shards import (
    CODES,
    REPAIR,
    errors_path,
    index_path,
    is_ragged,
    read_header,
    safetensors,
    shard_numbers,
    tensor_table,
    tensors_path,
)
from llava_probe.features.tables import arrow, opened_table, parquet, read_errors, table_of

try:
    import fcntl
except ImportError:  # Windows, where a file that somebody has open cannot be removed anyway
    fcntl = None  # type: ignore[assignment]

STORE_FORMAT = "llava_probe.features"
VERSION = 1

_ADDED = ("shard", "shard_row")
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.part")
_DIGEST = b"llava_probe.tensors_sha256"
_SOURCE = b"llava_probe.source"


def begin(folder: str | Path, settings: Mapping[str, Any]) -> dict[int, str]:
    """Make a store for ``settings``, or go on with the one that is there.

    Returns:
        The numbers of the shards that are whole already, each with the ``source`` that it was written with.

    Raises:
        BadInput: the store there was made with other settings, or the folder holds something else.
        BadFile: its manifest is damaged or newer, or the folder cannot be written.
    """
    arrow()
    target = Path(folder).expanduser()
    asked = _plain(settings)
    try:
        target.mkdir(parents=True, exist_ok=True)
        there = sorted(entry.name for entry in target.iterdir() if not _TEMPORARY.fullmatch(entry.name))
    except FileExistsError:
        raise BadFile(f"{target} is a file; a feature store is a folder") from None
    except OSError as error:
        raise BadFile(f"{target} cannot hold a feature store: {error.strerror}") from error
    if (target / "manifest.json").exists():
        _compare(target, read_manifest(target)["settings"], asked)
    elif there:
        raise BadInput(f"{target} holds {shortened(', '.join(there))} and no manifest.json; choose an empty folder")
    else:
        with _Drafts(target) as drafts:
            drafts.add(target / "manifest.json", [_manifest_bytes({"settings": asked, "complete": False})])
            drafts.move()
    _sweep(target)
    return {number: _source(target, number) for number in shard_numbers(target) if _is_whole(target, number)}


def write_shard(
    folder: str | Path,
    number: int,
    tensors: Mapping[str, Tensor],
    rows: Sequence[Mapping[str, Any]],
    errors: Sequence[Mapping[str, Any]] = (),
    source: str = "",
) -> None:
    """Write one shard, whole or not at all. One that is whole already stays as it is.

    Args:
        folder: one that ``begin`` made.
        number: its place among the shards, from 0; the order of the rows in the end.
        tensors: ``<what>/<position>`` [n, ...], n = ``len(rows)``; those with ``spans/<position>`` [n, 2] int64 are
            ragged, [values, ...], and row i is ``values[start:stop]``. Rows may share a span.
        rows: the samples' columns; ``shard`` and ``shard_row`` are added.
        errors: samples that failed; ``shard`` is added.
        source: says what the shard was made of; ``begin`` tells it again.

    Raises:
        BadInput: tensors and rows do not fit together.
        BadFile: the disk is full or cannot be written; finished shards are kept.
    """
    target = Path(folder).expanduser()
    read_manifest(target)
    _check(number, tensors, rows)
    index = [{**row, "shard": number, "shard_row": place} for place, row in enumerate(rows)]
    failed = [{**row, "shard": number} for row in errors]
    failed_path = errors_path(target, number)
    with _Drafts(target) as drafts:
        digest = drafts.add(tensors_path(target, number), safetensors(tensors if rows else {}))
        if failed:
            drafts.add(failed_path, [parquet(table_of(failed, ("shard",)))])
        notes = {_DIGEST: digest.encode(), _SOURCE: source.encode()}
        drafts.add(index_path(target, number), [parquet(table_of(index, _ADDED), notes)])
        with _alone(target):
            if _is_whole(target, number):  # another process was first: its files belong together, ours are dropped
                return
            if not failed:
                failed_path.unlink(missing_ok=True)  # of an attempt that was killed before its index
            drafts.move()


def finish(folder: str | Path) -> None:
    """Gather the errors, the checksums and the shapes, and mark the store complete. Again gives the same bytes.

    Raises:
        BadFile: a shard is missing or cut short, the shards do not fit together, or the disk is full.
    """
    target = Path(folder).expanduser()
    manifest = read_manifest(target)
    _sweep(target)
    found = shard_numbers(target)
    shards = []
    for number in found:
        with opened_table(index_path(target, number)) as index:
            rows = index.metadata.num_rows
        checksum = file_sha256(index_path(target, number))
        digest = tensors_sha256(target, number)
        shards.append({"number": number, "rows": rows, "tensors_sha256": digest, "index_sha256": checksum})
    tensors = tensor_table({number: read_header(target, number) for number in found}, target)
    told = {
        "settings": manifest["settings"],
        "complete": True,
        "rows": sum(shard["rows"] for shard in shards),
        "shards": shards,
        "tensors": tensors,
    }
    with _Drafts(target) as drafts:
        drafts.add(target / "errors.parquet", [parquet(read_errors(target, found))])
        drafts.add(target / "manifest.json", [_manifest_bytes(told)])
        drafts.move()


# What reading needs too: the manifest and the checksums.


def read_manifest(folder: Path) -> dict[str, Any]:
    """What ``manifest.json`` says.

    Raises:
        BadFile: there is no such folder or manifest, or the manifest is damaged, foreign or newer.
    """
    path = folder / "manifest.json"
    if not folder.is_dir():
        raise BadFile(f"{folder} is {'a file' if folder.exists() else 'not there'}; a feature store is a folder")
    try:
        told = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BadFile(f"{folder} holds no manifest.json: it is no feature store") from None
    except OSError as error:
        raise BadFile(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BadFile(f"{path} is damaged, or no JSON: {first_line(error)}") from error
    if not isinstance(told, dict) or told.get("format") != STORE_FORMAT:
        raise BadFile(f"{path} is of something else: it has no format {STORE_FORMAT!r}")
    if not isinstance(told.get("version"), int) or told["version"] > VERSION:
        raise BadFile(f"{path} was written by a newer llava_probe (version {told.get('version')}, here {VERSION})")
    needed = {"settings": dict, "complete": bool}
    if told.get("complete"):
        needed |= {"rows": int, "shards": list, "tensors": dict}
    for name, kind in needed.items():
        if not isinstance(told.get(name), kind):
            raise BadFile(f"{path} is damaged: its {name!r} is missing or no {kind.__name__}")
    entries = {"number": int, "rows": int, "tensors_sha256": str, "index_sha256": str}
    for shard in told.get("shards", ()):
        if not isinstance(shard, dict) or not all(isinstance(shard.get(name), kind) for name, kind in entries.items()):
            raise BadFile(f"{path} is damaged: a shard in it is {shortened(json.dumps(shard))}")
    return told


def tensors_sha256(folder: Path, number: int) -> str:
    """The checksum of a shard's tensors, as its index has kept it."""
    return _note(folder, number, _DIGEST)


def _source(folder: Path, number: int) -> str:
    return _note(folder, number, _SOURCE)


def _note(folder: Path, number: int, name: bytes) -> str:
    with opened_table(index_path(folder, number)) as opened:
        return (opened.schema_arrow.metadata or {}).get(name, b"").decode()


def file_sha256(path: Path) -> str:
    """The checksum of a file, read piece by piece.

    Raises:
        BadFile: it is missing or cannot be read.
    """
    try:
        with path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise BadFile(f"{path} cannot be read: {error.strerror}; {REPAIR}") from error


# What only writing needs.


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON gives them back, so that a tuple equals the list that was written."""
    try:
        return json.loads(json.dumps(dict(settings)))
    except (TypeError, ValueError) as error:
        raise BadInput(f"settings of a feature store are what JSON can hold: {first_line(error)}") from error


def _manifest_bytes(told: Mapping[str, Any]) -> bytes:
    everything = {"format": STORE_FORMAT, "version": VERSION, **told}
    return (json.dumps(everything, indent=2, ensure_ascii=False) + "\n").encode()


def _compare(folder: Path, there: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    if apart := differences(there, asked, "{name}: {there} there, {here} asked"):
        told = "; ".join(apart)
        raise BadInput(f"{folder} was made with other settings ({told}); ask for the same, or choose another folder")


def _check(number: int, tensors: Mapping[str, Tensor], rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse what could not be read again."""
    if number < 0:
        raise BadInput(f"shards are numbered from 0, not {number}")
    if taken := sorted({name for row in rows for name in _ADDED if name in row}):
        raise BadInput(f"a column of the rows is called {' and '.join(taken)}; that name is the store's own")
    if rows and not tensors:
        raise BadInput(f"shard {number} has {len(rows)} rows and no tensors")
    for name, tensor in tensors.items() if rows else ():
        what, slash, position = name.partition("/")
        if not (what and slash and position):
            raise BadInput(f"tensors are called <what>/<position>, like layer_16/last_prompt; not {name!r}")
        if tensor.dtype not in CODES or tensor.ndim == 0:
            raise BadInput(f"{name} is {tensor.dtype} {list(tensor.shape)}; a store cannot hold that")
        if what != "positions" and not is_ragged(name, tensors) and len(tensor) != len(rows):
            raise BadInput(f"{name} is {list(tensor.shape)}, one row for each of {len(rows)} rows was expected")
        if what == "spans":
            _check_spans(name, tensor, {other: len(tensors[other]) for other in _values_of(position, tensors)})


def _values_of(position: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name != f"spans/{position}" and name.partition("/")[2] == position]


def _check_spans(name: str, spans: Tensor, values: Mapping[str, int]) -> None:
    if spans.dtype != torch.int64 or spans.ndim != 2 or spans.shape[1] != 2:
        raise BadInput(f"{name} is {spans.dtype} {list(spans.shape)}; int64 [rows, 2] was expected")
    if len(set(values.values())) > 1:
        raise BadInput(f"what shares {name} has differing numbers of values: {dict(values)}")
    held = next(iter(values.values()), 0)
    if not bool(((spans[:, 0] >= 0) & (spans[:, 0] <= spans[:, 1]) & (spans[:, 1] <= held)).all()):
        raise BadInput(f"{name} leaves the {held} values that are there")


def _is_whole(folder: Path, number: int) -> bool:
    try:
        return index_path(folder, number).exists() and bool(read_header(folder, number))
    except BadFile:
        return False


class _Drafts:
    """Files written beside their places, to be moved there together; what was not moved is removed at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written: list[tuple[Any, Path]] = []

    def add(self, target: Path, pieces: Iterable[memoryview | bytes]) -> str:
        """Write a draft for ``target`` and return its checksum; it stays locked, so that no other run sweeps it."""
        target.parent.mkdir(parents=True, exist_ok=True)
        opened = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part").open("xb")
        self.written.append((opened, target))
        _lock(opened, wait=True)
        digest = hashlib.sha256()
        for piece in pieces:
            opened.write(piece)
            digest.update(piece)
        opened.flush()
        os.fsync(opened.fileno())
        return digest.hexdigest()

    def move(self) -> None:
        for opened, target in self.written:
            if fcntl is None:
                opened.close()
            Path(opened.name).replace(target)

    def __enter__(self) -> _Drafts:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for opened, _ in self.written:
            with suppress(OSError):
                Path(opened.name).unlink(missing_ok=True)
            with suppress(OSError):  # closing tries once more to write what the full disk refused
                opened.close()
        if isinstance(error, OSError) and not isinstance(error, BadFile):
            reason = error.strerror or first_line(error)
            kept = "finished shards are kept, and the same command goes on from there"
            raise BadFile(f"{self.folder} could not be written: {reason}; {kept}") from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time moves its files in, where the file system knows locks."""
    with (folder / "manifest.json").open("rb+") as manifest:
        _lock(manifest, wait=True)
        yield


def _lock(opened: Any, *, wait: bool) -> bool:
    """Whether the lock was got; True where the file system knows none."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _sweep(folder: Path) -> None:
    """Remove what killed runs left half written; what a living one writes is locked."""
    for leftover in folder.rglob(".*.part"):
        if _TEMPORARY.fullmatch(leftover.name):
            with suppress(OSError), leftover.open("rb+") as opened:
                if _lock(opened, wait=False):
                    leftover.unlink()
