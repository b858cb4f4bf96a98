"""More or less attention to some positions: scaled before the softmax or after it, or moved from some keys to others.

    with lp.reweight(vlm, keys="image", queries="last", by=0.2):                      # as PAI does
        trace = vlm.generate(image, question)
    with lp.reweight(vlm, keys=lp.sinks(trace).positions, by=-0.5, how="move"): ...   # half of the sinks' to the rest

``by`` is signed: above 0 the keys get more, below 0 less, at 0 as before. With l the logits of a row, w its weights, S
its pairs:

- ``how="logits"``: l ← l + by·|l| on S, before the softmax (Liu et al. 2024, "Paying More Attention to Image", arXiv
  2407.21771, equation 6).
- ``how="weights"``: w ← w·(1 + by) on S, behind it; the row sums to one no more.
- ``how="move"``: the share ``by`` of what is on the rest of the row goes to S, in proportion to what each there has;
  below 0 the share −by of what is on S goes to the rest. Where either side has nothing, the row stays.

More attention to the picture may well hallucinate more: measure both signs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from llava_probe.border import Finite, checked
from llava_probe.errors import BadInput
from llava_probe.inside.edges import Rule
from llava_probe.interventions.intervention import acting
from llava_probe.interventions.on_attention import OnAttention
from llava_probe.interventions.places import Phase
from llava_probe.model import VLM
from llava_probe.trace.explained import At

How = Literal["logits", "weights", "move"]


@checked
@contextmanager
def reweight(
    vlm: VLM,
    *,
    keys: At,
    by: Finite,
    queries: At | None = None,
    how: How = "logits",
    layers: int | Sequence[int] | None = None,
    heads: int | Sequence[int] | None = None,
    phase: Phase = "both",
    allow_nothing: bool = False,
) -> Iterator[Reweighting]:
    """Give some positions more or less attention while the context lasts, in whatever runs in it.

    Args:
        vlm: whose passes.
        keys: what is looked at: positions (from 0), words of the prompt, places, parts of the photograph.
        by: how much more, below 0 less; see above.
        queries: what looks there; everything but the keys themselves when None.
        how: where it is done.
        layers, heads: as for ``knock_out``.
        phase: of which queries: the prompt's, the answer's, or both.
        allow_nothing: do not raise where nothing was changed.

    Yields:
        What tells before what will happen (``plan()``), and afterwards where it acted (``acts``).

    Raises:
        NotActed: on leaving, where nothing was changed: ``by=0``, say.
        BadInput: ``by`` beyond what ``how`` can do.
    """
    changed = Reweighting(vlm, keys, queries, layers, heads, by=by, how=how, phase=phase, allow=allow_nothing)
    with acting(changed):
        yield changed


@dataclass(frozen=True)
class _Logits(Rule):
    by: float

    def before(self, logits: Tensor, pairs: Tensor) -> Tensor:
        """Each by its own size."""
        return logits.where(~pairs, logits + self.by * logits.abs())


@dataclass(frozen=True)
class _Weights(Rule):
    by: float

    def after(self, weights: Tensor, pairs: Tensor) -> Tensor:
        """Each by the same factor."""
        return weights.where(~pairs, weights * (1 + self.by))


@dataclass(frozen=True)
class _Move(Rule):
    by: float

    def after(self, weights: Tensor, pairs: Tensor) -> Tensor:
        """From one side to the other; the row's sum stays."""
        own = weights.masked_fill(~pairs, 0).sum(-1, keepdim=True)
        rest = weights.masked_fill(pairs, 0).sum(-1, keepdim=True)
        given = self.by * (rest if self.by > 0 else own)
        both = (own > 0) & (rest > 0)
        factor_own, factor_rest = (own + given) / own, (rest - given) / rest
        return weights.where(~both, weights * factor_own.where(pairs, factor_rest))


_RULES = {"logits": _Logits, "weights": _Weights, "move": _Move}


@checked
class Reweighting(OnAttention):
    """One change of attention in force. Made by ``reweight``.

    Attributes:
        by, how: as given.
    """

    kind = "reweight"

    def __init__(
        self,
        vlm: VLM,
        keys: At,
        queries: At | None,
        layers: Any,
        heads: Any,
        *,
        by: Finite,
        how: How,
        phase: Phase,
        allow: bool,
    ) -> None:
        if how == "weights" and by < -1:
            raise BadInput(f"by={by:g} would make weights negative; with how='weights' it is -1 or more")
        if how == "move" and not -1 <= by <= 1:
            raise BadInput(f"by={by:g} is more than there is; with how='move' it is a share, -1 to 1")
        rule = _RULES[how](by) if by else None
        super().__init__(vlm, keys, queries, layers, heads, rule=rule, phase=phase, allow_nothing=allow)
        self.by, self.how = by, how

    def settings(self) -> Mapping[str, Any]:
        """As plain data."""
        return {**super().settings(), "by": self.by, "how": self.how}

    def ruled(self) -> str:
        """What becomes of the weights."""
        if self.how == "move":
            return f"{abs(self.by):.0%} of {'the rest goes to them' if self.by > 0 else 'theirs goes to the rest'}"
        return f"their {self.how} change by {self.by:+.0%} of their size"
