"""Waiting: a bar of tokens while an answer is generated, a spinner where nothing can be counted; on terminals only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from llava_probe.model import VLM
    from llava_probe.trace.trace import Trace

#: Seconds after which a bar is shown.
_PATIENCE = 2


@contextmanager
def spinner(doing: str) -> Iterator[None]:
    """Something that turns on standard error while this lasts."""
    from rich.console import Console

    with Console(stderr=True).status(doing):
        yield


def generated(vlm: VLM, pictures: Any, question: str | None = None, *, max_new_tokens: int, **asked: Any) -> Trace:
    """Generate under a progress bar of tokens; under beams, which cannot be streamed, under a spinner.

    Args:
        vlm: the model.
        pictures, question, max_new_tokens, **asked: as ``VLM.generate`` takes them.
    """
    if any(asked.get(name, 1) != 1 for name in ("num_beams", "num_return_sequences")):
        with spinner("searching"):
            return vlm.generate(pictures, question, max_new_tokens=max_new_tokens, **asked)
    with tqdm(total=max_new_tokens, unit="token", leave=False, delay=_PATIENCE, disable=None) as bar:
        return vlm.generate(pictures, question, max_new_tokens=max_new_tokens, streamer=_Ticker(bar), **asked)


class _Ticker:
    """Counts generated tokens on a bar; the first call brings the prompt."""

    def __init__(self, bar: Any) -> None:
        self._bar, self._prompt = bar, True

    def put(self, _tokens: Any) -> None:
        if not self._prompt:
            self._bar.update(1)
        self._prompt = False

    def end(self) -> None:
        pass
