"""What may come in as a picture. The truth of a refusal is a file made to deserve it."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from llava_probe.errors import BadImage
from llava_probe.view.app.uploads import UploadLimits, opened_upload

LIMITS = UploadLimits(megabytes=1, megapixels=4)


def encoded(picture, format="PNG", **settings):
    file = io.BytesIO()
    picture.save(file, format, **settings)
    return file.getvalue()


def bomb(width, height):
    """A PNG of a few hundred kilobytes that says, and has, so many pixels of one bit."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes(height * (1 + width // 8)), 9)
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_photograph_is_told_upright():
    sideways = Image.new("RGB", (40, 20), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    found = opened_upload(encoded(sideways, "JPEG", exif=exif), LIMITS)
    assert (found.format, found.size) == ("JPEG", (20, 40))
    assert Image.open(io.BytesIO(found.preview)).size == (20, 40)


def test_a_preview_is_small():
    found = opened_upload(encoded(Image.new("RGB", (1800, 900))), LIMITS)
    assert found.size == (1800, 900) and Image.open(io.BytesIO(found.preview)).size == (900, 450)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("width", [20_000, 10_000, 500], ids=["200 megapixels", "100", "5"])
def test_a_bomb_is_refused_before_it_is_decoded(width, monkeypatch):
    data = bomb(width, 10_000)
    assert len(data) < 100_000
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(BadImage, match="more than the 4 million pixels that are taken"):
        opened_upload(data, LIMITS)


def test_many_bytes_are_refused():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8))
    with pytest.raises(BadImage, match="larger than the 1 MB that are taken"):
        opened_upload(encoded(noise), LIMITS)


NO_PICTURES = {
    "text": b"I am no picture, whatever I am called.",
    "nothing": b"",
    "a page": b"<!doctype html><script>alert(1)</script>",
    "a drawing with a script": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    "a program for Ghostscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    "half a picture": encoded(Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)))[:900],
}


@pytest.mark.parametrize("name", list(NO_PICTURES))
def test_what_is_no_picture_is_refused_in_a_sentence(name):
    with pytest.raises(BadImage) as refused:
        opened_upload(NO_PICTURES[name], LIMITS)
    assert "this file" in str(refused.value) and len(str(refused.value)) < 300
