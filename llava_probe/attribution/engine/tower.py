"""Relevance carried on from the visual tokens through the vision tower to the patches that they were made of.

A token's relevance is shared among the patches that went into it (``origins``), pulled back through the tower's blocks
by the same rule, and gathered by the same patches: where a patch is a token, as in LLaVA-1.5, that is a value a patch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llava_probe.attribution.engine.origins import depends, origins
from llava_probe.attribution.engine.target import visual_positions
from llava_probe.attribution.engine.watching import Slopes, Watch
from llava_probe.errors import BadModel
from llava_probe.inside.anatomy import Anatomy, Stack
from llava_probe.inside.passes import Visitor
from llava_probe.inside.rows import Call

if TYPE_CHECKING:
    from llava_probe.attribution.engine.forward import Forward
    from llava_probe.attribution.engine.pull import Pull
    from llava_probe.attribution.engine.target import Task


class TowerRelevance:
    """The second half of a relevance row's way.

    Args:
        task: what is explained.
        language: the row's way through the language model, finished before the tower's first call.
        tower: its way through the tower.

    Raises:
        BadModel: the model has no tower whose blocks are known.
    """

    def __init__(self, task: Task, language: Pull, tower: Pull) -> None:
        self._name = type(task.vlm.anatomy.model).__name__
        if task.vlm.anatomy.vision is None:
            raise BadModel(f'{self._name} has no vision tower that says what its blocks are; pass through="language"')
        self._places = visual_positions(task.trace)
        self._language, self._pull = language, tower
        self._states: list[Tensor] = []
        self._owner = torch.empty(0, dtype=torch.long)  # [B, S] the visual token of each patch, -1 for none
        self._started = False
        self.watch = Watch(task.vlm.anatomy.vision, self._see, windowed=True)

    @property
    def visitors(self) -> tuple[Visitor, ...]:
        """What visits the pass: the tower's attention is watched, and its states kept for ``prepare``."""
        return self.watch, _States(self.watch.stack, self._states)

    def prepare(self, run: Forward) -> None:
        """Find out where each patch goes, once a pass.

        Raises:
            BadModel: patches that go into several tokens, or tokens that no patch goes into.
        """
        tokens = run.entry[0, self._places]
        used = next((state for state in reversed(self._states) if depends(tokens, state)), None)
        self._states.clear()
        if used is None:
            raise BadModel(f'no visual token of {self._name} depends on its vision tower; pass through="language"')
        owner = origins(tokens, used)
        if owner is None:
            raise BadModel(
                f"a patch of {self._name}'s vision tower goes into several visual tokens, so relevance cannot be "
                'followed through it; pass through="language"'
            )
        self._owner = owner.reshape(-1, owner.shape[-1])

    def finish(self, language: Tensor) -> Tensor:
        """[B, P] with the visual tokens' relevance gathered from the patches that each was made of."""
        if not self._started:
            self._pull.start(language)  # no block of the tower came by: finishing says so
        self._started = False
        patches, owner = self._pull.finish().flatten(), self._owner.flatten()
        visual = language.new_zeros(len(self._places)).index_add_(0, owner[owner >= 0], patches[owner >= 0])
        out = language.clone()
        out[0, self._places] = visual
        return out

    def _see(self, call: Call, slopes: Slopes) -> None:
        if not self._started:
            self._started = True
            visual = self._language.finish()[0, self._places]
            sizes = torch.bincount(self._owner[self._owner >= 0], minlength=len(visual)).clamp(min=1).to(visual)
            shared = torch.cat([visual / sizes, visual.new_zeros(1)])  # the last is for patches without a token
            self._pull.start(shared[self._owner])
        self._pull(call, slopes)


class _States(Visitor):
    """Keeps the states of the tower's blocks, in order."""

    def __init__(self, stack: Stack, states: list[Tensor]) -> None:
        self._stack, self._states = stack, states

    def stacks(self, anatomy: Anatomy) -> tuple[Stack | None, ...]:
        """The tower."""
        return (self._stack,)

    def state(self, stack: Stack, layer: int, hidden: Tensor) -> None:
        """The output of a block."""
        if layer:
            self._states.append(hidden)
