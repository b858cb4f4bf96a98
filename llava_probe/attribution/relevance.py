"""Relevance: attention weighted by how much the target rests on it, followed back through the layers.

Chefer, Gur & Wolf 2021, "Generic Attention-model Explainability" (arXiv 2103.15679), eq. 5 and 6: for each layer
Ā = mean over heads of (A ⊙ ∂y/∂A)⁺ and R ← R + Ā R, from R = I. Only the rows of R that predict the target are wanted,
so a row is pulled back instead, r ← r + r Ā from the last layer to the first, while the backward pass goes by.

    lp.attribute(vlm, trace, "relevance")
    lp.attribute(vlm, trace, "relevance", through="tower")    # on through the vision tower to its patches
"""

from __future__ import annotations

import warnings

import torch

from llava_probe.attribution.engine.forward import forward
from llava_probe.attribution.engine.found import Found
from llava_probe.attribution.engine.pull import Pull
from llava_probe.attribution.engine.target import Task
from llava_probe.attribution.engine.tower import TowerRelevance
from llava_probe.attribution.engine.watching import Watch
from llava_probe.border import checked
from llava_probe.errors import BadInput


@checked
def relevance(task: Task, *, through: str = "language", checkpoint: bool = False) -> Found:
    """Relevance of every position, one forward pass and a backward pass a target.

    Args:
        task: what is explained.
        through: ``"language"``: as far as the visual tokens; ``"tower"``: on through the vision tower's blocks, to
            the patches that each visual token was made of.
        checkpoint: keep one block's activations at a time.

    Raises:
        BadInput: an unknown ``through``.
        BadModel: no gradient, or a tower whose patches cannot be told apart.
        NotANumber: relevance became NaN; the message names the layer.
    """
    if through not in ("language", "tower"):
        raise BadInput(f'through= takes "language" or "tower"; got {through!r}')
    passed = task.vlm.anatomy.other_layers
    if passed:
        warnings.warn(
            f"relevance knows attention alone: it passes over {len(passed)} of {task.vlm.anatomy.layers} layers "
            f"({', '.join(sorted(set(passed.values())))}) as if they mixed no tokens",
            stacklevel=4,
        )
    rows = torch.zeros(len(task.targets), task.fed, dtype=torch.float64)
    for number in task.passes:
        pull = Pull("language model")
        tower = TowerRelevance(task, pull, Pull("vision tower")) if through == "tower" else None
        watches = (Watch(task.vlm.anatomy.decoder, pull), *(tower.visitors if tower else ()))
        with forward(task, number, *watches, pixels=tower is not None, checkpoint=checkpoint) as run:
            if tower is not None:
                tower.prepare(run)
            for row, target, last in run:
                pull.start(run.starting(target), run.shared)
                run.gradients(target, list(run.pixels.values()) or [run.entry], last=last)
                found = pull.finish()
                if tower is not None:
                    found = tower.finish(found)
                rows[row] = run.merged(found)
    return Found(
        rows,
        unit="relevance",
        forwards=task.forwards,
        backwards=task.backwards,
        about={"through": through, "checkpoint": checkpoint},
    )
