"""A map's ``map.npz`` read by the types of what it holds: no pickles, nothing unpacked before its size is known.

``ImageMap.save`` writes more than is read here (``seen``, ``texts``, ``ids``), for people who plot with numpy alone.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from msgspec.structs import astuple
from torch import Tensor

from llava_probe.described import Stored, like
from llava_probe.errors import BadFile, shortened
from llava_probe.maps.about import wrong_about
from llava_probe.pictures.images import MAX_PIXELS, open_stored
from llava_probe.stored import converted, decoded, opened, refused
from llava_probe.trace.header import LAYOUT_ARRAYS, StoredLayout, layout_of, wrong_layout
from llava_probe.trace.tokens import Token
from llava_probe.whole_file import Axes, check_tensors

#: Bytes of the file, of what it unpacks to, and of the list of members, which zipfile holds however long it is.
_MOST, _HELD, _LISTED = 1_000_000_000, 4 * MAX_PIXELS, 65_536
#: How far more than ``_HELD`` may have been packed: floats hardly are.
_RATIO = 10
_END = 22  # bytes at the end of a .zip without a comment
_BESIDE = ("seen", "texts", "ids", "token_positions")
_READ = ("told", "values", "size", *LAYOUT_ARRAYS, "image", "marked", "text")

_StoredToken: Any = like(Token, "_StoredToken")


class StoredMap(Stored, frozen=True):
    """An ``ImageMap`` without its arrays."""

    method: str
    about: dict[str, Any]
    grid: tuple[int, int] | None
    frames: tuple[int, ...]
    tokens: tuple[_StoredToken, ...]
    text_tokens: tuple[_StoredToken, ...] = ()
    overlays: Literal[".png", ".jpg"] = ".png"


def map_header(source: Path) -> StoredMap:
    """What a saved map tells of itself, without its arrays.

    Raises:
        BadFile: as for ``load_map``.
    """
    return _read(source, only="told")[0]


def load_map(source: Path) -> dict[str, Any]:
    """The fields of a saved ``ImageMap``.

    Raises:
        BadFile: there is no such file, or it is damaged or no map.
    """
    plain, tensors = _read(source)
    rows, beside = len(plain.tokens), len(plain.text_tokens)
    count = len(tensors.get("positions", torch.empty(0)).flatten())
    expected: dict[str, Axes | None] = {"values": Axes("f", (rows, count)), "size": Axes("i", (2,))}
    expected |= {"positions": Axes("i", (count,)), "boxes": Axes("f", (count, 4)), "tiles": Axes("i", (count,))}
    expected |= {"image": Axes("u", (None,))}
    expected |= {"marked": Axes("b", (rows, count))} if "marked" in tensors else {}
    expected |= {"text": Axes("f", (rows, beside))} if "text" in tensors or beside else {}
    check_tensors(source, tensors, expected)
    placed = {"size": tensors["size"].tolist(), "grid": plain.grid, "frames": plain.frames}
    layout = converted(f"what {source} says of its layout is damaged", placed, StoredLayout)
    if math.prod(layout.size) > MAX_PIXELS:
        raise BadFile(f"{source} is damaged: a picture of {layout.size} pixels is larger than any that is opened")
    for wrong in wrong_layout("its picture", layout, {name: tensors[name] for name in LAYOUT_ARRAYS}):
        raise BadFile(f"{source} is damaged: {wrong}")
    if not bool((tensors["positions"] >= -1).all()):  # cells of pixels may share a token, or have none: -1
        raise BadFile(f"{source} is damaged: it has values at negative positions")
    for wrong in wrong_about(plain.about, rows):
        raise BadFile(f"{source} is damaged: {wrong}")
    return {
        "values": tensors["values"],
        "layout": layout_of(layout, tensors),
        "image": open_stored(tensors["image"].numpy().tobytes(), f"the photograph of {source}"),
        "tokens": tuple(Token(*astuple(each)) for each in plain.tokens),
        "method": plain.method,
        "marked": tensors.get("marked"),
        "about": plain.about,
        "text": tensors.get("text"),
        "text_tokens": tuple(Token(*astuple(each)) for each in plain.text_tokens),
    }


def _read(source: Path, only: str | None = None) -> tuple[StoredMap, dict[str, Tensor]]:
    """What is told of a map, and its arrays by name; only that one where it is named."""
    with opened("map", source, _MOST) as file, refused(f"{source} is no map of llava_probe"):
        file.seek(max(os.fstat(file.fileno()).st_size - _END, 0))
        end = file.read(_END)
        if end[:4] != b"PK\x05\x06" or int.from_bytes(end[12:16], "little") > _LISTED:
            raise ValueError("it does not end as such a file does")
        arrays: dict[str, npt.NDArray[Any]] = {}
        most = max(_HELD, _RATIO * os.fstat(file.fileno()).st_size)
        with zipfile.ZipFile(file) as packed:
            for info in packed.infolist():
                name = info.filename.removesuffix(".npy")
                if name in _BESIDE or (only is not None and name != only):
                    continue
                if name not in _READ:
                    raise ValueError(f"nothing is known of its tensor {shortened(repr(name))}")
                if name in arrays:
                    raise ValueError(f"it holds {name!r} twice")
                most -= info.file_size
                if most < 0 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError(f"its {name!r} unpacks to {info.file_size:,} bytes, more than are read")
                arrays[name] = _array(name, packed.read(info))
        if "told" not in arrays or arrays["told"].dtype.kind != "U" or arrays["told"].ndim:
            raise ValueError("it does not tell what it holds")
        header = str(arrays.pop("told")[()])
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return decoded(f"what {source} says of the map is damaged", header, StoredMap), tensors


def _array(name: str, data: bytes) -> npt.NDArray[Any]:
    """Numpy's own format, whose header may ask for more memory than there are bytes, and for pickles."""
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):  # type: ignore[no-untyped-call]
        raise ValueError(f"its {name!r} is in another version of numpy's format")
    shape, columns_first, dtype = np.lib.format.read_array_header_1_0(file)  # type: ignore[no-untyped-call]
    if dtype.hasobject or min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"its {name!r} has other bytes than {dtype} {list(shape)} takes")
    flat = np.frombuffer(data, dtype, count=math.prod(shape), offset=file.tell()) if math.prod(shape) else ()
    return np.array(flat, dtype).reshape(shape, order="F" if columns_first else "C")
