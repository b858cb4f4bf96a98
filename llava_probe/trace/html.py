"""A trace as a piece of HTML: the photograph, and the answer with each token shaded by how likely it was.

A notebook shows it by itself. Pure text out: no scripts, no styles of its own beyond inline ones, nothing fetched.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

from PIL import Image

_THUMBNAIL = 280


def trace_html(
    images: Sequence[Image.Image],
    asked: str,
    said: Sequence[str],
    probabilities: Sequence[float] | None = None,
    kept: str = "",
) -> str:
    """The photographs side by side above the prompt's words and the shaded answer.

    Args:
        images: the photographs.
        asked: the prompt's words.
        said: the text of each generated token; ``probabilities``: theirs, where they are known.
        kept: what else the trace holds, in a line.
    """
    pictures = "".join(picture_html(image) for image in images)
    return (
        '<div style="font-family:system-ui,sans-serif;max-width:60em">'
        f"<div>{pictures}</div>"
        f'<div style="opacity:.7;white-space:pre-wrap;margin:.4em 0">{escape(asked.strip())}</div>'
        f'<div style="font-size:1.15em;line-height:1.9">{answer_html(said, probabilities)}</div>'
        f'<div style="opacity:.55;font-size:.8em;margin-top:.5em">darker: more likely · kept: {escape(kept)}</div>'
        "</div>"
    )


def answer_html(said: Sequence[str], probabilities: Sequence[float] | None = None) -> str:
    """The generated tokens, each on a shade of its probability, with the number on hover."""
    shaded = []
    shades: Sequence[float | None] = probabilities or [None] * len(said)
    for text, probability in zip(said, shades, strict=True):
        shown = escape(text).replace("\n", "⏎")
        if probability is None:
            shaded.append(f'<span style="white-space:pre-wrap">{shown}</span>')
        else:
            shaded.append(
                f'<span title="p = {probability:.3f}" style="white-space:pre-wrap;border-radius:.2em;padding:.15em 0;'
                f'background:rgba(33,113,181,{0.08 + 0.5 * probability:.2f})">{shown}</span>'
            )
    return "".join(shaded)


def picture_html(image: Image.Image, side: int = _THUMBNAIL) -> str:
    """The picture as an inline JPEG, at most ``side`` pixels wide and high."""
    small = image.copy()
    small.thumbnail((side, side))
    jpeg = io.BytesIO()
    small.save(jpeg, format="JPEG", quality=88)
    data = base64.b64encode(jpeg.getvalue()).decode()
    return f'<img alt="the picture" style="margin:0 .5em .3em 0" src="data:image/jpeg;base64,{data}">'
