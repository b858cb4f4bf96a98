"""One continuation run again and again with other visual tokens: the tower once, a shared beginning from a cache.

Visual tokens are changed where they enter the decoder. In a causal model everything before the first changed token is
the same in a whole batch and is read from a cache, where a trial (four passes more) shows that this changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.utils import ModelOutput

from llava_probe.attribution.engine.forward import frozen
from llava_probe.attribution.engine.side_by_side import cut, sliceable, widened
from llava_probe.attribution.engine.target import Task
from llava_probe.errors import BadModel
from llava_probe.faults import by_the_model, out_of_memory
from llava_probe.inside import seam
from llava_probe.inside.passes import Others, Visitor, alone_with, entered, instead, visitors_of
from llava_probe.inside.tolerance import SCORES

#: Makes of what enters the decoder what shall enter it; None leaves it.
Enter = Callable[[Tensor | None, Others], Any]


@contextmanager
def replaying(task: Task, number: int, baseline: str | Tensor = "mean", *, graph: bool = False) -> Iterator[Replay]:
    """One continuation to be run again and again while the context lasts, its tower once; with a graph if asked."""
    model, vision = task.vlm.anatomy.model, task.vlm.anatomy.vision
    memory = None if vision is None else TowerMemory()
    with (
        alone_with(model),
        torch.inference_mode(False),
        frozen(model),
        nullcontext() if vision is None or memory is None else instead(vision.owner, memory),
    ):
        torch.set_grad_enabled(graph)  # until ``frozen`` ends
        yield Replay(task, number, baseline, memory)


class TowerMemory:
    """Answers each later pass with what a module gave in the first, call by call."""

    def __init__(self) -> None:
        self._held: list[Any] = []
        self._passes = self._calls = 0

    def forget(self) -> None:
        """The next pass is of another picture."""
        self._held.clear()
        self._passes = self._calls = 0

    def begin(self) -> None:
        """A pass of the model begins."""
        self._passes, self._calls = self._passes + 1, 0

    def __call__(self, inside: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What ``inside`` gave the first time."""
        if self._passes <= 1:
            self._held.append(inside(*args, **kwargs))
        self._calls += 1
        held = self._held[self._calls - 1]
        return type(held)(**held) if isinstance(held, ModelOutput) else held  # models write into what they are given


class Entering(Visitor):
    """Puts something else where the sequence enters the decoder."""

    changes = True

    def __init__(self, enter: Enter) -> None:
        self._enter = enter

    def entry(self, embeddings: Tensor | None, others: Others) -> tuple[Tensor | None, Others] | None:
        """What ``enter`` makes of it."""
        return self._enter(embeddings, others)


@dataclass
class Replay:
    """Runs one continuation again and again with other visual tokens. Made by ``replaying``."""

    task: Task
    number: int
    baseline: str | Tensor
    memory: TowerMemory | None = None

    def __post_init__(self) -> None:
        self._limit: int | None = None  # how many of the first positions may come from a cache; untried
        self._cache: DynamicCache | None = None

    def scores(self, keep: Tensor) -> Tensor:
        """[n, R] for keep [n, N]."""
        prefix = self._prefix(keep)
        if prefix and self._limit is None:
            plain = self._run(keep, 0)
            self._limit = self._shareable(keep[:2], plain[:2])
            return plain
        return self._run(keep, min(prefix, self._limit or 0))

    def entered(self, entry: Tensor) -> Tensor:
        """[n] values of each target's part, [n, R], with whole embeddings [n, P, D] where the sequence enters."""

        def enter(_embeddings: Tensor | None, others: Others) -> tuple[Tensor, Others]:
            return entry, widened(others, len(entry), self.task, entry.shape[1])

        return values_of(self.task, self.number, self._pass(enter))

    def entry(self) -> Tensor:
        """[1, P, D] the unchanged embeddings."""
        seen: list[Tensor] = []
        with torch.no_grad():
            self._pass(lambda embeddings, others: seen.append(self._checked(embeddings)))
        return seen[0].detach()

    def _checked(self, embeddings: Tensor | None) -> Tensor:
        return entered(self.task.vlm.anatomy, embeddings, self._length)

    def _prefix(self, keep: Tensor) -> int:
        """How many positions are the same in the whole batch."""
        changed = (keep < 1).any(0).nonzero().flatten()
        first = self.task.places[changed].min() if len(changed) else self.task.places.max()
        return int(first)

    def _shareable(self, keep: Tensor, plain: Tensor) -> int:
        """How many of the first positions may come from a cache, as two changed inputs show; 0 where none."""
        if any(visitor.whole for visitor in visitors_of(self.task.vlm.anatomy)):
            return 0
        try:
            limit = self._unmoved()
            prefix = min(limit, self._prefix(keep))
            if not prefix:
                return 0
            off = (self._run(keep, prefix) - plain).abs() / plain.abs().clamp(min=1)
        except Exception as error:  # a family that cannot go on from our cache fails in its own way
            if not (out_of_memory(error) or by_the_model(error)):
                raise
            return 0
        return limit if bool((off <= SCORES[self.task.vlm.anatomy.model.dtype]).all()) else 0

    def _unmoved(self) -> int:
        """How many of the first positions stay as they are, to the bit, when the picture's last token is another.

        Up to that token in a causal model; where a picture's tokens see each other, at most up to its first.
        """
        self._cache = self._filled()
        last, first = int(self.task.places.max()), int(self.task.places.min())
        other = self._filled(last)
        if self._cache is None or other is None:
            return 0
        held = zip(seam.keys_and_values(self._cache), seam.keys_and_values(other), strict=True)
        pairs = [pair for one, two in held for pair in zip(one, two, strict=True)]
        for end in (last, first):
            if all(torch.equal(one[:, :, :end], two[:, :, :end]) for one, two in pairs):
                return end
        return 0

    def _filled(self, changed: int | None = None) -> DynamicCache | None:
        """Keys and values of the sequence, one token of it made noise if asked; None where the family keeps others."""
        cache = DynamicCache(config=self.task.vlm.anatomy.decoder.owner.config)

        def enter(embeddings: Tensor | None, others: Others) -> tuple[Tensor, Others]:
            if not sliceable(others):
                raise BadModel("inputs of the decoder that cannot be cut")
            entry = self._checked(embeddings)
            if changed is not None:
                entry = entry.clone()
                noise = torch.randn(entry.shape[2], generator=torch.Generator().manual_seed(0))
                entry[:, changed] = noise.to(entry) * entry.std()
            return entry, {**others, "past_key_values": cache, "use_cache": True}

        self._pass(enter)
        return cache if seam.is_whole(cache) and cache.get_seq_length() == self._length else None

    @property
    def _length(self) -> int:
        return self.task.continuations[self.number].length

    def _run(self, keep: Tensor, prefix: int) -> Tensor:
        found = self._pass(lambda embeddings, others: self._changed(self._checked(embeddings), others, keep, prefix))
        return values_of(self.task, self.number, found).double().cpu()

    def _pass(self, enter: Enter) -> Tensor:
        if self.memory is not None:
            self.memory.begin()
        return self.task.logits(self.number, Entering(enter))

    def _changed(self, entry: Tensor, others: Others, keep: Tensor, prefix: int) -> tuple[Tensor, Others]:
        """The decoder's inputs for a batch: its visual tokens blended, what is shared cut off."""
        count, places = len(keep), self.task.places
        weight = keep.to(entry)[..., None]
        batch = entry.expand(count, -1, -1).clone()
        batch[:, places] = weight * batch[:, places] + (1 - weight) * baseline_rows(self.task, entry, self.baseline)
        wide = widened(others, count, self.task, entry.shape[1], weight)
        if not prefix or self._cache is None:
            return batch, wide
        rest = {name: cut(name, value, prefix) for name, value in wide.items()}
        return batch[:, prefix:], {**rest, "past_key_values": _begun(self._cache, prefix, count)}


def _begun(cache: DynamicCache, prefix: int, count: int) -> DynamicCache:
    """A cache of the first positions for a batch."""
    begun = DynamicCache()
    for number, held in enumerate(seam.keys_and_values(cache)):
        keys, values = (part[:, :, :prefix].expand(count, -1, -1, -1) for part in held)
        begun.update(keys, values, number)
    return begun


def baseline_rows(task: Task, entry: Tensor, baseline: str | Tensor) -> Tensor:
    """[N, D] what stands in the place of the visual tokens that are taken away."""
    visual = entry[0, task.places]
    if isinstance(baseline, Tensor):
        return baseline.to(visual).expand_as(visual)
    return torch.zeros_like(visual) if baseline == "zero" else visual.mean(0, keepdim=True).expand_as(visual)


def values_of(task: Task, number: int, logits: Tensor) -> Tensor:
    """[n, R] of this continuation's part of each target, from the logits of a pass."""
    steps = logits[:, -len(task.answers[number]) :]
    return torch.stack([target.value(number, steps, task.quantity) for target in task.targets], dim=1)
