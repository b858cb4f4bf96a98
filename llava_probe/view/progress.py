"""Waiting: a bar of tokens while an answer is generated, a spinner where nothing can be counted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    from PIL import Image

    from llava_probe.model import VLM
    from llava_probe.trace.trace import Trace


@contextmanager
def spinner(doing: str) -> Iterator[None]:
    """Something that turns on standard error while this lasts."""
    from rich.console import Console

    with Console(stderr=True).status(doing):
        yield


def generated(
    vlm: VLM,
    pictures: list[Image.Image],
    question: str,
    max_new_tokens: int,
    flags: Mapping[str, Any],
    seed: int | None = None,
) -> Trace:
    """Generate under a progress bar of tokens; under beams, which cannot be streamed, under a spinner."""
    if flags.get("num_beams", 1) > 1 or flags.get("num_return_sequences", 1) > 1:
        with spinner("searching"):
            return vlm.generate(pictures, question, max_new_tokens=max_new_tokens, seed=seed, **flags)
    with tqdm(total=max_new_tokens, unit="token", leave=False, delay=2) as bar:
        return vlm.generate(
            pictures, question, max_new_tokens=max_new_tokens, seed=seed, streamer=_Ticker(bar), **flags
        )


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
