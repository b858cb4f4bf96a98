"""Samples that ``compare_models`` is done with, a file each, so that a run that was cut off goes on with the next one.

    finished = FinishedSamples("compared/", (base, tuned), 64)
    finished.read(sample)              # what was measured of it; None where it is not done
    finished.write(sample, measured)

A file is whole or absent and its numbers come back to the bit, so the run ends with those of an undisturbed one.
``run.json`` says which models and settings they are of, each file of what sample it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from llava_probe.asking.identity import model_of, processor_of
from llava_probe.claimed import claim
from llava_probe.compare.drift import STATE_GROUPS
from llava_probe.compare.unrelated import PLACES_READ
from llava_probe.described import Natural, Stored
from llava_probe.errors import BadInput
from llava_probe.features.samples import Sample
from llava_probe.features.values import content_key, plain_value
from llava_probe.inside.passes import in_force
from llava_probe.model import VLM
from llava_probe.stored import decoded, made_folder
from llava_probe.whole_file import Axes, check_tensors, checksum, read_tensors, write_tensors

#: What drifts, by the names under which it is gathered.
DRIFTS = {group: f"drift {group}" for group in STATE_GROUPS}

#: How many axes each measured value has.
_AXES = {
    "logprob": 0,
    "kl": 1,
    "looked": 2,
    "shares": 3,
    "own": 2,
    **dict.fromkeys(DRIFTS.values(), 1),
    **{f"{place} {model}": 2 for place in PLACES_READ for model in "ab"},
}

_WHAT, _KEY, _HEADER, _FORMAT = "finished sample", "llava_probe.compared", "sample", 1


@dataclass(frozen=True, eq=False)
class MeasuredSample:
    """What was measured of one sample.

    Attributes:
        a, b: what the models said; ``parting``: the layer from which on each would say its own.
        attending: the layers and heads of attention, empty where none was compared.
        dropped: visual tokens that are sinks, and all of them.
        reasons: why something could not be measured, by its name.
        values: by name; what could not be measured is not there.
    """

    a: str
    b: str
    parting: int | None
    attending: tuple[tuple[int, ...], tuple[int, ...]]
    dropped: tuple[int, int]
    reasons: Mapping[str, str]
    values: Mapping[str, Tensor]


class _Told(Stored, frozen=True):
    """What a file says besides its tensors."""

    asked: str
    a: str
    b: str
    parting: int | None
    attending: tuple[tuple[Natural, ...], tuple[Natural, ...]]
    dropped: tuple[Natural, Natural]
    reasons: dict[str, str]


class FinishedSamples:
    """The files of one run.

    Args:
        folder: made where there is none.
        models: that are compared.
        length: how many tokens an answer has at most.

    Raises:
        BadInput: the folder holds samples of other models or another setting.
        BadFile: it cannot be written, or its note is damaged.
    """

    def __init__(self, folder: str | Path, models: tuple[VLM, VLM], length: int) -> None:
        self._folder = made_folder("finished samples", folder)
        second = model_of(models[1].anatomy, models[1].model, in_full=True)
        settings = {
            "second": second,
            "second_processor": processor_of(models[1].processor, in_full=True),
            "second_under": list(in_force(models[1].anatomy)),
            "max_new_tokens": length,
        }
        claim(self._folder, models[0], settings, what="compared samples")

    def read(self, sample: Sample) -> MeasuredSample | None:
        """What was measured of a sample, None where it is not done.

        Raises:
            BadInput: another sample has its place.
            BadFile: its file is damaged.
        """
        path = self._path(sample)
        if not path.exists():
            return None
        held = read_tensors(_WHAT, path, key=_KEY, header=_HEADER, newest=_FORMAT)
        told = decoded(f"the header of {path} is damaged", held.header, _Told)
        if told.asked != _asked(sample):
            raise BadInput(f"{path} is of another picture or question than row {sample.row} has; give another folder")
        check_tensors(path, held.tensors, {name: _axes(name) for name in {"logprob", *(held.tensors.keys() & _AXES)}})
        return MeasuredSample(
            told.a, told.b, told.parting, told.attending, told.dropped, told.reasons, dict(held.tensors)
        )

    def write(self, sample: Sample, found: MeasuredSample) -> None:
        """Keep what was measured of a sample."""
        tensors = {name: value.detach().cpu().clone() for name, value in found.values.items()}
        told = {name: getattr(found, name) for name in ("a", "b", "parting", "attending", "dropped", "reasons")}
        header = json.dumps({"asked": _asked(sample), **told})
        named = {_KEY: str(_FORMAT), _HEADER: header, "digest": checksum(header, tensors)}
        write_tensors(_WHAT, self._path(sample), tensors, named)

    def _path(self, sample: Sample) -> Path:
        return self._folder / f"sample_{sample.row:08d}.safetensors"


def _axes(name: str) -> Axes:
    return Axes("f", (None,) * _AXES[name])


def _asked(sample: Sample) -> str:
    """A digest of all that the models are asked."""
    told = [content_key(sample.image), sample.question, sample.prompt, sample.system, plain_value(sample.messages)]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
