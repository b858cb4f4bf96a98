"""A trace as a piece of HTML: the photograph, and the answer with each token shaded by how likely it was.

A notebook shows it by itself. Pure text out: no scripts, no styles of its own beyond inline ones, nothing fetched.
"""

from __future__ import annotations

import base64
import io
from html import escape
from typing import TYPE_CHECKING

import torch
from PIL import Image

if TYPE_CHECKING:
    from llava_probe.trace import Trace

_THUMBNAIL = 280


def trace_html(trace: Trace) -> str:
    """The photographs side by side above the prompt's words and the shaded answer."""
    pictures = "".join(picture_html(image) for image in trace.images)
    asked = "".join(token.text for token in trace.tokens[: trace.prompt_length] if token.role == "prompt")
    kept = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in trace.records.items() if "." not in name)
    return (
        '<div style="font-family:system-ui,sans-serif;max-width:60em">'
        f"<div>{pictures}</div>"
        f'<div style="opacity:.7;white-space:pre-wrap;margin:.4em 0">{escape(asked.strip())}</div>'
        f'<div style="font-size:1.15em;line-height:1.9">{answer_html(trace)}</div>'
        f'<div style="opacity:.55;font-size:.8em;margin-top:.5em">darker: more likely · kept: {escape(kept)}</div>'
        "</div>"
    )


def answer_html(trace: Trace) -> str:
    """The generated tokens, each on a shade of its probability, with the number on hover."""
    probabilities = _probabilities(trace)
    shaded = []
    for token, probability in zip(trace.generated, probabilities, strict=True):
        text = escape(token.text).replace("\n", "⏎")
        if probability is None:
            shaded.append(f'<span style="white-space:pre-wrap">{text}</span>')
        else:
            shaded.append(
                f'<span title="p = {probability:.3f}" style="white-space:pre-wrap;border-radius:.2em;padding:.15em 0;'
                f'background:rgba(33,113,181,{0.08 + 0.5 * probability:.2f})">{text}</span>'
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


def _probabilities(trace: Trace) -> list[float | None]:
    if trace.kept("logits"):
        chosen = trace.logits.gather(1, trace.generated_ids[:, None]).squeeze(1)
        return (chosen - torch.logsumexp(trace.logits, dim=1)).exp().tolist()
    if trace.kept("logits.values"):
        top = trace.top("logits")
        return (top.chosen - top.logsumexp).exp().tolist()
    return [None] * len(trace.generated)
