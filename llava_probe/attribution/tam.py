"""Token activation map: where the picture speaks the word, less what it says of the words before.

Li et al. 2025, "Token Activation Map to Visually Explain Multimodal LLMs" (arXiv 2506.23270). With h the states behind
the final norm and W the output embedding, for a token c of the answer:

    s(i) = max(0, W_c · h_i)                      how active c is at position i; on visual tokens this is the map m
    E = Σ_j w_j m_j,   w_j ∝ s(j)                 earlier words' own maps, by how active c is at each
    m ← max(0, m − x E),   x = ⟨m, E⟩ / ⟨E, E⟩     what E explains of m by least squares is taken away
    m and s(j) scaled to 0…1 together; then a 3 × 3 rank filter on the picture's grid

A word of the prompt is read in the state at its own position, a generated token in the state that predicted it; so the
last position of the prompt stands for the first generated token, and no position for two. A word is earlier than c if
its state is. ReLU cuts at a logit of 0, which softmax does not know: of two models that differ by a constant on all
logits the answers are the same, the maps are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from llava_probe.arrays import FloatArray
from llava_probe.attribution.engine.found import Found
from llava_probe.attribution.engine.target import Task
from llava_probe.border import checked
from llava_probe.errors import BadModel, NotANumber
from llava_probe.inside.anatomy import Stack
from llava_probe.inside.passes import Visitor
from llava_probe.layout.geometry import tile_grids
from llava_probe.trace.explained import queries
from llava_probe.trace.tokens import Token

#: Spreads are taken no smaller than this share of the mean: the filter then takes the median, its limit.
_LEAST_SPREAD = 1e-12


@checked
def tam(task: Task, *, interference: bool = True, rank_filter: bool = True) -> Found:
    """Activation of the word at every visual token and earlier word, in one forward pass.

    A target of several tokens takes the largest of its tokens' values. All pictures of the prompt are explained and
    scaled together; the filter runs on the picture that was asked for, tile by tile. ``about["unfiltered"]`` counts its
    visual tokens in tiles that form no grid.

    Args:
        task: what is explained.
        interference: take away what earlier words of another spelling explain.
        rank_filter: smooth each window by its ranks.

    Raises:
        BadModel: no readable output embedding, or layers that do not read the whole sequence.
        NotANumber: states are NaN or infinite.
    """
    words, visual = _words(task), _visual(task)
    places = torch.tensor(queries(task.trace, [word.position for word in words]), dtype=torch.long)
    ids = sorted({word.id for word in words})
    active = _activations(task, ids)  # [fed, ids]
    own = torch.tensor([ids.index(word.id) for word in words])
    grids = tile_grids(task.layout)
    positions = torch.zeros(len(task.targets), task.fed, dtype=torch.float64)
    for row, target in enumerate(task.targets):
        for term in target.of(0):
            token = task.trace.generated[term.step]
            earlier = (places < task.position(term.step)).nonzero().flatten()
            at, column = places[earlier], ids.index(term.token)
            text, m = active[at, column], active[visual, column]
            if interference:
                other = torch.tensor([words[index].text != token.text for index in earlier], dtype=torch.bool)
                m = without_interference(m, active[visual][:, own[earlier[other]]].T, text[other])
            m, text = scaled(m, text)
            found = torch.zeros(task.fed, dtype=torch.float64)
            found[visual] = m
            if rank_filter:
                for tile, grid in grids:
                    if grid is not None:
                        window = found[task.places[tile]].reshape(grid).numpy()
                        found[task.places[tile]] = torch.from_numpy(rank_filtered(window)).flatten()
            found[[words[index].position for index in earlier]] = text
            positions[row] = torch.maximum(positions[row], found)
    about: dict[str, Any] = {"interference": interference, "rank_filter": rank_filter}
    if rank_filter:
        about["unfiltered"] = sum(len(tile) for tile, grid in grids if grid is None)
    return Found(positions, unit="token activation", forwards=1, about=about)


# --- the parts ---


def without_interference(m: Tensor, maps: Tensor, weights: Tensor) -> Tensor:
    """The map less what earlier words' maps explain of it, never below 0.

    Args:
        m: [N] of the explained token.
        maps: [J, N] of the earlier words.
        weights: [J] not negative; only their ratios count.
    """
    total = weights.sum()
    explained = weights @ maps / (total if total > 0 else 1.0)
    power = explained @ explained
    share = m @ explained / power if power > 0 else 0.0
    return (m - share * explained).clamp(min=0)


def scaled(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """Both to 0…1 by the smallest and the largest value of either; all 0 where these are one."""
    both = torch.cat([image, text])
    low, high = both.min(), both.max()
    span = high - low if high > low else torch.ones_like(high)
    return (image - low) / span, (text - low) / span


def rank_filtered(grid: FloatArray) -> FloatArray:
    """Each 3 × 3 window's values in order, weighted about the median; borders are reflected.

    With the ranks r = 0…8 the weight is exp(−(r − 4)² / 2c²), c the window's standard deviation over its mean: the less
    it varies, the nearer to its median; a constant window keeps its value. A window with a mean of 0 or less gives 0.

    Args:
        grid: [rows, columns].
    """
    windows = sliding_window_view(np.pad(grid, 1, mode="reflect"), (3, 3)).reshape(*grid.shape, 9)
    ordered, mean = np.sort(windows, axis=-1), windows.mean(-1, keepdims=True)
    there = mean > 0
    spread = np.divide(windows.std(-1, keepdims=True), mean, out=np.ones_like(mean), where=there)
    weights = np.exp(-((np.arange(9) - 4) ** 2) / (2 * np.maximum(spread, _LEAST_SPREAD) ** 2))
    found: FloatArray = np.where(there, weights * ordered, 0.0).sum(-1) / weights.sum(-1)
    return found


# --- reading the model ---


def _words(task: Task) -> list[Token]:
    """Words of the prompt, but for what ends it, and of the answer."""
    trace, visual = task.trace, set(task.places.tolist())
    prompt = [token for token in trace.tokens[: trace.prompt_length - 1] if token.role == "prompt"]
    return [*(token for token in prompt if token.position not in visual), *trace.generated]


def _visual(task: Task) -> Tensor:
    """Positions of the visual tokens of all pictures, those without a place among them."""
    named = {token.position for token in task.trace.tokens[: task.fed] if token.role == "image"}
    return torch.tensor(sorted(named | set(task.places.tolist())))


def _activations(task: Task, ids: Sequence[int]) -> Tensor:
    """[fed, ids] max(0, logit) of some tokens at every position, on the CPU."""
    anatomy = task.vlm.anatomy
    last = _Last(anatomy.layers)
    with torch.no_grad():
        task.logits(0, last)
        if last.states.shape[1] < task.fed:
            raise BadModel(f"layers of {type(anatomy.model).__name__} do not read the whole sequence at once")
        logits = anatomy.unembed(last.states[0, -task.fed :], ids)
    if not bool(torch.isfinite(logits).all()):
        name = type(anatomy.model).__name__
        raise NotANumber(f"states behind the final norm of {name} are NaN or infinite; load it in bfloat16 or float32")
    return logits.clamp(min=0).double().cpu()


class _Last(Visitor):
    """Keeps the states behind the final norm, [B, P, D]."""

    states = torch.empty(0, 0, 0)

    def __init__(self, layer: int) -> None:
        self._layer = layer

    def state(self, stack: Stack, layer: int, hidden: Tensor) -> None:
        """The last one."""
        if layer == self._layer:
            self.states = hidden
