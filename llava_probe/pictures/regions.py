"""Where on a picture something is: masks and boxes in the forms people keep them, as one array of bool.

    inside(mask, boxes, "xywh", (640, 480))     # [480, 640] bool

Everybody who asks for a place on the photograph reads it here, so that one file means one place:

- A picture (path, URL, bytes, PIL) is inside wherever it is neither black nor see-through; whole numbers as they are
  stored, since labels are small. JPEG is refused: its black is not exactly black.
- An array is inside where it is not 0, floats in 0..1 from 0.5 on. Channels are colours, a second or fourth one alpha.
- COCO's run lengths and polygons; of a polygon, the pixels whose centre is in it.
- Boxes, where there is no mask: the pixels whose centre is in one of them.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from llava_probe.arrays import BoolArray
from llava_probe.errors import BadInput, refusing, shortened
from llava_probe.pictures import run_length
from llava_probe.pictures.boxes import Box, corners
from llava_probe.pictures.images import MAX_PIXELS
from llava_probe.pictures.urls import download

#: Formats whose black is black, none of which PIL hands to another program.
LOSSLESS = ("PNG", "BMP", "GIF", "TIFF")
#: Share of a soft mask that is inside.
_HALF = 0.5

_POLYGON_NUMBERS = 6  # three corners


def inside(mask: Any, boxes: Iterable[Sequence[float]], box_format: str, size: tuple[int, int]) -> BoolArray:
    """[height, width] bool: the mask, or where there is none the boxes.

    Args:
        mask: as ``read_mask`` takes it; None where the boxes are the place.
        boxes, box_format: as ``corners`` takes them.
        size: (width, height) of the upright picture.

    Raises:
        BadInput: neither is there, it cannot be read, or the mask is of another size than the picture.
    """
    if mask is None:
        boxes = tuple(boxes)
        if not boxes:
            raise BadInput("there is neither a mask nor a box")
        return drawn(corners(boxes, box_format, size), size)
    read = read_mask(mask, size)
    if read.shape != size[::-1]:
        raise BadInput(f"the mask is {read.shape[1]} × {read.shape[0]}, its picture {size[0]} × {size[1]}")
    return read


def read_mask(source: Any, size: tuple[int, int] | None = None) -> BoolArray:
    """[height, width] bool.

    Args:
        source: a path, URL, bytes, PIL image, array or tensor [H, W], [1, H, W] or [H, W, C], nested lists of such an
            array, polygons [[x, y, x, y, ...], ...], a COCO run-length mask, ``{"polygons": ..., "size": [H, W]}``, or
            these last as JSON text.
        size: (width, height) of the picture; polygons that state none need it.

    Raises:
        BadInput: it is no mask, or cannot be read.
    """
    if isinstance(source, str) and source.lstrip()[:1] in ("{", "["):
        with refusing("the mask is no JSON"):
            source = json.loads(source)
    if isinstance(source, Mapping):
        return _from_mapping(source)
    if isinstance(source, (list, tuple)):
        return _from_lists(source, size)
    if hasattr(source, "__array__") and not isinstance(source, Image.Image):
        return _from_array(source)
    return _from_picture(source)


def needs_size(mask: Any) -> bool:
    """Whether the place is told only with the picture's size."""
    return mask is None or isinstance(mask, (list, tuple)) or (isinstance(mask, Mapping) and "size" not in mask)


def drawn(boxes: Iterable[Box], size: tuple[int, int]) -> BoolArray:
    """[height, width] bool: pixels whose centre is in one of the boxes (x0, y0, x1, y1)."""
    width, height = size
    filled = np.zeros((height, width), dtype=bool)
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    for x0, y0, x1, y1 in boxes:
        filled |= ((y >= y0) & (y < y1))[:, None] & ((x >= x0) & (x < x1))
    return filled


def filled_polygons(polygons: Any, size: tuple[int, int]) -> BoolArray:
    """[height, width] bool: pixels whose centre is in one of the polygons, each even-odd.

    Args:
        polygons: lists of x, y, x, y, ... in pixels; a single one may stand alone.
        size: (width, height).

    Raises:
        BadInput: a list that is no polygon.
    """
    listed = [polygons] if polygons and not isinstance(polygons[0], (list, tuple)) else polygons
    filled = np.zeros(size[::-1], dtype=bool)
    for polygon in listed:
        try:
            numbers = np.asarray(polygon, dtype=np.float64)
        except (TypeError, ValueError, OverflowError):
            numbers = np.empty(0)
        numbers = numbers.reshape(-1) if numbers.ndim == 2 and numbers.shape[-1] == 2 else numbers  # [[x, y], ...]
        if numbers.ndim != 1 or len(numbers) < _POLYGON_NUMBERS or len(numbers) % 2 or not np.isfinite(numbers).all():
            raise BadInput(f"a polygon is x, y, x, y, ... of at least three corners; got {shortened(repr(polygon))}")
        filled |= _filled(numbers.reshape(-1, 2), size)
    return filled


def _filled(points: np.ndarray, size: tuple[int, int]) -> BoolArray:
    """Along each row of pixel centres, what lies behind an odd number of edges."""
    width, height = size
    crossed = np.zeros((height, width + 1), dtype=bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        low, high = (math.ceil(max(-1.0, min(height + 1.0, y)) - 0.5) for y in sorted((y0, y1)))
        rows = np.arange(max(low, 0), min(high, height))
        if len(rows):
            at = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
            columns = np.ceil(np.clip(at, 0, width) - 0.5).astype(np.int64).clip(0, width)
            crossed[rows, columns] ^= True
    return np.logical_xor.accumulate(crossed[:, :width], axis=1)


def _from_mapping(source: Mapping[str, Any]) -> BoolArray:
    if "counts" in source:
        return run_length.decode(source)
    if "polygons" in source:
        height, width = run_length.checked_size(source)
        return filled_polygons(source["polygons"], (width, height))
    stored = source.get("bytes") or source.get("path")  # as Hugging Face keeps pictures
    if stored is not None:
        return _from_picture(stored)
    keys = shortened(", ".join(map(str, source)))
    raise BadInput(f"a mask with the keys {keys} is none; pass a run-length mask with size and counts")


def _from_lists(source: Sequence[Any], size: tuple[int, int] | None) -> BoolArray:
    """Nested lists of the picture's shape, or of nothing but 0 and 1, are its pixels; other lists are polygons."""
    if not source:
        raise BadInput("the mask is an empty list; leave the column empty where there is none")
    try:
        array = np.asarray(source)
    except ValueError:  # of several lengths
        array = np.empty(0)
    pixels = array.ndim == 2 and array.dtype.kind in "bui"
    if pixels and (array.max() <= 1 or (size is not None and array.shape == size[::-1])):
        return _from_array(array)
    if size is None:
        raise BadInput("polygons are read with the picture's size; none is given")
    return filled_polygons(source, size)


def _from_array(source: Any) -> BoolArray:
    with refusing("the mask cannot be read as an array"):
        if hasattr(source, "detach"):
            source = source.detach().cpu()
            source = source.float() if source.is_floating_point() else source  # numpy has no bfloat16
        array = np.asarray(source)
    told = f"the mask is an array of shape {array.shape} and dtype {array.dtype}"
    if array.ndim == 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 2, 3, 4)) or not array.size:
        raise BadInput(f"{told}; pass [H, W], [1, H, W] or [H, W, C] with C of 1 to 4")
    if array.dtype.kind not in "buif":
        raise BadInput(f"{told}; pass bool, whole numbers or floats in 0..1")
    if array.dtype.kind != "b" and not array.min() >= 0:
        raise BadInput(f"{told} and holds values below 0 or NaN; say what is inside, as in mask > 0")
    return _inside_channels(_binary(array, told))


def _binary(array: np.ndarray, told: str) -> BoolArray:
    if array.dtype.kind != "f":
        return array != 0
    high = array.max()
    if high <= 1:
        return array >= _HALF
    if np.isin(array, (0, high)).all():
        return array > 0
    raise BadInput(f"{told} and holds values up to {high:.4g}; floats lie in 0..1, or say what is inside: mask > 127")


def _inside_channels(given: np.ndarray) -> np.ndarray:
    if given.ndim == 2:
        return given
    colours = given.shape[2] - (given.shape[2] in (2, 4))
    there: np.ndarray = np.any(given[..., :colours], axis=-1)
    return np.logical_and(there, given[..., -1]) if colours < given.shape[2] else there


def _from_picture(source: Any) -> BoolArray:
    told = "the mask" if not isinstance(source, (str, os.PathLike)) else f"the mask {shortened(repr(str(source)))}"
    unread = f"{told} cannot be read as {', '.join(LOSSLESS)}"
    with refusing(unread):
        if isinstance(source, Image.Image):
            if source.format is not None and source.format not in LOSSLESS:
                raise BadInput(f"the mask is {source.format}, whose black is not exactly black; save it as PNG")
            return _from_pil(source)
        try:
            with Image.open(_file_of(source, told), formats=LOSSLESS) as opened:
                return _from_pil(opened)
        except UnidentifiedImageError:  # it names the object, another in each run
            raise BadInput(f"{unread}; save it as PNG") from None


def _file_of(source: Any, told: str) -> IO[bytes] | Path:
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(bytes(source))
    if not isinstance(source, (str, os.PathLike)):
        expected = "a path, URL, bytes, PIL picture, array, run-length mask or polygons"
        raise BadInput(f"the mask is a {type(source).__name__}; pass {expected}")
    text = os.fspath(source)
    if re.match(r"data:", text, re.IGNORECASE):
        return io.BytesIO(base64.b64decode(text.partition(",")[2], validate=True))
    if re.match(r"[a-z][a-z0-9+.-]+://", text, re.IGNORECASE):
        return io.BytesIO(download(text))
    path = Path(text).expanduser()
    if not path.is_file():
        raise BadInput(f"{told} is no file that exists")
    return path


def _from_pil(picture: Image.Image) -> BoolArray:
    if picture.width * picture.height > MAX_PIXELS:
        raise BadInput(f"the mask has {picture.width} × {picture.height} pixels, more than {MAX_PIXELS:,}")
    upright = ImageOps.exif_transpose(picture)
    clear = upright.has_transparency_data
    if clear or (upright.mode not in ("1", "L", "F", "RGB") and not upright.mode.startswith("I")):
        upright = upright.convert("RGBA" if clear else "RGB")
    return _from_array(np.asarray(upright))
