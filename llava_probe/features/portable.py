"""A sample as plain values for another process, and back: what an engine hands to its workers."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import Any

from PIL import Image

from llava_probe.errors import BadInput
from llava_probe.features.samples import Sample
from llava_probe.pictures.images import open_image
from llava_probe.pictures.regions import read_mask


def portable(sample: Sample) -> dict[str, Any]:
    """The sample as plain values for another process: JSON but for pictures in memory, which are bytes.

    A picture in memory that cannot be opened is left out and becomes the sample's fault.
    """
    told = ("row", "id", "question", "answer", "fault", "prompt", "box_format", "line")
    plain = {name: getattr(sample, name) for name in told}
    plain |= {
        "columns": dict(sample.columns),
        "boxes": [list(box) for box in sample.boxes],
        "image": None,
        "mask": None,
        "messages": None,
    }
    try:
        plain |= {"image": _packed(sample.image), "mask": _packed_mask(sample.mask)}
        plain |= {"messages": _packed_chat(sample.messages)}
    except BadInput as error:
        plain["fault"] = sample.fault or str(error)
    return plain


def from_portable(plain: Mapping[str, Any]) -> Sample:
    """The sample that ``portable`` was given; its arrays are PIL pictures now, its picture's key is the same."""
    boxes = tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in plain["boxes"])
    unpacked = {"image": _unpacked(plain["image"]), "mask": _unpacked(plain["mask"]), "boxes": boxes}
    unpacked |= {"messages": _unpacked(plain["messages"])}
    return Sample(**{**plain, **unpacked})


def _packed(image: Any) -> Any:
    if isinstance(image, (list, tuple)):
        return [_packed(one) for one in image]
    if image is None or isinstance(image, (str, bytes)):
        return image
    return os.fspath(image) if isinstance(image, os.PathLike) else {"png": _png(open_image(image))}


def _packed_mask(mask: Any) -> Any:
    if isinstance(mask, Image.Image) or hasattr(mask, "__array__"):
        return {"png": _png(Image.fromarray(read_mask(mask)))}
    return mask


def _packed_chat(value: Any) -> Any:
    """The messages, pictures in memory as PNG."""
    if isinstance(value, Mapping):
        return {key: _packed_chat(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_packed_chat(inner) for inner in value]
    return {"png": _png(open_image(value))} if isinstance(value, Image.Image) or hasattr(value, "__array__") else value


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)  # it is read once, by a neighbour
    return file.getvalue()


def _unpacked(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpacked(one) for one in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"png"}:
        return Image.open(io.BytesIO(value["png"]), formats=["PNG"])
    return {key: _unpacked(inner) for key, inner in value.items()}
