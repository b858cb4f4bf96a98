"""What comes in as a picture: so many bytes, so many pixels, and only what opens as one.

Nothing is read that the browser did not send: no path and no URL of a client is ever opened, and the name of an
uploaded file is not used for anything.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

from PIL import Image

from llava_probe.errors import BadImage
from llava_probe.pictures.images import fingerprint, open_image

#: A million, as in megabytes and megapixels.
MILLION = 1_000_000
#: What is shown before anything is asked, in pixels of the longer side.
_PREVIEW = 900


@dataclass(frozen=True)
class UploadLimits:
    """What may come in.

    Attributes:
        megabytes, megapixels: of one picture.
        new_tokens: of one answer.
    """

    megabytes: float = 20.0
    megapixels: float = 50.0
    new_tokens: int = 256

    @property
    def bytes(self) -> int:
        """Of one picture."""
        return int(self.megabytes * MILLION)


@dataclass(frozen=True)
class Upload:
    """A picture that was opened: its format and size in pixels, its pixels' digest, and a small JPEG of it."""

    format: str
    size: tuple[int, int]
    digest: str
    preview: bytes


def opened_upload(data: bytes, limits: UploadLimits) -> Upload:
    """Open what was uploaded, as guarded as any file of a stranger.

    Raises:
        BadImage: it is no picture, is damaged, or has more bytes or pixels than are taken.
    """
    if len(data) > limits.bytes:
        raise BadImage(too_large(limits))
    try:
        with Image.open(io.BytesIO(data)) as image:  # the header alone: nothing is decoded
            format, (width, height) = image.format or "PNG", image.size
    except Image.DecompressionBombError:
        raise BadImage(_too_many_pixels(limits)) from None
    except Exception:  # which the guarded reader tells in a sentence
        format, width, height = "PNG", 0, 0
    if width * height > limits.megapixels * MILLION:
        raise BadImage(_too_many_pixels(limits))
    try:
        picture = open_image(data)
    except BadImage as error:
        raise BadImage(str(error).replace("the bytes object", "this file")) from None
    if picture.width * picture.height > limits.megapixels * MILLION:  # an icon may be larger than it said
        raise BadImage(_too_many_pixels(limits))
    size, digest = picture.size, fingerprint(picture)
    picture.thumbnail((_PREVIEW, _PREVIEW))
    return Upload(format, size, digest, as_jpeg(picture))


def _too_many_pixels(limits: UploadLimits) -> str:
    return f"this picture has more than the {limits.megapixels:g} million pixels that are taken; scale it down first"


def too_large(limits: UploadLimits) -> str:
    """What is said of too many bytes."""
    return f"this file is larger than the {limits.megabytes:g} MB that are taken; send a smaller one"


def as_jpeg(picture: Image.Image) -> bytes:
    """A picture to look at."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return file.getvalue()
