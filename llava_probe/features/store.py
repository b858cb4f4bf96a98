"""A folder of features, written one shard at a time: safetensors for the numbers, parquet for what they are of.

    features/
      manifest.json              settings; once finished also rows, shards with their checksums, names of the tensors
      shards/00000.safetensors   layer_16/last_prompt [n, D]; ragged: layer_16/image [values, D], spans/image [n, 2]
      index/00000.parquet        one row a sample; its presence says that the shard is whole
      errors/00000.parquet       samples of that shard that failed, where there are any
      errors.parquet             all of them, once finished

Every file is written beside its place and moved there when complete, the index last: a killed run leaves whole shards
and none in between, and the same command goes on from there. There is no clock and no path inside, and what was decided
for all shards stands in the manifest before the first one, so the same run gives the same bytes. One shard's files are
``shards.py`` and ``tables.py``; ``reading.Features`` reads it all, ``verifying.py`` holds it to its checksums.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava_probe.asking.identity import differences
from llava_probe.errors import BadFile, BadInput, first_line, shortened
from llava_probe.features.drafts import TEMPORARY, Drafts, alone, sweep
from llava_probe.features.manifest import Manifest, manifest_bytes, manifest_path, read_manifest
from llava_probe.features.shards import (
    CODES,
    REPAIR,
    errors_path,
    file_sha256,
    index_path,
    is_ragged,
    read_header,
    safetensors,
    shard_numbers,
    tensor_table,
    tensors_path,
)
from llava_probe.features.tables import ShardNote, arrow, parquet, read_errors, read_note, table_of

_ADDED = ("shard", "shard_row")


def begin(
    folder: str | Path, settings: Mapping[str, Any], decide: Callable[[], Mapping[str, Any]] = dict
) -> dict[int, str]:
    """Make a store for ``settings``, or go on with the one that is there.

    Args:
        folder: where.
        settings: what JSON can hold; all that decides what the numbers are.
        decide: called where the store is new: what holds for all of its shards and is found out by trying. It stands in
            the manifest, as ``decided``, before the first shard, and is not asked again.

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
        there = sorted(entry.name for entry in target.iterdir() if not TEMPORARY.fullmatch(entry.name))
    except FileExistsError:
        raise BadFile(f"{target} is a file; a feature store is a folder") from None
    except OSError as error:
        raise BadFile(f"{target} cannot hold a feature store: {error.strerror}") from error
    if there and "manifest.json" not in there:
        raise BadInput(f"{target} holds {shortened(', '.join(there))} and no manifest.json; choose an empty folder")
    if not there:
        begun = {"settings": asked, "decided": _plain(decide()), "complete": False}
        with Drafts(target) as drafts:
            drafts.add(manifest_path(target), [manifest_bytes(begun)])
            drafts.move_first()
    manifest = read_manifest(target)
    _compare(target, manifest.told["settings"], asked)
    sweep(target)
    whole = {number: _whole(target, number, manifest) for number in shard_numbers(target)}
    return {number: note.source for number, note in whole.items() if note is not None}


def write_shard(
    folder: str | Path,
    number: int,
    tensors: Mapping[str, Tensor],
    rows: Sequence[Mapping[str, Any]],
    errors: Sequence[Mapping[str, Any]] = (),
    source: str = "",
    batch_size: int = 0,
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
        batch_size: how many questions went through the model at once, which decides how its sums were rounded; the
            manifest tells it.

    Raises:
        BadInput: tensors and rows do not fit together.
        BadFile: the disk is full or cannot be written; finished shards are kept.
    """
    target = Path(folder).expanduser()
    manifest = read_manifest(target)
    _check(number, tensors, rows)
    index = [{**row, "shard": number, "shard_row": place} for place, row in enumerate(rows)]
    failed = [{**row, "shard": number} for row in errors]
    failed_path = errors_path(target, number)
    with Drafts(target) as drafts:
        digest = drafts.add(tensors_path(target, number), safetensors(tensors if rows else {}))
        of_errors = drafts.add(failed_path, [parquet(table_of(failed, ("shard",)))]) if failed else None
        note = ShardNote(digest, of_errors, source, batch_size)
        drafts.add(index_path(target, number), [parquet(table_of(index, _ADDED), note)])
        with alone(manifest_path(target)):
            if _whole(target, number, manifest) is not None:  # another process was first: its files belong together
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
    manifest = read_manifest(target).told
    sweep(target)
    found = shard_numbers(target)
    if (gap := next((place for place, number in enumerate(found) if place != number), None)) is not None:
        raise BadFile(f"{index_path(target, gap)} is missing; {REPAIR}")
    headers = {number: read_header(target, number) for number in found}
    shards: list[dict[str, Any]] = []
    for number in found:
        note, rows = read_note(target, number)
        if rows != headers[number].rows:
            raise BadFile(f"{index_path(target, number)} has {rows:,} rows, its tensors {headers[number].rows:,}")
        shards.append(
            {
                "number": number,
                "rows": rows,
                "batch_size": note.batch_size,
                "tensors_sha256": note.tensors_sha256,
                "index_sha256": file_sha256(index_path(target, number)),
                "errors_sha256": note.errors_sha256,
            }
        )
    told = {
        "settings": manifest["settings"],
        "decided": manifest["decided"],
        "complete": True,
        "rows": sum(shard["rows"] for shard in shards),
        "shards": shards,
        "tensors": tensor_table(headers, target),
    }
    failed = [number for number, shard in enumerate(shards) if shard["errors_sha256"] is not None]
    with Drafts(target) as drafts:
        digest = drafts.add(target / "errors.parquet", [parquet(read_errors(target, failed))])
        drafts.add(manifest_path(target), [manifest_bytes({**told, "errors_sha256": digest})])
        drafts.move()


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON gives them back, so that a tuple equals the list that was written."""
    try:
        return json.loads(json.dumps(dict(settings)))
    except (TypeError, ValueError) as error:
        raise BadInput(f"settings of a feature store are what JSON can hold: {first_line(error)}") from error


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


def _whole(folder: Path, number: int, manifest: Manifest) -> ShardNote | None:
    """What a shard says of itself; None where its files are not all there or do not belong together.

    Where a run came to its end, another one is there to mend: then all of their bytes are read.
    """
    try:
        note, rows = read_note(folder, number)
        right = rows == read_header(folder, number).rows
        if note.errors_sha256 is not None:
            right = right and file_sha256(errors_path(folder, number)) == note.errors_sha256
        for entry in manifest.shards[number : number + 1]:
            right = right and file_sha256(index_path(folder, number)) == entry.index_sha256
            right = right and file_sha256(tensors_path(folder, number)) == note.tensors_sha256
    except BadFile:
        return None
    return note if right else None
