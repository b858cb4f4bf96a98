"""A file that is written whole or not at all, and the checksum that a safetensors file of ours carries."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from llava_probe.errors import BadFile


def write_tensors(what: str, path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Path:
    """Write a safetensors file beside its place and move it there when complete.

    Args:
        what: the file is, for the sentence: "trace".
        path: its place; ``~`` is expanded.
        tensors, metadata: as safetensors takes them.

    Raises:
        BadFile: the place cannot be written, or the disk is full; what was there before is still there.
    """
    target = Path(path).expanduser()
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    try:
        save_file(tensors, temporary, metadata=metadata)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(target)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise BadFile(f"the {what} could not be written to {target}: {error}") from error
    return target


def checksum(header: str, tensors: Mapping[str, Tensor]) -> str:
    """Sha256 in hex of a header's text and of every tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        if tensors[name].numel():  # an empty one may have strides that cannot be seen as bytes
            digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
