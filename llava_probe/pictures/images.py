"""From whatever you hold to one upright RGB picture, the one that every pixel coordinate here refers to.

A phone stores its photograph on its side with a note to turn it; a PNG may be see-through or 16 bits deep.
A heatmap lies on the right pixels only if all of that is settled once, before the model's processor:

    picture = open_image("~/photos/street.jpg")    # a path, URL, bytes, PIL image, array, tensor or open file

The EXIF orientation is applied, transparency is laid on white, 16-bit grey is scaled to 8 bits, and of an
animation the first frame is taken. ICC colour profiles are ignored, as the processors ignore them. What is
damaged, cut short or unreasonably large is refused in one sentence; nothing is filled in.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from PIL import Image, UnidentifiedImageError

from llava_probe.border import checked
from llava_probe.errors import BadFile, BadImage, refusing, shortened
from llava_probe.pictures.urls import download, shown

if TYPE_CHECKING:  # at run time only inside the functions that need it: this import stays light
    import numpy as np

MAX_PIXELS = 1024**3 // 4 // 3  # PIL's own alarm level: 256 MiB as RGB, far beyond what any processor keeps
FLOAT_SLACK = 1 / 510  # half an 8-bit step, what a resize may leave beyond 0..1; more is another scale

#: The formats of pictures inside our own files; PIL decodes each by itself, with no other program.
STORED_FORMATS = ("PNG", "JPEG", "WEBP")

#: Pixels for a byte of a picture inside our own files, where all of a file's are more than ``MAX_PIXELS``. The PNG that
#: are written have 80 at most.
_DENSEST = 100

#: Formats that PIL doesn't decode itself: a program for Ghostscript, and an envelope around a picture of any kind, such
#: as that program.
_HANDED_ON = {"EPS": "a program that PIL would hand to Ghostscript", "IPTC": "an envelope that may hold anything"}

#: Formats whose decoders hold several copies of a picture: half as many pixels take as much memory.
_HELD_TWICE = ("AVIF", "JPEG2000", "WEBP")

_BAND = 4_000_000  # pixels that are converted at once: each step of it is one more copy
_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
_ENCODED = "llava_probe_encoded"  # the attribute of a picture that holds the lossy file it came from
_ORIENTATION = 0x0112  # the EXIF tag
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = {_TURN[number] for number in (5, 6, 7, 8)}
_LAST_ROW_FIRST = {_TURN[number] for number in (3, 4, 6, 7)}


@checked
def open_image(source: Any, *, allow_private: bool = False) -> Image.Image:
    """One upright RGB picture of its own: later changes to ``source`` do not reach it.

    Opening the result again changes nothing. PIL's ``ImageFile.LOAD_TRUNCATED_IMAGES`` is respected: a program
    that has set it gets what is left of a file that was cut short, with whatever PIL fills in.

    Args:
        source: a path (``~`` is expanded), an http(s) or base64 ``data:`` URL, bytes, an open binary file, a
            PIL image (its current frame), or an array or tensor [H, W], [H, W, 1], [H, W, 3], [H, W, 4] or
            [3, H, W] of bool, uint8, uint16 or floats in 0..1.
        allow_private: also open URLs that lead to addresses of this machine or its network. By default they
            are refused, at every redirect, so that a picture in a data set or a chat cannot reach an internal
            service. The environment's proxies are not used: where those connect to cannot be checked.

    Raises:
        BadImage: it is no picture, is damaged or cut short, has no pixels or too many, is an array of another
            shape, dtype or range, or lies at a URL that cannot or may not be read.
    """
    if isinstance(source, Image.Image):
        return _from_pil(source, "the PIL image")
    if isinstance(source, str):
        return _from_string(source, allow_private)
    if isinstance(source, os.PathLike):
        return _from_path(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_bytes(bytes(source), "the bytes object")
    if hasattr(source, "read"):
        return _from_bytes(_read(source), "the open file")
    if hasattr(source, "__array__"):
        return _from_array(source)
    kind = type(source).__name__ + (f" of {len(source)}" if isinstance(source, (list, tuple)) else "")
    expected = "a path, a URL, bytes, an open file, a PIL image, an array or a tensor"
    raise BadImage(f"one picture was expected, not a {kind}; pass {expected}")


def open_stored(data: bytes, what: str) -> Image.Image:
    """The picture inside a file of ours, which somebody else may have written: as guarded as ``open_image``.

    Args:
        data: PNG, JPEG or WebP.
        what: it is, for the sentence: "picture 0 of run.trace".

    Raises:
        BadFile: it is of another format, damaged, cut short, or has no pixels or too many.
    """
    try:
        return _decode(io.BytesIO(data), what, STORED_FORMATS)
    except BadImage as error:
        raise BadFile(str(error)) from None


def check_density(pictures: Sequence[bytes], what: str) -> None:
    """Refuse the pictures of one file where a few bytes stand for more than memory should hold.

    Args:
        pictures: as ``open_stored`` takes them.
        what: the file is, for the sentence.

    Raises:
        BadFile: they are many pixels and few bytes.
    """
    pixels = 0
    for data in pictures:
        with suppress(Exception), Image.open(io.BytesIO(data), formats=STORED_FORMATS) as image:
            pixels += image.width * image.height  # what is no picture is told where it is opened
    size = sum(map(len, pictures))
    if pixels > max(MAX_PIXELS, _DENSEST * size):
        raise BadFile(f"the pictures of {what} have {pixels:,} pixels in {size:,} bytes, more than are held at once")


def stored_bytes(image: Image.Image) -> bytes:
    """What ``open_stored`` gives exactly this picture back from: the photograph's own file, or a PNG.

    ``open_image`` remembers the file of a JPEG or lossy WebP, a fifth of the size of a PNG. A picture that has been
    painted on since no longer equals it, and becomes a PNG.

    Args:
        image: RGB.
    """
    encoded: bytes | None = getattr(image, _ENCODED, None)
    if encoded is not None and image.width * image.height <= _DENSEST * len(encoded):
        with suppress(BadFile):
            again = open_stored(encoded, "the picture")
            if again.size == image.size and again.tobytes() == image.tobytes():
                return encoded
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)  # a tenth of the time of level 6, for a few per cent more bytes
    return file.getvalue()


def fingerprint(image: Image.Image) -> str:
    """Sha256 of the size and the pixels, in hex: equal for equal pictures, whatever file they came from.

    Args:
        image: a picture as ``open_image`` returns it.

    Raises:
        BadImage: the picture is not RGB.
    """
    if image.mode != "RGB":
        raise BadImage(f"a fingerprint needs an RGB picture, not mode {image.mode!r}; call open_image first")
    return hashlib.sha256(b"%dx%d:" % image.size + image.tobytes()).hexdigest()


def _from_string(text: str, allow_private: bool) -> Image.Image:
    scheme = re.match(r"(data):|[a-z][a-z0-9+.-]+://", text, re.IGNORECASE)
    if scheme is None:
        return _from_path(text)
    if scheme[1]:
        return _from_bytes(_data_url(text), "the data: URL")
    return _from_bytes(download(text, allow_private), shown(text))


def _from_path(source: str | os.PathLike[str]) -> Image.Image:
    name = shortened(repr(os.fspath(source)))
    if not os.fspath(source):
        raise BadImage("the path of the picture is empty; pass a path, a URL or the picture itself")
    with refusing(f"{name} cannot be opened"):
        path = Path(source).expanduser()
        if path.is_file():
            with path.open("rb") as file:
                return _decode(file, name)
        what = "is a directory" if path.is_dir() else "is not a file that exists"
        raise BadImage(f"{name} {what}; a string is a path, an http(s) URL or a data: URL of one picture")


def _read(file: Any) -> bytes:
    with refusing("the open file cannot be read"):
        if hasattr(file, "seekable") and file.seekable():
            file.seek(0)  # as PIL does: a buffer that was just written stands at its end
        data = file.read()
    if not isinstance(data, bytes):
        raise BadImage(f"the open file gave {type(data).__name__}, not bytes; open it with mode 'rb'")
    return data


def _data_url(url: str) -> bytes:
    header, comma, body = url.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        raise BadImage("the data: URL is not base64; expected 'data:image/png;base64,...'")
    with refusing("the data: URL is damaged or cut short"):
        return base64.b64decode(b"".join(unquote_to_bytes(body).split()), validate=True)


def _from_bytes(data: bytes, name: str) -> Image.Image:
    if not data:
        raise BadImage(f"{name} is empty, no picture")
    return _decode(io.BytesIO(data), name)


def _decode(file: IO[bytes], name: str, formats: tuple[str, ...] | None = None) -> Image.Image:
    with refusing(f"{name} cannot be decoded"):
        try:
            image = Image.open(file, formats=formats)
        except UnidentifiedImageError:
            kinds = "is not a picture that PIL can read" if formats is None else f"is not {', '.join(formats)}"
            raise BadImage(f"{name} {kinds}") from None
        upright = _from_pil(image, name)
        _remember(upright, image.format, file)
    return upright


def _remember(upright: Image.Image, format: str | None, file: IO[bytes]) -> None:
    """Keep the file beside the pixels where it is lossy; no more than the pixels themselves take."""
    if format not in ("JPEG", "MPO", "WEBP"):
        return
    most = 3 * upright.width * upright.height
    file.seek(0)
    data = file.read(most + 1)
    if len(data) <= most and (format != "WEBP" or _is_lossy_webp(data)):
        setattr(upright, _ENCODED, data)


def _is_lossy_webp(data: bytes) -> bool:
    """Whether its chunks hold one lossy picture; an animation keeps its pictures deeper."""
    at = 12  # behind RIFF, the length and WEBP
    while at + 8 <= len(data):
        if data[at : at + 4] == b"VP8 ":
            return True
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + length + length % 2
    return False


def _from_pil(image: Image.Image, name: str) -> Image.Image:
    if image.format in _HANDED_ON and getattr(image, "tile", None):  # not yet loaded
        raise BadImage(f"{name} is {image.format}, {_HANDED_ON[image.format]}; save it as PNG")
    share = 2 if image.format in _HELD_TWICE else 1
    _check_size(image.size, name, MAX_PIXELS // share)
    with refusing(f"{name} cannot be decoded"):
        image.load()
        _check_size(image.size, name)  # an icon may be larger than it said
        turn = _turn(image)
        upright = _to_rgb(image, turn, name)
    upright.info = {}  # no orientation is left that a second reader could apply again
    if (encoded := getattr(image, _ENCODED, None)) is not None and turn is None:
        setattr(upright, _ENCODED, encoded)  # of a picture that came from here: its exact copy
    return upright


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How a loaded picture is put upright: a PNG may say it last, and PIL itself turns a TIFF."""
    try:
        return _TURN.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # unreadable EXIF says nothing: as stored, as browsers show it
        return None


def _to_rgb(image: Image.Image, turn: Image.Transpose | None, name: str) -> Image.Image:
    """A copy, upright, made in bands of rows."""
    width, height = image.size
    upright = Image.new("RGB", (height, width) if turn in _SIDEWAYS else (width, height))
    rows = max(1, _BAND // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        band = _band_to_rgb(image if rows >= height else image.crop((0, top, width, bottom)), name)
        start = height - bottom if turn in _LAST_ROW_FIRST else top
        place = (start, 0) if turn in _SIDEWAYS else (0, start)
        upright.paste(band if turn is None else band.transpose(turn), place)
    return upright


def _band_to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        image = _deep_grey(image, name)
    if not image.has_transparency_data:
        return image.convert("RGB")
    straight = image.convert("LA") if image.mode == "La" else image
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, straight.convert("RGBA")).convert("RGB")


def _deep_grey(image: Image.Image, name: str) -> Image.Image:
    """Modes I;16, I and F to 8-bit grey: PIL's own conversion clips them, which leaves mostly white."""
    import numpy as np

    values = np.asarray(image)
    if image.mode == "I":  # 32 bits that in practice hold 16
        low, high = values.min(), values.max()
        if low < 0 or high > 65535:
            raise BadImage(f"{name} is 32-bit grey with values {low} to {high}; scale it to uint8 or uint16")
        values = values.astype(np.uint16)
    grey = _eight_bits(values, f"{name} (mode {image.mode})")
    clear = image.info.get("transparency")  # the value that a PNG declares see-through
    return Image.fromarray(grey if clear is None else np.where(values == clear, np.uint8(255), grey))


def _from_array(source: Any) -> Image.Image:
    import numpy as np

    is_tensor = hasattr(source, "detach")
    with refusing(f"the {type(source).__name__} cannot be read as an array"):
        if is_tensor:
            source = source.detach().cpu()
            source = source.float() if source.is_floating_point() else source  # numpy has no bfloat16
        array = np.asarray(source)
    name = f"the {'tensor' if is_tensor else 'array'} of shape {array.shape} and dtype {array.dtype}"
    array = _channels_last(array, is_tensor, name)
    _check_size((array.shape[1], array.shape[0]), name)
    return _to_rgb(Image.fromarray(_eight_bits(array, name)), None, name)


def _channels_last(array: np.ndarray, is_tensor: bool, name: str) -> np.ndarray:
    """As PIL takes it: [H, W], [H, W, 3] or [H, W, 4]."""
    shape = array.shape
    if len(shape) == 2:
        return array
    if len(shape) != 3 or (shape[2] not in _CHANNELS and shape[0] != 3):
        raise BadImage(f"{name} is not one picture; pass [H, W], [H, W, C] with C of 1, 3 or 4, or [3, H, W]")
    if shape[2] not in _CHANNELS:
        return array.transpose(1, 2, 0)
    if is_tensor and shape[0] == 3:  # a tensor has its channels on either side; an array has them last
        raise BadImage(f"{name} may be [3, H, W] or [H, W, {shape[2]}]; pass it as a numpy array [H, W, C]")
    return array[..., 0] if shape[2] == 1 else array


def _eight_bits(values: np.ndarray, name: str) -> np.ndarray:
    import numpy as np

    kind, width = values.dtype.kind, values.dtype.itemsize
    if kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    if kind == "u" and width == 1:
        return values
    if kind == "u" and width == 2:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 = 255 · 257, rounded
    if kind != "f":
        raise BadImage(f"{name} is of no pixel type; pass uint8, uint16, bool or floats in 0..1")
    low, high = float(values.min()), float(values.max())
    if np.isnan(low):
        raise BadImage(f"{name} holds NaN")
    if low < -FLOAT_SLACK or high > 1 + FLOAT_SLACK:
        raise BadImage(f"{name} holds values from {low:.4g} to {high:.4g}; floats must lie in 0..1")
    return np.rint(values.clip(0, 1) * values.dtype.type(255)).astype(np.uint8)


def _check_size(size: tuple[int, int], name: str, most: int | None = None) -> None:
    width, height = size
    most = MAX_PIXELS if most is None else most
    if not width * height:
        raise BadImage(f"{name} has no pixels ({width} × {height})")
    if width * height > most:
        raise BadImage(f"{name} has {width} × {height} pixels, more than {most:,}; scale it down first")
