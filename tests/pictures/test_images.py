"""Pictures come in upright, RGB and whole, or not at all."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageCms

from llava_probe.errors import BadFile, BadImage, BadInput, ProbeError
from llava_probe.pictures import images
from llava_probe.pictures.images import fingerprint, open_image, open_stored, stored_bytes
from tests.encoded import encode, noise, pixels, refusal

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")  # of damaged files

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG written from the specification, chunk by chunk, without PIL."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = b"\x89PNG\r\n\x1a\n"
    for kind, data in [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]:
        body += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return body


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
    ids=lambda value: repr(value)[:40].partition(" object at ")[0],
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
        "import llava_probe.pictures.images\n"
        "print(*{'torch', 'numpy', 'transformers', 'ssl', 'http.client'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", program, str(Path(images.__file__).parents[1])]
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
    if mode == "LAB":  # which Pillow converts by colour profiles alone
        profiles = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
        muted = (quadrants() // 4 + 96).astype(np.uint8)  # 8 bits of a and b round the edge of the gamut off
        lab = ImageCms.profileToProfile(Image.fromarray(muted), *profiles, outputMode="LAB")
        assert np.abs(pixels(lab).astype(int) - muted).max() <= 3
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
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as many scripts do: no setting of theirs counts here
    started = time.perf_counter()
    assert "pixels" in refusal(bomb)
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


# --- inside our own files ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        encode(noise(), "BMP"),
        encode(noise(), "GIF"),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
        encode(noise())[:-40],
        b"",
    ],
    ids=["bmp", "gif", "eps", "cut", "empty"],
)
def test_a_stored_picture_is_of_the_formats_that_we_write_or_refused(data: bytes) -> None:
    with pytest.raises(BadFile, match=r"^picture 3 of a trace "):
        open_stored(data, "picture 3 of a trace")


def test_a_stored_picture_has_the_same_pixel_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", noise().shape[0] * noise().shape[1] - 1)
    with pytest.raises(BadFile, match="more than"):
        open_stored(encode(noise()), "the picture")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"


def envelope(inner: bytes) -> bytes:
    """An IPTC file of 10 × 10 grey around whatever one likes, written from the specification."""
    told = {60: b"\x01\x00", 20: b"\x00\x0a", 30: b"\x00\x0a", 120: b"\x05"}
    fields = [(3, name, data) for name, data in told.items()] + [(8, 10, inner)]
    return b"".join(struct.pack(">BBBH", 0x1C, record, name, len(data)) + data for record, name, data in fields)


@pytest.mark.parametrize("data", [EPS, envelope(EPS)], ids=["eps", "eps in iptc"])
@pytest.mark.parametrize("way", ["bytes", "pil"])
def test_no_picture_runs_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, way: str) -> None:
    gs = tmp_path / "gs"
    gs.write_text(f"#!/bin/sh\n[ $1 = --version ] && echo 10.0 && exit\ntouch {tmp_path}/called\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(BadImage, match=r"Ghostscript|envelope"):
        open_image(data if way == "bytes" else Image.open(io.BytesIO(data)))
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "I;16", "F"])
def test_bands_of_rows_make_the_picture_that_one_makes(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    grey = np.arange(7 * 5).reshape(7, 5)
    rgb = Image.fromarray(np.stack([grey, 2 * grey, 255 - grey], -1).astype(np.uint8))
    made = {
        "I;16": lambda: Image.fromarray((grey * 1000).astype(np.uint16)),
        "F": lambda: Image.fromarray((grey / 40).astype(np.float32)),
        "P": lambda: rgb.quantize(16),
    }.get(mode, lambda: rgb.convert(mode))()
    if mode in ("RGBA", "LA"):
        made.putalpha(Image.fromarray((grey * 7).astype(np.uint8)))
    for orientation in range(1, 9):
        made.getexif()[0x0112] = orientation
        monkeypatch.setattr(images, "_BAND", 10**9)
        whole = open_image(made)
        assert whole.size == ((5, 7) if orientation < 5 else (7, 5))
        for rows in (1, 2, 3):
            monkeypatch.setattr(images, "_BAND", 5 * rows)
            assert open_image(made).tobytes() == whole.tobytes()


def test_few_bytes_do_not_stand_for_many_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    flat = encode(np.zeros((300, 300, 3), np.uint8))
    images.check_density([flat] * 9, "a trace")  # less than one picture may be
    monkeypatch.setattr(images, "MAX_PIXELS", 100_000)
    images.check_density([encode(noise())] * 99, "a trace")
    with pytest.raises(BadFile, match="the pictures of a trace have 810,000 pixels in"):
        images.check_density([flat] * 9, "a trace")


def test_a_file_that_would_be_refused_inside_ours_is_kept_as_a_png() -> None:
    file = io.BytesIO()
    Image.new("RGB", (4000, 4000)).save(file, "WEBP", quality=1)
    assert len(file.getvalue()) < 16e6 / 100 < len(stored_bytes(open_image(file.getvalue())))


def camera_file(orientation: int = 1, **options: Any) -> bytes:
    """A JPEG (or what ``format`` says) of 90 × 60 soft colours, as a camera of that orientation writes it."""
    soft = Image.fromarray(noise()).resize((90, 60), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    soft.save(file, **{"format": "JPEG", "exif": exif, **options})
    return file.getvalue()


@pytest.mark.parametrize("way", ["upright", "turned", "webp", "webp with alpha", "opened twice", "kept once already"])
def test_a_photograph_is_stored_as_the_file_it_came_in(way: str) -> None:
    data = {
        "turned": camera_file(6),
        "webp": camera_file(format="WEBP", quality=70),
        "webp with alpha": encode_see_through(),
    }.get(way, camera_file())
    image = open_image(data)
    image = open_image(image) if way == "opened twice" else image
    image = open_stored(stored_bytes(image), "it") if way == "kept once already" else image
    assert image.size == ((60, 90) if way == "turned" else (90, 60))
    assert stored_bytes(image) == data
    assert open_stored(data, "it").tobytes() == image.tobytes()


def encode_see_through() -> bytes:
    """A lossy WebP of 90 × 60 that is half see-through."""
    soft = Image.open(io.BytesIO(camera_file())).convert("RGB")
    soft.putalpha(Image.linear_gradient("L").resize(soft.size))
    file = io.BytesIO()
    soft.save(file, "WEBP", quality=60)
    return file.getvalue()


@pytest.mark.parametrize("way", ["painted on", "lossless", "lossless webp", "turned later", "copied", "animated"])
def test_a_picture_that_is_not_its_file_is_stored_as_png(way: str) -> None:
    frames = [Image.new("RGB", (90, 60), colour) for colour in (RED, BLUE)]
    animation = io.BytesIO()
    frames[0].save(animation, "WEBP", save_all=True, append_images=frames[1:])
    data = {
        "lossless": camera_file(format="PNG"),
        "lossless webp": camera_file(format="WEBP", lossless=True),
        "animated": animation.getvalue(),
    }.get(way, camera_file())
    image = open_image(data)
    if way == "painted on":
        image.putpixel((1, 1), (1, 2, 3))
    image = image.transpose(Image.Transpose.ROTATE_90) if way == "turned later" else image
    image = image.copy() if way == "copied" else image
    kept = stored_bytes(image)
    assert Image.open(io.BytesIO(kept)).format == "PNG"
    assert open_stored(kept, "it").tobytes() == image.tobytes()
