"""Which tokens of its sequences a pass of the decoder covers: told by what enters it, for every way of decoding.

A run that is ours says which prompts it holds; of any other (somebody's own ``model(**inputs)``) they are read from the
ids and the mask that the model is given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Prompt:
    """One sample of a batch; like no other, though its ids are the same: its pictures may lie otherwise.

    Attributes:
        length: how many tokens its prompt has; ``padding``: pad tokens ahead of it.
        image_positions: where its visual tokens are.
        ids: its prompt's ids, and those of an answer that is fed with it; empty where they are not known.
        question: as it was asked, where that is known.
        read: whether this was read from what the model is given, so that nobody has looked for its visual tokens.
        unknown: why what it holds is not known, where it is not.
        lay_out: works out where its visual tokens lie, as ``PromptLayouts``; None where nobody knows its pictures.
    """

    length: int
    padding: int
    image_positions: tuple[int, ...]
    ids: tuple[int, ...] = ()
    question: str | None = None
    read: bool = False
    unknown: str | None = None
    lay_out: Callable[[], Any] | None = None

    @property
    def stop(self) -> int:
        """The column behind its last token."""
        return self.padding + self.length


@dataclass
class Span:
    """One pass of the decoder: columns ``start`` to ``stop`` of its batch, padding included.

    Attributes:
        prompts: the samples.
        rows: how many rows the batch has.
        start, stop: the columns that this pass computes; ``fresh``: the first that no pass computed before.
        prompt_end: the column behind the longest prompt.
        step: how many passes over these sequences came before.
        before: places ahead of the first column, where a model puts its picture there itself.
    """

    prompts: Sequence[Prompt]
    rows: int
    start: int
    stop: int
    fresh: int
    prompt_end: int
    step: int = 0
    before: int = 0

    @property
    def length(self) -> int:
        """How many columns it computes."""
        return self.stop - self.start

    @property
    def copies(self) -> int:
        """How many rows stand for one sample: its beams, or the sequences drawn from it."""
        return max(1, self.rows // len(self.prompts))

    def sample(self, row: int) -> int:
        """Which sample a row of the batch belongs to."""
        return min(row // self.copies, len(self.prompts) - 1)

    def start_of(self, queries: int) -> int:
        """How many places stand ahead of the first of ``queries``: a layer may compute only the last ones."""
        self.before = max(self.before, queries - self.length)
        return self.stop + self.before - queries


class Course:
    """The passes over one set of sequences, as they come.

    Args:
        prompts: the samples of a run of ours; empty where they are read from what the model is given.
        decoding: whether the passes are one loop of ``generate``, so that any other beside it (guidance) is none of it.
        shortened: whether the model's own ``generate`` may leave out the end of the prompt (a captioner's separator).

    Attributes:
        span: the pass that runs, or that ran last; None while one runs that is none of these.
        open: whether its logits are still to come.
        routed: attention modules that called a twin since they began.
    """

    def __init__(self, prompts: Sequence[Prompt] = (), *, decoding: bool = False, shortened: bool = False) -> None:
        self.span: Span | None = None
        self.open = False
        self.routed: set[nn.Module] = set()
        self._declared, self._decoding, self._shortened = tuple(prompts), decoding, shortened
        self._prompts = self._declared
        self._cache: Any = None
        self._same = False  # whether the passes of this run share one cache; some models wrap theirs anew each time
        self._given: Tensor | None = None
        self._mask: Any = None
        self._grows = False
        self._ids: Tensor | None = None
        self._seen = self._steps = self._before = 0

    def give(self, ids: Any, mask: Any, *, grows: bool) -> None:
        """What the outermost model is given for its next pass.

        Args:
            ids: [B, columns].
            mask: of any form.
            grows: whether it keeps no cache, so that each token of an answer comes with all before it.
        """
        self._given = ids if isinstance(ids, Tensor) and ids.ndim == 2 else None
        self._mask, self._grows = mask, grows

    def adopt(self, cache: Any) -> None:
        """The cache that a pass by hand has left, by which its next step is known."""
        if not self._declared and cache is not None:
            self._cache = cache

    def begin(self, rows: int, columns: int, cache: Any) -> Span | None:
        """A pass of the decoder over [rows, columns] begins; None where it is none of this run's."""
        ongoing = self._steps > 0 and self._continues(columns, cache)
        if self._steps and not ongoing and self._decoding:
            self.span = None
            return None
        if not ongoing:
            self._restart(rows, columns, cache)
        elif columns > 1 and cache is not None and not self._declared:  # more of a prompt, or several tokens a step
            self._prompts = tuple(replace(prompt, ids=(), unknown=IN_PARTS) for prompt in self._prompts)
        self._ids, self._given, self._mask = self._given, None, None  # the next pass has its own
        end = max(prompt.stop for prompt in self._prompts)
        self.span = Span(self._prompts, rows, 0, 0, self._seen, end, self._steps, self._before)
        self._steps += 1
        self.open = True
        self.routed.clear()
        return self.entered(rows, columns, cache)

    def entered(self, rows: int, columns: int, cache: Any) -> Span:
        """What has begun, with the rows and columns that enter the decoder after all."""
        assert self.span is not None
        start = 0 if cache is None else (self._seen if self._decoding else _length(cache))
        self.span.rows, self.span.start, self.span.stop = rows, start, start + columns
        return self.span

    def end(self) -> None:
        """The pass is over."""
        if self.span is not None:
            self._seen, self._before = self.span.stop, self.span.before

    def _continues(self, columns: int, cache: Any) -> bool:
        """Whether a pass goes on where the last one ended."""
        if self._declared and not self._decoding:
            return False
        if cache is None:
            grown = self._cache is None and columns == self._seen + 1
            return grown and (self._decoding or (self._grows and self._goes_on()))
        if cache is self._cache:
            self._same = True
            return self._decoding or _length(cache) == self._seen > 0
        return self._decoding and not self._same and self._cache is not None and _length(cache) == self._seen

    def _goes_on(self) -> bool:
        """Whether the ids are the last pass's and one more."""
        ids, last = self._given, self._ids
        if ids is None or last is None or ids.shape != (last.shape[0], last.shape[1] + 1):
            return False
        return bool((ids[:, :-1] == last).all())

    def _restart(self, rows: int, columns: int, cache: Any) -> None:
        cached = 0 if cache is None or self._decoding else _length(cache)
        self._cache = cache
        self._seen, self._steps, self._before = cached, 0, 0
        if not self._declared:
            self._prompts = self._read(rows, columns, cached)
        elif self._shortened and columns < self._prompts[0].stop:
            cut = self._prompts[0].stop - columns
            self._prompts = tuple(replace(prompt, length=prompt.length - cut) for prompt in self._prompts)

    def _read(self, rows: int, columns: int, cached: int) -> tuple[Prompt, ...]:
        """Prompts as the model is given them: its mask tells which columns are padding, its ids what they hold."""
        ids, total = self._given, cached + columns
        there = _there(self._mask, rows, total)
        if there is None:
            return tuple(Prompt(total, 0, (), unknown=NO_MASK) for _ in range(rows))
        known = ids is not None and not cached and ids.shape == (rows, columns)
        prompts = []
        for row, kept in enumerate(there):
            columns_kept = kept.nonzero().flatten().tolist() or list(range(total))
            first, stop = columns_kept[0], columns_kept[-1] + 1
            own = tuple(ids[row, first:stop].tolist()) if known and ids is not None else ()
            prompts.append(Prompt(stop - first, first, (), own, read=True, unknown=None if known else NO_IDS))
        return tuple(prompts)


#: Why what a pass holds is not known.
IN_PARTS = "its prompt is fed in parts"
NO_MASK = "which of its columns are padding cannot be read from the mask that it is given"
NO_IDS = "it is given embeddings alone, or goes on from a cache that was made before"


def _there(mask: Any, rows: int, columns: int) -> Tensor | None:
    """Truth values [rows, columns]: which columns hold tokens; None where the mask does not tell."""
    if isinstance(mask, dict):
        mask = mask.get("full_attention")
    if mask is None:
        return torch.ones(rows, columns, dtype=torch.bool)
    if not isinstance(mask, Tensor) or mask.shape[0] not in (1, rows) or mask.shape[-1] < columns:
        return None
    if mask.ndim == 4:  # what its last query may see
        last = mask[:, 0, -1, :columns]
        kept = last if last.dtype == torch.bool else last > torch.finfo(last.dtype).min / 2
    elif mask.ndim == 2:
        kept = mask[:, :columns] != 0
    else:
        return None
    return kept.expand(rows, -1)


def _length(cache: Any) -> int:
    """How many tokens a cache holds."""
    return int(cache.get_seq_length())
