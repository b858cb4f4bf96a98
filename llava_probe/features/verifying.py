"""Whether a store is what its run wrote: every file against its checksum, and the manifest against the files.

A checksum is no signature, and a manifest can be made to lie with all of its hashes right. So what it says is also
looked for in the files: their names, their rows, the names and shapes of their tensors, the spans, the errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llava_probe.errors import BadFile, shortened
from llava_probe.features.manifest import ANEW, Manifest, manifest_path, read_manifest
from llava_probe.features.shards import (
    REPAIR,
    errors_path,
    file_sha256,
    index_path,
    map_tensors,
    read_header,
    shard_numbers,
    tensor_table,
    tensors_path,
)
from llava_probe.features.tables import read_errors, read_note, read_table


def check_files(folder: Path, manifest: Manifest) -> None:
    """Compare the names of a finished store's files with its manifest, which reads none of them.

    Raises:
        BadFile: one is missing, or the manifest knows nothing of it.
    """
    known = {path.relative_to(folder).as_posix() for path in _files(folder, manifest)}
    there = {
        f"{inside}/{path.name}"
        for inside in ("shards", "index", "errors")
        for path in (folder / inside).glob("*")
        if not path.name.startswith(".")  # what is being written, and what file browsers leave
    }
    if missing := sorted(known - there):
        raise BadFile(f"{folder / missing[0]} is missing; {REPAIR}")
    if unknown := sorted(there - known):
        raise BadFile(f"{folder / unknown[0]} is there, and {manifest_path(folder)} does not know it; {ANEW}")


def verify(folder: Path) -> None:
    """Read every file of a store.

    Raises:
        BadFile: the first thing that is damaged, missing, of another run or not known to the manifest.
    """
    manifest = read_manifest(folder)
    if manifest.complete:
        check_files(folder, manifest)
    entries = {shard.number: shard for shard in manifest.shards}
    headers, failed = {}, []
    for number in entries or shard_numbers(folder):
        entry = entries.get(number)
        if entry is not None:
            _held_to(index_path(folder, number), entry.index_sha256, "the manifest")
        note, rows = read_note(folder, number)
        _held_to(tensors_path(folder, number), note.tensors_sha256, "its index")
        if note.errors_sha256 is not None:
            _held_to(errors_path(folder, number), note.errors_sha256, "its index")
            failed.append(number)
        header = headers[number] = read_header(folder, number)
        told = (note.tensors_sha256, note.errors_sha256, note.batch_size, rows)
        if entry is not None and told != (entry.tensors_sha256, entry.errors_sha256, entry.batch_size, entry.rows):
            raise BadFile(f"{index_path(folder, number)} is not what the manifest says; {REPAIR}")
        if header.rows != rows:
            raise BadFile(f"{tensors_path(folder, number)} has {header.rows:,} rows, its index {rows:,}; {REPAIR}")
        map_tensors(folder, number, header)
        _check_index(folder, number, rows)
    tensors = tensor_table(headers, folder)
    if not manifest.complete:
        return
    if tensors != manifest.told["tensors"]:
        here, there = tensors, manifest.told["tensors"]
        name = min(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
        raise BadFile(f"{manifest_path(folder)} says of {shortened(name)} what its shards do not hold; {ANEW}")
    _held_to(folder / "errors.parquet", manifest.told["errors_sha256"], "the manifest")
    if not read_table(folder / "errors.parquet").equals(read_errors(folder, failed)):
        raise BadFile(f"{folder / 'errors.parquet'} does not hold what failed in each shard; {REPAIR}")


def _files(folder: Path, manifest: Manifest) -> Iterator[Path]:
    """Those that the shards of a manifest are in."""
    for shard in manifest.shards:
        yield from (tensors_path(folder, shard.number), index_path(folder, shard.number))
        if shard.errors_sha256 is not None:
            yield errors_path(folder, shard.number)


def _held_to(path: Path, expected: str, whose: str) -> None:
    if file_sha256(path) != expected:
        raise BadFile(f"{path} is damaged: its checksum is not that of {whose}; {REPAIR}")


def _check_index(folder: Path, number: int, rows: int) -> None:
    """The rows of an index say where they belong."""
    path = index_path(folder, number)
    table = read_table(path, lambda there: [name for name in ("shard", "shard_row") if name in there], rows)
    places = [(number, row) for row in range(rows)]
    if list(zip(*(column.to_pylist() for column in table.columns), strict=True)) != places:
        raise BadFile(f"{path} is damaged: its rows are of another shard, or not in order; {REPAIR}")
