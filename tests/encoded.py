"""Small pictures and what becomes of them, for the tests of pictures and of URLs."""

from __future__ import annotations

import io
import traceback

import numpy as np
import pytest
from PIL import Image

from llava_probe.errors import BadImage
from llava_probe.pictures.images import open_image


def noise(height: int = 10, width: int = 14, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encode(picture: Image.Image | np.ndarray, format: str = "PNG", **options) -> bytes:
    picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    file = io.BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


def pixels(source, **options) -> np.ndarray:
    picture = open_image(source, **options)
    assert type(picture) is Image.Image
    assert picture.mode == "RGB"
    return np.asarray(picture)


def refusal(source, **options) -> str:
    """The sentence with which ``source`` is refused: one line, with nothing of PIL's or numpy's inside it."""
    with pytest.raises(BadImage) as caught:
        open_image(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    shown = "".join(traceback.format_exception(caught.value))
    assert "During handling" not in shown
    assert "direct cause" not in shown
    return message
