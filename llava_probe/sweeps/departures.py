"""Many changed runs of one prompt in few passes: what an intervention leaves as it was is not computed again.

    with departing(vlm, [trace]) as runs:
        logits = runs.logits([Departure(start=8, first=603), ...], changes)     # [lanes, V] at the last position

A changed run departs from a plain one: at a first block, and at a first position. What lies before either is the plain
run's own. So the lanes of a batch are plain runs, the bases, and changed ones behind them, sorted by the block at which
they depart:

- positions before the first changed one are read from the bases' keys and values, which one plain pass each has left;
- a lane joins the batch at the block where it departs, with its base's states; until then it costs nothing;
- the bases come along, so a change may take states from one of them (a patch), and what they give in the end must be
  what they gave alone: where it is not, a family does something between positions that we do not know, and every lane
  is run from its first position and block on, or is refused.

Blocks before a batch's first are passed by; the bases' states there were left by the batch before. So what is held
beside the plain runs' keys and values is one batch (``TOKENS``), however many lanes and blocks are swept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from llava_probe.attribution.engine.forward import frozen
from llava_probe.attribution.engine.replay import Entering, TowerMemory
from llava_probe.attribution.engine.side_by_side import cut, repeated
from llava_probe.errors import BadInput, BadModel
from llava_probe.faults import by_the_model, out_of_memory
from llava_probe.inside import seam
from llava_probe.inside.anatomy import Anatomy
from llava_probe.inside.passes import Others, Visitor, alone_with, instead, visiting
from llava_probe.inside.tolerance import SCORES
from llava_probe.model import VLM
from llava_probe.sweeps.plain import PlainRun, plain_run
from llava_probe.trace.trace import Trace

#: Tokens that go through the model together, and lanes at most: what keeps two cores busy, in some hundred MB.
TOKENS, LANES = 4096, 96
#: A shared beginning of less than this share of the prompt costs more than it saves.
_WORTH_IT = 1 / 16
#: Axes of rotary position ids that stand ahead of the batch: a batch of so many rows could be taken for them.
_AXES = (3, 4)


@dataclass(frozen=True, eq=False)
class Departure:
    """One changed run.

    Attributes:
        start: the block at which it departs; the hidden state of that number may be changed as it enters.
        first: the first position that is changed.
        base: which plain run it departs from.
        change: what is changed, for the visitor that changes it, in the blocks or states ``change.layers``.
    """

    start: int
    first: int
    change: Any = None
    base: int = 0


#: Makes the visitor that changes some lanes; their rows in the batch begin behind so many bases.
Changes = Callable[[Sequence[Departure], int], Visitor]


@contextmanager
def departing(vlm: VLM, traces: Sequence[Trace]) -> Iterator[Departures]:
    """Plain runs of the prompts of some traces, from which lanes depart, while the context lasts.

    Raises:
        BadInput: prompts of different tokens.
    """
    with alone_with(vlm.anatomy.model), frozen(vlm.anatomy.model), torch.no_grad():
        yield Departures(vlm, traces)


class Departures:
    """Plain runs, and what departs from them. Made by ``departing``.

    Attributes:
        bases: the plain runs' logits, [V] each.
    """

    def __init__(self, vlm: VLM, traces: Sequence[Trace]) -> None:
        self._vlm, self._memory = vlm, TowerMemory()
        self._runs = [self._plain(trace) for trace in traces]
        ids = [run.prompt.ids for run in self._runs]
        if any(each != ids[0] for each in ids):
            raise BadInput(
                "runs that are swept together have the same words and as many visual tokens: ask the same question "
                "about pictures of one size"
            )
        self.length = len(ids[0])
        self.bases = [run.logits for run in self._runs]
        self._ends = set.intersection(*(run.ends for run in self._runs))

    @property
    def anatomy(self) -> Anatomy:
        """Of the model."""
        return self._vlm.anatomy

    def logits(
        self, lanes: Sequence[Departure], changes: Changes, done: Callable[[int], None] = lambda _count: None
    ) -> Tensor:
        """[lanes, V] float64 at the last position.

        Args:
            lanes: in any order.
            changes: makes the visitor of some of them.
            done: told how many lanes are through, after each batch.

        Raises:
            BadModel: a family in which several runs side by side are not what each is alone.
        """
        groups: dict[int, list[int]] = {0: []}
        for index, lane in enumerate(lanes):
            groups.setdefault(self._prefix(lane.first), []).append(index)
        out: list[Tensor | None] = [None] * len(lanes)
        for prefix in sorted(groups, reverse=True):
            group = sorted(groups[prefix], key=lambda index: lanes[index].start)
            for part, found in self._batches(lanes, group, changes, prefix):
                if found is None:  # nothing can be shared so far: with those that share nothing
                    groups[0] += group
                    break
                for index, row in zip(part, found, strict=True):
                    out[index] = row
                done(len(part))
        return torch.stack([row for row in out if row is not None])

    # --- details ---

    def _batches(
        self, lanes: Sequence[Departure], group: Sequence[int], changes: Changes, prefix: int
    ) -> Iterator[tuple[Sequence[int], Tensor | None]]:
        """Lanes of one shared beginning, a batch at a time, and their logits; None where the beginning is not shared.

        Raises:
            BadModel: as for ``logits``.
        """
        size, begin = self._at_once(prefix), 0
        held: Tensor | None = None
        for start in range(0, len(group), size):
            part, after = group[start : start + size], group[start + size : start + size + 1]
            catch = lanes[after[0]].start if after else 0
            batch = _Batch(self, [lanes[index] for index in part], prefix, begin, held, catch, last=not after)
            try:
                found = self._passed(batch, changes(batch.lanes, len(self._runs)))
                alike = bool(after) or self._alike(batch)
            except Exception as error:  # a family that cannot go on from our cache fails in its own way
                if not prefix or not (out_of_memory(error) or by_the_model(error)):
                    raise
                alike = False
            if not alike and not prefix:
                raise BadModel(
                    f"runs of {type(self.anatomy.model).__name__} side by side are not what each is alone, so they "
                    "cannot be swept together"
                )
            if not alike:
                yield part, None
                return
            yield part, found
            begin, held = catch, batch.caught

    def _prefix(self, first: int) -> int:
        """How many positions are read from the caches: up to the first changed one, where none before looks behind."""
        if any(run.cache is None for run in self._runs):
            return 0
        prefix = max(place for place in self._ends if place <= min(first, self.length - 1))
        return prefix if prefix >= _WORTH_IT * self.length else 0

    def _at_once(self, prefix: int) -> int:
        return max(4, min(LANES, TOKENS // (self.length - prefix)))

    def _plain(self, trace: Trace) -> PlainRun:
        self._memory.forget()
        with self._remembering():
            return plain_run(self._vlm, trace)

    @contextmanager
    def _remembering(self) -> Iterator[None]:
        """A pass whose tower runs once, whatever picture it is given then: other embeddings enter the decoder."""
        self._memory.begin()
        vision = self.anatomy.vision
        with nullcontext() if vision is None else instead(vision.owner, self._memory):
            yield

    def _alike(self, batch: _Batch) -> bool:
        alone = torch.stack(self.bases).to(batch.given)
        off = (batch.given - alone).abs() / alone.abs().clamp(min=1)
        return bool((off <= SCORES[self.anatomy.model.dtype]).all())

    def _passed(self, batch: _Batch, visitor: Visitor) -> Tensor:
        """[lanes, V] of one pass; the batch holds what the bases gave, and their states where the next begins."""
        run = self._runs[0]
        with ExitStack() as stack:
            stack.enter_context(self._remembering())
            for number, block in enumerate(self.anatomy.decoder.blocks):
                stack.enter_context(instead(block, partial(batch.block, number, run.tails.get(block))))
            stack.enter_context(visiting(self.anatomy, Entering(batch.enter), visitor, prompts=[run.prompt]))
            logits = self._vlm.model(**run.inputs).logits[:, -1].double()
        bases = batch.bases if batch.leave == len(self.anatomy.decoder.blocks) else 0
        batch.given = logits[:bases]
        return logits[bases : bases + len(batch.lanes)]


class _Batch:
    """One pass of bases and lanes."""

    given: Tensor

    def __init__(
        self,
        runs: Departures,
        lanes: Sequence[Departure],
        prefix: int,
        begin: int,
        held: Tensor | None,
        catch: int,
        last: bool,
    ) -> None:
        self.runs, self.lanes, self.prefix, self.begin, self.held, self.catch = runs, lanes, prefix, begin, held, catch
        self.caught: Tensor | None = None
        bases = self.bases = len(runs._runs)
        rows = [*range(bases), *(lane.base for lane in lanes)]
        whole = seam.shares_keys(runs.anatomy.decoder.owner.config)  # its later blocks read keys of its earlier ones
        starts = [begin] * bases + [0 if whole else lane.start for lane in lanes]
        while len(rows) in _AXES or len(rows) == 1:  # a spare row, so that no axis is taken for the batch
            rows.append(0)
            starts.append(begin)
        self._rows = torch.tensor(rows)
        blocks = len(runs.anatomy.decoder.blocks)
        self._active = [sum(start <= block for start in starts) for block in range(blocks)]
        # what is added between blocks is added to all rows, so all must be there; else each joins when it departs
        padded = seam.adds_features_later(runs.anatomy.decoder.owner)
        self._leaving = [len(rows)] * blocks if padded else [*self._active[1:], len(rows)]
        # the bases leave when nobody needs them; in the last batch they stay, and show that all came through alike
        needed = max([catch, *starts, *(getattr(lane.change, "layers", range(blocks)).stop for lane in lanes)])
        self.leave = blocks if last or padded or whole else min(needed, blocks)
        self._cache = self._begun() if prefix else None

    def enter(self, _embeddings: Tensor | None, others: Others) -> tuple[Tensor, Others]:
        """The decoder's inputs: each row its base's, behind the prefix."""
        runs, count = self.runs._runs, len(self._rows)
        entry = torch.cat([runs[base].entry for base in self._rows.tolist()])
        visual = len(runs[0].prompt.image_positions)
        wide = repeated(runs[0].others, count, visual, self.runs.length)
        if len(runs) > 1:
            rows = self._rows.tolist()
            wide = {name: _of_rows(wide[name], [run.others[name] for run in runs], rows) for name in wide}
        if self._cache is None:
            return entry, {**wide, "past_key_values": None, "use_cache": False}
        rest = {name: cut(name, value, self.prefix) for name, value in wide.items()}
        return entry[:, self.prefix :], {**rest, "past_key_values": self._cache, "use_cache": True}

    def block(
        self, number: int, tail: tuple[Any, ...] | None, inside: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """One block: of the rows that have departed by now."""
        hidden = args[0] if args else kwargs["hidden_states"]
        if number < self.begin:
            if number == self.begin - 1 and self.held is not None:
                hidden = self.held[self._rows[: self._leaving[number]].to(self.held.device)]
            return hidden if tail is None else (hidden, *tail)
        count, active, leaving = len(self._rows), self._active[number], self._leaving[number]
        gone = self.bases if number >= self.leave else 0
        if active < count or gone:
            args = tuple(_some_rows(value, gone, active, count) for value in args)
            kwargs = {name: _some_rows(value, gone, active, count) for name, value in kwargs.items()}
            args, kwargs = _with_states(args, kwargs, hidden[: active - gone])
        if self._cache is not None:
            self._load(number, gone, active)
        output = inside(*args, **kwargs)
        if self._cache is not None:
            self._load(number, 0, 1)
        left = output if isinstance(output, Tensor) else output[0]
        if number + 1 == self.catch:
            self.caught = left[: len(self.runs._runs)].clone()
        if active < leaving:
            left = torch.cat([left, left[self._rows[active:leaving].to(left.device)]])
        if number + 1 == self.leave < len(self._active):
            left = left[self.bases :]
        return left if isinstance(output, Tensor) else (left, *output[1:])

    def _begun(self) -> DynamicCache:
        """A cache of the prefix whose layers are filled when their block comes."""
        first = self.runs._runs[0].cache
        assert first is not None
        cache = DynamicCache()
        for number, (keys, values) in enumerate(seam.keys_and_values(first)):
            cache.update(keys[:, :, :1], values[:, :, :1], number)
            seam.hold(cache, number, keys[:, :, : self.prefix], values[:, :, : self.prefix])
        return cache

    def _load(self, number: int, gone: int, active: int) -> None:
        """Let a layer of the cache hold the prefix of the rows that are there."""
        held = []
        for part in (0, 1):
            own = [seam.keys_and_values(run.cache)[number][part][:, :, : self.prefix] for run in self.runs._runs]
            if len(own) == 1:
                held.append(own[0].expand(active - gone, -1, -1, -1))
            else:
                held.append(torch.cat(own)[self._rows[gone:active].to(own[0].device)])
        seam.hold(self._cache, number, held[0], held[1])


def _with_states(args: Any, kwargs: dict[str, Any], hidden: Tensor) -> tuple[Any, dict[str, Any]]:
    """What a block is given, with other states."""
    return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})


def _of_rows(wide: Any, given: Sequence[Any], rows: Sequence[int]) -> Any:
    """An input for a batch, ``wide`` where the bases were given the same, else each row's own base's."""
    if isinstance(wide, dict):
        return {name: _of_rows(wide[name], [each[name] for each in given], rows) for name in wide}
    if isinstance(wide, list | tuple):
        return type(wide)(_of_rows(part, [each[at] for each in given], rows) for at, part in enumerate(wide))
    if not isinstance(wide, Tensor) or all(torch.equal(given[0], each) for each in given[1:]):
        return wide
    return torch.cat([given[base] for base in rows])


def _some_rows(value: Any, first: int, stop: int, rows: int) -> Any:
    """Some rows of whatever a block is given for a batch of ``rows``."""
    if isinstance(value, tuple | list):
        return type(value)(_some_rows(part, first, stop, rows) for part in value)
    if isinstance(value, dict):
        return {name: _some_rows(part, first, stop, rows) for name, part in value.items()}
    if not isinstance(value, Tensor) or not value.ndim:
        return value
    if value.shape[0] == rows:
        return value[first:stop]
    if value.ndim > 1 and value.shape[0] in _AXES and value.shape[1] == rows:
        return value[:, first:stop]
    return value
