"""What stands in the place of what is taken away: nothing, a mean, something drawn from elsewhere, or a given tensor.

Means and draws are of the same sample: a visual token's are of its own picture's tokens, a word's of the prompt's words,
what a part adds of what it adds at every token of the prompt. They are of what the pass computes, so they need the
prompt in one pass; the answer's passes use the prompt's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from llava_probe.errors import BadInput, NotANumber
from llava_probe.features.reading import Features
from llava_probe.inside.passes import Prompt, Span

Named = Literal["mean", "zero", "resample"]
#: What ``with_=`` takes.
With = Named | Tensor | Features

#: Hidden state or block, and which of its modules.
Module = tuple[int, int]

#: Of the prompt's values, so many are kept for the tokens of an answer to be drawn from.
DRAWS = 64


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
        if not bool(torch.isfinite(with_).all()):
            raise NotANumber("with_= holds NaN or infinity")
        return cls(None, with_.detach().clone())

    @property
    def whole(self) -> bool:
        """Whether it needs the prompt in one pass."""
        return self.named in ("mean", "resample")

    def told(self) -> Any:
        """As plain data."""
        if self.named is None and self.given is not None:
            return {"tensor": list(self.given.shape), "norm": round(float(self.given.float().norm()), 4)}
        return self.named if self.named != "resample" else {"resample": self.seed}

    def of(self, values: Tensor, marked: Tensor, groups: Sequence[Sequence[Tensor]], span: Span, module: Module) -> Tensor:
        """[B, n, ...] with what is ``marked`` replaced.

        Args:
            values: [B, n, ...] of this pass.
            marked: [B or 1, n] what is taken away.
            groups: for each sample, index tensors of the pass's columns that belong together (one picture's tokens);
                empty in a pass behind the prompt.
            span: of the pass; ``module``: which one gives them.

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
        out = values.clone()
        for row in range(values.shape[0]):
            at = marks[row].nonzero().flatten()
            sample = span.sample(row)
            if not groups:
                held = self._held(module, span)[sample]
                out[row, at] = held[self._numbers(module, len(at), len(held), span.start).to(held.device)]
                continue
            own = [group.to(values.device) for group in groups[sample]]
            for group in own:
                out[row, at] = self._within(values[row], out[row, at], at, group, module)
        self.hold(values, groups, span, module)
        return out

    def hold(self, values: Tensor, groups: Sequence[Sequence[Tensor]], span: Span, module: Module) -> None:
        """Keep what the passes of an answer will need of its prompt."""
        if not groups or not self.whole:
            return
        kept = []
        for sample, own in enumerate(groups):
            row, prompt = values[sample * span.copies], torch.cat(list(own)).to(values.device)
            spread = torch.linspace(0, len(prompt) - 1, DRAWS, device=values.device).long()
            part = row[prompt].mean(0, keepdim=True) if self.named == "mean" else row[prompt[spread]]
            kept.append(part.detach())
        self._prompts[module] = tuple(span.prompts), kept

    # --- details ---

    def _within(self, values: Tensor, made: Tensor, at: Tensor, group: Tensor, module: Module) -> Tensor:
        """``made`` [n, ...] for the columns ``at`` of a row [n, ...], those of one group replaced."""
        mine = torch.isin(at, group)
        if not bool(mine.any()):
            return made
        if self.named == "mean":
            new = values[group].mean(0).expand_as(made)
        else:
            others = group[~torch.isin(group, at)] if self.elsewhere else group
            if not len(others):
                raise BadInput("with_='resample' has nothing left to draw from: name fewer tokens, or give a tensor")
            new = values[others[self._numbers(module, len(at), len(others), int(group[0])).to(others.device)]]
        return torch.where(mine.reshape(-1, *[1] * (made.ndim - 1)), new, made)

    def _held(self, module: Module, span: Span) -> list[Tensor]:
        if module not in self._prompts or not _same(self._prompts[module][0], span.prompts):
            raise BadInput(
                f"with_={self.named!r} is of a prompt's own tokens, which this pass does not read as a whole: leave out "
                "prefill_chunk_size and caches made before, or give with_= a tensor"
            )
        return self._prompts[module][1]

    def _numbers(self, module: Module, count: int, among: int, start: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + module[0] * 10_007 + module[1] + start)
        return torch.randint(among, (count,), generator=generator)


def groups_of(span: Span, first: int, stop: int, *, apart: bool) -> list[list[Tensor]]:
    """For each sample the columns of a pass, from ``first`` on, whose values stand for one another.

    Args:
        span: of the pass.
        first, stop: the columns that it computes.
        apart: the words and each picture's tokens by themselves; else the whole prompt.

    Returns:
        Nothing where the pass does not hold every prompt as a whole.
    """
    if any(first > prompt.padding or stop < prompt.stop for prompt in span.prompts):
        return []
    found = []
    for prompt in span.prompts:
        visual = sorted(prompt.image_positions) if apart else []
        text = sorted(set(range(prompt.length)) - set(visual))
        listed = [*([text] if text else []), *_pictures(prompt, visual)]
        found.append([torch.tensor(group) + prompt.padding - first for group in listed])
    return found


def _pictures(prompt: Prompt, visual: list[int]) -> list[list[int]]:
    """The visual tokens of each picture."""
    layouts = prompt.lay_out().layouts if prompt.lay_out is not None and visual else ()
    ends = [int(layout.positions.max()) for layout in layouts if len(layout)]
    groups: list[list[int]] = [[] for _ in range(len(ends) or 1)]
    for place in visual:
        groups[min(sum(end < place for end in ends), len(groups) - 1)].append(place)
    return [group for group in groups if group]


def _same(one: Sequence[Prompt], other: Sequence[Prompt]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def _mean_of(features: Features, layer: int | None) -> Tensor:
    """[D] the mean of a data set's visual tokens."""
    keys = [key for key in features.keys() if key[0] == f"layer_{layer}" and key[1] in ("image_mean", "image")]
    if layer is None or not keys:
        raise BadInput(
            f"the mean of a data set's visual tokens is of hidden state 0, which {features!r} does not hold at "
            "'image' or 'image_mean': lp.extract(..., layers=[0], positions=['image_mean'])"
            if layer is not None
            else "a store of features holds hidden states, not what heads or MLPs add; give with_= a tensor"
        )
    held = features[keys[0]]
    values = getattr(held, "values", held)
    return torch.as_tensor(values[:]).float().mean(0)
