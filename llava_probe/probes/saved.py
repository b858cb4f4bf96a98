"""A probe as one file: weights as safetensors, all else as JSON in the header beside a checksum; never pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import msgspec
from torch import Tensor

from llava_probe.described import Stored
from llava_probe.errors import BadFile
from llava_probe.stored import decoded
from llava_probe.whole_file import Axes, check_tensors, checksum, read_tensors, write_tensors

PROBE_FORMAT = 1

_TENSORS = ("weights", "bias")


class StoredProbe(Stored, frozen=True):
    """A ``Probe`` without its tensors; ``kind`` is open: read-outs to come need no other format."""

    label: str
    task: Literal["classification", "regression"]
    kind: str
    classes: tuple[str | int | float | bool | None, ...]
    layer: str
    position: str
    about: dict[str, Any]


def save_probe(probe: Any, path: str | Path) -> Path:
    """Write ``probe``, an ``lp.Probe``, to ``path``, whole or not at all.

    Raises:
        BadFile: the place cannot be written; what was there before is still there.
    """
    tensors = {name: getattr(probe, name).contiguous() for name in _TENSORS}
    plain = {name: getattr(probe, name) for name in StoredProbe.__struct_fields__}
    header = json.dumps(plain, ensure_ascii=False, default=str)
    metadata = {"llava_probe.probe": str(PROBE_FORMAT), "probe": header, "digest": checksum(header, tensors)}
    return write_tensors("probe", path, tensors, metadata)


def load_probe(path: str | Path) -> dict[str, Any]:
    """The fields of a saved probe.

    Raises:
        BadFile: there is no such file, it is damaged, is no probe, or was written by a newer version.
    """
    held = read_tensors("probe", path, key="llava_probe.probe", header="probe", newest=PROBE_FORMAT)
    plain = decoded(f"the header of {held.source} is damaged", held.header, StoredProbe)
    count = len(plain.classes)
    if not count:
        raise BadFile(f"{held.source} is damaged: a probe has classes, or names of numbers")
    check_tensors(held.source, held.tensors, {"weights": Axes("f", (None, count)), "bias": Axes("f", (count,))})
    wide: dict[str, Tensor] = {name: held.tensors[name].double() for name in _TENSORS}
    if not all(bool(tensor.isfinite().all()) for tensor in wide.values()):
        raise BadFile(f"{held.source} is damaged: its weights are not all finite numbers")
    return {**wide, **msgspec.structs.asdict(plain)}
