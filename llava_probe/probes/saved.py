"""A probe as one file: weights as safetensors, all else as JSON in the header beside a checksum; never pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from llava_probe.errors import BadFile
from llava_probe.whole_file import checksum, write_tensors

PROBE_FORMAT = 1

_TENSORS = ("weights", "bias")
_PLAIN = ("label", "task", "kind", "classes", "layer", "position", "about")


def save_probe(probe: Any, path: str | Path) -> Path:
    """Write ``probe``, an ``lp.Probe``, to ``path``, whole or not at all.

    Raises:
        BadFile: the place cannot be written; what was there before is still there.
    """
    tensors = {name: getattr(probe, name).contiguous() for name in _TENSORS}
    told = json.dumps({name: getattr(probe, name) for name in _PLAIN}, ensure_ascii=False, default=str)
    metadata = {"llava_probe.probe": str(PROBE_FORMAT), "probe": told, "digest": checksum(told, tensors)}
    return write_tensors("probe", path, tensors, metadata)


def load_probe(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the plain fields of a saved probe.

    Raises:
        BadFile: there is no such file, it is damaged, is no probe, or was written by a newer version.
    """
    source = Path(path).expanduser()
    try:
        with safe_open(source, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
    except FileNotFoundError as error:
        raise BadFile(f"there is no probe at {source}") from error
    except (OSError, SafetensorError, ValueError) as error:
        raise BadFile(f"{source} is no probe, or a damaged one: {error}") from error
    if "llava_probe.probe" not in metadata:
        raise BadFile(f"{source} is a safetensors file but no probe of llava_probe")
    if int(metadata["llava_probe.probe"]) > PROBE_FORMAT:
        raise BadFile(f"{source} was written by a newer llava_probe (format {metadata['llava_probe.probe']})")
    if checksum(metadata.get("probe", ""), tensors) != metadata.get("digest"):
        raise BadFile(f"{source} is damaged: its checksum does not match its contents")
    return tensors, json.loads(metadata["probe"])
