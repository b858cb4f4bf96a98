"""One forward pass over a batch of packs, and only the hidden states that were asked for.

A visitor of the pass picks the wanted rows of each layer; when the deepest one is there, the pass ends: what lies
behind it, the projection to the vocabulary included, is not computed unless somebody wants the answer's confidence.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llava_probe.asking.tower import Tower
from llava_probe.errors import BadModel, NotANumber
from llava_probe.features.packing import apart
from llava_probe.features.packs import Batch
from llava_probe.inside.anatomy import Anatomy, Stack
from llava_probe.inside.passes import Visitor, visiting
from llava_probe.inside.rows import Call


@dataclass
class Activations:
    """What one pass gave, still on the model's device.

    Attributes:
        states: rows of each hidden state at the chosen tokens, [tokens, D].
        vision: for each pack the tower's layers asked for, [crops, layers, patches, D_v].
        looks: of each block, [B, queries, heads] share of attention on the picture.
        logits: [B, predicting, V] at ``predicting``.
        predicting: columns of the sequence that predict tokens of the answers.
    """

    states: dict[int, Tensor] = field(default_factory=dict)
    vision: list[Tensor] = field(default_factory=list)
    looks: dict[int, list[Tensor]] = field(default_factory=dict)
    logits: Tensor | None = None
    predicting: tuple[int, ...] = ()


@dataclass(frozen=True)
class ActivationChoice:
    """What to read in a pass.

    Attributes:
        states: hidden states of the language model, by number; empty for none.
        tokens: for each pack the columns of the sequence whose rows are kept.
        vision: hidden states of the tower, by number.
        looking: for each pack the columns whose attention on the picture is kept; None for none.
        predicting: columns whose logits are kept; empty for none.
    """

    states: tuple[int, ...]
    tokens: Sequence[Sequence[int]]
    vision: tuple[int, ...] = ()
    looking: Sequence[Sequence[int]] | None = None
    predicting: tuple[int, ...] = ()

    @property
    def deepest(self) -> int:
        """After which hidden state the pass may end; -1: before the language model starts."""
        return max(self.states, default=-1)


def read(anatomy: Anatomy, runner: Any, batch: Batch, reading: ActivationChoice, *visitors: Visitor) -> Activations:
    """Run the model over a batch and keep what ``reading`` says.

    Args:
        anatomy: of the model; ``runner``: the model as the user holds it.
        batch: from ``batch_of``.
        reading: which rows of which layers.
        *visitors: of this pass, besides.

    Raises:
        Unpackable: questions were packed that this family cannot keep apart.
        BadModel: a layer gave no states, or its attention cannot be read.
        NotANumber: a hidden state is NaN.
    """
    reader = _Reader(anatomy, batch, reading)
    width = batch.inputs["input_ids"].shape[1]
    model: Any = anatomy.model
    accepted = inspect.signature(model.forward).parameters
    extra: dict[str, Any] = {"use_cache": False, **anatomy.everywhere}
    if reading.predicting and "logits_to_keep" in accepted:
        extra["logits_to_keep"] = torch.tensor(reading.predicting, device=batch.inputs["input_ids"].device)
    until = None if reading.predicting else reading.deepest
    out = reader.out
    with (
        apart(anatomy, batch.packs, width) if batch.packed else nullcontext(()) as keeping,
        visiting(anatomy, *keeping, reader, *visitors, prompts=batch.prompts, until=until),
        torch.inference_mode(),
    ):
        result = runner(**{**batch.inputs, **extra})
        if reading.predicting:
            out.logits = result.logits
    if out.logits is not None and "logits_to_keep" not in extra:
        out.logits = out.logits[:, list(reading.predicting)]
    if reader.tower is not None:
        images = [len(pack.branches[0].sample.images) for pack in batch.packs]
        out.vision = [part["vision_hidden"] for part in reader.tower.records(images, 1)]
    _check(anatomy, reading, out)
    return out


def _check(anatomy: Anatomy, reading: ActivationChoice, out: Activations) -> None:
    name = type(anatomy.decoder.owner).__name__
    missing = [layer for layer in reading.states if layer not in out.states]
    if missing:
        raise BadModel(f"layers {missing} of {name} gave no hidden states; leave them out")
    if reading.looking is not None and not out.looks:
        raise BadModel(f"the attention of {name} does not go through transformers' interface, so it cannot be read")
    deepest = out.states.get(reading.deepest)
    if deepest is not None and bool(torch.isnan(deepest).any()):
        raise NotANumber(
            f"hidden state {reading.deepest} holds NaN; float16 overflows in many of these models: "
            "load with dtype='bfloat16' or 'float32'"
        )


class _Reader(Visitor):
    """Picks the rows of a pass that are wanted."""

    def __init__(self, anatomy: Anatomy, batch: Batch, reading: ActivationChoice) -> None:
        self._anatomy, self._batch, self._reading = anatomy, batch, reading
        self.out = Activations(predicting=reading.predicting)
        self.tower = Tower(anatomy) if reading.vision else None

    def hears(self, method: str) -> bool:
        """Of attention only where somebody asked how much of it is on the picture."""
        return super().hears(method) and (method != "attended" or self._reading.looking is not None)

    def stacks(self, anatomy: Anatomy) -> tuple[Stack | None, ...]:
        """The decoder, and the tower where its layers are wanted."""
        return (anatomy.decoder,) if self.tower is None else (anatomy.decoder, self.tower.stack)

    def state(self, stack: Stack, layer: int, hidden: Tensor) -> None:
        """Rows of a hidden state at the chosen tokens of each pack."""
        if stack is not self._anatomy.decoder:
            if self.tower is not None and layer in self._reading.vision:
                self.tower.saw(layer, hidden)
            return
        if layer not in self._reading.states:
            return
        rows, length = self._batch.inputs["input_ids"].shape
        if hidden.ndim == 4 and hidden.shape[:2] != (rows, length) and hidden.shape[1:3] == (rows, length):
            hidden = hidden.movedim(0, 2)  # [streams, batch, tokens, width]
        before = hidden.shape[1] - length  # a model may put its picture before the prompt itself
        if before < 0:
            name = type(self._anatomy.decoder.owner).__name__
            raise BadModel(f"layer {layer} of {name} runs for the end of the prompt only")
        places = [
            row * hidden.shape[1] + before + column for row, kept in enumerate(self._reading.tokens) for column in kept
        ]
        index = torch.tensor(places, dtype=torch.long, device=hidden.device)
        self.out.states[layer] = hidden.flatten(0, 1)[index]

    def attended(self, call: Call, output: Tensor | None) -> None:
        """The share of some queries' attention that falls on the pack's picture."""
        if call.stack is not self._anatomy.decoder or call.unread or self._reading.looking is None:
            return
        for row, (pack, columns) in enumerate(zip(self._batch.packs, self._reading.looking, strict=True)):
            rows = call.of_row(slice(row, row + 1)).rows(torch.tensor(columns, device=call.device))[0]
            share = rows[..., list(pack.visual)].sum(-1).transpose(0, 1)  # [queries, heads]
            self.out.looks.setdefault(call.layer, []).append(share)


def by_block(looks: Mapping[int, Sequence[Tensor]]) -> Tensor:
    """[queries of all packs, blocks, heads] of a pass's looks, blocks in order."""
    return torch.stack([torch.cat(list(parts)) for _, parts in sorted(looks.items())], dim=1)
