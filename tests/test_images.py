"""Pictures come in upright, RGB and whole, or not at all."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from llava_probe import images
from llava_probe.errors import BadImage, BadInput, ProbeError
from llava_probe.images import fingerprint, open_image

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")  # of damaged files

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)


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


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG written from the specification, chunk by chunk, without PIL."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = b"\x89PNG\r\n\x1a\n"
    for kind, data in [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]:
        body += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return body


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


# --- what a user may hold ---------------------------------------------------------------------------------


def test_every_kind_of_source_gives_the_same_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = noise()
    data = encode(truth)
    path = tmp_path / "a picture.png"
    path.write_bytes(data)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    just_written = io.BytesIO()
    just_written.write(data)
    sources = {
        "string": str(path),
        "path": path,
        "home": "~/a picture.png",
        "home path": Path("~") / "a picture.png",
        "bytes": data,
        "bytearray": bytearray(data),
        "memoryview": memoryview(data),
        "buffer": io.BytesIO(data),
        "buffer at its end": just_written,
        "data url": "data:image/png;base64," + base64.b64encode(data).decode(),
        "escaped data url": "DATA:;base64," + base64.b64encode(data).decode().replace("+", "%2B") + "%0A",
        "pil": Image.fromarray(truth),
        "array": truth,
        "view": np.asfortranarray(truth),
        "tensor": torch.from_numpy(truth.copy()),
        "channels first": torch.from_numpy(truth.copy()).permute(2, 0, 1),
        "bfloat16": (torch.from_numpy(truth.copy()).double() / 255).requires_grad_(),
    }
    for name, source in sources.items():
        assert np.array_equal(pixels(source), truth), name
    with path.open("rb") as file:
        assert np.array_equal(pixels(file), truth)
    with Image.open(path) as lazy:
        assert np.array_equal(pixels(lazy), truth)


def test_a_stream_that_cannot_seek_is_read() -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *args) -> int:
            raise OSError("not seekable")

    assert np.array_equal(pixels(Pipe(encode(noise()))), noise())


def test_the_result_is_the_callers_own() -> None:
    source = Image.new("RGB", (2, 2), RED)
    array = np.zeros((2, 2, 3), np.uint8)
    of_picture, of_array = open_image(source), open_image(array)
    source.putpixel((0, 0), BLUE)
    array[:] = 255
    assert of_picture.getpixel((0, 0)) == RED
    assert of_array.getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("", "empty"),
        ("no/such/picture.jpg", "no/such/picture.jpg"),
        (Path("no/such/picture.jpg"), "no/such/picture.jpg"),
        (".", "directory"),
        (Path(), "directory"),
        ("~nobody-of-this-name/a.png", "nobody-of-this-name"),
        ("nul\0byte.png", "nul"),
        ("x" * 5000, "..."),
        ("file:///etc/hostname", "path"),
        ("ftp://example.com/a.png", "http"),
        ("s3://bucket/key.png", "http"),
        ("http://", "host"),
        ("http:///a.png", "host"),
        ("http://[::1/a.png", "malformed"),
        ("http://example.com:port/a.png", "malformed"),
        ("data:image/png,abc", "base64"),
        ("data:image/png;base64,ab!d", "damaged"),
        ("data:image/png;base64,abc", "damaged"),
        ("data:image/png;base64,", "empty"),
        (b"", "empty"),
        (b"no picture", "PIL"),
        (io.StringIO("text"), "rb"),
        (io.BytesIO, "read"),
        (["a.png", "b.png"], "list of 2"),
        (None, "NoneType"),
        (7, "int"),
        ({"bytes": b""}, "dict"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n", "EPS"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_no_picture_is_refused_in_a_sentence(source, words: str) -> None:
    assert words in refusal(source)


def test_a_file_without_permission_or_that_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("these are words")
    assert "notes.png" in refusal(tmp_path / "notes.png")
    (tmp_path / "nothing.png").touch()
    assert "nothing.png" in refusal(tmp_path / "nothing.png")
    closed = io.BytesIO(encode(noise()))
    closed.close()
    assert "closed" in refusal(closed)
    if sys.platform != "win32":
        os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
        assert "pipe.png" in refusal(tmp_path / "pipe.png")


def test_a_refusal_is_also_what_a_stranger_would_catch() -> None:
    for kind in (ProbeError, BadInput, ValueError, OSError):
        with pytest.raises(kind):
            open_image("no/such/picture.jpg")


def test_a_picture_whose_file_is_gone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(noise()))
    with Image.open(tmp_path / "a.png") as lazy:
        pass
    assert "the PIL image" in refusal(lazy)


def test_importing_the_module_is_light() -> None:
    """Without the package's own ``__init__``, which is another module's claim."""
    program = (
        "import sys, types; package = types.ModuleType('llava_probe'); package.__path__ = [sys.argv[1]]\n"
        "sys.modules['llava_probe'] = package\n"
        "import llava_probe.images\n"
        "print(*{'torch', 'numpy', 'transformers', 'ssl', 'http.client'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", program, str(Path(images.__file__).parent)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == ""


# --- upright ----------------------------------------------------------------------------------------------

# EXIF 2.3, tag 0x0112: the side of the photograph at which the stored row 0 and the stored column 0 lie
SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def quadrants(height: int = 32, width: int = 48) -> np.ndarray:
    picture = np.empty((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = RED
    picture[: height // 2, width // 2 :] = GREEN
    picture[height // 2 :, : width // 2] = BLUE
    picture[height // 2 :, width // 2 :] = YELLOW
    return picture


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """How a camera that was held in this way writes the photograph, straight from the table."""
    row_0, column_0 = SIDES[orientation]
    rows = {"top": upright, "bottom": upright[::-1]}
    columns = {"left": upright.swapaxes(0, 1), "right": upright[:, ::-1].swapaxes(0, 1)}
    lines = rows[row_0] if row_0 in rows else columns[row_0]
    return lines if column_0 in ("top", "left") else lines[:, ::-1]


@pytest.mark.parametrize("orientation", SIDES)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "MPO"])
def test_a_photograph_taken_at_any_angle_comes_in_upright(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True}}.get(format, {"quality": 95})
    data = encode(stored(quadrants(), orientation), format, exif=exif, **options)
    for source in (data, Image.open(io.BytesIO(data))):
        seen = pixels(source).astype(int)
        assert seen.shape == (32, 48, 3)
        for y, x, colour in [(8, 12, RED), (8, 36, GREEN), (24, 12, BLUE), (24, 36, YELLOW)]:
            assert np.abs(seen[y, x] - colour).max() < 12, (y, x)


@pytest.mark.parametrize("orientation", SIDES)
def test_opening_again_does_not_turn_again(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    once = open_image(encode(stored(quadrants(), orientation), exif=exif))
    assert np.array_equal(pixels(once), quadrants())
    assert np.array_equal(pixels(encode(once)), quadrants())


@pytest.mark.parametrize("exif", [b"", b"nonsense", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\x01\x01\x12"])
def test_unreadable_exif_leaves_the_picture_as_it_is_stored(exif: bytes) -> None:
    assert np.array_equal(pixels(encode(noise(), exif=b"Exif\0\0" + exif)), noise())


# --- RGB --------------------------------------------------------------------------------------------------


def test_a_palette_gives_its_colours() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *BLUE])
    palette.putpixel((1, 0), 1)
    assert pixels(encode(palette)).tolist() == [[list(RED), list(BLUE)]]
    see_through = encode(palette, transparency=1)
    assert pixels(see_through).tolist() == [[list(RED), [255, 255, 255]]]
    half = encode(palette, transparency=bytes([255, 128]))
    assert np.abs(pixels(half)[0, 1].astype(int) - [127, 127, 255]).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa", "La"])
def test_what_is_see_through_shows_white(mode: str) -> None:
    picture = Image.fromarray(np.array([[[90, 90, 90, 255], [90, 90, 90, 0], [0, 0, 0, 128]]], np.uint8))
    steps = {"La": ["LA", "La"]}.get(mode, [mode])
    for step in steps:
        picture = picture.convert(step)
    assert np.abs(pixels(picture)[0, :, 0].astype(int) - [90, 255, 127]).max() <= 1


@given(hnp.arrays(np.uint8, (5, 4, 4)))
@settings(max_examples=50, deadline=None)
def test_alpha_is_laid_on_white(rgba: np.ndarray) -> None:
    alpha = rgba[..., 3:] / 255
    truth = rgba[..., :3] * alpha + 255 * (1 - alpha)
    for source in (rgba, encode(rgba), torch.from_numpy(rgba.copy())):
        assert np.abs(pixels(source) - truth).max() <= 1


def test_a_colour_declared_see_through_shows_white() -> None:
    rgb = Image.fromarray(np.array([[RED, BLUE]], np.uint8))
    assert pixels(encode(rgb, transparency=RED)).tolist() == [[[255, 255, 255], list(BLUE)]]
    clear = (b"tRNS", struct.pack(">H", 300))
    deep = png(2, 1, 16, 0, b"\0" + struct.pack(">HH", 300, 25700), clear)
    assert pixels(deep)[0, :, 0].tolist() == [255, 100]


def test_cmyk_gives_its_colours() -> None:
    inks = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # magenta and yellow: red
    for source in (inks, encode(inks, "TIFF"), encode(inks, "JPEG", quality=95)):
        assert np.abs(pixels(source)[8, 8].astype(int) - RED).max() < 6


@pytest.mark.parametrize("mode", ["YCbCr", "HSV", "LAB", "RGBX"])
def test_other_colour_spaces_give_nearly_the_same_colours(mode: str) -> None:
    if mode == "LAB":
        lab = Image.fromarray(np.full((2, 2, 3), (54, 81, 70), np.uint8)).convert("RGB")
        lab = Image.merge("LAB", lab.split())
        assert pixels(lab).shape == (2, 2, 3)
        return
    assert np.abs(pixels(Image.fromarray(quadrants()).convert(mode)).astype(int) - quadrants()).max() <= 3


def test_one_bit_is_black_and_white() -> None:
    bits = np.array([[True, False, False], [False, True, True]])
    for source in (bits, Image.fromarray(bits), encode(Image.fromarray(bits)), torch.from_numpy(bits)):
        assert np.array_equal(pixels(source)[..., 0] == 255, bits)
        assert set(np.unique(pixels(source))) == {0, 255}


def test_grey_is_the_same_in_all_three_channels() -> None:
    grey = noise(channels=1)
    for source in (grey, grey[..., 0], encode(grey[..., 0]), torch.from_numpy(grey.copy())):
        assert np.array_equal(pixels(source), np.repeat(grey, 3, axis=2))


@pytest.mark.parametrize("container", ["PNG", "TIFF", "big-endian TIFF", "PGM", "I;16", "I", "array", ">u2"])
def test_sixteen_bit_grey_keeps_its_order_and_its_range(container: str) -> None:
    ramp = np.linspace(0, 65535, 1024).round().astype(np.uint16).reshape(4, 256)
    big = ramp.astype(">u2")
    source = {
        "PNG": lambda: png(256, 4, 16, 0, b"".join(b"\0" + row.tobytes() for row in big)),
        "TIFF": lambda: encode(Image.fromarray(ramp), "TIFF"),
        "big-endian TIFF": lambda: encode(Image.frombytes("I;16B", (256, 4), big.tobytes()), "TIFF"),
        "PGM": lambda: b"P5 256 4 65535\n" + big.tobytes(),
        "I;16": lambda: Image.fromarray(ramp),
        "I": lambda: Image.fromarray(ramp.astype(np.int32)),
        "array": lambda: ramp,
        ">u2": lambda: big,
    }[container]()
    seen = pixels(source)[..., 0].astype(int)
    assert (np.diff(seen.ravel()) >= 0).all()
    assert (seen.min(), seen.max()) == (0, 255)
    assert len(np.unique(seen)) == 256
    assert np.abs(seen * 257 - ramp.astype(int)).max() <= 129  # half of one of the 255 steps, 257 wide


def test_deep_grey_without_a_known_white_is_refused() -> None:
    wide = Image.fromarray(np.array([[0, 70000]], np.int32))
    assert "70000" in refusal(wide)
    assert "-5" in refusal(Image.fromarray(np.array([[-5, 9]], np.int32)))
    assert "3.5" in refusal(Image.fromarray(np.array([[0, 3.5]], np.float32)))
    assert pixels(Image.fromarray(np.array([[0, 0.5, 1]], np.float32)))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(format: str) -> None:
    frames = [Image.new("RGB", (16, 12), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert (pixels(data) == RED).all()


def test_of_an_opened_animation_the_current_frame_is_taken() -> None:
    frames = [Image.new("RGB", (16, 12), colour) for colour in (RED, GREEN)]
    with Image.open(io.BytesIO(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))) as film:
        film.seek(1)
        assert (pixels(film) == GREEN).all()


# --- arrays -----------------------------------------------------------------------------------------------


@given(hnp.arrays(np.uint8, (6, 5, 3)), st.sampled_from(["float16", "float32", "float64"]))
@settings(max_examples=50, deadline=None)
def test_floats_give_the_pixels_they_came_from(truth: np.ndarray, dtype: str) -> None:
    shares = (truth / 255).astype(dtype)
    assert np.array_equal(pixels(shares), truth)
    assert np.array_equal(pixels(torch.from_numpy(shares)), truth)
    assert np.array_equal(pixels(torch.from_numpy(shares).permute(2, 0, 1)), truth)


def test_the_overshoot_of_a_resize_is_forgiven_and_another_scale_is_not() -> None:
    slack = images.FLOAT_SLACK
    assert pixels(np.array([[-slack, -0.001, 1.001, 1 + slack]]))[0, :, 0].tolist() == [0, 0, 255, 255]
    assert "-0.5 to 0.5" in refusal(np.array([[-0.5, 0.5]]))
    assert "0 to 255" in refusal(noise().astype(np.float32) * 0 + np.array([0, 9, 255], np.float32))


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.full((2, 3), np.nan), ["(2, 3)", "float64", "NaN"]),
        (np.array([[0.5, np.nan]], np.float32), ["(1, 2)", "float32", "NaN"]),
        (np.array([[0.5, np.inf]], np.float32), ["float32", "inf"]),
        (torch.full((3, 8, 8), float("nan"), dtype=torch.bfloat16), ["(3, 8, 8)", "NaN"]),
        (np.zeros((2, 3), np.int64), ["(2, 3)", "int64", "uint8"]),
        (np.zeros((2, 3), np.uint32), ["(2, 3)", "uint32"]),
        (np.zeros((2, 3), complex), ["(2, 3)", "complex128"]),
        (np.array([["a", "b"]]), ["(1, 2)", "U1"]),
        (np.array([[None]]), ["object"]),
        (np.zeros((0, 4), np.uint8), ["(0, 4)", "no pixels"]),
        (np.zeros((4, 0, 3), np.float32), ["(4, 0, 3)", "no pixels"]),
        (torch.zeros(3, 0, 8), ["(3, 0, 8)", "no pixels"]),
        (np.zeros(5, np.uint8), ["(5,)", "uint8", "[H, W"]),
        (np.uint8(3), ["()"]),
        (np.zeros((4, 4, 2), np.uint8), ["(4, 4, 2)"]),
        (np.zeros((1, 3, 8, 8), np.uint8), ["(1, 3, 8, 8)"]),
        (torch.zeros(3, 8, 3), ["(3, 8, 3)", "may be"]),
        (torch.zeros(3, 8, 4), ["(3, 8, 4)", "may be"]),
        (torch.zeros(3, 8, 8, device="meta"), ["meta"]),
        (Image.new("RGB", (0, 7)), ["0 × 7"]),
    ],
    ids=lambda value: str(value) if isinstance(value, list) else "",
)
def test_an_array_that_is_no_picture_is_refused_with_its_shape_and_dtype(array, words: list[str]) -> None:
    message = refusal(array)
    for word in words:
        assert word in message


def test_an_array_of_three_rows_has_its_channels_last() -> None:
    truth = noise(height=3)
    assert np.array_equal(pixels(truth), truth)


dtypes, shapes = hnp.scalar_dtypes() | hnp.array_dtypes(), hnp.array_shapes(min_dims=0, min_side=0, max_side=5)


@given(hnp.arrays(dtypes, shapes))
@settings(max_examples=100, deadline=None)
def test_any_array_is_a_picture_or_a_sentence(array: np.ndarray) -> None:
    try:
        seen = pixels(array)
    except ProbeError:
        return
    assert seen.shape[:2] in (array.shape[:2], array.shape[1:])


# --- damaged and dangerous files --------------------------------------------------------------------------

WAYS = {
    "JPEG": ("JPEG", {}),
    "progressive JPEG": ("JPEG", {"progressive": True}),
    "PNG": ("PNG", {}),
    "WebP": ("WEBP", {}),
    "lossless WebP": ("WEBP", {"lossless": True}),
    "GIF": ("GIF", {}),
    "BMP": ("BMP", {}),
    "TIFF": ("TIFF", {}),
    "LZW TIFF": ("TIFF", {"compression": "tiff_lzw"}),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_file_cut_anywhere_is_refused_or_whole(way: str) -> None:
    format, options = WAYS[way]
    data = encode(noise(12, 12), format, **options)
    whole = pixels(data)
    refused = 0
    for cut in range(len(data)):
        try:
            assert np.array_equal(pixels(data[:cut]), whole), f"cut at {cut} of {len(data)}"
        except BadImage:
            refused += 1
    assert refused > 0.8 * len(data)


@pytest.mark.parametrize("way", WAYS)
def test_a_large_file_cut_in_the_middle_is_refused(way: str, tmp_path: Path) -> None:
    format, options = WAYS[way]
    data = encode(noise(300, 400), format, **options)
    path = tmp_path / "cut"
    for share in (0.1, 0.5, 0.9, 0.99):
        path.write_bytes(data[: int(len(data) * share)])
        assert "cut" in refusal(path)


@given(st.binary(max_size=300))
@example(b"P6 1 1 255\n\0\0\0")
@example(b"BM" + bytes(60))
@example(b"II*\0\x08\0\0\0\0\0")
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_picture_or_a_sentence(data: bytes) -> None:
    png_start, webp_start = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"RIFF\x20\0\0\0WEBP"
    for prefix in (b"", b"GIF89a", b"\xff\xd8\xff", b"II*\0", png_start, webp_start):
        with contextlib.suppress(ProbeError):
            pixels(prefix + data)


patches = st.lists(st.tuples(st.integers(0), st.binary(min_size=1, max_size=4)), min_size=1)


@given(st.sampled_from(sorted(WAYS)), patches)
@settings(max_examples=300, deadline=None)
def test_a_file_with_any_bytes_changed_is_a_picture_or_a_sentence(way: str, changes: list) -> None:
    format, options = WAYS[way]
    data = bytearray(encode(noise(12, 12), format, **options))
    for place, patch in changes:
        place %= len(data)
        data[place : place + len(patch)] = patch
    with contextlib.suppress(ProbeError):
        pixels(data)


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_sentence(text: str) -> None:
    for prefix in ("", "data:", "data:;base64,", "http://[", "https://a:b@", "file://", "~"):
        with pytest.raises(ProbeError):
            open_image(prefix + text)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [9_500, 60_000, 2**31 - 1])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = png(side, side, 8, 0, bytes(10_000))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as many scripts do; the limit is our own
    started = time.perf_counter()
    assert str(side) in refusal(bomb)
    assert str(side) in refusal(np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (side, side), (0, 0)))
    assert time.perf_counter() - started < 1
    monkeypatch.undo()
    assert "pixels" in refusal(bomb)


def test_the_pixel_limit_is_the_last_size_that_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 140)
    assert pixels(encode(noise(10, 14))).shape == (10, 14, 3)
    assert "140" in refusal(encode(noise(3, 47)))


# --- fingerprints -----------------------------------------------------------------------------------------


def test_a_fingerprint_is_of_the_pixels_and_not_of_the_file() -> None:
    truth = noise()
    marks = {fingerprint(open_image(source)) for source in (truth, encode(truth), encode(truth, "BMP"))}
    assert len(marks) == 1
    changed = truth.copy()
    changed[9, 13, 2] ^= 1
    assert fingerprint(open_image(changed)) not in marks


def test_a_fingerprint_tells_sizes_apart() -> None:
    flat = [open_image(np.zeros(shape, np.uint8)) for shape in ((2, 6), (6, 2), (3, 4), (1, 12))]
    assert len({fingerprint(picture) for picture in flat}) == 4


def test_a_fingerprint_stays_the_same_from_version_to_version() -> None:
    known = "047b501fe6e3f44225aacc00f26a0da0c67f230c1fb604cf35ecf86efb74e65f"  # printf '2x1:\1\2\3\4\5\6' | sha256sum
    assert fingerprint(Image.frombytes("RGB", (2, 1), bytes([1, 2, 3, 4, 5, 6]))) == known
    with pytest.raises(BadImage, match="open_image"):
        fingerprint(Image.new("L", (2, 1)))


# --- URLs -------------------------------------------------------------------------------------------------

PHOTO = encode(noise())


class Handler(BaseHTTPRequestHandler):
    """One path, one way in which a server behaves."""

    def log_message(self, *args) -> None: ...

    def do_GET(self) -> None:
        name, _, rest = self.path.lstrip("/").partition("?")
        try:
            getattr(self, name.replace("-", "_"), self.missing)(rest)
        except OSError:  # the other side hung up
            self.close_connection = True

    def answer(self, status: int = 200, body: bytes = PHOTO, **headers: object) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": len(body), **headers}.items():
            if value is not None:
                self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def missing(self, rest: str) -> None:
        self.answer(404, b"")

    def photo(self, rest: str) -> None:
        self.answer()

    def words(self, rest: str) -> None:
        self.answer(body=b"<html>please log in</html>")

    def nothing(self, rest: str) -> None:
        self.answer(204, b"")

    def to(self, location: str) -> None:
        self.answer(302, b"", Location=location)

    def count(self, number: str) -> None:
        self.answer(301, b"", Location=f"/count?{int(number) - 1}" if int(number) > 1 else "photo")

    def astray(self, rest: str) -> None:
        self.answer(302, b"")

    def until_closed(self, rest: str) -> None:
        self.answer(**{"Content-Length": None})

    def chunked(self, rest: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for part in (PHOTO[:100], PHOTO[100:]):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        self.wfile.write(b"0\r\n\r\n" if rest != "broken" else b"ff\r\nabc")

    def claims_more(self, rest: str) -> None:
        self.answer(**{"Content-Length": len(PHOTO) + 1000})

    def claims_less(self, rest: str) -> None:
        self.answer(**{"Content-Length": len(PHOTO) // 2})

    def claims_nonsense(self, rest: str) -> None:
        self.answer(**{"Content-Length": "-7"})

    def huge(self, rest: str) -> None:
        self.answer(**{"Content-Length": 10**15})

    def endless(self, rest: str) -> None:
        self.answer(body=b"", **{"Content-Length": None})
        while True:
            self.wfile.write(bytes(65536))

    def endless_chunks(self, rest: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            self.wfile.write(b"10000\r\n" + bytes(65536) + b"\r\n")

    def silent(self, rest: str) -> None:
        time.sleep(1)

    def trickle(self, rest: str) -> None:
        self.answer(body=b"", **{"Content-Length": len(PHOTO)})
        self.drip(PHOTO)

    def trickling_headers(self, rest: str) -> None:
        self.drip(b"HTTP/1.1 200 OK\r\nX-Patience: " + b"x" * 1000)

    def continues(self, rest: str) -> None:
        while True:
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            time.sleep(0.01)

    def drip(self, data: bytes) -> None:
        for place in range(len(data)):
            self.wfile.write(data[place : place + 1])
            time.sleep(0.02)

    def hangs_up(self, rest: str) -> None:
        self.close_connection = True

    def hangs_up_in_the_header(self, rest: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Le")

    def gibberish(self, rest: str) -> None:
        self.wfile.write(b"\0\1\2" * 1000 + b"\r\n\r\n")

    def long_header(self, rest: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n")

    def seen(self, rest: str) -> None:
        """A one-row picture whose pixels spell the request."""
        told = f"{self.path} {self.headers['Host']}".encode()
        self.answer(body=encode(np.frombuffer(told, np.uint8)[None]))


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        running.block_on_close = False
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def url(server: ThreadingHTTPServer) -> Callable[[str], str]:
    return lambda path: f"http://127.0.0.1:{server.server_port}/{path}"


PATHS = ["photo", "until-closed", "chunked", "to?/photo", "to?photo", "to?//127.0.0.1:{}/photo", "to?/to?/to?/photo"]


@pytest.mark.parametrize("path", [*PATHS, "count?5"])
def test_a_picture_is_read_from_a_url(server, url, path: str) -> None:
    assert np.array_equal(pixels(url(path.format(server.server_port)), allow_private=True), noise())


def test_a_url_is_asked_for_as_it_was_written(server, url) -> None:
    asked = url("seen?a=%2F&b=ü d&c[]=1#part")
    told = bytes(pixels(asked, allow_private=True)[0, :, 0]).decode()
    assert told == f"/seen?a=%2F&b=%C3%BC%20d&c[]=1 127.0.0.1:{server.server_port}"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("no-such-page", "404"),
        ("nothing", "204"),
        ("astray", "302"),
        ("words", "not a picture"),
        ("count?6", "redirects"),
        ("to?file:///etc/hostname", "file"),
        ("to?ftp://127.0.0.1/a.png", "ftp"),
        ("to?data:image/png;base64,AAAA", "data"),
        ("to?http://[", "cannot"),
        ("claims-less", "truncated"),
        ("chunked?broken", "cannot be read"),
        ("huge", "larger"),
        ("hangs-up", "cannot be read"),
        ("hangs-up-in-the-header", "picture"),
        ("gibberish", "cannot be read"),
        ("long-header", "cannot be read"),
    ],
)
def test_a_server_that_misbehaves_is_refused_in_a_sentence(url, path: str, words: str) -> None:
    assert words in refusal(url(path), allow_private=True)


def test_a_body_shorter_than_claimed_is_refused(url) -> None:
    message = refusal(url("claims-more"), allow_private=True)
    assert "cut short" in message or "IncompleteRead" in message  # whether Python or we notice first


def test_a_nonsensical_length_is_not_believed(url) -> None:
    assert np.array_equal(pixels(url("claims-nonsense"), allow_private=True), noise())


@pytest.mark.parametrize("path", ["endless", "endless-chunks", "photo"])
def test_the_size_limit_holds_whatever_the_server_claims(url, path: str, monkeypatch) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", len(PHOTO) - 1)
    assert "larger" in refusal(url(path), allow_private=True)
    if path == "photo":
        monkeypatch.setattr(images, "MAX_BYTES", len(PHOTO))
        assert np.array_equal(pixels(url(path), allow_private=True), noise())


@pytest.mark.parametrize(
    ("path", "wait", "total"),
    [
        ("silent", 0.2, 9.0),
        ("silent", 9.0, 0.2),
        ("trickle", 0.2, 0.4),
        ("trickling-headers", 0.2, 0.4),
        ("continues", 0.2, 0.4),
        ("to?/trickle", 0.2, 0.4),
    ],
)
def test_a_slow_server_cannot_hold_us(url, path: str, wait: float, total: float, monkeypatch) -> None:
    monkeypatch.setattr(images, "WAIT_SECONDS", wait)
    monkeypatch.setattr(images, "TOTAL_SECONDS", total)
    started = time.perf_counter()
    message = refusal(url(path), allow_private=True)
    assert time.perf_counter() - started < 0.9
    assert "timed out" in message or "longer than" in message


def test_nobody_listening_is_a_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        assert "refused" in refusal(f"http://127.0.0.1:{taken.getsockname()[1]}/a.png", allow_private=True)


def test_the_proxies_of_the_environment_are_not_used(url, monkeypatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert np.array_equal(pixels(url("photo"), allow_private=True), noise())


def test_no_secret_of_a_url_is_repeated(url) -> None:
    with_password = url("photo").replace("http://", "http://user:sesame@")
    assert "password" in refusal(with_password, allow_private=True)
    for secret in (
        with_password,
        url("no-such-page?key=sesame"),
        url("to?/no-such-page?key=sesame"),
        "http://user:sesame/x@host/a.png",
        "http://user:sesame@ho℀st/a.png",
        "ftp://user:sesame@host/a.png",
    ):
        assert "sesame" not in refusal(secret, allow_private=True)


# --- who may be asked -------------------------------------------------------------------------------------

PUBLIC = "93.184.215.14"


@pytest.fixture
def internet(server: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch) -> dict[str, list]:
    """One public host, served by the loopback server: names map to answers, and what is dialled is noted."""
    net: dict[str, list] = {"looked up": [], "dialled": []}
    look_up, dial = socket.getaddrinfo, socket.create_connection

    def getaddrinfo(host, port, *args, **kwargs):
        if host in net:
            net["looked up"].append(host)
            answers = net[host] if len(net[host]) == 1 else [net[host].pop(0)]
            return [entry for answer in answers[0] for entry in look_up(answer, port, *args, **kwargs)]
        return look_up(host, port, *args, **kwargs)

    def create_connection(address, *args, **kwargs):
        net["dialled"].append(address[0])
        assert address[0] in (PUBLIC, "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "127.0.0.1")
        if ":" in address[0]:
            raise OSError("no route to host")
        return dial(("127.0.0.1", server.server_port), *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(socket, "create_connection", create_connection)
    net["public.example"] = [[PUBLIC]]
    return net


def test_a_public_address_is_asked(internet) -> None:
    assert np.array_equal(pixels("http://public.example/photo"), noise())
    assert internet["dialled"] == [PUBLIC]


def test_the_next_address_of_a_host_is_tried(internet) -> None:
    internet["both.example"] = [["2606:2800:21f:cb07:6820:80da:af6b:8b2c", PUBLIC]]
    assert np.array_equal(pixels("http://both.example/photo"), noise())
    assert len(internet["dialled"]) == 2


PRIVATE = [
    "127.0.0.1",
    "127.9.9.9",
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.169.254",
    "192.0.2.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "[::]",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:a9fe:a9fe]",
    "[::127.0.0.1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
    "[2001:0:7f00:1::]",
    "[fe80::1]",
    "[fec0::1]",
    "[fd00::1]",
    "[ff02::1]",
    "2130706433",
    "0x7f.1",
    "localhost",
]


@pytest.mark.parametrize("host", PRIVATE)
def test_private_addresses_are_refused_unless_allowed(internet, url, host: str) -> None:
    assert "allow_private" in refusal(f"http://{host}/photo")
    assert internet["dialled"] == []
    assert "allow_private" in refusal(f"http://public.example/to?http://{host}/photo")
    assert internet["dialled"] == [PUBLIC]


def test_a_name_with_one_private_address_among_public_ones_is_refused(internet) -> None:
    internet["mixed.example"] = [[PUBLIC, "10.0.0.1"]]
    assert "10.0.0.1" in refusal("http://mixed.example/photo")
    assert internet["dialled"] == []


def test_the_address_that_was_checked_is_the_one_that_is_dialled(internet) -> None:
    """DNS rebinding: the second look-up of the name would lead to this machine."""
    internet["rebind.example"] = [[PUBLIC], ["127.0.0.1"]]
    assert np.array_equal(pixels("http://rebind.example/photo"), noise())
    assert internet["looked up"] == ["rebind.example"]
    assert internet["dialled"] == [PUBLIC]


def test_every_hop_is_looked_up_and_checked_anew(internet) -> None:
    internet["rebind.example"] = [[PUBLIC], ["127.0.0.1"]]
    assert "127.0.0.1" in refusal("http://rebind.example/to?http://rebind.example/photo")
    assert internet["dialled"] == [PUBLIC]


# --- https ------------------------------------------------------------------------------------------------


def test_https_to_a_server_that_does_not_speak_it_is_a_sentence(url) -> None:
    assert "SSL" in refusal(url("photo").replace("http:", "https:"), allow_private=True)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_https_needs_a_certificate_of_that_host_that_is_trusted(tmp_path: Path, monkeypatch) -> None:
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *args: None  # type: ignore[method-assign]
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        url = f"https://localhost:{server.server_port}/photo"
        assert "certificate" in refusal(url, allow_private=True)
        monkeypatch.setenv("SSL_CERT_FILE", certificate)
        assert np.array_equal(pixels(url, allow_private=True), noise())
        told = bytes(pixels(url.replace("photo", "seen"), allow_private=True)[0, :, 0]).decode()
        assert told == f"/seen localhost:{server.server_port}"
        assert "certificate" in refusal(url.replace("localhost", "127.0.0.1"), allow_private=True)
        monkeypatch.setattr(images, "TOTAL_SECONDS", 0.4)
        assert "timed out" in refusal(url.replace("photo", "trickle"), allow_private=True)
        server.shutdown()
