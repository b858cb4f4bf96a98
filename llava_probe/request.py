"""What a trace was asked for: enough to ask it again, kept and saved with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from llava_probe.capture import Capture


@dataclass(frozen=True)
class Request:
    """What was asked for, enough to ask it again.

    Attributes:
        prompt: the text the processor was given, image places included; None when ``inputs`` were ready made.
        messages: the chat it came from, if any, without its pictures.
        inputs: ready-made model inputs by name, if they were given.
        answer: ids of the answer that was scored; None for a generation.
        generate: generation arguments; ``processor``: processor arguments.
        seed: given to ``torch.manual_seed`` just before the run.
        capture: what to keep.
    """

    prompt: str | None
    messages: Any = None
    inputs: Mapping[str, Tensor] | None = None
    answer: tuple[int, ...] | None = None
    generate: Mapping[str, Any] = field(default_factory=dict)
    processor: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    capture: Capture = field(default_factory=Capture)


@dataclass(frozen=True)
class Unsaved:
    """Stands in a loaded trace for a setting that no file can hold: a logits processor, a streamer."""

    what: str
