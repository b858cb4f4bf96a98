"""``manifest.json``: what a store was made with, what its shards hold, and the checksums that the rest is held to.

It is written when a run begins (settings, and what was decided for all of its shards) and again when it ends, then with
every shard's rows, batch size and checksums. It carries a hash of its own contents, and what is in it has to agree with
itself: a number that somebody changed is found before a tensor is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypeAlias, TypedDict

import msgspec

from llava_probe.errors import BadFile, first_line, shortened
from llava_probe.features.shards import DTYPES, WholeNumber, opened_file

STORE_FORMAT = "llava_probe.features"
VERSION = 2

#: More than a manifest of a million shards measures.
MANIFEST_BYTES = 500_000_000

ANEW = "run the same extraction into another folder"

_Sha256: TypeAlias = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class ShardEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the manifest says of one shard.

    Attributes:
        number: its place.
        rows: its samples that have features.
        batch_size: how many questions went through the model at once; fewer than were asked for where memory was short.
        tensors_sha256, index_sha256: of its files.
        errors_sha256: of the table of its samples that failed; None where none did.
    """

    number: WholeNumber
    rows: WholeNumber
    batch_size: WholeNumber
    tensors_sha256: _Sha256
    index_sha256: _Sha256
    errors_sha256: _Sha256 | None


class _Tensor(msgspec.Struct, forbid_unknown_fields=True):
    dtype: str
    shape: list[WholeNumber | None]
    ragged: bool


class _Intervention(TypedDict):
    """What was in force, its settings beside its kind."""

    kind: str


class _Settings(TypedDict):
    """All that decides what the numbers are, of which this alone is read again."""

    interventions: NotRequired[list[_Intervention]]


class _Begun(msgspec.Struct, forbid_unknown_fields=True):
    format: str
    version: int
    sha256: _Sha256
    settings: _Settings
    decided: dict[str, Any]
    complete: bool


class _Finished(_Begun, forbid_unknown_fields=True):
    rows: WholeNumber
    shards: list[ShardEntry]
    tensors: dict[str, _Tensor]
    errors_sha256: _Sha256


@dataclass(frozen=True)
class Manifest:
    """What a manifest says, checked.

    Attributes:
        told: all of it, as JSON gives it.
        shards: of a finished store, in order.
    """

    told: Mapping[str, Any]
    shards: tuple[ShardEntry, ...]

    @property
    def complete(self) -> bool:
        """Whether the run that made the store came to its end."""
        return bool(self.told["complete"])


def manifest_path(folder: Path) -> Path:
    """Where it is."""
    return folder / "manifest.json"


def manifest_bytes(told: Mapping[str, Any]) -> bytes:
    """A manifest as it is written, with its own hash."""
    everything = {"format": STORE_FORMAT, "version": VERSION, **told}
    everything["sha256"] = _own_sha256(everything)
    return (json.dumps(everything, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")


def read_manifest(folder: Path) -> Manifest:
    """What ``manifest.json`` says.

    Raises:
        BadFile: there is no such folder or manifest, or the manifest is damaged, foreign, newer or contradicts itself.
    """
    path = manifest_path(folder)
    try:
        is_folder, exists = folder.is_dir(), folder.exists()
        there = is_folder and path.exists()
    except (OSError, ValueError) as error:
        raise BadFile(f"{shortened(str(folder))!r} can be no feature store: {first_line(error)}") from None
    if not is_folder:
        raise BadFile(f"{folder} is {'a file' if exists else 'not there'}; a feature store is a folder")
    if not there:
        raise BadFile(f"{folder} holds no manifest.json: it is no feature store")
    with opened_file(path, ANEW) as opened:
        data = opened.read(MANIFEST_BYTES + 1)
    if len(data) > MANIFEST_BYTES:
        raise BadFile(f"{path} is damaged: it is larger than {MANIFEST_BYTES:,} bytes")
    try:
        told = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise BadFile(f"{path} is damaged, or no JSON: {first_line(error)}") from error
    if not isinstance(told, dict) or told.get("format") != STORE_FORMAT:
        raise BadFile(f"{path} is of something else: it has no format {STORE_FORMAT!r}")
    version = told.get("version")
    if not isinstance(version, int) or version != VERSION:
        age = "an older" if isinstance(version, int) and version < VERSION else "a newer"
        raise BadFile(f"{path} was written by {age} llava_probe (version {version}, here {VERSION}); {ANEW}")
    try:
        found: Any = msgspec.convert(told, _Finished if told.get("complete") is True else _Begun)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BadFile(f"{path} is damaged: {first_line(error)}") from error
    if found.sha256 != _own_sha256(told):
        raise BadFile(f"{path} is damaged or was changed: its sha256 is not that of its contents; {ANEW}")
    if found.complete:
        _check(path, found)
    return Manifest(told, tuple(found.shards) if found.complete else ())


def _own_sha256(told: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in told.items() if name != "sha256"}
    plain = json.dumps(rest, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(plain.encode()).hexdigest()


def _check(path: Path, found: _Finished) -> None:
    """Refuse what contradicts itself, whatever its hash says."""
    wrong = None
    if (numbers := [shard.number for shard in found.shards]) != list(range(len(numbers))):
        wrong = f"its shards are numbered {shortened(', '.join(map(str, numbers)))}"
    elif found.rows != (total := sum(shard.rows for shard in found.shards)):
        wrong = f"it has {found.rows:,} rows, its shards {total:,}"
    elif bool(found.rows) != bool(found.tensors):
        wrong = f"it has {found.rows:,} rows and {len(found.tensors)} tensors"
    for name, tensor in found.tensors.items():
        what, slash, position = name.partition("/")
        spans = found.tensors.get(f"spans/{position}")
        if not (what and slash and position) or tensor.dtype not in _DTYPES or tensor.shape[:1] != [None]:
            wrong = f"no store has a tensor {shortened(name)} of {tensor.dtype} {tensor.shape}"
        elif None in tensor.shape[1:] or tensor.ragged != (spans is not None and what not in ("spans", "positions")):
            wrong = f"{shortened(name)} does not fit the others"
    if wrong:
        raise BadFile(f"{path} contradicts itself: {wrong}; {ANEW}")


_DTYPES = frozenset(str(dtype).removeprefix("torch.") for dtype in DTYPES.values())
