"""A logit as the sum of what each part of the model wrote, and of what each head read to write it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from llava_probe.analyzers.table import Table, Tabular
from llava_probe.border import Count, checked
from llava_probe.errors import BadInput, OutOfRange
from llava_probe.layout import ImageLayout
from llava_probe.maps.maps import ImageMap
from llava_probe.trace.explained import seen
from llava_probe.trace.tokens import Token

#: What a head reads from: each key belongs to one of them.
SOURCES = ("image", "question", "template", "first", "answer")


@dataclass(frozen=True)
class WrittenPart:
    """One part and what it gave to the logit.

    Attributes:
        kind: ``"embedding"``, ``"head"``, ``"mlp"``, ``"other"`` or ``"bias"``.
        layer: of which block; None of the embedding and of what lies behind the last block.
        head: which head, of a head.
        value: in logits.
    """

    kind: str
    layer: int | None
    head: int | None
    value: float

    def __str__(self) -> str:
        where = "" if self.layer is None else f"layer {self.layer} "
        return f"{where}{self.kind}" + ("" if self.head is None else f" {self.head}")


@checked
@dataclass(frozen=True, eq=False)
class Written(Tabular):
    """Who wrote a word: its logit, or how far it is ahead of another's, split into parts that sum to it.

    All values are logits, positive where they speak for the word (for it rather than ``contrast``), with the lengths
    that norms divided by held as they were.

    Attributes:
        token: the word's token that is explained; ``contrast``: the word that it is weighed against, or None.
        logit: what the parts sum to: in the model's own scale, but before a cap on logits.
        capped: the same behind the cap, where the model has one; else None.
        embedding: of what entered the first block at the position that predicts: the token that was read there.
        heads: [A, H] of the blocks in ``layers``; ``mlp``: [L] of every block's feed-forward part.
        other: [L] of parts that have no heads over the sequence (a state space, a convolution, a picture's features).
        biases: [L + 1] of biases that belong to no part: behind a block's heads, of norms, and last those behind the
            last block, the output embedding's among them.
        keys: [A, H, K] of each head, what it read at each position: attention times what the value there is worth.
        layers: which blocks have heads; ``kinds``: what the others are in ``other``, by block.
        sources: [K] which of ``SOURCES`` each position belongs to. ``"first"`` is the sequence's first token, where
            heads rest, unless it is a picture's; ``"template"`` is the system message, the template's words, special
            tokens and what stands between a picture's rows.
        sinks: positions of visual tokens that draw attention without content (``lp.sinks``).
        residual: how far the sum is from the logit, relative to the largest part; no larger than rounding.
        tokens: of prompt and answer, to the last key; ``layouts``, ``images``: of the pictures.
        about: plain data: the model, the interventions that were in force.
    """

    token: Token
    contrast: str | None
    logit: float
    capped: float | None
    embedding: float
    heads: Tensor
    mlp: Tensor
    other: Tensor
    biases: Tensor
    keys: Tensor
    layers: tuple[int, ...]
    kinds: Mapping[int, str]
    sources: tuple[str, ...]
    sinks: tuple[int, ...]
    residual: float
    tokens: tuple[Token, ...]
    layouts: tuple[ImageLayout, ...]
    images: tuple[Image.Image, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Of the model, as a trace tells it."""
        return self.about

    @property
    def label(self) -> str:
        """The word, and what it is weighed against."""
        word = self.token.text.strip() or repr(self.token.text)
        return word if self.contrast is None else f"{word} rather than {self.contrast}"

    def __repr__(self) -> str:
        read = ", ".join(f"{name} {value:+.2f}" for name, value in self.read().items() if value)
        kinds = {
            "embedding": self.embedding,
            f"{self.heads.numel()} heads": float(self.heads.sum()),
            "MLPs": float(self.mlp.sum()),
            "other parts": float(self.other.sum()),
            "biases": float(self.biases.sum()),
        }
        summed = ", ".join(f"{name} {value:+.2f}" for name, value in kinds.items() if value)
        return f"Written({self.label!r}: logit {self.logit:+.2f} = {summed}; heads read {read or 'nothing'})"

    # --- reading ---

    def part(self, name: str) -> Tensor:
        """[A, H] what each head gave from one of ``SOURCES``, or from ``"sinks"``, which are among the image's.

        Raises:
            BadInput: there is no such source.
        """
        if name not in self._by_source:
            raise BadInput(f"what heads read is one of {', '.join(SOURCES)} or sinks; got {name!r}")
        return self._by_source[name]

    def read(self) -> dict[str, float]:
        """What all heads together gave from each of ``SOURCES``, and from sinks, which count in the image's too."""
        return {name: float(gave.sum()) for name, gave in self._by_source.items()}

    def map(self, layer: int | None = None, head: int | None = None, image: int = 0) -> ImageMap:
        """What heads read off a picture, visual token by visual token, signed: sums to their part of it.

        Args:
            layer: the model's own number; all layers' together when None.
            head: likewise, of all heads.
            image: which picture.

        Raises:
            OutOfRange: a layer without heads, a head or a picture that is not there.
            BadInput: the places of the visual tokens are not known.
        """
        layout, at = seen(self, image), self._heads_at(layer, head)
        values = self.keys[at].flatten(0, -2).sum(0)
        marked = torch.tensor([place in self.sinks for place in layout.positions.tolist()], dtype=torch.bool)
        others = tuple(token for token in self.tokens if token.role != "image")
        return ImageMap(
            values[layout.positions][None],
            layout,
            self.images[image],
            (self.token,),
            "written",
            marked=marked if self.sinks else None,
            about={
                "unit": "logit, by what was read",
                "image": image % len(self.images),
                "layer": layer,
                "head": head,
                "contrast": None if self.contrast is None else [self.contrast],
                "positions": [[self.token.position]],
                **self.about,
            },
            text=values[[token.position for token in others]][None],
            text_tokens=others,
        )

    def parts(self) -> tuple[WrittenPart, ...]:
        """Every part, in the order in which they wrote."""
        rows = {layer: self.heads[row].tolist() for row, layer in enumerate(self.layers)}
        found = [WrittenPart("embedding", None, None, self.embedding)]
        for layer, (mlp, other, bias) in enumerate(zip(self.mlp, self.other, self.biases, strict=False)):
            found += [WrittenPart("head", layer, head, value) for head, value in enumerate(rows.get(layer, []))]
            each = {"other": float(other), "mlp": float(mlp), "bias": float(bias)}
            found += [WrittenPart(kind, layer, None, value) for kind, value in each.items() if value]
        behind = float(self.biases[-1])
        return (*found, WrittenPart("bias", None, None, behind)) if behind else tuple(found)

    def top(self, k: Count = 10) -> tuple[WrittenPart, ...]:
        """The ``k`` parts that gave most, for the word or against it."""
        return tuple(sorted(self.parts(), key=lambda part: -abs(part.value))[:k])

    def table(self, k: Count = 10) -> str:
        """The ``k`` largest parts with what they read, the rest together, and their sum, a line each, to print.

        What no head wrote was not read at other positions: its sources are 0.
        """
        return self._table(k).text()

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON; heads by source, not by key."""
        return {
            "token": self.token.text,
            "position": self.token.position,
            "contrast": self.contrast,
            "logit": self.logit,
            "capped": self.capped,
            "embedding": self.embedding,
            "layers": list(self.layers),
            **{name: getattr(self, name).tolist() for name in ("heads", "mlp", "other", "biases")},
            **{name: gave.tolist() for name, gave in self._by_source.items()},
            "residual": self.residual,
        }

    # --- details ---

    @cached_property
    def _by_source(self) -> dict[str, Tensor]:
        """[A, H] what each head gave from each of ``SOURCES``, and from sinks."""
        places = {name: [place for place, own in enumerate(self.sources) if own == name] for name in SOURCES}
        return {name: self.keys[..., own].sum(-1) for name, own in (places | {"sinks": list(self.sinks)}).items()}

    def _repr_html_(self) -> str:
        return self._table(10).html(
            f"{self.label}: the parts sum to its logit within {self.residual:.0e} of the largest"
        )

    def _heads_at(self, layer: int | None, head: int | None) -> tuple[Sequence[int], Any]:
        if layer is not None and layer not in self.layers:
            raise OutOfRange(f"layer {layer} has no heads over the sequence; those that have are {list(self.layers)}")
        width = self.heads.shape[1]
        if head is not None and not -width <= head < width:
            raise OutOfRange(f"head {head} is not there: these layers have heads 0 to {width - 1}")
        rows = range(len(self.layers)) if layer is None else [self.layers.index(layer)]
        return list(rows), slice(None) if head is None else [head % width] * len(rows)

    def _table(self, k: int) -> Table:
        top, everything, count = self.top(k), self.read(), len(self.parts())
        rows = [(str(part), part.value, self._sources(part)) for part in top]
        left = self.logit - sum(part.value for part in top)
        rest = {name: value - sum(read[name] for _, _, read in rows) for name, value in everything.items()}
        others = [("the rest", left, rest)] if len(top) < count else []
        return self._lines([*rows, *others, (f"all {count} parts", self.logit, everything)])

    def _columns(self) -> Table:
        """A line for each part."""
        parts = self.parts()
        numbers: dict[str, list[Any]] = {
            "part": [part.kind for part in parts],
            "layer": [part.layer for part in parts],
            "head": [part.head for part in parts],
        }
        return Table(numbers | self._lines([(str(part), part.value, self._sources(part)) for part in parts]).data)

    def _lines(self, rows: Sequence[tuple[str, float, Mapping[str, float]]]) -> Table:
        names = [name for name in self._by_source if name != "sinks" or self.sinks]
        lines: dict[str, list[Any]] = {
            "part": [name for name, _, _ in rows],
            "logit": [value for _, value, _ in rows],
            **{name: [read[name] for _, _, read in rows] for name in names},
        }
        return Table(lines)

    def _sources(self, part: WrittenPart) -> dict[str, float]:
        if part.head is None or part.layer is None:
            return dict.fromkeys(self._by_source, 0.0)
        at = self.layers.index(part.layer), part.head
        return {name: float(gave[at]) for name, gave in self._by_source.items()}
