"""What each head of each layer looks at when a token is predicted: the picture, the question, the answer so far.

    shares = lp.heads(trace)
    shares.image                      # [tokens, L, H]
    shares.top(5)                     # the five heads that look at the picture most
    lp.heads(trace, mask=sign).top(5, of="mask")    # the five that look at one part of it most
    lp.figures.layers_heads(shares)

Shares of one attention row; the five parts are disjoint and add up to the row's sum, which is one unless the model
has learned sink logits. The heads found by the largest image share are the candidates of Kang et al. 2025, "Your Large
Vision-Language Model Only Needs A Few Attention Heads For Visual Grounding" (arXiv 2503.06287), their first criterion.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llava_probe.analyzers.attention import by_word
from llava_probe.analyzers.table import Table, Tabular
from llava_probe.border import Count, checked
from llava_probe.errors import BadInput, OutOfRange
from llava_probe.trace.explained import Tokens, explained, queries
from llava_probe.trace.region import Region
from llava_probe.trace.tokens import Token
from llava_probe.trace.trace import Trace

PARTS = ("image", "question", "first", "generated", "rest")


@dataclass(frozen=True)
class Head:
    """One head and a share of its attention."""

    layer: int
    head: int
    share: float


@checked
@dataclass(frozen=True, eq=False)
class HeadShares(Tabular):
    """Where each head's attention goes, each part [tokens, layers, heads] float32.

    Attributes:
        image: visual tokens, of all pictures.
        question: words of the prompt, its template's among them.
        first: the first token of the sequence, where heads rest that have nothing to do.
        generated: the answer so far.
        rest: special tokens of the prompt.
        tokens: what was predicted; ``layers``, ``heads``: the model's numbers along the other axes.
        mask: the visual tokens of a part of a picture, which are among those of ``image``; None where none was named.
    """

    image: Tensor
    question: Tensor
    first: Tensor
    generated: Tensor
    rest: Tensor
    tokens: tuple[Token, ...]
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    mask: Tensor | None = None

    def __repr__(self) -> str:
        said = "".join(token.text for token in self.tokens).strip()
        mean = ", ".join(f"{name} {float(self.part(name).mean()):.2f}" for name in self.parts)
        shape = f"{len(self.layers)} layers × {len(self.heads)} heads"
        return f"HeadShares({len(self.tokens)} tokens {said[:40]!r}, {shape}; on average {mean})"

    @property
    def parts(self) -> tuple[str, ...]:
        """The five parts, and ``"mask"`` where one was named."""
        return PARTS if self.mask is None else (*PARTS, "mask")

    def part(self, name: str) -> Tensor:
        """[tokens, layers, heads] of one of ``parts``.

        Raises:
            BadInput: there is no such part.
        """
        if name not in self.parts:
            beside = "; lp.heads(trace, mask=...) measures a part of a picture" if name == "mask" else ""
            raise BadInput(f"a share is one of {', '.join(self.parts)}; got {name!r}{beside}")
        return getattr(self, name)  # type: ignore[no-any-return]

    def top(self, k: Count = 10, of: str = "image", row: int | None = None) -> tuple[Head, ...]:
        """The ``k`` heads with the largest share, of one token's row or averaged over all.

        Raises:
            OutOfRange: there is no such row.
        """
        shares = self.share(of, row)
        values, places = shares.flatten().topk(min(k, shares.numel()))
        width = len(self.heads)
        return tuple(
            Head(self.layers[place // width], self.heads[place % width], share)
            for place, share in zip(places.tolist(), values.tolist(), strict=True)
        )

    def table(self, k: Count = 10, of: str = "image", row: int | None = None) -> str:
        """The top heads with all their shares, a line each, to print."""
        return self._table(k, of, row).text()

    def to_dict(self) -> dict[str, Any]:
        """Plain nested lists by name, ready for JSON."""
        return {
            "tokens": [token.text for token in self.tokens],
            "positions": [token.position for token in self.tokens],
            "layers": list(self.layers),
            "heads": list(self.heads),
            **{name: self.part(name).tolist() for name in self.parts},
        }

    def _repr_html_(self) -> str:
        return self._table(10, "image" if self.mask is None else "mask", None).html()

    def _table(self, k: int, of: str, row: int | None) -> Table:
        top = self.top(k, of, row)
        places = [(self.layers.index(head.layer), self.heads.index(head.head)) for head in top]
        shares = {name: self.share(name, row) for name in self.parts}
        return Table(
            {"layer": [head.layer for head in top], "head": [head.head for head in top]}
            | {name: [float(share[place]) for place in places] for name, share in shares.items()}
        )

    def _columns(self) -> Table:
        """A line for each token, layer and head."""
        numbers = [(t, layer, head) for t in range(len(self.tokens)) for layer in self.layers for head in self.heads]
        return Table(
            {
                "token": [self.tokens[t].text for t, _, _ in numbers],
                "position": [self.tokens[t].position for t, _, _ in numbers],
                "layer": [layer for _, layer, _ in numbers],
                "head": [head for _, _, head in numbers],
                **{name: self.part(name).flatten().tolist() for name in self.parts},
            }
        )

    def share(self, name: str, row: int | None = None) -> Tensor:
        """[layers, heads] of one of ``parts``, of one token's row or averaged over all.

        Raises:
            BadInput: there is no such part; OutOfRange: no such row.
        """
        part = self.part(name)
        if row is None:
            return part.mean(0)
        if not -len(part) <= row < len(part):
            raise OutOfRange(f"row {row} is not there: these shares have rows 0 to {len(part) - 1}")
        return part[row]


@checked
def heads(trace: Trace, tokens: Tokens = None, mask: Any = None, image: int = 0) -> HeadShares:
    """The share of each head's attention on the parts of the sequence, for each explained token.

    Args:
        trace: with attention rows.
        tokens: as for ``attention_map``: those of the answer's content words when None, each read in the row that
            predicted it.
        mask: a part of a picture to measure as well: an ``lp.Region``, or what one is made of, a mask or a box.
        image: on which picture, unless the region says so.

    Raises:
        NotCaptured: rows that were not kept.
        BadInput, OutOfRange: a mask or box that does not fit the picture, or was not shown to the model.
    """
    wanted, words = explained(trace, tokens)
    member = _membership(trace)  # [K, parts]
    if mask is not None:
        region = mask if isinstance(mask, Region) else Region(mask, image=image)
        marked = torch.zeros(len(member), 1)
        marked[trace.positions(region)] = 1
        member = torch.cat([member, marked], 1)
    names = PARTS if mask is None else (*PARTS, "mask")

    def rows_at(at: list[int]) -> Tensor:
        rows = trace.each_row(queries(trace, at))
        return torch.stack([row.float() @ member[: row.shape[-1]] for row in rows])  # of a prompt's rows, its keys

    shares = dict(zip(names, by_word(words, rows_at).unbind(-1), strict=True))
    return HeadShares(**shares, tokens=wanted, layers=trace.attention_layers, heads=trace.attention_heads)


def _membership(trace: Trace) -> Tensor:
    """[K, parts] one where a position belongs to a part; each to exactly one."""
    names = {"image": "image", "prompt": "question", "generated": "generated", "special": "rest"}
    member = torch.zeros(len(trace.tokens) - 1, len(PARTS))
    for token in trace.tokens[:-1]:
        part = "first" if token.position == 0 else names[token.role]
        member[token.position, PARTS.index(part)] = 1
    return member
