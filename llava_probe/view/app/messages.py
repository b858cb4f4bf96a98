"""What the app and the model's process say to one another: described types, in frames of a length and a MessagePack.

The app sends jobs and ``Stop``, the process answers each job with ``Said`` while it speaks and one ``Done`` or
``Failed``. Pictures, traces and pages are files that both can see, and only their paths travel: no tensor is shared.
"""

from __future__ import annotations

import struct
from typing import Annotated, Literal

import msgspec

#: Four bytes before each frame: how long it is.
LENGTH = struct.Struct("<I")
#: Bytes of one frame at most; an answer of some thousand words is far below.
LONGEST_FRAME = 16_000_000

Number = Annotated[int, msgspec.Meta(ge=0)]


class AnswerSettings(msgspec.Struct, frozen=True):
    """How an answer is decoded."""

    max_new_tokens: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 64
    way: Literal["greedy", "sampling", "beams"] = "greedy"
    temperature: Annotated[float, msgspec.Meta(gt=0, le=10)] = 1.0
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    beams: Annotated[int, msgspec.Meta(ge=2, le=16)] = 4
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**62)] = 0

    @property
    def arguments(self) -> dict[str, object]:
        """By the names that ``VLM.generate`` takes: what the way does not use is left out."""
        told: dict[str, object] = {"max_new_tokens": self.max_new_tokens}
        if self.way == "sampling":
            told |= {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "seed": self.seed}
        else:
            told |= {"do_sample": False, "num_beams": self.beams if self.way == "beams" else 1}
        return told


class MarkedPart(msgspec.Struct, frozen=True):
    """A box on the photograph, in pixels of the original, that is taken away or alone left."""

    box: tuple[float, float, float, float]
    how: Literal["without", "only"] = "without"
    image: Number = 0
    ring: Annotated[int, msgspec.Meta(ge=0, le=8)] = 1


class Ask(msgspec.Struct, frozen=True, tag="ask"):
    """A question about the picture in ``folder``, where what comes of it goes.

    With ``cut`` it is asked under that intervention and shown beside the plain answer, whose trace lies there too.
    """

    id: str
    folder: str
    question: str
    settings: AnswerSettings
    cut: MarkedPart | None = None


class Export(msgspec.Struct, frozen=True, tag="export"):
    """The run in ``folder`` as a file of another kind."""

    id: str
    folder: str
    kind: Literal["page", "figures", "everything"]


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """End that answer at its next token."""

    id: str


class Load(msgspec.Struct, frozen=True, tag="load"):
    """The first thing that is said: which model, with the arguments of ``lp.load``."""

    name: str
    settings: dict[str, str | bool] = {}


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The model stands."""

    told: str


class NotLoaded(msgspec.Struct, frozen=True, tag="refused"):
    """The model cannot be loaded, and why."""

    sentence: str


class Said(msgspec.Struct, frozen=True, tag="words"):
    """All that was said of an answer so far."""

    id: str
    text: str


class Done(msgspec.Struct, frozen=True, tag="done"):
    """A job ended well: its files are in its folder."""

    id: str
    text: str = ""
    tokens: int = 0
    seconds: float = 0.0
    ended: Literal["", "stopped", "cut off"] = ""
    notes: list[str] = []


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """A job ended, and why."""

    id: str
    sentence: str


Job = Ask | Export
ToProcess = Load | Ask | Export | Stop
FromProcess = Ready | NotLoaded | Said | Done | Failed

_encoder = msgspec.msgpack.Encoder()


def framed(message: ToProcess | FromProcess) -> bytes:
    """A message as bytes on a pipe."""
    data = _encoder.encode(message)
    return LENGTH.pack(len(data)) + data


to_process = msgspec.msgpack.Decoder(ToProcess)
from_process = msgspec.msgpack.Decoder(FromProcess)
