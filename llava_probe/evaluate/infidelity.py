"""Infidelity: how far a map's values are from what the model loses when parts of the picture go.

Yeh et al. 2019 (arXiv 1901.09392), eq. 1: E[(Iᵀφ − (f(x) − f(x − I)))²] over random perturbations I. Here I takes away
a random set of visual tokens, so Iᵀφ is the sum of their values and f(x) − f(x − I) what the target loses: 0 for a map
whose values add up to the effect of any set. Most maps have no scale of their own; with ``scaled=True`` φ is first
multiplied by the β that suits it best (their official code's, and captum's ``normalize=True``), so that the measure
says how well the values do up to a factor.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llava_probe.arrays import FloatArray
from llava_probe.attribution.engine.perturbing import AT_ONCE, token_scores
from llava_probe.attribution.engine.target import QUANTITIES, Contrast, Task
from llava_probe.border import Count, Seed, checked
from llava_probe.errors import BadInput
from llava_probe.evaluate.removing import Judged, task_of
from llava_probe.maps.maps import ImageMap
from llava_probe.model import VLM
from llava_probe.trace.explained import Tokens
from llava_probe.trace.trace import Trace

INFIDELITY_SAMPLES = 200


@checked
@dataclass(frozen=True, eq=False)
class Infidelity:
    """How far the rows of a map are from what the model does.

    Attributes:
        values: [rows] in the target's unit, squared.
        scale: [rows] the factor β that the row was multiplied by; 1 where it was not asked for.
        variance: [rows] the mean square of the target's own change, which a map of zeros would get.
        forwards: passes through the model.
    """

    values: FloatArray
    scale: FloatArray
    variance: FloatArray
    forwards: int


@checked
def infidelity(
    vlm: VLM,
    trace: Trace,
    m: ImageMap,
    *,
    row: int | None = None,
    image: int = 0,
    tokens: Tokens = None,
    contrast: Contrast = None,
    of: str = "logprob",
    baseline: str = "mean",
    samples: Count = INFIDELITY_SAMPLES,
    scaled: bool = True,
    batch: Count = AT_ONCE,
    seed: Seed = 0,
) -> Infidelity:
    """Infidelity of each row of a map under random sets of visual tokens taken away.

    Args:
        vlm, trace: the model, and the answer that the map explains.
        m: of the trace's visual tokens, or of finer parts of them (``on="pixels"`` of the gradients), which are added
            up.
        row, image, tokens, contrast: as for ``deletion_insertion``.
        of: ``"logprob"`` or ``"logit"``: f.
        baseline: what stands in the place of what is taken away, ``"mean"`` or ``"zero"``.
        samples: how many sets, drawn by ``random_removals``.
        scaled: whether each row may be multiplied by the best factor first.
        batch: changed inputs a pass.
        seed: of the sets.

    Raises:
        BadInput: a map of another picture or of other tokens, one that does not belong to visual tokens, or an unknown
            option.
        OutOfRange: a row, word or picture that is not there.
    """
    if of not in QUANTITIES:
        raise BadInput(f"of= takes {' or '.join(map(repr, QUANTITIES))}; got {of!r}")
    task, rows = task_of(vlm, trace, m, Judged(row, image, tokens, contrast, of))
    values = _added_up(m, task)[list(rows)]
    removed = random_removals(len(task.layout), samples, seed)
    keep = torch.cat([torch.ones(1, removed.shape[1]), (~removed).float()])
    scores = token_scores(task, keep, baseline=baseline, batch=batch, label="infidelity")
    lost = (scores[:1] - scores[1:]).T.numpy()  # [rows, samples]
    told = (values @ removed.double().T).numpy()
    squares = (told**2).mean(1)
    best = np.divide((told * lost).mean(1), squares, out=np.zeros_like(squares), where=squares > 0)
    scale = best if scaled else np.ones_like(best)
    off = ((scale[:, None] * told - lost) ** 2).mean(1)
    return Infidelity(off, scale, (lost**2).mean(1), len(keep) * len(task.answers))


def random_removals(parts: int, samples: int, seed: int = 0) -> Tensor:
    """[samples, parts] bool, what each takes away: first how many parts is drawn, one to all alike, then which."""
    generator = np.random.default_rng(seed)
    counts = generator.integers(1, parts, samples, endpoint=True)
    ranks = generator.permuted(np.tile(np.arange(parts), (samples, 1)), axis=1)
    return torch.from_numpy(ranks < counts[:, None])


def _added_up(m: ImageMap, task: Task) -> Tensor:
    """[rows, N] float64 of each visual token: its own value, or the sum of its parts'."""
    values, positions = m.values.double(), task.layout.positions
    if m.layout == task.layout:
        return values
    if not set(m.layout.positions.tolist()) <= set(positions.tolist()):
        raise BadInput(
            f"infidelity takes away visual tokens, and the parts of this map ({m.method}) belong to none; make it with "
            'on="tokens"'
        )
    place = {position: number for number, position in enumerate(positions.tolist())}
    index = torch.tensor([place[position] for position in m.layout.positions.tolist()], dtype=torch.long)
    return torch.zeros(len(m), len(positions), dtype=torch.float64).index_add_(1, index, values)
