"""What is seen of a run where no script runs: its pictures under their maps, and the answer's words, the doubtful ones marked.

Plain HTML with inline styles, which light and dark pages can carry, and nothing fetched.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from PIL import Image

from llava_probe.analyzers.attention import attention_map
from llava_probe.analyzers.confidence import confidence
from llava_probe.errors import ProbeError
from llava_probe.escaping import in_html
from llava_probe.trace.trace import Trace
from llava_probe.view.page.runs import Run
from llava_probe.view.terminal import notes

_SIDE = 280
#: Below this probability a word is underlined.
_DOUBT = 0.5


def still(runs: Sequence[Run]) -> str:
    """A block for each run: pictures, question, answer."""
    return "".join(_block(run) for run in runs)


def _block(run: Run) -> str:
    trace = run.trace
    pictures = "".join(_picture(image) for image in _painted(run))
    asked = said = told = ""
    if trace is not None:
        asked = in_html(trace.question or trace.request.prompt or "")
        said = _answer(trace)
        told = "".join(f'<div style="opacity:.75;font-size:.85em">{in_html(note)}</div>' for note in notes(trace))
    return (
        '<div style="font-family:system-ui,sans-serif;max-width:60em">'
        f"<div>{pictures}</div>"
        f'<div style="opacity:.75;white-space:pre-wrap">{asked}</div>'
        f'<div style="font-size:1.15em;line-height:1.9;white-space:pre-wrap;overflow-wrap:anywhere">{said}</div>{told}</div>'
    )


def _answer(trace: Trace) -> str:
    """The words, each on amber as doubtful as it was, with its probability on hover."""
    try:
        probabilities = confidence(trace).probability.tolist()
    except ProbeError:
        return in_html(trace.answer)
    return "".join(
        f'<span title="p = {p:.3f}" style="border-radius:.2em;background:rgba(224,138,0,{0.6 * (1 - p):.2f})'
        f'{";text-decoration:underline" if p < _DOUBT else ""}">{in_html(token.text)}</span>'
        for token, p in zip(trace.generated, probabilities, strict=True)
    )


def _painted(run: Run) -> list[Image.Image]:
    """Each picture under the mean of its map, where there is one."""
    pictures = []
    for number, image in enumerate(run.images):
        m = next((m for where, m in run.maps if where == number), None)
        if m is None and run.trace is not None and run.trace.kept("attention"):
            try:
                m = attention_map(run.trace, number)
            except ProbeError:
                m = None
        pictures.append(image if m is None else m.overlay(side=_SIDE))
    return pictures


def _picture(image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    small.save(file, format="JPEG", quality=85)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="the picture, and where the model looked" style="margin:0 .5em .3em 0" src="data:image/jpeg;base64,{data}">'
