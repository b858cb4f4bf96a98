"""Directions in hidden states: from a probe, from two sets, from a column of a store, from a word; and random ones.

    lp.Direction.of_probe(probe, "red")
    lp.Direction.between(happy_traces, sad_traces, layer=12)                 # mean difference
    lp.Direction.between(a, b, layer=12, method="pca")                       # first principal component of differences
    lp.Direction.of_features(features, "layer_12", "last_prompt", column="colour", value="red")
    lp.Direction.of_word(vlm, "red")                                         # of the unembedding
    direction.random(seed)                                                   # a direction of no meaning, as a control

Mean differences: Marks and Tegmark 2023 (arXiv 2310.06824); principal components of paired differences: Zou et al.
2023, "Representation Engineering" (arXiv 2310.01405).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from llava_probe.border import Seed, checked
from llava_probe.errors import BadInput, NotANumber, OutOfRange
from llava_probe.features.reading import Features
from llava_probe.interventions.on_states import digest_of, read_tensor
from llava_probe.model import VLM
from llava_probe.probes.probe import Label, Probe
from llava_probe.trace.explained import LAST, At
from llava_probe.trace.trace import Trace

DirectionMethod = Literal["mean", "pca"]


@checked
@dataclass(frozen=True, eq=False)
class Direction:
    """A direction in hidden states.

    Attributes:
        vector: [D] of any length; only where it points counts.
        about: where it is from, as plain data.

    Raises:
        BadInput: not [D].
        NotANumber: NaN or infinity in it, or all zeros.
    """

    vector: Tensor
    about: Mapping[str, Any] = field(default_factory=lambda: {"from": "a tensor"})

    def __post_init__(self) -> None:
        vector = read_tensor(self.vector, "a direction")
        if vector.ndim != 1:
            raise BadInput(f"a direction is a tensor [D]; got {list(vector.shape)}")
        if not bool(torch.isfinite(vector).all()):
            raise NotANumber("this direction holds NaN or infinity")
        if not bool(vector.any()):
            raise NotANumber("this direction is all zeros: it points nowhere")
        object.__setattr__(self, "vector", vector.detach().float().cpu().clone())

    def __repr__(self) -> str:
        return f"Direction({', '.join(f'{name} {value}' for name, value in self.about.items())})"

    @property
    def width(self) -> int:
        """D."""
        return len(self.vector)

    @cached_property
    def unit(self) -> Tensor:
        """[D] float32 of length 1."""
        return torch.nn.functional.normalize(self.vector.double(), dim=0).float()

    def told(self) -> Mapping[str, Any]:
        """As plain data: where it is from, and what tells it from another."""
        return {**self.about, "sha256": digest_of(self.unit)}

    def random(self, seed: Seed) -> Direction:
        """A direction drawn evenly from all of this width."""
        drawn = torch.randn(self.width, generator=torch.Generator().manual_seed(seed))
        return Direction(drawn, {"from": "random", "seed": seed})

    # --- where they come from ---

    @classmethod
    def of_probe(cls, probe: Probe, label: Label = None) -> Direction:
        """Along which a probe's score of ``label`` grows fastest."""
        return cls(probe.direction(label), {"from": "probe", "of": probe.label, "label": label, "layer": probe.layer})

    @classmethod
    def of_word(cls, vlm: VLM, word: str) -> Direction:
        """The unembedding of a word's first token, as it begins a word; less the mean of the vocabulary.

        It is a direction behind the final norm; at earlier layers it is what the logit lens reads.

        Raises:
            OutOfRange: the tokenizer does not know the word.
        """
        tokenizer = vlm.processor.tokenizer
        ids = tokenizer(f" {word.strip()}", add_special_tokens=False).input_ids
        ids = [token for token in ids if tokenizer.decode([token]).strip()]
        if not ids:
            raise OutOfRange(f"{word!r} is no word of this tokenizer")
        states = torch.eye(vlm.anatomy.width)
        logits = vlm.anatomy.unembed(states.to(next(vlm.anatomy.model.parameters()).device))
        vector = (logits[:, ids[0]] - logits.mean(-1)).detach()
        return cls(vector, {"from": "unembedding", "of": tokenizer.decode(ids[:1])})

    @classmethod
    def between(
        cls,
        positive: Sequence[Trace] | Tensor,
        negative: Sequence[Trace] | Tensor,
        layer: int | None = None,
        at: At = LAST,
        method: DirectionMethod = "mean",
    ) -> Direction:
        """From one set of hidden states to another.

        Args:
            positive, negative: traces that kept the states, or tensors [n, D].
            layer: which hidden state of the traces.
            at: at which of their tokens; the mean over several.
            method: ``"mean"`` difference, or ``"pca"``: the first principal component of the differences of pairs,
                turned so that it points to ``positive``.

        Raises:
            BadInput: no states, of different widths, or unpaired where pairs are needed.
        """
        one, other = _states(positive, layer, at), _states(negative, layer, at)
        about = {"from": "mean difference" if method == "mean" else "principal component", "layer": layer}
        return cls(_difference(one, other, method), about)

    @classmethod
    def of_features(
        cls,
        features: Features,
        what: str,
        position: str,
        *,
        column: str,
        value: str | bool | int | float,
        against: str | bool | int | float | None = None,
        method: DirectionMethod = "mean",
    ) -> Direction:
        """From the rows of a store whose column says something else to those where it says ``value``.

        Args:
            features: ``lp.Features``.
            what, position: which states: ``"layer_12"``, ``"last_prompt"``.
            column: of the store's table; ``value``: what it says of the rows pointed to.
            against: what it says of the others; anything else when None.
            method: as for ``between``.

        Raises:
            OutOfRange: no row says so.
        """
        told = list(features.column(column))
        sides = [
            [row for row, each in enumerate(told) if each == value],
            [row for row, each in enumerate(told) if (each != value if against is None else each == against)],
        ]
        for rows, sought in zip(sides, (value, "another value" if against is None else against), strict=True):
            if not rows:
                raise OutOfRange(f"no row says {sought!r} in column {column!r}")
        one, other = (torch.from_numpy(features.numpy(what, position, rows)) for rows in sides)
        about = {"from": "features", "of": f"{what} {position}", "column": column, "value": value, "method": method}
        return cls(_difference(one, other, method), about)


def _states(given: Any, layer: int | None, at: At) -> Tensor:
    """[n, D] float32."""
    listed = list(given) if isinstance(given, list | tuple) else []
    if listed and all(isinstance(each, Trace) for each in listed):
        if layer is None:
            raise BadInput("say which hidden state of the traces: layer=")
        rows = [trace.hidden(layer=layer, at=at).float() for trace in listed]
        states = torch.stack([row.mean(0) if row.ndim > 1 else row for row in rows])
    else:
        states = read_tensor(given, "a set of hidden states")
    if states.ndim != 2 or not len(states):
        raise BadInput(f"a set of hidden states is [n, D] with at least one row; got {list(states.shape)}")
    return states.detach().float().cpu()


def _difference(one: Tensor, other: Tensor, method: DirectionMethod) -> Tensor:
    if one.shape[1] != other.shape[1]:
        raise BadInput(f"the two sets have {one.shape[1]} and {other.shape[1]} numbers a row")
    mean = one.mean(0) - other.mean(0)
    if method == "mean":
        return mean
    if len(one) != len(other) or len(one) < 2:
        raise BadInput(f"principal components are of pairs, two or more; got {len(one)} and {len(other)} rows")
    pairs = one - other
    component = torch.linalg.svd(pairs.double(), full_matrices=False).Vh[0].float()
    return component if float(component @ mean) >= 0 else -component
