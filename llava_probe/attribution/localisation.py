"""Localisation heads: the few heads whose attention lies on what is talked about, chosen once over a data set.

Kang et al. 2025, "Your Large Vision-Language Model Only Needs A Few Attention Heads For Visual Grounding" (arXiv
2503.06287). A head may be one if its mean attention on the picture lies above the elbow of all heads' (criterion 1); of
these, each sample picks the ten whose maps fall into the fewest, most unequal pieces, the lowest spatial entropy
(criterion 2); the heads picked most often over the samples are the model's.

    found = find_heads(vlm, samples)       # (image, question) or (image, question, mask) each
    print(found.table())
    lp.attribute(vlm, trace, "localisation_heads", heads=found)

The choice needs no masks. Where they are given, half of the samples are kept out of it and tell what the chosen heads
are worth, beside all heads together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor
from tqdm import tqdm

from llava_probe.analyzers.attention import axis_list
from llava_probe.arrays import BoolArray, FloatArray, IntArray
from llava_probe.asking.prompts import by_name
from llava_probe.attribution.attention import kept, rows_only
from llava_probe.attribution.engine.found import Found
from llava_probe.attribution.engine.target import Task
from llava_probe.border import Count, Limits, Portion, checked
from llava_probe.errors import BadInput, NotANumber
from llava_probe.layout import ImageLayout
from llava_probe.layout.geometry import tile_grids
from llava_probe.model import VLM
from llava_probe.pictures.regions import inside
from llava_probe.trace.explained import LAST, Tokens, explained, place_named, placed, queries
from llava_probe.trace.trace import Trace

#: A visual token is lit above so many times its map's mean. The authors' code takes 0.001 above the mean; of 576
#: tokens that share half of a row the mean is 0.0009, so this is the same, whatever the grid and the share.
LIT = 2.0
#: How many heads a sample picks, and the Gaussian's width in tokens: the paper's.
PICKED = 10
MASK_SIGMA = 1.0
#: A sample picks one in so many of the candidates at most: of a small model's few, ten would be nearly all.
ONE_IN = 4

#: Tokens; none at all smooths nothing.
Sigma = Annotated[float, Limits(0, 1_000)]

_PATIENCE = 2.0  # seconds before a progress bar shows


@dataclass(frozen=True)
class Picked:
    """One head, as the samples saw it.

    Attributes:
        layer, head: the model's own numbers.
        frequency: share of the samples that picked it.
        entropy: mean spatial entropy where it was picked, in nats; 0 is one piece.
        image: mean share of its attention on the picture.
    """

    layer: int
    head: int
    frequency: float
    entropy: float
    image: float


@checked
@dataclass(frozen=True)
class LocalisationHeads:
    """The heads of one model that point at what is talked about, and why these.

    Attributes:
        heads: the chosen (layer, head) pairs, the most frequent first.
        picked: every head that any sample picked, in the same order.
        samples: how many chose; ``held_out``: how many others had a mask to be tried on.
        candidates: how many heads passed the first criterion; ``of`` how many.
        iou: mean overlap of the heads' map, cut at its mean, with the masks held out; None without masks.
        iou_all: the same of all heads' map, for comparison.
    """

    heads: tuple[tuple[int, int], ...]
    picked: tuple[Picked, ...]
    samples: int
    held_out: int = 0
    candidates: int = 0
    of: int = 0
    iou: float | None = None
    iou_all: float | None = None

    def table(self, k: Count = 10) -> str:
        """The ``k`` heads picked most often, a line each, to print; the chosen ones are starred."""
        lines = ["   layer  head  picked by  entropy  on image"]
        for each in self.picked[:k]:
            star = "*" if (each.layer, each.head) in self.heads else " "
            lines.append(
                f"{star}  {each.layer:5d}  {each.head:4d}  {each.frequency:9.0%}  "
                f"{each.entropy:7.3f}  {each.image:8.3f}"
            )
        lines.append(f"{self.candidates} of {self.of} heads above the elbow, {self.samples} samples")
        if self.iou is not None:
            lines.append(f"held out: IoU {self.iou:.3f}, all heads {self.iou_all:.3f}, {self.held_out} samples")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> LocalisationHeads:
        """What ``to_dict`` gave, from JSON too.

        Raises:
            BadInput: it is something else.
        """
        try:
            heads = tuple((layer, head) for layer, head in told["heads"])
            picked = tuple(Picked(**each) for each in told["picked"])
            return cls(**{**told, "heads": heads, "picked": picked})
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(f"from_dict takes what LocalisationHeads.to_dict gave; got {told!r}"[:300]) from error


@checked
def find_heads(
    vlm: VLM,
    samples: Iterable[Sequence[Any] | Mapping[str, Any]],
    *,
    most: Count = 3,
    tokens: Tokens = LAST,
    validation: Portion = 0.5,
    picked: Count = PICKED,
) -> LocalisationHeads:
    """Choose a model's localisation heads over a data set; a few hundred samples are plenty.

    Args:
        vlm: the model.
        samples: (image, question) each, or (image, question, mask) with the mask as ``regions.read_mask`` takes it; or
            dicts of ``generate``'s first arguments, such as ``prompt``, and ``mask``.
        most: how many heads to choose.
        tokens: of the answer, whose predicting rows are read, averaged: words, positions or a place, as for
            ``lp.attention_map``. ``lp.LAST``: the last row of the prompt, as in the paper, and nothing but the first
            token is generated.
        validation: the share of the samples, at the end, that choose nothing and are tried, where there are masks.
        picked: how many heads a sample picks, a quarter of the candidates at most.

    Raises:
        BadInput: no samples or none left to choose; masks for some only; visual tokens that form no grid; no head whose
            map has a piece.
        NotANumber: attention is NaN.
    """
    listed = [by_name(sample, f"sample {place}", "mask") for place, sample in enumerate(samples)]
    masks = sum("mask" in sample for sample in listed)
    if masks not in (0, len(listed)):
        raise BadInput(f"{masks} of the {len(listed)} samples have a mask; give all of them one, or none")
    tried = round(len(listed) * validation) if masks else 0
    choosing = listed[: len(listed) - tried]
    if not choosing:
        raise BadInput(f"none of the {len(listed)} samples is left to choose heads from; pass more, or less validation")
    sums, entropies = [], []
    for sample in tqdm(choosing, desc="choosing heads", delay=_PATIENCE, leave=False, disable=None):
        trace, maps, layout = _maps(vlm, sample, tokens)
        sums.append(maps.sum(-1))
        entropies.append(spatial_entropy(maps.reshape(-1, maps.shape[-1]), _grids(layout)).reshape(maps.shape[:2]))
    candidates = above_elbow(np.mean(sums, axis=0))
    each = min(picked, max(1, int(candidates.sum()) // ONE_IN))
    of_each = np.where(candidates, np.stack(entropies), np.inf)
    ranked = _ranked(np.stack(sums), of_each, each, trace.attention_layers, trace.attention_heads)
    if not ranked:
        raise BadInput("no head's attention gathers anywhere on these pictures, so none can be chosen")
    heads = tuple((head.layer, head.head) for head in ranked[:most])
    overlaps = [
        _overlaps(vlm, sample, tokens, heads)
        for sample in tqdm(listed[len(choosing) :], desc="trying heads", delay=_PATIENCE, leave=False, disable=None)
    ]
    own, everyone = np.mean(overlaps, axis=0).tolist() if overlaps else (None, None)
    return LocalisationHeads(
        heads=heads,
        picked=tuple(ranked),
        samples=len(choosing),
        held_out=tried,
        candidates=int(candidates.sum()),
        of=candidates.size,
        iou=own,
        iou_all=everyone,
    )


@checked
def localisation_heads(
    task: Task, *, heads: LocalisationHeads | Sequence[tuple[int, int]] | None = None, sigma: Sigma = MASK_SIGMA
) -> Found:
    """Attention of a few chosen heads alone, summed; no pass at all where the trace kept its rows.

    Args:
        task: what is explained; a word takes the mean of its tokens' rows.
        heads: what ``find_heads`` found, or (layer, head) pairs.
        sigma: width in tokens of the Gaussian that smooths the map on each of its grids; 0 for none.

    Raises:
        BadInput: no heads.
        OutOfRange: a layer or head that is not there.
        NotANumber: attention is NaN.
    """
    pairs = _pairs(heads)
    layers, columns = (sorted({pair[axis] for pair in pairs}) for axis in (0, 1))
    trace, forwards = kept(task, layers, columns)
    positions = torch.zeros(len(task.targets), task.fed, dtype=torch.float64)
    for row, target in enumerate(task.targets):
        steps = target.steps(0)
        for step in steps:
            for layer, head in pairs:
                positions[row] += trace.rows(at=[task.position(step)], layer=layer, head=head)[0].double() / len(steps)
    if bool(torch.isnan(positions).any()):
        raise NotANumber("attention rows hold NaN; in half precision this is an overflow: load the model in bfloat16")
    smooth = smoothed(positions[:, task.places].numpy(), task.layout, sigma)
    positions[:, task.places] = torch.from_numpy(smooth)
    about = {"heads": [list(pair) for pair in pairs], "sigma": sigma}
    return Found(positions, unit="attention, summed over heads", forwards=forwards, about=about)


# --- the criteria ---


def above_elbow(sums: FloatArray) -> BoolArray:
    """Which of the values lie above the elbow of their sorted curve.

    The curve's rank and value are both brought to 0…1; the elbow is its point furthest below the chord between its
    ends. All are above where no point is below: the curve then tells no few from many.

    Args:
        sums: [...] of any shape.
    """
    ordered = np.sort(sums, axis=None)
    span = ordered[-1] - ordered[0]
    rank = np.linspace(0, 1, len(ordered))
    below = rank - (ordered - ordered[0]) / (span or 1.0)  # √2 times the distance to the chord
    elbow = int(np.argmax(below))
    if not span or below[elbow] < 1e-9:  # rounding of a straight line
        return np.ones(sums.shape, dtype=bool)
    above: BoolArray = sums > ordered[elbow]
    return above


def spatial_entropy(maps: FloatArray, grids: Sequence[tuple[IntArray, tuple[int, int]]]) -> FloatArray:
    """[B] −Σ P ln P in nats over the pieces of each map, P the share of all lit mass that a piece holds.

    Lit are values above ``LIT`` times the map's mean, their mass is what exceeds the mean, and pieces are 8-connected.
    Infinite, so that no head wins by it, where nothing is lit or a grid's whole bottom row is: a head that rests.

    Args:
        maps: [B, N] not negative.
        grids: the tokens of each grid in reading order, and its (rows, columns).
    """
    mean = maps.mean(1, keepdims=True)
    lit = maps > LIT * mean
    rests = np.zeros(len(maps), dtype=bool)
    masses = np.zeros(maps.shape)
    for tokens, grid in grids:
        on = lit[:, tokens].reshape(-1, *grid)
        labels = components(on).reshape(len(maps), -1)
        row, place = np.nonzero(labels)
        np.add.at(masses, (row, tokens[labels[row, place] - 1]), (maps - mean)[row, tokens[place]])
        rests |= on[:, -1].all(1)
    total = masses.sum(1, keepdims=True)
    shares = np.divide(masses, total, out=np.zeros_like(masses), where=total > 0)
    entropy = -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(1)
    found: FloatArray = np.where(rests | (total[:, 0] <= 0), np.inf, entropy + 0.0)
    return found


def components(on: BoolArray) -> IntArray:
    """[B, rows, columns] the 8-connected piece of each cell: 0 where off, else 1 + the largest cell number in it.

    Each cell takes the largest number around it, then that of the cell with this number, until nothing changes.
    """
    count, rows, columns = on.shape
    labels = np.where(on, np.arange(1, rows * columns + 1).reshape(rows, columns), 0)
    while True:
        windows = sliding_window_view(np.pad(labels, ((0, 0), (1, 1), (1, 1))), (3, 3), axis=(1, 2))
        around = np.where(on, windows.max((-1, -2)), 0).reshape(count, -1)
        chosen = np.where(around > 0, np.take_along_axis(around, np.maximum(around - 1, 0), axis=1), 0)
        chosen = chosen.reshape(labels.shape)
        if np.array_equal(chosen, labels):
            return labels
        labels = chosen


def smoothed(values: FloatArray, layout: ImageLayout, sigma: float) -> FloatArray:
    """[..., N] a Gaussian of ``sigma`` tokens, cut at three, over each grid, mirrored at its edges."""
    out = np.array(values, dtype=np.float64)
    reach = int(3 * sigma + 0.5)
    if not reach:
        return out
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    for tokens, grid in tile_grids(layout):
        if grid is not None:
            cells = out[..., tokens].reshape(*out.shape[:-1], *grid)
            for axis in (-2, -1):
                room = [(0, 0)] * cells.ndim
                room[axis] = (reach, reach)
                cells = sliding_window_view(np.pad(cells, room, mode="symmetric"), len(weights), axis=axis) @ weights
            out[..., tokens] = cells.reshape(*out.shape[:-1], -1)
    return out


# --- details ---


def _pairs(heads: Any) -> list[tuple[int, int]]:
    if isinstance(heads, LocalisationHeads):
        heads = heads.heads
    if heads is not None and (isinstance(heads, str) or not isinstance(heads, Iterable)):
        raise BadInput(f"heads= takes (layer, head) pairs, or what find_heads found; got {heads!r}")
    heads = list(heads or ())
    if not heads:
        raise BadInput(
            "localisation_heads needs the model's heads: find them once with "
            "found = find_heads(vlm, samples) from llava_probe.attribution, then pass heads=found"
        )
    pairs = []
    for pair in heads:
        listed = axis_list("heads", pair) or []
        if len(listed) != 2:
            raise BadInput(f"heads= takes (layer, head) pairs; got {pair!r}")
        pairs.append((listed[0], listed[1]))
    return pairs


def _maps(vlm: VLM, sample: Mapping[str, Any], tokens: Tokens) -> tuple[Trace, FloatArray, ImageLayout]:
    """The trace of one sample, its heads' maps [L, H, N] and the layout they lie on."""
    length = {"max_new_tokens": 1} if place_named(tokens) == LAST else {}
    asked = {name: value for name, value in sample.items() if name != "mask"}
    trace = vlm.generate(**asked, capture=rows_only(None), **length)  # type: ignore[arg-type]
    layout = placed(trace)
    at = queries(trace, [position for word in explained(trace, tokens)[1] for position in word])
    columns = torch.from_numpy(layout.positions)
    rows: Tensor = sum(row[..., columns].double() for row in trace.each_row(at)) / len(at)  # type: ignore[assignment]
    if bool(torch.isnan(rows).any()):
        raise NotANumber("attention rows hold NaN; in half precision this is an overflow: load the model in bfloat16")
    return trace, rows.numpy(), layout


def _grids(layout: ImageLayout) -> list[tuple[IntArray, tuple[int, int]]]:
    grids = [(tokens, grid) for tokens, grid in tile_grids(layout) if grid is not None]
    if sum(len(tokens) for tokens, _ in grids) < len(layout):
        raise BadInput(
            f"heads are chosen by the pieces of their maps, which takes visual tokens on a grid; got {layout}"
        )
    return grids


def _ranked(
    sums: FloatArray, entropies: FloatArray, picked: int, layers: Sequence[int], heads: Sequence[int]
) -> list[Picked]:
    """Heads that samples picked, the most frequent first, from values [samples, layers, heads].

    Of equal entropies the head that looks at the picture more is picked, of equal frequencies that of less entropy.
    """
    chosen = np.zeros(sums.shape, dtype=bool)
    for sample, (share, entropy) in enumerate(zip(sums, entropies, strict=True)):
        order = np.lexsort((-share.ravel(), entropy.ravel()))[:picked]
        chosen[sample].ravel()[order] = np.isfinite(entropy.ravel()[order])
    found = [
        Picked(
            layers[layer],
            heads[head],
            float(chosen[:, layer, head].mean()),
            float(entropies[chosen[:, layer, head], layer, head].mean()),
            float(sums[:, layer, head].mean()),
        )
        for layer, head in np.argwhere(chosen.any(0))
    ]
    return sorted(found, key=lambda each: (-each.frequency, each.entropy, -each.image))


def _overlaps(
    vlm: VLM, sample: Mapping[str, Any], tokens: Tokens, heads: Sequence[tuple[int, int]]
) -> tuple[float, float]:
    """IoU of a mask with the heads' map, and with all heads', each cut at its mean; over what was seen."""
    trace, maps, layout = _maps(vlm, sample, tokens)
    mask = inside(sample["mask"], (), "", layout.seen.shape[::-1])

    def overlap(summed: FloatArray) -> float:
        smooth = smoothed(summed, layout, MASK_SIGMA)
        above = layout.to_pixels(smooth) > smooth.mean()  # NaN, the unseen, is above nothing
        return float((above & mask).sum() / max(1, ((above | mask) & layout.seen).sum()))

    layers, columns = trace.attention_layers, trace.attention_heads
    own = [maps[layers.index(layer), columns.index(head)] for layer, head in heads]
    return overlap(np.sum(own, axis=0)), overlap(maps.sum((0, 1)))
