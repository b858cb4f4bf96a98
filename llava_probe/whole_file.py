"""A safetensors file of ours: written whole or not at all, with a checksum in its header."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from llava_probe.errors import BadFile
from llava_probe.stored import JSON_LIMIT, place, whole


def write_tensors(what: str, path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Path:
    """Write a safetensors file beside its place and move it there when complete.

    Args:
        what: the file is, for the sentence: "trace".
        path: its place; ``~`` is expanded.
        tensors, metadata: as safetensors takes them.

    Raises:
        BadFile: the place cannot be written, or the disk is full; what was there before is still there. Or the header
            is longer than a reader takes.
    """
    target = place(what, path)
    size = max(len(text.encode("utf-8", "replace")) for text in metadata.values())
    if size > JSON_LIMIT:
        raise BadFile(
            f"the {what} could not be written to {target}: what it says of itself has {size:,} bytes, and no more than "
            f"{JSON_LIMIT:,} are read again"
        )
    with whole(what, target) as part:
        try:
            save_file(tensors, part, metadata=metadata)
        except SafetensorError as error:
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
