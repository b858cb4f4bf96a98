"""Arrays and plain data as one compressed parcel that a browser unpacks without a library.

    parcel = Parcel()
    header = {"boxes": parcel.add(boxes), "values": parcel.quantised(values, np.uint16)}
    parcel.packed(header)          # bytes; the page's ``payload.ts`` is the other end

Two parts, each deflated by itself: what the first picture needs, and what may come after it (``late=True``: the maps of
single heads), so that a page of megabytes is drawn at once. A part is its arrays one behind the other, little-endian,
each at a multiple of 8; the first begins with the header as JSON, which says where each array lies.

    u32 bytes of part 0 | u32 bytes of part 1 | deflate(u32 bytes of JSON | JSON | arrays) | deflate(arrays)
"""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from llava_probe.arrays import FloatArray

#: What the header calls each type of array.
_KINDS: dict[type[np.generic], str] = {np.uint8: "u8", np.uint16: "u16", np.int32: "i32", np.float32: "f32"}
#: Deflate: as small as it gets in reasonable time.
_LEVEL = 6
_ALIGNED = 8


class Parcel:
    """What a page is given, in the making."""

    def __init__(self) -> None:
        self._parts = (bytearray(), bytearray())
        self._files: dict[bytes, dict[str, Any]] = {}

    def add(self, array: npt.NDArray[Any], *, late: bool = False) -> dict[str, Any]:
        """Put an array of one of ``_KINDS`` in, and tell where it lies.

        Args:
            array: of any shape.
            late: whether it can wait until the first picture is drawn.
        """
        kind = _KINDS[array.dtype.type]
        return self._put(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes(), late) | {
            "kind": kind,
            "shape": list(array.shape),
        }

    def file(self, data: bytes) -> dict[str, Any]:
        """Put a file's bytes in, once: the photograph of two runs is one."""
        if data not in self._files:
            self._files[data] = self._put(data, False) | {"kind": "u8", "shape": [len(data)]}
        return self._files[data]

    def quantised(self, values: FloatArray, kind: type[np.generic], *, late: bool = False) -> dict[str, Any]:
        """Put maps [..., N] in, each by whole steps of its own largest magnitude.

        A value comes back within half a step: 1 / 510 of its map's largest with 8 bits, 1 / 131,070 with 16, twice that
        where some value of ``values`` is negative.
        """
        signed = bool((values < 0).any())
        return self.steps(*quantise(values, kind, signed=signed), signed=signed, late=late)

    def steps(
        self, steps: npt.NDArray[Any], scale: FloatArray, *, signed: bool = False, late: bool = False
    ) -> dict[str, Any]:
        """Put maps that ``quantise`` made in."""
        at = self.add(scale.astype(np.float32), late=late)
        return {"steps": self.add(steps, late=late), "scale": at, "signed": signed}

    @property
    def size(self) -> int:
        """About how many bytes it takes so far."""
        return sum(len(deflated(bytes(part))) for part in self._parts)

    def packed(self, header: dict[str, Any]) -> bytes:
        """The parcel with its header."""
        told = json.dumps(header, separators=(",", ":"), allow_nan=False).encode("ascii")
        told += b" " * (-(len(told) + 4) % _ALIGNED)
        first = deflated(struct.pack("<I", len(told)) + told + bytes(self._parts[0]))
        later = deflated(bytes(self._parts[1]))
        return struct.pack("<II", len(first), len(later)) + first + later

    def _put(self, data: bytes, late: bool) -> dict[str, Any]:
        part = self._parts[late]
        place = len(part)
        part += data + b"\0" * (-len(data) % _ALIGNED)
        return {"part": int(late), "at": place}


def quantise(
    values: FloatArray, kind: type[np.generic], *, signed: bool = False
) -> tuple[npt.NDArray[Any], FloatArray]:
    """Maps [..., N] as whole steps of ``kind`` (uint8, uint16), and the largest magnitude [...] of each.

    A value is ``steps / highest * scale``; signed maps have their zero in the middle, at ``highest // 2``.
    """
    highest = int(np.iinfo(kind).max)  # type: ignore[type-var]
    scale = np.abs(values).max(axis=-1, initial=0.0).astype(np.float32)
    share = np.divide(values, scale[..., None], out=np.zeros(values.shape), where=scale[..., None] > 0)
    middle, span = (highest // 2, highest // 2) if signed else (0, highest)
    return np.rint(share * span + middle).astype(kind), scale


def deflated(data: bytes) -> bytes:
    """``data`` as a browser's ``DecompressionStream("deflate-raw")`` takes it."""
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()
