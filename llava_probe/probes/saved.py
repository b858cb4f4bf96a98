"""A probe as one file: weights as safetensors, all else as JSON in the header beside a checksum; never pickle."""

from __future__ import annotations

import hashlib
import json
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llava_probe.errors import BadFile

if TYPE_CHECKING:
    from llava_probe.probes.probe import Probe

FORMAT = 1

_TENSORS = ("weights", "bias")
_PLAIN = ("label", "task", "kind", "classes", "layer", "position", "about")


def save(probe: Probe, path: str | Path) -> Path:
    """Write ``probe`` to ``path``, whole or not at all.

    Raises:
        BadFile: the place cannot be written; what was there before is still there.
    """
    target = Path(path).expanduser()
    tensors = {name: getattr(probe, name).contiguous() for name in _TENSORS}
    told = json.dumps({name: getattr(probe, name) for name in _PLAIN}, ensure_ascii=False, default=str)
    metadata = {"llava_probe.probe": str(FORMAT), "probe": told, "digest": _digest(told, tensors)}
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    try:
        save_file(tensors, temporary, metadata=metadata)
        temporary.replace(target)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise BadFile(f"the probe could not be written to {target}: {error}") from error
    return target


def load(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
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
    if int(metadata["llava_probe.probe"]) > FORMAT:
        raise BadFile(f"{source} was written by a newer llava_probe (format {metadata['llava_probe.probe']})")
    if _digest(metadata.get("probe", ""), tensors) != metadata.get("digest"):
        raise BadFile(f"{source} is damaged: its checksum does not match its contents")
    return tensors, json.loads(metadata["probe"])


def _digest(told: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(told.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {list(tensors[name].shape)}".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()
