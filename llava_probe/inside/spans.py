"""Which tokens of its sequences a pass of the decoder covers: told by what enters it, for every way of decoding.

A run that is ours says which prompts it holds; of any other (somebody's own ``model(**inputs)``) they are read from the
ids and the mask that the model is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """One sample of a batch.

    Attributes:
        length: how many tokens its prompt has; ``padding``: pad tokens ahead of it.
        image_positions: where its visual tokens are.
        ids: its prompt's ids, and those of an answer that is fed with it; empty where they are not known.
        question: as it was asked, where that is known.
        read: whether this was read from what the model is given, so that nobody has looked for its visual tokens.
    """

    length: int
    padding: int
    image_positions: tuple[int, ...]
    ids: tuple[int, ...] = ()
    question: str | None = None
    read: bool = False

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
    """

    def __init__(self, prompts: Sequence[Prompt] = (), *, decoding: bool = False, shortened: bool = False) -> None:
        self.span: Span | None = None
        self.open = False
        self._declared, self._decoding, self._shortened = tuple(prompts), decoding, shortened
        self._prompts = self._declared
        self._cache: Any = None
        self._given: Tensor | None = None
        self._mask: Tensor | None = None
        self._ids: Tensor | None = None
        self._seen = self._steps = self._before = 0

    def give(self, ids: Any, mask: Any) -> None:
        """The ids [B, columns] and the mask that the outermost model is given for its next pass."""
        self._given, self._mask = (one if isinstance(one, Tensor) and one.ndim == 2 else None for one in (ids, mask))

    def begin(self, rows: int, columns: int, cache: Any) -> Span | None:
        """A pass of the decoder over [rows, columns] begins; None where it is none of this run's."""
        ongoing = self._steps > 0 and self._continues(columns, cache)
        if self._steps and not ongoing and self._decoding:
            self.span = None
            return None
        if not ongoing:
            self._restart(rows, columns, cache)
        self._ids = self._given
        end = max(prompt.stop for prompt in self._prompts)
        self.span = Span(self._prompts, rows, 0, 0, self._seen, end, self._steps, self._before)
        self._steps += 1
        self.open = True
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
        """Whether a pass goes on where the last one ended; some models wrap their cache anew after the first pass."""
        if self._declared and not self._decoding:
            return False
        if cache is None:
            grown = self._cache is None and columns == self._seen + 1
            return grown and (self._decoding or self._goes_on())
        if self._decoding:
            return cache is self._cache or (self._cache is not None and _length(cache) == self._seen)
        return _length(cache) == self._seen > 0

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
        ids, mask = self._given, self._mask
        padding = [0] * rows
        if mask is not None and len(mask) == rows:
            padding = [int((row != 0).int().argmax()) for row in mask]
        known = ids is not None and not cached and ids.shape == (rows, columns)
        held = ids.tolist() if known and ids is not None else [[]] * rows
        return tuple(
            Prompt(cached + columns - ahead, ahead, (), tuple(own[ahead:]), read=True)
            for ahead, own in zip(padding, held, strict=True)
        )


def _length(cache: Any) -> int:
    """How many tokens a cache holds."""
    return int(cache.get_seq_length())
