"""Which numbers a model holds: one digest over every bit of every parameter and buffer, read where they lie.

    digest = weights_digest(model)            # remembered: nearly free while no tensor was written to
    digest = weights_digest(model, anew=True) # all of it read again

The bits are taken as integers, so that there is no rounding: sums of 64-bit words, each times an odd number of its
place, are the same in any order, on any device. One changed number always changes them, and an exchange of two does.
The upper halves are summed once more with other numbers, since what a product does to its highest bit is forgotten.

A tensor is read again when its memory or its version is another. Writing through ``.data`` leaves both; so some dozen
words of each tensor are looked at each time, and ``anew`` looks at all. What cannot be read (weights offloaded to disk)
is named.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary, ref

import numpy as np
import torch
from torch import Tensor, nn

from llava_probe.inside import seam

#: Words of 8 bytes that share one run of odd numbers.
_ROW = 1 << 14

#: Bytes that are read at once: what a sum needs beside the weights.
_PIECE = 1 << 26

#: A tensor of so many words is looked at as a whole where nothing tells that it changed, of a larger one so many are:
#: each word of those lies in memory that nothing else is read of.
_SMALL, _GLANCE = 512, 64

#: Beginnings of the runs of odd numbers: for words, for their upper halves, for rows.
_SEEDS = (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0)

#: Rotary frequencies that a pass itself exchanges when a prompt is long: no part of what the model is.
_LENGTHENED = ("dynamic", "longrope")


@dataclass(frozen=True)
class WeightsDigest:
    """What ``weights_digest`` found.

    Attributes:
        sha256: of names, shapes, dtypes and all bits; 32 hexadecimal digits.
        unseen: names of tensors whose numbers could not be read.
    """

    sha256: str
    unseen: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Seen:
    """What is remembered of a model between two looks; it keeps no tensor alive."""

    marks: dict[str, tuple[Any, ...]]
    glances: list[_Glance]
    sums: dict[str, tuple[int, ...]]
    digest: WeightsDigest


@dataclass(frozen=True)
class _Glance:
    """Some words of each tensor on one device, end to end: int64, compared at once."""

    names: tuple[str, ...]
    lengths: tuple[int, ...]
    words: Tensor

    def pieces(self) -> Iterator[tuple[str, Tensor]]:
        return zip(self.names, self.words.split(self.lengths), strict=True)


_seen: WeakKeyDictionary[nn.Module, _Seen] = WeakKeyDictionary()


def weights_digest(model: nn.Module, *, anew: bool = False) -> WeightsDigest:
    """A digest of all parameters and buffers of a model.

    Args:
        model: as the user holds it, adapters and all.
        anew: read every number, whatever is remembered.
    """
    tensors = dict(_tensors(model))
    readable = {name: tensor for name, tensor in tensors.items() if _readable(tensor)}
    seen = None if anew else _seen.get(model)
    marks, glances = {name: _mark(tensor) for name, tensor in readable.items()}, _glances(readable)
    if (
        seen is not None
        and seen.marks == marks
        and tensors.keys() == {*marks, *seen.digest.unseen}
        and all(torch.equal(one.words, other.words) for one, other in zip(seen.glances, glances, strict=True))
    ):
        return seen.digest
    stale = [*readable] if seen is None else _stale(seen, marks, glances)
    sums = dict(zip(stale, _numbers([_sums(readable[name]) for name in stale]), strict=True))
    if seen is not None:
        sums |= {name: seen.sums[name] for name in readable if name not in sums}
    told = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        told.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {sums.get(name)}\n".encode())
    digest = WeightsDigest(told.hexdigest()[:32], tuple(name for name in tensors if name not in readable))
    _seen[model] = _Seen(marks, glances, sums, digest)
    return digest


def tensor_digest(tensor: Tensor) -> str:
    """A digest of one tensor, on its own: shape, dtype and all bits."""
    sums = _sums(tensor).tolist() if _readable(tensor) else "not seen"
    return hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype} {sums}".encode()).hexdigest()[:32]


# --- which tensors ---


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that is part of a model, those that a quantiser hangs on its parameters too."""
    for name, parameter in model.named_parameters():
        yield from _parts(name, parameter)
    for name, buffer in model.named_buffers():
        if not _lengthened(model, name):
            yield from _parts(name, buffer)


def _lengthened(model: nn.Module, name: str) -> bool:
    owner, _, own = name.rpartition(".")
    return own == "inv_freq" and getattr(model.get_submodule(owner), "rope_type", None) in _LENGTHENED


def _parts(name: str, tensor: Any, depth: int = 3) -> Iterator[tuple[str, Tensor]]:
    """A tensor, or the plain ones that it is made of."""
    inner = seam.inner_tensors(tensor)
    for own, part in inner.items():
        yield from _parts(f"{name}.{own}", part, depth)
    if not inner:
        yield name, tensor
    if depth:
        for own, held in getattr(tensor, "__dict__", {}).items():
            yield from _hanging(f"{name}.{own}", held, depth - 1)


def _hanging(name: str, held: Any, depth: int) -> Iterator[tuple[str, Tensor]]:
    """Tensors among what a parameter carries besides its own numbers: scales and tables of a quantiser."""
    if isinstance(held, Tensor):
        yield from _parts(name, held, depth)
    elif depth:
        for own, other in getattr(held, "__dict__", {}).items():
            yield from _hanging(f"{name}.{own}", other, depth - 1)


def _readable(tensor: Tensor) -> bool:
    return tensor.device.type != "meta" and tensor.layout == torch.strided and not tensor.is_quantized


def _mark(tensor: Tensor) -> tuple[Any, ...]:
    """What is another when a tensor was replaced or written to; two of one that keeps no count are never equal."""
    version = seam.version(tensor)
    kept = object() if version is None else version
    return ref(tensor), tensor.data_ptr(), kept, tensor.shape, tensor.stride(), tensor.dtype, str(tensor.device)


# --- their bits ---


def _sums(tensor: Tensor) -> Tensor:
    """Two sums over all bits of a tensor in the order of its numbers: int64 [2]."""
    total = torch.zeros(2, dtype=torch.int64, device=tensor.device)
    row = 0
    for piece in _flat(tensor).split(_PIECE):
        words = _words(piece)
        whole = len(words) // _ROW * _ROW
        for part in (words[:whole].view(-1, _ROW), words[whole:].view(1, -1)):
            if part.numel():
                rows = torch.stack(_row_sums(part))  # [2, rows]
                total += (rows * _odd(2, row + len(part), tensor.device)[row : row + len(part)]).sum(1)
                row += len(part)
    return total


def _row_sums(words: Tensor) -> tuple[Tensor, Tensor]:
    """Both sums of each row: int64 [rows, words] to twice [rows]. Integers wrap around, so no order matters."""
    low, high = (_odd(which, _ROW, words.device)[: words.shape[1]] for which in (0, 1))
    if words.device.type == "cpu":  # the product of a matrix needs no memory for what it sums
        return words @ low, torch.cat([(some >> 32) @ high for some in words.split(16)])
    return _summed(words, low, high)


def _summed(words: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The same where a matrix of whole numbers knows no product."""
    return (words * low).sum(1), ((words >> 32) * high).sum(1)


def _glances(tensors: Mapping[str, Tensor]) -> list[_Glance]:
    """Some of each tensor's words, by device."""
    there: dict[torch.device, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        there.setdefault(tensor.device, {})[name] = _some(tensor)
    return [
        _Glance(tuple(some), tuple(words.numel() for words in some.values()), torch.cat([*some.values()]))
        for some in there.values()
    ]


def _some(tensor: Tensor) -> Tensor:
    """All words of a small tensor, some of a large one: int64 [at most _SMALL]."""
    flat = _flat(tensor)
    words = flat.view(torch.int64) if _aligned(flat) else flat
    count = words.numel()
    some = words if count <= _SMALL else words[:: count // _GLANCE | 1][:_GLANCE]
    return some.to(torch.int64)


def _stale(seen: _Seen, marks: Mapping[str, tuple[Any, ...]], glances: Sequence[_Glance]) -> list[str]:
    """Names of the tensors that are others than those seen, or hold other words."""
    before, now = (dict(pair for glance in each for pair in glance.pieces()) for each in (seen.glances, glances))
    return [
        name for name, mark in marks.items() if seen.marks.get(name) != mark or not torch.equal(before[name], now[name])
    ]


def _numbers(sums: Sequence[Tensor]) -> list[tuple[int, ...]]:
    """Sums as numbers, with one wait for each device and not one for each tensor."""
    found: dict[int, tuple[int, ...]] = {}
    for device in {total.device for total in sums}:
        there = [number for number, total in enumerate(sums) if total.device == device]
        told = torch.stack([sums[number] for number in there]).tolist()
        found |= {number: tuple(both) for number, both in zip(there, told, strict=True)}
    return [found[number] for number in range(len(sums))]


def _flat(tensor: Tensor) -> Tensor:
    """A tensor's bytes in the order of its numbers; a copy only where they do not lie so."""
    return tensor.detach().resolve_conj().resolve_neg().reshape(-1).contiguous().view(torch.uint8)


def _aligned(flat: Tensor) -> bool:
    return flat.numel() % 8 == 0 and flat.storage_offset() % 8 == 0


def _words(flat: Tensor) -> Tensor:
    """Bytes as words, the last one filled up with zeros: int64."""
    if not _aligned(flat):
        filled = flat.new_zeros(-(-len(flat) // 8) * 8)
        filled[: len(flat)] = flat
        flat = filled
    return flat.view(torch.int64)


def _odd(which: int, count: int, device: torch.device) -> Tensor:
    """At least ``count`` odd numbers, always the same: int64."""
    return _odd_numbers(which, max(_ROW, 1 << (count - 1).bit_length()), device)


@cache
def _odd_numbers(which: int, count: int, device: torch.device) -> Tensor:
    """Steele, Lea & Flood 2014 (SplitMix64): one number of each place, whatever comes before."""
    with np.errstate(over="ignore"):
        mixed = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(_SEEDS[which])
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = (mixed ^ (mixed >> np.uint64(31))) | np.uint64(1)
    return torch.from_numpy(mixed.view(np.int64)).to(device)
