"""A safetensors file of ours: written whole or not at all, and read back where its checksum is right."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llava_probe.border.values import letter_of
from llava_probe.errors import BadFile, shortened
from llava_probe.stored import JSON_LIMIT, opened, place, refused, whole

_KINDS = {"f": "floats", "i": "whole numbers", "u": "bytes", "b": "truth values"}


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
        except (SafetensorError, UnicodeError) as error:  # half a character among the metadata
            raise BadFile(f"the {what} could not be written to {target}: {error}") from error
    return target


def checksum(header: str, tensors: Mapping[str, Tensor]) -> str:
    """Sha256 in hex of a header's text and of every tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(header.encode("utf-8", "surrogatepass"))
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        if tensors[name].numel():  # an empty one may have strides that cannot be seen as bytes
            digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Contents:
    """What a safetensors file of ours holds.

    Attributes:
        source: the file; ``format``: the number that it was written under.
        header: the text that describes the tensors.
        tensors: by name.
    """

    source: Path
    format: int
    header: str
    tensors: Mapping[str, Tensor]


def read_tensors(
    what: str, path: str | Path, *, key: str, header: str, newest: int, limit: int | None = None
) -> Contents:
    """Read what ``write_tensors`` wrote.

    Args:
        what: the file is, for the sentence: "trace".
        path: its place.
        key: of the metadata with the format's number; ``header``: that of the text beside it.
        newest: the last format that is known.
        limit: bytes that such a file has at most.

    Raises:
        BadFile: there is no such file, it is too large, damaged, none of this kind, or was written by a newer version.
    """
    source = place(what, path)
    sentence = f"{source} is no {what}, or a damaged one"
    with opened(what, source, limit), refused(sentence), safe_open(source, framework="pt") as held:
        metadata = held.metadata() or {}
        found = _format(what, source, metadata.get(key), newest)
        tensors = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118 - no mapping
        right = header in metadata and checksum(metadata[header], tensors) == metadata.get("digest")
    if not right:
        raise BadFile(f"{source} is damaged: its checksum does not match its contents")
    return Contents(source, found, metadata[header], tensors)


def _format(what: str, source: Path, told: str | None, newest: int) -> int:
    if told is None:
        raise BadFile(f"{source} is a safetensors file but no {what} of llava_probe, or a damaged one")
    if not (told.isascii() and told.isdigit() and len(told) < 10 and int(told)):
        raise BadFile(f"{source} is damaged: its format is {shortened(repr(told))}, which is no number from 1 on")
    if int(told) > newest:
        raise BadFile(f"{source} was written by a newer llava_probe (format {told})")
    return int(told)


@dataclass(frozen=True)
class Axes:
    """What a stored tensor must be.

    Attributes:
        kinds: letters of its dtype: f floats, i signed and u unsigned whole numbers, b truth values.
        shape: of each axis its length, or None where any will do; ``more``: further axes may follow.
    """

    kinds: str
    shape: tuple[int | None, ...]
    more: bool = False


def check_tensors(source: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Axes | None]) -> None:
    """See that these tensors are there and no others, each of its dtype and shape.

    Args:
        source: the file, for the sentence.
        tensors: by name.
        expected: likewise; None where any tensor will do.

    Raises:
        BadFile: one is missing, surplus, or another than expected.
    """
    if missing := sorted(expected.keys() - tensors.keys()):
        raise BadFile(f"{source} is damaged: its tensor {missing[0]!r} is missing")
    if surplus := sorted(tensors.keys() - expected.keys()):
        raise BadFile(f"{source} is damaged: nothing is known of its tensor {shortened(repr(surplus[0]))}")
    for name, axes in expected.items():
        one = tensors[name]
        if axes is None:
            continue
        shape = tuple(one.shape)
        ranks = len(shape) >= len(axes.shape) if axes.more else len(shape) == len(axes.shape)
        fits = ranks and all(a is None or a == b for a, b in zip(axes.shape, shape, strict=False))
        odd = one.is_floating_point() and one.dtype.itemsize < 2  # torch does no arithmetic with eight bits
        if letter_of(one.dtype) not in axes.kinds or odd or not fits:
            wanted = ", ".join("any" if length is None else str(length) for length in axes.shape) + ", ..." * axes.more
            raise BadFile(
                f"{source} is damaged: its tensor {name!r} is {str(one.dtype).removeprefix('torch.')} {list(shape)}; "
                f"expected {' or '.join(_KINDS[kind] for kind in axes.kinds)} [{wanted}]"
            )
