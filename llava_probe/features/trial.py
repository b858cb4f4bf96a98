"""Whether samples may share a pass, found out once for a store before its first shard: what differs is read alone.

It is a matter of the model, not of the data. So it is tried with pictures of our own, asked as the first samples are:
which of their files are there today, and where a run went on, has no say in it.

Hidden states alone cannot tell in 16 bits, whose rounding is larger than what a misplaced token does. So the positions
that the model gives its tokens are compared exactly, and a change of one question must leave the other as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from llava_probe.errors import ProbeError, first_line, shortened
from llava_probe.features.packing import Unpackable
from llava_probe.features.packs import AskingSettings, Batch, Unshared, batch_of
from llava_probe.features.passes import ActivationChoice, read
from llava_probe.features.samples import Sample
from llava_probe.features.values import shows_pictures
from llava_probe.inside.passes import Others, Visitor
from llava_probe.inside.tolerance import STATES
from llava_probe.model import VLM

#: What a sample may be to blame for: what the processor, the model or the memory refuses of it.
OF_A_SAMPLE = (ProbeError, OSError, RuntimeError, ValueError, MemoryError)

#: How far one question's states may move with another one's words, in epsilons: not at all, up to a kernel's sums.
ISOLATION = 4.0


#: Pairs of questions that are tried for two that can be asked.
_TRIALS = 5

#: Width and height in pixels of the pictures; a family may refuse two shapes in a pass and take two of one.
_SHAPES = (((120, 90), (90, 120)), ((120, 90), (120, 90)))


_ALONE = "there is one sample"


@dataclass(frozen=True)
class Sharing:
    """What may share a pass.

    Attributes:
        unpacked: why questions about one picture are read apart; empty where they share its prefix.
        unbatched: why each picture is read alone; empty where several share a pass.
    """

    unpacked: str
    unbatched: str


def sharing_of(
    vlm: VLM, samples: Sequence[Sample], asking: AskingSettings, *, unpacked: str | None, batch_size: int
) -> Sharing:
    """Try what may share a pass.

    Args:
        vlm: the model.
        samples: the first of the source; how they ask is taken from them, not their pictures.
        asking: what is the same for all of them.
        unpacked: why questions are read apart, where that is known.
        batch_size: questions a pass.
    """
    if len(samples) < 2:
        return Sharing(_ALONE, _ALONE)
    whole = [sample for sample in samples if sample.fault is None]
    whole = [sample for sample in whole if sample.picture] or whole
    if unpacked is None:
        bare = [sample if sample.picture else replace(sample, image=[None]) for sample in whole]
        unpacked = _tried(vlm, differs_packed, bare, asking, _SHAPES[1:])
    unbatched = "batch_size=1"
    if batch_size > 1:
        unbatched = _tried(vlm, differs_beside, whole, asking, _SHAPES)
    return Sharing(unpacked, unbatched)


def _tried(
    vlm: VLM,
    differs: Callable[[VLM, Sequence[Sample], AskingSettings], str | None],
    samples: Sequence[Sample],
    asking: AskingSettings,
    shapes: Sequence[tuple[tuple[int, int], tuple[int, int]]],
) -> str:
    """Why two samples may not share a pass; empty where they may."""
    why = "no sample to try it with"
    for sample in samples[:_TRIALS]:
        like = (other for other in samples if other.words != sample.words and _form(other) == _form(sample))
        other = next(like, _otherwise(sample))
        for sizes in shapes:
            two = [_shown(each, size, row) for row, (each, size) in enumerate(zip((sample, other), sizes, strict=True))]
            try:
                return differs(vlm, two, asking) or ""
            except Unpackable as error:
                return str(error)
            except OF_A_SAMPLE as error:
                why = f"two questions could not be asked together: {shortened(first_line(error))}"
    return why


def _form(sample: Sample) -> tuple[bool, bool, int]:
    return sample.prompt is None, sample.messages is None, len(sample.images)


def _otherwise(sample: Sample) -> Sample:
    """The same picture asked something else; a chat as it is."""
    if sample.prompt is not None:
        return replace(sample, prompt=f"{sample.prompt} Why?")
    return sample if sample.question is None else replace(sample, question=f"{sample.question} Why?")


def _shown(sample: Sample, size: tuple[int, int], row: int) -> Sample:
    """A sample with pictures of our own in the places of its pictures."""
    image = [_slope(size, number) for number in range(len(sample.images))] or None
    messages = sample.messages
    if messages is not None:
        number = iter(range(10**6))
        messages = [_shown_in(message, size, number) for message in messages]
    return replace(sample, image=image, messages=messages, answer=None, mask=None, row=row)


def _shown_in(message: Mapping[str, Any], size: tuple[int, int], numbers: Iterator[int]) -> Mapping[str, Any]:
    content = message.get("content")
    if not isinstance(content, list):
        return message
    parts = [
        {"type": "image", "image": _slope(size, next(numbers))} if shows_pictures([{"content": [part]}]) else part
        for part in content
    ]
    return {**message, "content": parts}


def _slope(size: tuple[int, int], number: int) -> Image.Image:
    """A picture, one of many: a slope of colours of its own."""
    width, height = size
    across, down = np.linspace(0, 1, width)[None, :], np.linspace(0, 1, height)[:, None]
    share = (across * (number + 1) + down * width / height) % 1
    pixels = np.stack([share, 1 - share, (share * 3) % 1], axis=-1) * 255
    return Image.fromarray(pixels.astype(np.uint8))


def differs_packed(vlm: VLM, two: Sequence[Sample], asking: AskingSettings | None = None) -> str | None:
    """Compare two questions about one picture behind one prefix with each alone; None where they agree.

    Raises:
        Unpackable: the pass itself showed that this family cannot be packed.
    """
    name = type(vlm.anatomy.model).__name__
    try:
        pack = batch_of(vlm, [list(two)], asking=asking)
    except Unshared as error:
        return str(error)
    alone = [batch_of(vlm, [[sample]], asking=asking) for sample in two]
    if any(plain.packs[0].ids != list(own.prompt) for plain, own in zip(alone, pack.packs[0].branches, strict=True)):
        return f"{name}'s processor reads a question otherwise behind the shared prefix"
    packed, places = _states(vlm, pack)
    if why := _differing(name, (packed, places), [_states(vlm, one) for one in alone]):
        return f"packed {why}"
    for number, own in enumerate(pack.packs[0].branches):
        ids = pack.inputs["input_ids"].clone()
        ids[:, own.start : own.stop] = ids[:, own.start : own.stop].flip(-1)
        moved, _ = _states(vlm, replace(pack, inputs={**pack.inputs, "input_ids": ids}))
        if (distance := _apart(moved[1 - number], packed[1 - number])) > ISOLATION * torch.finfo(packed.dtype).eps:
            return f"one question moves another's hidden states in {name} (by {distance:.1e} of their length)"
    return None


def differs_beside(vlm: VLM, two: Sequence[Sample], asking: AskingSettings | None = None) -> str | None:
    """Compare two samples with different pictures in one batch with each alone; None where they agree."""
    name = type(vlm.anatomy.model).__name__
    together = _states(vlm, batch_of(vlm, [[sample] for sample in two], asking=asking))
    why = _differing(name, together, [_states(vlm, batch_of(vlm, [[sample]], asking=asking)) for sample in two])
    return f"batched {why}" if why else None


_States = tuple[Tensor, list[Tensor | None]]


def _differing(name: str, together: _States, alone: Sequence[_States]) -> str | None:
    states, places = together
    plain = torch.cat([one for one, _ in alone])
    for place, (_, (own,)) in zip(places, alone, strict=True):
        if place is not None and own is not None and not torch.equal(place, own):
            return f"tokens of {name} get other positions than alone"
    if (distance := _apart(states, plain)) > STATES.get(states.dtype, max(STATES.values())):
        return f"hidden states of {name} differ from those alone (by {distance:.1e} of their length)"
    return None


def _states(vlm: VLM, batch: Batch) -> _States:
    """[samples, layers, D] at each last prompt token, and the positions [..., tokens] that each sample was given."""
    noted = _Positions()
    last = [[branch.place(len(branch.prompt) - 1) for branch in pack.branches] for pack in batch.packs]
    out = read(vlm.anatomy, vlm.model, batch, ActivationChoice(tuple(range(vlm.anatomy.layers + 1)), last), noted)
    widths = {tuple(states.shape[1:]) for states in out.states.values()}
    kept = [states for states in out.states.values() if tuple(states.shape[1:]) == max(widths)]
    positions = noted.given
    found: list[Tensor | None] = []
    for row, pack in enumerate(batch.packs):
        for branch in pack.branches:
            if positions is None:
                found.append(None)
                continue
            columns = [branch.place(place) for place in range(len(branch.prompt))]
            row_of = row if positions.shape[-2] > 1 else 0
            found.append(positions[..., row_of, columns].cpu())
    return torch.stack(kept, dim=1).cpu(), found


class _Positions(Visitor):
    """Notes the positions that the decoder is given."""

    given: Any = None

    def entry(self, embeddings: Tensor | None, others: Others) -> None:
        """They are among the rest."""
        self.given = others.get("position_ids")


def _apart(one: Tensor, other: Tensor) -> float:
    """The largest distance of two states relative to their length."""
    one, other = one.float(), other.float()
    return float(((one - other).norm(dim=-1) / other.norm(dim=-1).clamp(min=1e-12)).max())
