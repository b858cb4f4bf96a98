"""What the vision tower did while it read a prompt's pictures: its hidden states and whole attention matrices.

A tower may take all crops at once, one picture after another, or all patches of all pictures packed into one long
sequence with attention in windows. What fits [crops, layers, S, ...] is kept; the rest is refused in one sentence.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llava_probe.errors import BadModel
from llava_probe.inside.anatomy import Anatomy

_SPOKEN = {"vision_hidden": "hidden states", "vision_attention": "attention"}


class Tower:
    """The vision half of one run's recorder.

    Args:
        anatomy: of the model.

    Raises:
        BadModel: the model has no vision tower whose blocks are known.
    """

    def __init__(self, anatomy: Anatomy) -> None:
        self._name = type(anatomy.model).__name__
        if anatomy.vision is None:
            raise BadModel(f"{self._name} has no vision tower that says what its blocks are; leave out vision=True")
        self.stack = anatomy.vision
        self._hidden: dict[int, list[Tensor]] = {}
        self._attention: dict[int, list[list[Tensor]]] = {}
        self._reading = True

    def close(self) -> None:
        """The prompt has been read; a tower that runs again for each step does the same again."""
        self._reading = False

    def saw(self, layer: int, hidden: Tensor) -> None:
        """Hidden state ``layer`` of one run of the tower."""
        if self._reading:
            self._hidden.setdefault(layer, []).append(hidden.detach().to("cpu", copy=True))

    def looked(self, layer: int, weights: Tensor) -> None:
        """Attention weights of one call of a block: over all patches, or over one window of them."""
        if self._reading:
            runs = self._attention.setdefault(layer, [])
            runs.extend([] for _ in range(len(self._hidden.get(0, [])) - len(runs)))
            runs[-1].append(weights.detach().to("cpu", copy=True))

    def records(self, images: Sequence[int], copies: int) -> list[dict[str, Tensor]]:
        """Each sample's crops: hidden states [crops, L_v + 1, S, D_v], attention [crops, L_v, H_v, S, S].

        Args:
            images: how many pictures each sample has.
            copies: how often each picture was read (once for every beam, in some versions of transformers).

        Raises:
            BadModel: the tower's records do not fit this shape.
        """
        if not sum(images):
            return [{} for _ in images]
        if not self._hidden:
            raise BadModel(
                f"{self._name} did not run its vision tower ({type(self.stack.owner).__name__}) for these pictures; "
                "leave out vision=True"
            )
        made = {"vision_hidden": [runs for _, runs in sorted(self._hidden.items())]}
        if self._attention:
            runs_of = [runs for _, runs in sorted(self._attention.items())]
            made["vision_attention"] = [[_whole(calls) for calls in runs] for runs in runs_of]
        layers = {name: self._joined(name, runs_of) for name, runs_of in made.items()}
        if layers["vision_hidden"][0].ndim == 2:  # all patches packed into one sequence
            layers["vision_hidden"] = [layer[None] for layer in layers["vision_hidden"]]
        return [
            {name: torch.stack([layer[crops] for layer in made], dim=1) for name, made in layers.items()}
            for crops in self._crops(len(layers["vision_hidden"][0]), images, copies)
        ]

    def _joined(self, name: str, runs_of: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """One tensor a layer, from the tower's runs one after the other."""
        shapes = {run.shape[1:] for runs in runs_of for run in runs}
        layers = [torch.cat(list(runs)) for runs in runs_of] if len(shapes) == 1 else []
        if len({layer.shape for layer in layers}) == 1:
            return layers
        seen = {part.shape for part in layers or [run for runs in runs_of for run in runs]}
        told = " and ".join(str(list(shape)) for shape in sorted(seen))
        raise BadModel(
            f"the blocks of {self._name}'s vision tower give {_SPOKEN[name]} of different shapes ({told}), which no "
            "one record holds; leave out vision=True"
        )

    def _crops(self, total: int, images: Sequence[int], copies: int) -> list[Tensor]:
        """Which rows of the tower's batch are each sample's."""
        rows = torch.arange(total)
        if len(images) == 1 and copies == 1:
            return [rows]
        if total % (sum(images) * copies) or (len(images) > 1 and total != sum(images) * copies):
            raise BadModel(
                f"{self._name} reads its pictures in one row of {total} crops, and nothing says whose is which; ask "
                "one sample at a time, or leave out vision=True"
            )
        each = rows.view(sum(images), -1)[:, : total // (sum(images) * copies)]
        return [part.flatten() for part in each.split(list(images))]


def _whole(calls: Sequence[Tensor]) -> Tensor:
    """One matrix over all patches from its windows along the diagonal: [B, H, S, S]."""
    if len(calls) == 1:
        return calls[0]
    patches = sum(call.shape[-1] for call in calls)
    whole = calls[0].new_zeros(*calls[0].shape[:2], patches, patches)
    start = 0
    for call in calls:
        end = start + call.shape[-1]
        whole[:, :, start:end, start:end] = call
        start = end
    return whole
