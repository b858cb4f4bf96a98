"""What stands in the place of what is taken away: nothing, a mean, something drawn from elsewhere, or a given tensor.

Means and draws are of the same sample: a visual token's are of its own picture's, a word's of the prompt's words, what
a part adds of what it adds at every token of the prompt. They are of what the pass computes, so they need the prompt in
one pass; the answer's tokens use the prompt's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from llava_probe.errors import BadInput, NotANumber
from llava_probe.features.reading import Features, Ragged
from llava_probe.inside.passes import Prompt, Span
from llava_probe.interventions.on_states import Where, digest_of, read_tensor
from llava_probe.model import VLM

Named = Literal["mean", "zero", "resample"]
#: What ``with_=`` takes.
With = Named | Tensor | Features

#: For each sample, the columns of a pass whose values stand for one another.
ColumnGroups = Sequence[Sequence[Tensor]]

#: Of the prompt's values, so many are kept for the tokens of an answer to be drawn from.
DRAWS = 64
#: Draws are by place of the sequence; beyond so many they come again.
_PLACES = 8192


@dataclass
class Replacement:
    """One ``with_=``.

    Attributes:
        named: how it is made, or None where it was given.
        given: the tensor, if it was.
        seed: of draws.
        elsewhere: whether draws are from what is not taken away; of parts of blocks everything may be drawn.
    """

    named: Named | None
    given: Tensor | None = None
    seed: int = 0
    elsewhere: bool = False
    _prompts: dict[tuple[int, int], tuple[tuple[Prompt, ...], list[Tensor]]] = field(default_factory=dict)

    @classmethod
    def read(cls, with_: With, seed: int, layer: int | None) -> Replacement:
        """As given; ``layer``: the hidden state that a data set's mean is of, None where it keeps none such.

        Raises:
            BadInput: a store that does not hold it.
            NotANumber: a tensor with NaN or infinity in it.
        """
        if isinstance(with_, str):
            return cls(with_, seed=seed, elsewhere=layer is not None)
        if isinstance(with_, Features):
            with_ = _mean_of(with_, layer)
        given = read_tensor(with_, "with_=")
        if not bool(torch.isfinite(given).all()):
            raise NotANumber("with_= holds NaN or infinity")
        return cls(None, given)

    @property
    def whole(self) -> bool:
        """Whether it needs the prompt in one pass."""
        return self.named in ("mean", "resample")

    def told(self) -> Any:
        """As plain data."""
        if self.named is None and self.given is not None:
            return {"tensor": list(self.given.shape), "sha256": digest_of(self.given)}
        return self.named if self.named != "resample" else {"resample": self.seed}

    def of(self, values: Tensor, marked: Tensor, groups: ColumnGroups, span: Span, where: Where) -> Tensor:
        """[B, n, ...] with what is ``marked`` replaced.

        Args:
            values: [B, n, ...] of this pass.
            marked: [B or 1, n] what is taken away.
            groups: from ``groups_of``; empty in a pass behind the prompt.
            span: of the pass; ``where``: which vectors these are.

        Raises:
            BadInput: a tensor of another width, or a mean or draw whose prompt is not in one pass.
        """
        marks = marked.expand(values.shape[:2])
        shaped = marks.reshape(*marks.shape, *[1] * (values.ndim - 2))
        if self.named == "zero":
            return values.masked_fill(shaped, 0)
        if self.given is not None:
            given = self.given.to(values)
            trailing = values.shape[2:]
            if given.shape not in (trailing, trailing[-1:], (1,)):
                raise BadInput(
                    f"with_= takes a tensor {list(trailing)}, as the model's are here; got {list(given.shape)}"
                )
            return torch.where(shaped, given, values)
        self.hold(values, groups, span, where)
        out = values.clone()
        for row in range(values.shape[0]):
            at, sample = marks[row].nonzero().flatten(), span.sample(row)
            own = [group.to(values.device) for group in groups[sample]] if groups else []
            for group in own:
                mine = at[torch.isin(at, group)]
                if len(mine):
                    out[row, mine] = self._drawn(values[row, self._open(group, at)], mine, span, sample, where)
            behind = at[at + where.first >= span.prompts[sample].stop]
            if len(behind):
                out[row, behind] = self._drawn(self._held(where, span)[sample], behind, span, sample, where)
        return out

    def hold(self, values: Tensor, groups: ColumnGroups, span: Span, where: Where) -> None:
        """Keep what the tokens of an answer will need of its prompt: of the first group of each sample."""
        if not groups or not self.whole:
            return
        kept = []
        for sample, own in enumerate(groups):
            row, prompt = values[sample * span.copies], own[0].to(values.device)
            spread = torch.linspace(0, len(prompt) - 1, DRAWS, device=values.device).long()
            part = row[prompt].mean(0, keepdim=True) if self.named == "mean" else row[prompt[spread]]
            kept.append(part.detach())
        self._prompts[where.module] = tuple(span.prompts), kept

    # --- details ---

    def _open(self, group: Tensor, at: Tensor) -> Tensor:
        """What of a group may be drawn."""
        others = group[~torch.isin(group, at)] if self.elsewhere and self.named == "resample" else group
        if not len(others):
            raise BadInput("with_='resample' has nothing left to draw from: name fewer tokens, or give a tensor")
        return others

    def _drawn(self, pool: Tensor, at: Tensor, span: Span, sample: int, where: Where) -> Tensor:
        """[len(at), ...] of a pool [m, ...]: its mean, or for each place one that is always the same."""
        if self.named == "mean":
            return pool.mean(0)
        seed = self.seed * 1_000_003 + where.layer * 10_007 + where.number
        table = torch.randint(2**31, (_PLACES,), generator=torch.Generator().manual_seed(seed))
        places = (at.cpu() + where.first - span.prompts[sample].padding) % _PLACES
        return pool[(table[places] % len(pool)).to(pool.device)]

    def _held(self, where: Where, span: Span) -> list[Tensor]:
        held = self._prompts.get(where.module)
        if held is None or not _same(held[0], span.prompts):
            raise BadInput(
                f"with_={self.named!r} is of a prompt's own tokens, which this pass does not read as a whole: leave "
                "out prefill_chunk_size and caches made before, or give with_= a tensor"
            )
        return held[1]


def groups_of(vlm: VLM, span: Span, first: int, stop: int, *, apart: bool) -> list[list[Tensor]]:
    """For each sample the columns of a pass, from ``first`` on, whose values stand for one another.

    Args:
        vlm: whose visual tokens are known by their ids, where a pass is run by hand.
        span: of the pass.
        first, stop: the columns that it computes.
        apart: the words and each picture's tokens by themselves; else the whole prompt.

    Returns:
        Nothing where the pass does not hold every prompt as a whole.

    Raises:
        BadInput: which of the tokens are a picture's is not known.
    """
    if any(first > prompt.padding or stop < prompt.stop for prompt in span.prompts):
        return []
    found = []
    for prompt in span.prompts:
        pictures = _pictures(vlm, prompt) if apart else []
        visual = {place for picture in pictures for place in picture}
        text = [place for place in range(prompt.length) if place not in visual]
        listed = [*([text] if text else []), *pictures]
        found.append([torch.tensor(group) + prompt.padding - first for group in listed])
    return found


def _pictures(vlm: VLM, prompt: Prompt) -> list[list[int]]:
    """The visual tokens of each picture."""
    if not prompt.read:
        layouts = prompt.lay_out().layouts if prompt.lay_out is not None and prompt.image_positions else ()
        ends = [int(layout.positions.max()) for layout in layouts if len(layout)]
        groups: list[list[int]] = [[] for _ in range(len(ends) or 1)]
        for place in sorted(prompt.image_positions):
            groups[min(sum(end < place for end in ends), len(groups) - 1)].append(place)
        return [group for group in groups if group]
    own = [place for place, token in enumerate(prompt.ids) if token in vlm.visual_ids]
    if prompt.unknown or max(vlm.visual_ids) < 0 or (own and own[-1] - own[0] + 1 != len(own)):
        raise BadInput(
            "which tokens of this pass are of which picture is not known, so they have no mean of their own; ask "
            "through vlm.generate, or give with_= a tensor"
        )
    return [own] if own else []


def _same(one: Sequence[Prompt], other: Sequence[Prompt]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def _mean_of(features: Features, layer: int | None) -> Tensor:
    """[D] the mean of a data set's visual tokens."""
    keys = [key for key in list(features.keys()) if key[0] == f"layer_{layer}" and key[1] in ("image_mean", "image")]
    if layer is None or not keys:
        raise BadInput(
            f"the mean of a data set's visual tokens is of hidden state 0, which {features!r} does not hold at "
            "'image' or 'image_mean': lp.extract(..., layers=[0], positions=['image_mean'])"
            if layer is not None
            else "a store of features holds hidden states, not what heads or MLPs add; give with_= a tensor"
        )
    held = features[keys[0]]
    values = held.values if isinstance(held, Ragged) else held  # a tensor has something else by this name
    return torch.as_tensor(values[:]).float().mean(0)
