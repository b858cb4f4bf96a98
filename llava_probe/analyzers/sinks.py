"""Visual tokens that draw attention without content, found in the hidden states, with no list of dimensions.

Kang et al. 2025, "See What You Are Told: Visual Attention Sink in Large Multimodal Models" (arXiv 2503.03321): in the
dimensions where the first token's hidden state is massive (Sun et al. 2024, arXiv 2402.17762), some visual tokens are
massive too; they draw attention whatever is asked, and taking them away changes nothing. The paper lists those
dimensions model by model (Llama-2 7B: 1415 and 2533). Here they are read off the trace's own first token:

    φ(x, d) = |x[d]| / RMS(x)                        no learned gain; at most √D
    massive = dimensions with φ(first token, d) > τ  in some middle layer
    sink    = visual tokens with φ > τ in a massive dimension, in at least half of the layers that have any

τ is the paper's 20, which is a tenth of the energy of a state of 4,096; in models narrower than 800, where √D is near
or below 20, it is half of the energy.

    trace = vlm.generate(image, question, capture=lp.Capture(positions=["predicting", "image", 0]))
    lp.sinks(trace).marked

Limits. A model without massive activations (a small one, or one with gated attention) has sinks of another kind if
any, and none are found. That a token is massive says that it carries little of its own, not that nothing is there:
compare maps with and without. The rule looks only at positions of this one trace; several pictures agree more than one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from llava_probe.arrays import IntArray
from llava_probe.border import Positive, checked
from llava_probe.errors import NotCaptured
from llava_probe.trace.explained import PREDICTING, placed
from llava_probe.trace.trace import Trace

#: The paper's threshold on a value of the normed state.
THRESHOLD = 20.0
#: In narrow models: the share of a state's energy that one dimension must hold.
ENERGY = 0.5
#: Massive activations are made by the first two blocks; the last state is behind the final norm and its learned gain.
FIRST_LAYER = 2
#: In how many of the layers with massive dimensions a token must be massive.
PERSISTENCE = 0.5

_CAPTURE = 'pass Capture(positions=["predicting", "image", 0])'


@checked
@dataclass(frozen=True, eq=False)
class Sinks:
    """Which visual tokens of one picture are sinks, and why.

    Attributes:
        marked: [N] bool.
        positions: of the marked tokens in the sequence.
        strength: [layers, N] φ in the massive dimensions, the largest; 0 where a layer has none.
        dimensions: the massive dimensions; ``layers``: the hidden states looked at; ``threshold``: τ.
        attention: [T] share of attention that the marked tokens drew, all layers and heads averaged; None without
            attention rows.
        share: the same of the attention on this picture; what an even spread would give is ``marked.mean()``.
    """

    marked: Tensor
    positions: IntArray
    strength: Tensor
    dimensions: tuple[int, ...]
    layers: tuple[int, ...]
    threshold: float
    attention: Tensor | None = None
    share: Tensor | None = None

    def __len__(self) -> int:
        return len(self.positions)

    def __repr__(self) -> str:
        dimensions = f"massive dimensions {list(self.dimensions)}" if self.dimensions else "no massive dimension"
        return f"Sinks({len(self)} of {len(self.marked)} visual tokens; {dimensions}, φ > {self.threshold:.1f})"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "positions": self.positions.tolist(),
            "dimensions": list(self.dimensions),
            "layers": list(self.layers),
            "threshold": self.threshold,
            "attention": None if self.attention is None else self.attention.tolist(),
            "share": None if self.share is None else self.share.tolist(),
        }


@checked
def sinks(trace: Trace, image: int = 0, *, threshold: Positive | None = None) -> Sinks:
    """The visual tokens of one picture that are massive where the first token is.

    Args:
        trace: made with ``Capture(positions=["predicting", "image", 0])``.
        image: which picture.
        threshold: τ; see above when None.

    Raises:
        NotCaptured: hidden states of the visual tokens, of the first token or of a middle layer were not kept.
        OutOfRange: there is no such picture.
    """
    layout = placed(trace, image)
    layers = _middle(trace)
    at = [0, *layout.positions.tolist()]
    if missing := set(at) - set(trace.hidden_positions):
        raise NotCaptured(
            f"sinks are found in the hidden states of the first token and of the visual tokens; {len(missing)} of "
            f"these {len(at)} were not kept; {_CAPTURE}"
        )
    states = trace.hidden(layer=layers, at=at).float()  # [1 + N, layers, D]
    found = massive(states, threshold)
    attention, share = _drawn(trace, torch.from_numpy(layout.positions), found.marked)
    return Sinks(
        marked=found.marked,
        positions=layout.positions[found.marked.numpy()],
        strength=found.strength,
        dimensions=found.dimensions,
        layers=tuple(layers),
        threshold=found.threshold,
        attention=attention,
        share=share,
    )


@dataclass(frozen=True, eq=False)
class Massive:
    """Which tokens are massive where the first one is, and why; the fields are those of ``Sinks``."""

    marked: Tensor
    strength: Tensor
    dimensions: tuple[int, ...]
    threshold: float


def massive(states: Tensor, threshold: float | None = None) -> Massive:
    """The rule itself.

    Args:
        states: [1 + N, layers, D] of the first token and of N others, in middle layers, float32.
        threshold: τ; see above when None.
    """
    if threshold is None:
        threshold = min(THRESHOLD, sqrt(ENERGY * states.shape[-1]))
    normed = states.abs() / states.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-6)
    large = normed[0] > threshold  # [layers, D]
    chosen, held = large.any(0), large.any(1)
    count, layers = len(states) - 1, states.shape[1]
    strength = normed[1:][..., chosen].amax(-1).T if bool(chosen.any()) else normed.new_zeros(layers, count)
    strength = strength * held[:, None]
    marked = torch.zeros(count, dtype=torch.bool)
    if bool(chosen.any()):
        marked = (strength > threshold).sum(0) >= PERSISTENCE * held.sum()
    return Massive(marked, strength, tuple(chosen.nonzero().flatten().tolist()), threshold)


def _middle(trace: Trace) -> Sequence[int]:
    last = trace.sizes.layers
    middle = [layer for layer in trace.hidden_layers if FIRST_LAYER <= layer < last]
    if not middle:
        what = f"only of layers {list(trace.hidden_layers)}" if trace.hidden_layers else "none"
        raise NotCaptured(
            f"sinks are found in hidden states {FIRST_LAYER} to {last - 1} and {what} were kept; {_CAPTURE}"
        )
    return middle


def _drawn(trace: Trace, columns: Tensor, marked: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The marked tokens' share of each predicting row, and of what falls on the picture."""
    if not trace.kept("attention") or not set(trace.predicting) <= set(trace.attention_positions):
        return None, None
    rows = torch.stack([row.float().mean((0, 1)) for row in trace.each_row(PREDICTING)])
    on_picture = rows[:, columns]
    drawn = on_picture[:, marked].sum(1)
    return drawn, drawn / on_picture.sum(1).clamp_min(torch.finfo(torch.float32).tiny)
