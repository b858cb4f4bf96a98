"""Which token of one trace stands for which of another.

Answers are aligned by the fewest changes that make one of the other (Levenshtein 1966; Wagner and Fischer 1974), so
that "a red star" and "a blue star" differ in one word and not in all that follows it. A prompt's tokens are paired only
where they are the same; a picture's visual tokens where both have as many.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from llava_probe.trace.trace import Trace

#: Two places in two sequences that stand for one another; None where one of them has no such token.
Pair = tuple[int | None, int | None]


@dataclass(frozen=True)
class Alignment:
    """Two traces' tokens, by their positions in the whole sequences.

    Attributes:
        prompt: pairs of the same token, or of visual tokens at the same place of a picture's row of them.
        answer: each generated token with the one that stands for it, in order.
        shared: the generated tokens that were predicted after the same beginning, of either answer: those that are the
            same, and the first two that are not.
        parted: whether the last of ``shared`` are not the same.
    """

    prompt: tuple[tuple[int, int], ...]
    answer: tuple[Pair, ...]
    shared: tuple[tuple[int, int], ...]
    parted: bool

    @property
    def same(self) -> bool:
        """Whether the answers are the same, token by token."""
        return not self.parted and len(self.answer) == len(self.shared)

    @property
    def both(self) -> tuple[tuple[int, int], ...]:
        """The generated tokens that stand for one another, the same or not."""
        return tuple((one, other) for one, other in self.answer if one is not None and other is not None)

    @property
    def fed(self) -> dict[int, int]:
        """Where each position of the first stands in the second: of prompts, and of the beginning that is the same."""
        return dict([*self.prompt, *self.shared[: len(self.shared) - self.parted]])


def align(a: Trace, b: Trace) -> Alignment:
    """The tokens of two traces, each with the one that stands for it."""
    texts = [[token.text for token in trace.generated] for trace in (a, b)]
    first, second = a.prompt_length, b.prompt_length
    answer = tuple(
        (None if one is None else first + one, None if other is None else second + other)
        for one, other in fewest_changes(*texts)
    )
    length = min(map(len, texts))
    step = next((step for step in range(length) if texts[0][step] != texts[1][step]), None)
    shared = range(length if step is None else step + 1)
    pairs = tuple((first + step, second + step) for step in shared)
    return Alignment(tuple(_in_prompts(a, b)), answer, pairs, step is not None)


def fewest_changes(one: Sequence[Hashable], other: Sequence[Hashable]) -> list[Pair]:
    """Indices of two sequences, paired so that as few as can be are replaced, left out or put in.

    Of ways that take as many, the one that replaces first.
    """
    start = 0
    while start < min(len(one), len(other)) and one[start] == other[start]:
        start += 1
    end = 0
    while end < min(len(one), len(other)) - start and one[-1 - end] == other[-1 - end]:
        end += 1
    middle = _paired(one[start : len(one) - end], other[start : len(other) - end])
    pairs: list[Pair] = [(place, place) for place in range(start)]
    pairs += [(None if i is None else start + i, None if j is None else start + j) for i, j in middle]
    return pairs + [(len(one) - left, len(other) - left) for left in range(end, 0, -1)]


def _paired(one: Sequence[Hashable], other: Sequence[Hashable]) -> list[Pair]:
    """The same without what begins and ends both."""
    m, n = len(one), len(other)
    left = [list(range(n, -1, -1))]  # [i][j] changes that what follows i and j takes, from the last row up
    for i in range(m - 1, -1, -1):
        row = [0] * n + [m - i]
        for j in range(n - 1, -1, -1):
            row[j] = min(left[-1][j + 1] + (one[i] != other[j]), left[-1][j] + 1, row[j + 1] + 1)
        left.append(row)
    left.reverse()
    pairs: list[Pair] = []
    i = j = 0
    while i < m or j < n:
        if i < m and j < n and left[i][j] == left[i + 1][j + 1] + (one[i] != other[j]):
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif i < m and left[i][j] == left[i + 1][j] + 1:
            pairs.append((i, None))
            i += 1
        else:
            pairs.append((None, j))
            j += 1
    return pairs


def _in_prompts(a: Trace, b: Trace) -> list[tuple[int, int]]:
    """Pairs of a prompt's tokens; the visual tokens that stand in a row count as one until they are paired."""
    runs, others = _runs(a), _runs(b)
    found: list[tuple[int, int]] = []
    for one, other in fewest_changes([key for key, _ in runs], [key for key, _ in others]):
        if one is None or other is None or runs[one][0] != others[other][0]:
            continue
        mine, theirs = runs[one][1], others[other][1]
        if len(mine) == len(theirs):
            found += zip(mine, theirs, strict=True)
    return found


def _runs(trace: Trace) -> list[tuple[Hashable, list[int]]]:
    runs: list[tuple[Hashable, list[int]]] = []
    for token in trace.tokens[: trace.prompt_length]:
        if token.role == "image" and runs and runs[-1][0] is None:
            runs[-1][1].append(token.position)
        else:
            runs.append((None if token.role == "image" else token.text, [token.position]))
    return runs
