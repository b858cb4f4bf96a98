"""A sample as plain values for another process, and back: what an engine hands to its workers."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import Any

from PIL import Image

from llava_probe.errors import BadImage, refusing
from llava_probe.features.samples import Sample
from llava_probe.pictures.images import open_image


def portable(sample: Sample) -> dict[str, Any]:
    """The sample as plain values for another process: JSON but for pictures in memory, which are bytes.

    A picture in memory that cannot be opened is left out and becomes the sample's fault.
    """
    plain = {name: getattr(sample, name) for name in ("row", "id", "question", "answer", "fault")}
    plain |= {
        "columns": dict(sample.columns),
        "boxes": [list(box) for box in sample.boxes],
        "image": None,
        "mask": None,
    }
    try:
        plain |= {"image": _packed(sample.image), "mask": _packed_mask(sample.mask)}
    except BadImage as error:
        plain["fault"] = sample.fault or str(error)
    return plain


def from_portable(plain: Mapping[str, Any]) -> Sample:
    """The sample that ``portable`` was given; its arrays are PIL pictures now, its picture's key is the same."""
    boxes = tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in plain["boxes"])
    unpacked = {"image": _unpacked(plain["image"]), "mask": _unpacked(plain["mask"]), "boxes": boxes}
    return Sample(**{**plain, **unpacked})


def _packed(image: Any) -> Any:
    if isinstance(image, (list, tuple)):
        return [_packed(one) for one in image]
    if image is None or isinstance(image, (str, bytes)):
        return image
    return os.fspath(image) if isinstance(image, os.PathLike) else {"png": _png(open_image(image))}


def _packed_mask(mask: Any) -> Any:
    if mask is None or isinstance(mask, (str, os.PathLike)):
        return mask and os.fspath(mask)
    with refusing("the mask cannot be sent as PNG"):
        return {"png": _png(mask if isinstance(mask, Image.Image) else Image.fromarray(mask))}


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)  # it is read once, by a neighbour
    return file.getvalue()


def _unpacked(image: Any) -> Any:
    if isinstance(image, list):
        return [_unpacked(one) for one in image]
    return Image.open(io.BytesIO(image["png"])) if isinstance(image, dict) else image
