"""How a planned scene becomes pixels, in two ways that agree.

The master picture is 336 × 336. The model sees 112 × 112, and training has a millisecond for a picture, so it draws
at 112 directly, with alpha masks that are bicubic reductions of the master's. Painting is linear in the masks and every
object stands on the coarse grid: what comes out is what the processor makes of the master, up to rounding and noise.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from math import cos, pi, radians, sin
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from llava_probe.tiny.plan import CAPTION, CAPTION_BOX, FRAME, HEART, MARGIN, SIGN, UNITS, Item

SCALE = 3
MASTER = UNITS * SCALE

_FONTS = ("DejaVuSans-Bold.ttf", "DejaVuSans.ttf", "DejaVuSerif-Bold.ttf", "DejaVuSansMono-Bold.ttf")
_SUPERSAMPLING = 4
_PAINT = {
    "red": (212, 38, 38), "green": (40, 160, 60), "blue": (40, 80, 215), "yellow": (242, 220, 45),
    "orange": (245, 135, 15), "purple": (145, 50, 175), "white": (247, 247, 247), "black": (16, 16, 16),
}  # fmt: skip
_SIGN_RED = (188, 24, 32)
_SIGN_WHITE = (245, 245, 245)
_FAINT = 0.45  # how much of a caption's white is laid on the ground
_COLOUR_JITTER = 12
NOISE = 12.0  # greatest standard deviation of the master's noise, of 255
_REDUCED_NOISE = 0.4  # what the bicubic reduction leaves of a standard deviation


def draw(items: tuple[Item, ...], seed: int, scale: int = SCALE) -> tuple[np.ndarray, list[np.ndarray]]:
    """Paint a plan.

    Args:
        items: the planned objects.
        seed: fixes background, noise and shades.
        scale: 3 for the master picture, 1 for what the model would see of it.

    Returns:
        pixels [side, side, 3] uint8, and for each object its mask [side, side] bool.
    """
    rng = np.random.default_rng(seed)
    picture = _background(rng, UNITS * scale)
    masks = []
    for item in items:
        shade = rng.integers(-_COLOUR_JITTER, _COLOUR_JITTER + 1, 3)
        masks.append(_paint(picture, item, shade, scale))
    noise = rng.uniform(0, NOISE) * (1.0 if scale == SCALE else _REDUCED_NOISE)
    picture += noise * rng.standard_normal(picture.shape, dtype=np.float32)
    return picture.clip(0, 255).round().astype(np.uint8), masks


def resize_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """The mask [size, size] of the pixels that a mask covers by half or more after bicubic resizing."""
    resized = Image.fromarray(mask.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(resized) >= 0.5


def letter_boxes(item: Item) -> list[tuple[str, float, float, float, float]]:
    """Each letter of a sign's word with its box (x0, y0, x1, y1) in units of the picture."""
    _, boxes = _word(item.text, item.font, item.radius)
    left, top = item.x - item.radius - MARGIN, item.y - item.radius - MARGIN
    return [(letter, x0 + left, y0 + top, x1 + left, y1 + top) for letter, x0, y0, x1, y1 in boxes]


def _background(rng: np.random.Generator, side: int) -> np.ndarray:
    """A grey, faintly tinted gradient between four corners, [side, side, 3] float32."""
    grey = rng.uniform(85, 170) + rng.uniform(-25, 25, (2, 2, 1))
    corners = grey + rng.uniform(-14, 14, (2, 2, 3))
    along = np.linspace(0, 1, side, dtype=np.float32)
    blend = np.stack([1 - along, along], 1)  # [side, 2]
    return np.einsum("yi,xj,ijc->yxc", blend, blend, corners.astype(np.float32), optimize=True)


def _paint(picture: np.ndarray, item: Item, shade: np.ndarray, scale: int) -> np.ndarray:
    reach = item.radius + MARGIN
    top, left, side = (item.y - reach) * scale, (item.x - reach) * scale, 2 * reach * scale
    window = np.s_[top : top + side, left : left + side]
    region = picture[window]
    outline, coats = _coats(item, shade, scale)
    for alpha, paint in coats:
        region += alpha[..., None] * (np.asarray(paint, np.float32) - region)
    mask = np.zeros(picture.shape[:2], bool)
    mask[window] = outline >= 0.5
    return mask


def _coats(item: Item, shade: np.ndarray, scale: int) -> tuple[np.ndarray, list[tuple[np.ndarray, Any]]]:
    """What of a window [side, side] an object covers, and the paints that are laid on it in turn."""
    if item.kind == SIGN:
        outline, face, word = _sign(item.text, item.font, item.radius, scale)
        return outline, [(outline, _SIGN_WHITE), (face, _SIGN_RED + shade), (word, _SIGN_WHITE)]
    if item.kind == CAPTION:
        box, word = _caption(item.text, item.font, scale)
        return box, [(_FAINT * word, _SIGN_WHITE)]
    outline = _frame(scale) if item.kind == FRAME else _shape(item.kind, item.radius, item.turn, scale)
    return outline, [(outline, _PAINT[item.colour] + shade)]


@cache
def _shape(kind: str, radius: int, turn: int, scale: int) -> np.ndarray:
    """The alpha mask of a shape, [side, side] float32 with side = 2 (radius + MARGIN) scale."""
    return _at_scale(_filled(kind, radius, turn), scale)


@cache
def _sign(text: str, font: int, radius: int, scale: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Alpha masks of a sign's white outline, its red face and the word on it."""
    outline = _filled("octagon", radius, 0)
    face = _filled("octagon", radius, 0, shrink=0.9)
    word, _ = _word(text, font, radius)
    return _at_scale(outline, scale), _at_scale(face, scale), _at_scale(word, scale)


def _frame(scale: int) -> np.ndarray:
    """A border along the picture's edge, as wide as objects keep away from it."""
    covered = np.ones((UNITS * scale, UNITS * scale), np.float32)
    covered[MARGIN * scale : -MARGIN * scale, MARGIN * scale : -MARGIN * scale] = 0
    return covered


@cache
def _caption(text: str, font: int, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """A word at the bottom right of the picture: the box that it has to itself, and its letters."""
    width, height = (side * SCALE for side in CAPTION_BOX)
    left, top = MASTER - width, MASTER - height
    edge = MARGIN * SCALE
    typeface = _fitting(text, _FONTS[font], width=width - 2 * edge, height=height - 2 * edge)
    x0, y0, x1, y1 = typeface.getbbox(text)
    box, word = Image.new("L", (MASTER, MASTER)), Image.new("L", (MASTER, MASTER))
    ImageDraw.Draw(box).rectangle((left, top, left + width - 1, top + height - 1), fill=255)
    at = (left + (width - x0 - x1) / 2, top + (height - y0 - y1) / 2)
    ImageDraw.Draw(word).text(at, text, fill=255, font=typeface)
    return _at_scale(box, scale), _at_scale(word, scale)


def _at_scale(master: Image.Image, scale: int) -> np.ndarray:
    alpha = Image.fromarray(np.asarray(master, np.float32) / 255)
    if scale != SCALE:
        side = master.width * scale // SCALE
        alpha = alpha.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(alpha)


def _filled(kind: str, radius: int, turn: int, shrink: float = 1.0) -> Image.Image:
    side = 2 * (radius + MARGIN) * SCALE * _SUPERSAMPLING
    image = Image.new("L", (side, side))
    pen = ImageDraw.Draw(image)
    centre, reach = side / 2, radius * SCALE * _SUPERSAMPLING * shrink
    if kind in ("circle", "ring"):
        _disc(pen, centre, reach * 0.95, 255)
        if kind == "ring":
            _disc(pen, centre, reach * 0.52, 0)
    else:
        angle = radians(turn)
        corners = [
            (centre + reach * (x * cos(angle) - y * sin(angle)), centre + reach * (x * sin(angle) + y * cos(angle)))
            for x, y in _CORNERS[kind]
        ]
        pen.polygon(corners, fill=255)
    return image.reduce(_SUPERSAMPLING)


def _disc(pen: ImageDraw.ImageDraw, centre: float, radius: float, fill: int) -> None:
    pen.ellipse((centre - radius, centre - radius, centre + radius, centre + radius), fill=fill)


def _heart(corners: int) -> list[tuple[float, float]]:
    """Corners of a heart: x = 16 sin³ t, y = 13 cos t − 5 cos 2t − 2 cos 3t − cos 4t."""
    turns = [2 * pi * i / corners for i in range(corners)]
    return [(sin(t) ** 3, -(13 * cos(t) - 5 * cos(2 * t) - 2 * cos(3 * t) - cos(4 * t) + 2.5) / 16) for t in turns]


def _around(count: int, start: float, radii: tuple[float, ...]) -> list[tuple[float, float]]:
    """Corners at equal angles, clockwise from ``start`` turns after the top, at the radii in turn."""
    angles = [2 * pi * (i / count + start) for i in range(count)]
    return [(radii[i % len(radii)] * sin(a), -radii[i % len(radii)] * cos(a)) for i, a in enumerate(angles)]


_ARM = 0.32
_CORNERS = {
    "square": _around(4, 1 / 8, (1.0,)),
    "triangle": _around(3, 0, (1.0,)),
    "star": _around(10, 0, (1.0, 0.42)),
    HEART: _heart(48),
    "octagon": _around(8, 1 / 16, (1.0,)),
    "cross": [
        (_ARM, -0.95), (_ARM, -_ARM), (0.95, -_ARM), (0.95, _ARM), (_ARM, _ARM), (_ARM, 0.95),
        (-_ARM, 0.95), (-_ARM, _ARM), (-0.95, _ARM), (-0.95, -_ARM), (-_ARM, -_ARM), (-_ARM, -0.95),
    ],
}  # fmt: skip


@cache
def _word(text: str, font: int, radius: int) -> tuple[Image.Image, list[tuple[str, float, float, float, float]]]:
    """A word as wide as a sign's face, and its letters' boxes in units from the mask's corner."""
    side = 2 * (radius + MARGIN) * SCALE
    image = Image.new("L", (side, side))
    typeface = _fitting(text, _FONTS[font], width=1.52 * radius * SCALE, height=0.75 * radius * SCALE)
    x0, y0, x1, y1 = typeface.getbbox(text)
    left, top = (side - x0 - x1) / 2, (side - y0 - y1) / 2
    ImageDraw.Draw(image).text((left, top), text, fill=255, font=typeface)
    ends = [left + typeface.getlength(text[:i]) for i in range(len(text) + 1)]
    boxes = [
        (letter, ends[i] / SCALE, (top + y0) / SCALE, ends[i + 1] / SCALE, (top + y1) / SCALE)
        for i, letter in enumerate(text)
    ]
    return image, boxes


def _fitting(text: str, name: str, width: float, height: float) -> ImageFont.FreeTypeFont:
    """The largest whole size of a typeface at which the text keeps within a width and a height."""
    size = 8
    while True:
        x0, y0, x1, y1 = _typeface(name, size + 1).getbbox(text)
        if x1 - x0 > width or y1 - y0 > height:
            return _typeface(name, size)
        size += 1


@cache
def _typeface(name: str, size: int) -> ImageFont.FreeTypeFont:
    """A typeface that matplotlib ships; found without the second that importing matplotlib takes."""
    spec = find_spec("matplotlib")
    if spec is None or not spec.origin:
        raise ModuleNotFoundError("signs are lettered in the typefaces that matplotlib ships: pip install matplotlib")
    return ImageFont.truetype(Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / name, size)
