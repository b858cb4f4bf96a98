"""Whether a folder's weights are all there, and how large they are: from names, sizes and headers alone.

A safetensors file begins with a table of its tensors; what it promises is compared with what the file holds, so that a
download that broke off is told before anything is loaded.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from llava_probe.described import Natural
from llava_probe.errors import BadModel, shortened
from llava_probe.stored import JSON_LIMIT, converted, decoded, opened, read_bytes

_SINGLE = ("model.safetensors", "pytorch_model.bin")
_INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")

#: Weights of other libraries, and whose they are.
_FOREIGN = {"tf_model.h5": "TensorFlow", "flax_model.msgpack": "Flax", "consolidated.safetensors": "Mistral's own code"}

#: What Git keeps where large files were not fetched.
_POINTER = b"version https://git-lfs"

#: No table of tensors is longer: what is, is no safetensors.
_LONGEST_HEADER = 100_000_000


class _Index(TypedDict):
    """A table of which file holds which tensor."""

    weight_map: dict[str, str]


class _Entry(TypedDict):
    """One tensor as a safetensors header tells of it."""

    dtype: str
    shape: list[Natural]
    data_offsets: tuple[Natural, Natural]


@dataclass(frozen=True)
class StoredWeights:
    """The weights of a folder.

    Attributes:
        stored: bytes of all files.
        numbers: how many there are of each dtype by safetensors' name (``"BF16"``); empty where files do not tell.
    """

    stored: int
    numbers: Mapping[str, int] = field(default_factory=dict)


def stored_weights(folder: Path, told: str) -> StoredWeights:
    """The weights in a folder, all there.

    Args:
        folder: of a checkpoint.
        told: how the user calls it.

    Raises:
        BadModel: there are none, or some are missing, cut short or pointers of Git LFS.
    """
    names = _names(folder, told)
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise BadModel(
            f"{told} lacks {len(missing)} of its {len(names)} files of weights: {shortened(', '.join(missing))}; "
            "finish its download"
        )
    numbers: Counter[str] = Counter()
    for name in names:
        _refuse_pointer(folder / name, told)
        if name.endswith(".safetensors"):
            numbers.update(_header(folder / name, told))
    return StoredWeights(sum((folder / name).stat().st_size for name in names), dict(numbers))


def _names(folder: Path, told: str) -> list[str]:
    """The files that hold the weights: one, or those that an index lists."""
    for index, single in zip(_INDEX, _SINGLE, strict=True):
        if (folder / single).is_file():
            return [single]
        if (folder / index).is_file():
            data = read_bytes(index, folder / index, JSON_LIMIT, BadModel)
            found = decoded(f"{told} has a damaged {index}; finish its download", data, _Index, BadModel)
            return sorted(set(found["weight_map"].values()))
    for name, whose in _FOREIGN.items():
        if (folder / name).is_file():
            raise BadModel(f"{told} holds weights for {whose} ({name}); transformers reads model.safetensors")
    raise BadModel(
        f"{told} has a config.json and no weights (model.safetensors, or model.safetensors.index.json with its files); "
        "finish its download, or save them with model.save_pretrained(folder)"
    )


def _refuse_pointer(path: Path, told: str) -> None:
    with path.open("rb") as opened:
        if opened.read(len(_POINTER)) == _POINTER:
            raise BadModel(f"{path.name} of {told} is a pointer of Git LFS, not the file; run: git lfs pull")


def _header(path: Path, told: str) -> Counter[str]:
    """How many numbers of each dtype a file's table promises, all of them there."""
    damaged = f"{path.name} of {told} is damaged: it has no table of tensors; download it again"
    with opened("file of weights", path, refuse=BadModel) as file:
        size, length = os.fstat(file.fileno()).st_size, int.from_bytes(file.read(8), "little")
        if length > min(size, _LONGEST_HEADER):
            raise BadModel(damaged)
        table = decoded(damaged, file.read(length), dict[str, Any], BadModel)
    table.pop("__metadata__", None)
    entries = converted(damaged, list(table.values()), list[_Entry], BadModel)
    held, promised = size - 8 - length, max((entry["data_offsets"][1] for entry in entries), default=0)
    if promised > held:
        raise BadModel(
            f"{path.name} of {told} is cut short: {held:,} bytes of {promised:,} are there; download it again"
        )
    numbers: Counter[str] = Counter()
    for entry in entries:
        numbers[entry["dtype"]] += math.prod(entry["shape"])
    return numbers
