"""Samples of a data set on their way through the model: hidden states of some of their positions, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from llava_probe.errors import BadModel, NotANumber
from llava_probe.faults import of_the_machine
from llava_probe.features.batching import Groups, batches_of, halves_of
from llava_probe.features.packs import AskingSettings, Batch, batch_of
from llava_probe.features.passes import ActivationChoice, read
from llava_probe.features.samples import Sample
from llava_probe.features.trial import OF_A_SAMPLE, Sharing
from llava_probe.inside.ending import Ending
from llava_probe.lens.reading import rows_at_once
from llava_probe.model import VLM


@dataclass(frozen=True, eq=False)
class States:
    """What one pass gave of the positions that were drawn.

    Attributes:
        layers: [n, D] of each fitted hidden state; last: [n, D] behind the final norm.
        kind: [n] which of ``POSITION_KINDS`` a position is; sample: [n] which of the pass's samples.
        samples: of the pass.
    """

    layers: dict[int, Tensor]
    last: Tensor
    kind: Tensor
    sample: Tensor
    samples: list[Sample]


@dataclass(eq=False)
class Passes:
    """How samples go through the model.

    Attributes:
        vlm: the model; asking, sharing: as for extraction.
        layers: hidden states that are fitted.
        tokens: positions of each kind that are drawn of a sample; None for all.
        seed: of the draws.
        left_out: why samples were left out, a sentence each.
    """

    vlm: VLM
    asking: AskingSettings
    sharing: Sharing
    layers: Sequence[int]
    tokens: int | None
    seed: int
    left_out: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        tokenizer = self.vlm.processor.tokenizer
        special = {*tokenizer.all_special_ids, *self.vlm.visual_ids}
        word = next(token for token in range(len(tokenizer)) if token not in special)
        self.ending = Ending(self.vlm.anatomy, word)

    def over(self, samples: Sequence[Sample], size: int) -> Iterator[States]:
        """The states of some samples, one batch after another; a sample that cannot be read is left out."""
        for groups in batches_of(samples, size, self.sharing):
            for batch in self._batches(groups):
                yield self._states(batch)

    def _batches(self, groups: Groups) -> Iterator[Batch]:
        try:
            yield batch_of(self.vlm, groups, asking=self.asking)
        except OF_A_SAMPLE as error:
            if of_the_machine(error):
                raise
            if not (halves := halves_of(groups)):
                told = f"row {groups[0][0].row}: {error}"
                if told not in self.left_out:
                    self.left_out.append(told)
            for half in halves:
                yield from self._batches(half)

    def _states(self, batch: Batch) -> States:
        inside = self.vlm.anatomy
        columns, kinds, owners = [], [], []
        for number, pack in enumerate(batch.packs):
            visual = set(pack.visual)
            row = pack.branches[0].sample.row
            parts = ([at for at in range(len(pack.ids)) if at not in visual], sorted(visual))
            drawn = {at: kind for kind, own in enumerate(parts) for at in self._drawn(own, row, kind)}
            columns.append(sorted(drawn))
            kinds += [drawn[at] for at in columns[-1]]
            owners += [number] * len(columns[-1])
        reading = ActivationChoice((*self.layers, inside.layers), columns)
        states = read(inside, self.vlm.model, batch, reading).states
        device = states[inside.layers].device
        # copies: what is made in inference mode can be in no graph
        layers = {layer: states[layer].to(device, copy=True) for layer in self.layers}
        if any(rows.ndim != 2 for rows in layers.values()):
            name = type(inside.decoder.owner).__name__
            raise BadModel(f"the layers of {name} carry several streams, which no one translator reads")
        told = torch.tensor(kinds, device=device), torch.tensor(owners, device=device)
        return States(layers, states[inside.layers].clone(), *told, batch.samples)

    def _drawn(self, places: Sequence[int], row: int, kind: int) -> list[int]:
        if self.tokens is None or len(places) <= self.tokens:
            return list(places)
        generator = np.random.default_rng((self.seed, row, kind))
        return sorted(generator.choice(places, self.tokens, replace=False).tolist())

    def blocks(self, states: States) -> Iterator[tuple[slice, Tensor]]:
        """Rows of a pass, and the model's own last log-probabilities there, [block, V]."""
        rows = rows_at_once(self.vlm.anatomy.vocabulary)
        for start in range(0, len(states.last), rows):
            part = slice(start, start + rows)
            with torch.no_grad():
                own = self.ending.logits(states.last[part], normed=True).log_softmax(1)
            if bool(torch.isnan(own).any()):
                raise NotANumber("the model's logits are NaN; load it with dtype='bfloat16' or 'float32'")
            yield part, own
