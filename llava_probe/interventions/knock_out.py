"""Attention knock-out: some positions may not look at some others, in some layers and heads.

    with lp.knock_out(vlm, keys="image", queries="last", layers=range(8, 17)) as cut:
        trace = vlm.generate(image, question)
    cut.acts                       # what was taken away, by layer and step

Geva et al. 2023, "Dissecting Recall of Factual Associations in Auto-Regressive Language Models" (arXiv 2304.14767),
section 5: the logits of the edges from queries to keys become −∞, so their weights are exactly 0 and the rest of the
row is what softmax makes of it. A query that would be left without any key is refused. It acts in every kernel and with
every cache, in batches, beams and chunks.

``uniform=True`` is the control that belongs beside each cut: what the queries gave these keys stays, spread evenly over
them, so that it no longer matters which of them is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from llava_probe.border import checked
from llava_probe.inside.edges import Hide, Rule
from llava_probe.interventions.intervention import acting
from llava_probe.interventions.on_attention import OnAttention
from llava_probe.interventions.places import Phase
from llava_probe.model import VLM
from llava_probe.trace.explained import At


@checked
@contextmanager
def knock_out(
    vlm: VLM,
    *,
    keys: At | None = None,
    keep: At | None = None,
    queries: At | None = None,
    layers: int | Sequence[int] | None = None,
    heads: int | Sequence[int] | None = None,
    uniform: bool = False,
    phase: Phase = "both",
    allow_nothing: bool = False,
) -> Iterator[KnockOut]:
    """Let some positions not look at some others while the context lasts, in whatever runs in it.

    Args:
        vlm: whose passes; ``vlm.model(...)`` called by hand counts too.
        keys: what may not be looked at: positions (from 0), words of the prompt, places such as ``"image"``, parts of
            the photograph (``lp.Region``).
        keep: or all that may be looked at, besides a position's own.
        queries: what may not look there, likewise; everything but the keys themselves when None.
        layers: blocks, from 0; all when None.
        heads: query heads; all when None.
        uniform: spread what the queries give these keys evenly over them, in place of taking it away.
        phase: of which positions: the prompt's, the answer's, or both.
        allow_nothing: do not raise where nothing was taken away.

    Yields:
        What tells before what will happen (``plan()``), and afterwards where it acted (``acts``).

    Raises:
        NotActed: on leaving, where nothing was taken away; the message says why.
        OutOfRange: a layer or head that this model does not have.
        BadInput: a query that would be left without any key.
        BadModel: attention that cannot be reached, or layers that pass information on beside it.
    """
    cut = KnockOut(vlm, keys, queries, layers, heads, keep=keep, uniform=uniform, phase=phase, allow=allow_nothing)
    with acting(cut):
        yield cut


class Spread(Rule):
    """The weights of each row's pairs are their mean."""

    def after(self, weights: Tensor, pairs: Tensor) -> Tensor:
        """Their sum stays."""
        given = weights.masked_fill(~pairs, 0).sum(-1, keepdim=True)
        return weights.where(~pairs, given / pairs.sum(-1, keepdim=True).clamp(min=1))


@checked
class KnockOut(OnAttention):
    """One attention knock-out in force. Made by ``knock_out``.

    Attributes:
        layers: the blocks; ``heads``: the query heads, None for all.
        uniform: whether weights are spread, not taken away.
    """

    kind = "knock_out"

    def __init__(
        self,
        vlm: VLM,
        keys: At | None,
        queries: At | None,
        layers: Any,
        heads: Any,
        *,
        keep: At | None = None,
        uniform: bool = False,
        phase: Phase = "both",
        allow: bool = False,
    ) -> None:
        rule = Spread() if uniform else Hide()
        super().__init__(vlm, keys, queries, layers, heads, rule=rule, keep=keep, phase=phase, allow_nothing=allow)
        self.uniform = uniform

    def settings(self) -> Mapping[str, Any]:
        """As plain data."""
        return {**super().settings(), **({"uniform": True} if self.uniform else {})}

    def ruled(self) -> str:
        """What becomes of the weights."""
        return "what is given to them is spread evenly over them" if self.uniform else "they are not looked at"
