"""From whatever you hold to the frames of a video, each one an upright RGB picture of the same size.

    frames = open_video([Image.open(path) for path in paths])    # anything that open_image takes, one a frame
    frames = open_video(array)                                   # [F, H, W, 3] or [F, 3, H, W]
    frames = open_video("clip.gif")                              # an animated GIF, WebP or PNG

The frames given are the frames that the model sees: nothing is sampled here, and a film is not decoded.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from PIL import Image, ImageSequence

from llava_probe.border import checked
from llava_probe.errors import BadImage, refusing, shortened
from llava_probe.pictures.images import MAX_PIXELS, open_image

#: Formats whose frames follow one another in time.
_ANIMATED = ("GIF", "WEBP", "PNG")
_EXPECTED = "a list of frames, an array [F, H, W, 3] or [F, 3, H, W], or an animated GIF or WebP"


@checked
def open_video(source: Any) -> tuple[Image.Image, ...]:
    """The frames of one video.

    Args:
        source: a list of pictures (whatever ``open_image`` takes), an array or tensor [F, H, W, C] or [F, 3, H, W],
            or an animated picture: its path, or as PIL opened it.

    Raises:
        BadImage: no frames, frames of several sizes, a frame that is no picture, or a film that has to be decoded.
    """
    if isinstance(source, str | os.PathLike):
        frames = _from_path(source)
    elif isinstance(source, Image.Image):
        frames = _from_animation(source, "the PIL image")
    elif isinstance(source, list | tuple) or (hasattr(source, "__array__") and getattr(source, "ndim", 0) == 4):
        frames = tuple(open_image(frame) for frame in source)
    else:
        kind = f"{type(source).__name__} of shape {shape}" if (shape := getattr(source, "shape", None)) else source
        raise BadImage(f"a video is {_EXPECTED}; got {shortened(str(kind))}")
    if not frames:
        raise BadImage("the video has no frames; pass at least one")
    for number, frame in enumerate(frames):
        if frame.size != frames[0].size:
            first, other = (f"{one.width} × {one.height}" for one in (frames[0], frame))
            raise BadImage(f"the frames of a video have one size; frame {number} has {other} where frame 0 has {first}")
    return frames


def several_videos(source: Any) -> list[tuple[Image.Image, ...]]:
    """The videos of one question: none, one, or a list of them (lists of frames, arrays of four axes, animations)."""
    if source is None:
        return []
    listed = isinstance(source, list | tuple) and len(source) > 0
    if listed and all(isinstance(one, list | tuple) or getattr(one, "ndim", 0) == 4 or _moves(one) for one in source):
        return [open_video(one) for one in source]
    return [open_video(source)]


def _moves(source: Any) -> bool:
    """Whether a path or a picture is an animation; several pages or a camera's preview are none."""
    if isinstance(source, Image.Image):
        return source.format in _ANIMATED and getattr(source, "n_frames", 1) > 1
    if not isinstance(source, str | os.PathLike):
        return False
    try:
        with Image.open(Path(source).expanduser()) as image:
            return _moves(image)
    except Exception:  # no file, or no picture: what opens it says so
        return False


def _from_path(source: str | os.PathLike[str]) -> tuple[Image.Image, ...]:
    name = shortened(repr(os.fspath(source)))
    with refusing(f"{name} cannot be opened"):
        path = Path(source).expanduser()
        if not path.is_file():
            raise BadImage(f"{name} is not a file that exists; a video is {_EXPECTED}")
    try:
        image = Image.open(path)
    except Exception:  # a film, or nothing that PIL knows
        raise BadImage(f"{name} is no animated picture; decode the film to frames and pass these as a list") from None
    with image:
        return _from_animation(image, name)


def _from_animation(image: Image.Image, name: str) -> tuple[Image.Image, ...]:
    count = getattr(image, "n_frames", 1)
    if count < 2:
        raise BadImage(f"{name} is one picture, not an animation; pass it as image, or a list of frames as video=")
    if count * image.width * image.height > MAX_PIXELS:
        raise BadImage(
            f"{name} has {count} frames of {image.width} × {image.height}, more than {MAX_PIXELS:,} pixels; "
            "pass a list of some of its frames"
        )
    with refusing(f"{name} cannot be decoded"):
        return tuple(open_image(frame) for frame in ImageSequence.Iterator(image))
