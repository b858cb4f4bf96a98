"""Steering: hidden states pushed along a direction, or with it projected out.

    red = lp.Direction.of_probe(probe, "red")
    with lp.steer(vlm, red, layers=4, scale=2.0, at="image") as push:
        trace = vlm.generate(image, question)
    with lp.steer(vlm, red, layers=4, scale=2.0, at="image", random=0): ...   # the control: as far, elsewhere
    with lp.steer(vlm, red, layers=range(3, 6), project_out=True): ...

With d̂ the unit vector and n_ℓ the typical norm of hidden state ℓ: h ← h + scale·n_ℓ·d̂ (Turner et al. 2023, "Activation
Addition", arXiv 2308.10248); with ``project_out`` h ← h − scale·(h·d̂)·d̂, scale 1 by default (Arditi et al. 2024,
"Refusal in Language Models Is Mediated by a Single Direction", arXiv 2406.11717). The typical norm is the median over
the tokens of one prompt about a drawn picture: measured when the context begins, the same for whatever runs in it, and
told (``norms``). Hidden states are numbered as in a trace: 0 enters the first block, the last is behind the final norm.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from llava_probe import tiny
from llava_probe.border import Finite, Seed, checked
from llava_probe.errors import BadInput
from llava_probe.inside.anatomy import Stack
from llava_probe.inside.passes import Span, Visitor, visiting
from llava_probe.interventions.directions import Direction
from llava_probe.interventions.intervention import acting, read_numbers
from llava_probe.interventions.on_states import OnStates, Where, by_position, modules_told
from llava_probe.interventions.places import Phase
from llava_probe.model import VLM
from llava_probe.trace.capture import Capture
from llava_probe.trace.explained import At
from llava_probe.trace.trace import Trace


@checked
@contextmanager
def steer(
    vlm: VLM,
    direction: Direction | Tensor,
    *,
    layers: int | Sequence[int],
    scale: Finite = 1.0,
    at: At | None = None,
    project_out: bool = False,
    random: Seed | None = None,
    phase: Phase = "both",
    allow_nothing: bool = False,
) -> Iterator[Steering]:
    """Push hidden states along a direction while the context lasts, in whatever runs in it.

    Args:
        vlm: whose passes.
        direction: ``lp.Direction``, or a tensor [D] of any length but 0.
        layers: hidden states, 0 to the number of blocks.
        scale: how far, in typical norms of each hidden state; below 0 the other way. With ``project_out``: how much of
            what lies along the direction is taken away.
        at: where; every position when None.
        project_out: take away what lies along the direction.
        random: a seed: a random direction in the given one's place, the control that belongs beside each push.
        phase: of which positions: the prompt's, the answer's, or both.
        allow_nothing: do not raise where nothing was changed.

    Yields:
        What tells before what will happen (``plan()``), and afterwards where it acted (``acts``).

    Raises:
        NotActed: on leaving, where nothing was changed: ``scale=0``, say.
        OutOfRange: a hidden state that this model does not have.
        BadInput: a direction of another width.
        NotANumber: a direction with NaN in it, or of no length.
    """
    given = direction if isinstance(direction, Direction) else Direction(direction)
    given = given if random is None else given.random(random)
    push = Steering(vlm, given, layers, scale, at, project_out, phase, allow_nothing)
    with acting(push):
        yield push


@checked
class Steering(OnStates):
    """One push in force. Made by ``steer``.

    Attributes:
        direction, scale, project_out: as given.
        norms: the typical norm of each hidden state, by number.
    """

    kind = "steer"

    def __init__(
        self,
        vlm: VLM,
        direction: Direction,
        layers: int | Sequence[int],
        scale: Finite,
        at: At | None,
        project_out: bool,
        phase: Phase,
        allow: bool,
        norms: Mapping[int, float] | None = None,
    ) -> None:
        states = vlm.anatomy.layers + 1
        chosen = read_numbers(layers, "layers", "hidden states", states, "this model has hidden states")
        super().__init__(vlm, at, "residual", chosen, phase, allow)
        self.direction, self.scale, self.project_out = direction, scale, project_out
        if direction.width != vlm.anatomy.width:
            raise BadInput(f"this direction has {direction.width} numbers, the hidden states {vlm.anatomy.width}")
        measured = {} if project_out or not scale else norms or typical_norms(vlm, chosen)
        self.norms: Mapping[int, float] = measured

    def settings(self) -> Mapping[str, Any]:
        """As plain data."""
        return {
            "direction": self.direction.told(),
            "layers": list(self.layers),
            "scale": self.scale,
            "at": self._at.told(),
            **({"project_out": True} if self.project_out else {}),
        }

    def planned(self, trace: Trace | None) -> list[str]:
        """Which states, where, and how far."""
        norms = ", ".join(f"{layer}: {norm:.3g}" for layer, norm in self.norms.items())
        how = f"{self.scale:g} of what lies along {self.direction!r} is taken away"
        if not self.project_out:
            how = f"pushed along {self.direction!r} by {self.scale:g} × the typical norm ({norms})"
        return [modules_told(self.vlm, "residual", self.layers), f"at {self._at.shown(trace)}", how]

    def changed(self, where: Where, values: Tensor, marked: Tensor, span: Span) -> Tensor | None:
        """Pushed, in float32 and rounded once."""
        if not self.scale:
            return None
        if values.shape[-1] != self.direction.width:
            raise BadInput(
                f"hidden state {where.layer} of {type(self.vlm.anatomy.decoder.owner).__name__} has {values.shape[-1]} "
                f"numbers, this direction {self.direction.width}: its blocks carry several streams side by side"
            )
        exact = torch.promote_types(values.dtype, torch.float32)
        unit = self.direction.unit.to(values.device, exact)
        wide = values.to(exact)
        if self.project_out:
            made = wide - self.scale * (wide @ unit)[..., None] * unit
        else:
            made = wide + self.scale * self.norms[where.layer] * unit
        marks = marked.expand(values.shape[:2]).reshape(*values.shape[:2], *[1] * (values.ndim - 2))
        return torch.where(marks, made.to(values.dtype), values)

    def why_unchanged(self) -> str:
        """Its strength, or states that nobody computes."""
        return "scale=0" if not self.scale else super().why_unchanged()


class _Norms(Visitor):
    """Typical norms of some hidden states of one pass."""

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers, self.found = layers, {}  # type: tuple[Sequence[int], dict[int, float]]

    def begin(self, span: Span) -> None:
        self.span = span

    def state(self, stack: Stack, layer: int, hidden: Tensor) -> None:
        """The median over its positions."""
        if layer in self.layers and layer not in self.found:
            rows, _ = by_position(hidden, self.span)
            self.found[layer] = float(rows.float().norm(dim=-1).median())


def typical_norms(vlm: VLM, layers: Sequence[int]) -> Mapping[int, float]:
    """The median norm over the tokens of one prompt about a drawn picture, of each hidden state, by number."""
    norms = _Norms(layers)
    nothing = Capture(attention=False, hidden_states=False, logits=1, scores=False)
    with visiting(vlm.anatomy, norms, alone=False, apart=True):
        vlm.generate(tiny.scene(0).image, "What is in the picture?", max_new_tokens=1, capture=nothing)
    return {layer: norms.found[layer] for layer in layers}
