"""What two traces looked at: maps on one scale with their difference, shares by layer and head, rows that moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llava_probe.analyzers.attention import attention_map
from llava_probe.analyzers.heads import PARTS, heads
from llava_probe.compare.alignment import Alignment
from llava_probe.errors import BadInput, NotCaptured
from llava_probe.maps.maps import ImageMap
from llava_probe.trace.explained import Tokens, explained
from llava_probe.trace.trace import Trace


@dataclass(frozen=True, eq=False)
class Looking:
    """What heads looked at, at the rows that both predicted after the same beginning.

    Attributes:
        layers, heads: the models' numbers.
        a, b: [parts, layers, heads] mean share of attention on each of ``analyzers.heads.PARTS``.
        moved: [layers, heads] share of a row's attention that lies on other tokens in the other trace: half of the sum
            of ``abs(b − a)`` over keys, a mean over rows; 0 the same, 1 nothing in common.
    """

    layers: tuple[int, ...]
    heads: tuple[int, ...]
    a: Tensor
    b: Tensor
    moved: Tensor

    @property
    def change(self) -> Tensor:
        """[parts, layers, heads] of each share."""
        return self.b - self.a

    def share(self, part: str = "image") -> Tensor:
        """[layers, heads] change of the share of one part.

        Raises:
            BadInput: there is no such part.
        """
        if part not in PARTS:
            raise BadInput(f"a share is one of {', '.join(PARTS)}; got {part!r}")
        return self.change[PARTS.index(part)]


@dataclass(frozen=True, eq=False)
class Maps:
    """Where two traces looked for the words that stand for one another, row by row.

    Attributes:
        a, b: attention on the picture, a share of a row's.
        difference: b less a; None where their visual tokens are not the same, and ``why``.
    """

    a: ImageMap
    b: ImageMap
    difference: ImageMap | None
    why: str = ""

    @property
    def highest(self) -> float:
        """The largest value of both, for one scale."""
        return max(float(self.a.values.max()), float(self.b.values.max()))


def looking_of(a: Trace, b: Trace, aligned: Alignment) -> Looking | str:
    """Shares and rows of both traces, or why they cannot be told."""
    for trace in (a, b):
        if not trace.kept("attention"):
            return "attention rows were not kept; pass Capture(attention=True)"
    if (a.sizes.layers, a.attention_layers, a.attention_heads) != (
        b.sizes.layers,
        b.attention_layers,
        b.attention_heads,
    ):
        return "the traces kept other layers or heads of attention, so none stands for another"
    pairs = [pair for pair in aligned.shared if _has_row(a, pair[0]) and _has_row(b, pair[1])]
    if not pairs:
        return "the traces kept no attention row that predicted the same word"
    mine, theirs = zip(*pairs, strict=True)
    shares = [heads(trace, tokens=list(at)) for trace, at in ((a, mine), (b, theirs))]
    one, other = (torch.stack([each.part(name).double().mean(0) for name in PARTS]) for each in shares)
    return Looking(a.attention_layers, a.attention_heads, one, other, _moved(a, b, pairs, aligned.fed))


def maps_of(a: Trace, b: Trace, aligned: Alignment, tokens: Tokens, image: int) -> Maps | str:
    """Maps of the words of the first, and of what stands for these in the second; or why there are none."""
    theirs = dict(aligned.both)
    _, words = explained(a, tokens)
    pairs = [(word, [theirs[place] for place in word if place in theirs]) for word in words]
    pairs = [(word, other) for word, other in pairs if other]
    if not pairs:
        return "no word of the one stands for these words of the other"
    try:
        mine, other = (
            attention_map(trace, image, tokens=[pair[side] for pair in pairs]) for side, trace in enumerate((a, b))
        )
    except (NotCaptured, BadInput) as error:
        return str(error)
    if len(mine.layout) != len(other.layout) or (mine.layout.boxes != other.layout.boxes).any():
        told = f"{len(mine.layout)} and {len(other.layout)} visual tokens, or at other places"
        return Maps(mine, other, None, f"the pictures are cut in other ways: {told}")
    about = {**mine.about, "unit": "change of the share of attention", "tokens": mine.about["tokens"]}
    about.pop("image_share", None)
    return Maps(mine, other, replace(mine, values=other.values - mine.values, method="attention, b − a", about=about))


def _has_row(trace: Trace, place: int) -> bool:
    return place - 1 in trace.attention_positions


def _moved(a: Trace, b: Trace, pairs: Sequence[tuple[int, int]], fed: dict[int, int]) -> Tensor:
    """[layers, heads], a row at a time."""
    mine, theirs = (torch.tensor(each, dtype=torch.long) for each in (list(fed), list(fed.values())))
    alone = [
        torch.tensor(sorted(set(range(len(trace.tokens) - 1)) - set(known)), dtype=torch.long)
        for trace, known in ((a, fed), (b, fed.values()))
    ]
    total = torch.zeros(len(a.attention_layers), len(a.attention_heads), dtype=torch.float64)
    rows = (trace.each_row([pair[side] - 1 for pair in pairs]) for side, trace in enumerate((a, b)))
    keys = [each < len(trace.tokens) - 1 for each, trace in ((mine, a), (theirs, b))]
    there = keys[0] & keys[1]  # the last token of an answer was never fed
    mine, theirs = mine[there], theirs[there]
    for one, other in zip(*rows, strict=True):
        one, other = one.double(), other.double()
        common = (one[..., mine] - other[..., theirs]).abs().sum(-1)
        total += (common + one[..., alone[0]].sum(-1) + other[..., alone[1]].sum(-1)) / 2
    return total / len(pairs)
