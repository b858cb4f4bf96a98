"""In which order rows are trained: the same for the same seed, whatever happened in between.

Rows about one picture share it, where the family allows that exactly; a pass holds rows of similar length, so that
little of it is padding; the passes then come in random order.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeAlias

from llava_probe.features.trial import Sharing
from llava_probe.finetune.rows import TrainingRow

#: Rows of one pass; each group shares its picture.
PassRows: TypeAlias = list[list[TrainingRow]]

#: Passes whose rows are sorted by length together: more would leave little to chance.
_SORTED = 32
#: How many times as long as the shortest of its pass a group may be: everything is padded to the longest, and thirty
#: rows of words beside one picture would be thirty pictures.
_LONGER = 1.5


def passes_of(rows: Sequence[TrainingRow], size: int, sharing: Sharing, seed: int, epoch: int) -> list[PassRows]:
    """One epoch: every row once.

    Args:
        rows: to be trained.
        size: rows a pass, at most.
        sharing: what may share a pass in this family.
        seed, epoch: decide the order.
    """
    rng = random.Random(f"epoch {epoch} of {seed}")
    groups = _groups(rows, size, sharing, rng)
    rng.shuffle(groups)
    if sharing.unbatched:
        return [[group] for group in groups]
    made: list[PassRows] = []
    for start in range(0, len(groups), _SORTED * size):
        made += _filled(sorted(groups[start : start + _SORTED * size], key=_length), size)
    rng.shuffle(made)
    return made


def _groups(rows: Sequence[TrainingRow], size: int, sharing: Sharing, rng: random.Random) -> list[list[TrainingRow]]:
    """Rows about the same picture, in parts of the size of a pass at most."""
    by_picture: dict[str, list[TrainingRow]] = {}
    for number, row in enumerate(rows):
        apart = sharing.unpacked or not row.picture
        by_picture.setdefault(f"row {number}" if apart else row.picture, []).append(row)
    for group in by_picture.values():
        rng.shuffle(group)
    return [group[at : at + size] for group in by_picture.values() for at in range(0, len(group), size)]


def _filled(groups: Sequence[list[TrainingRow]], size: int) -> list[PassRows]:
    """Passes of groups that come by rising length."""
    made: list[PassRows] = []
    for group in groups:
        fits = made and sum(map(len, made[-1])) + len(group) <= size
        if fits and _length(group) <= _LONGER * _length(made[-1][0]):
            made[-1].append(group)
        else:
            made.append([group])
    return made


def padded_length(groups: PassRows) -> int:
    """Tokens of a pass: each group is padded to the longest."""
    return len(groups) * max(map(_length, groups))


def _length(group: Sequence[TrainingRow]) -> int:
    """Tokens that a group takes in a pass: its picture once."""
    return group[0].visual + sum(row.length - row.visual for row in group)
