"""What a trace was asked for: enough to ask it again, kept and saved with it."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig

from llava_probe.trace.capture import Capture


@dataclass(frozen=True)
class Request:
    """What was asked for, enough to ask it again.

    Attributes:
        prompt: the text the processor was given, image places included; None when ``inputs`` were ready made.
        question: the words as they were asked, before any template: of a chat, the user's last; None where only a
            ready-made prompt or inputs were given.
        messages: the chat it came from, if any, without its pictures.
        inputs: ready-made model inputs by name, if they were given.
        videos: how many frames each video has; these are the last of the pictures.
        answer: ids of the answer that was scored; None for a generation.
        generate: generation arguments; ``processor``: processor arguments.
        seed: given to ``torch.manual_seed`` just before the run.
        batch: how many samples were asked in the same run; ``sequence``: which of the returned ones this is.
        capture: what to keep.
        system: the system message that was put before the question or chat.
        template: arguments of the chat template.
    """

    prompt: str | None
    messages: Any = None
    inputs: Mapping[str, Tensor] | None = None
    videos: tuple[int, ...] = ()
    answer: tuple[int, ...] | None = None
    generate: Mapping[str, Any] = field(default_factory=dict)
    processor: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    batch: int = 1
    sequence: int = 0
    capture: Capture = field(default_factory=Capture)
    question: str | None = None
    system: str | None = None
    template: Mapping[str, Any] = field(default_factory=dict)


def spelled(intervention: Mapping[str, Any]) -> str:
    """An intervention as it was written: ``knock_out(keys='image', layers=[8, 9])``."""
    given = {name: value for name, value in intervention.items() if name != "kind" and value is not None}
    return f"{intervention['kind']}({', '.join(f'{name}={value!r}' for name, value in given.items())})"


@dataclass(frozen=True)
class Unsaved:
    """Stands in a loaded trace for a setting that no file can hold: a logits processor, a streamer."""

    what: str


def to_plain(value: Any) -> Any:
    """A setting as JSON; what JSON cannot say is marked, and what no file can hold is named."""
    if value is None or type(value) in (str, bool, int, float):
        return value
    if type(value) is list:  # a subclass (LogitsProcessorList) is more than its parts
        return [to_plain(part) for part in value]
    if type(value) is tuple:
        return {"__tuple__": [to_plain(part) for part in value]}
    if type(value) is dict:
        if all(type(key) is str for key in value):
            return {key: to_plain(part) for key, part in value.items()}
        return {"__items__": [[to_plain(key), to_plain(part)] for key, part in value.items()]}
    if isinstance(value, IntEnum):
        return int(value)
    if isinstance(value, np.generic):
        return to_plain(value.item())
    if isinstance(value, Tensor):
        return {"__tensor__": value.tolist(), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, torch.dtype):
        return {"__dtype__": str(value).removeprefix("torch.")}
    if isinstance(value, GenerationConfig):
        return {"__generation_config__": value.to_dict()}
    return {"__unsaved__": value.what if isinstance(value, Unsaved) else type(value).__name__}


def from_plain(value: Any) -> Any:
    """What ``to_plain`` was given, or ``Unsaved`` for what no file can hold."""
    if isinstance(value, list):
        return [from_plain(part) for part in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"__tuple__": parts}:
            return tuple(from_plain(part) for part in parts)
        case {"__items__": pairs}:
            return {from_plain(key): from_plain(part) for key, part in pairs}
        case {"__tensor__": numbers, "dtype": dtype}:
            return torch.tensor(numbers, dtype=_dtype(dtype))
        case {"__dtype__": dtype}:
            return _dtype(dtype)
        case {"__generation_config__": settings}:
            return GenerationConfig.from_dict(settings)
        case {"__unsaved__": what}:
            return Unsaved(what)
    return {key: from_plain(part) for key, part in value.items()}


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):  # whatever else torch calls so is no setting
        raise ValueError(f"torch has no dtype {name!r}")
    return found


def own_copy(value: Any) -> Any:
    """A setting as it is now: what its owner does to it later does not change it. An object of theirs stays itself."""
    if type(value) is dict:
        return {key: own_copy(part) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(own_copy(part) for part in value)
    if isinstance(value, Tensor):
        return value.detach().clone()
    return deepcopy(value) if isinstance(value, GenerationConfig | np.ndarray) else value


def settings(request: Request) -> Any:
    """A request as something to compare; its inputs are tensors and left out."""
    plain = {name: to_plain(getattr(request, name)) for name in ("generate", "processor", "messages", "template")}
    return plain, replace(request, inputs=None, generate={}, processor={}, messages=None, template={})


def unsaved(value: Any) -> bool:
    """Whether an ``Unsaved`` stands anywhere in a setting."""
    if isinstance(value, Unsaved):
        return True
    if isinstance(value, Mapping):
        return any(unsaved(part) for part in value.values())
    return isinstance(value, list | tuple) and any(unsaved(part) for part in value)
