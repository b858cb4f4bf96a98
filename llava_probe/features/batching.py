"""Which samples go through the model together: those about one picture, and batches of similar length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from llava_probe.features.samples import Sample
from llava_probe.features.trial import Sharing

#: The samples of a pass; each group shares its picture and its prefix.
Groups: TypeAlias = list[list[Sample]]


def batches_of(samples: Sequence[Sample], size: int, sharing: Sharing) -> list[Groups]:
    """Cut the samples of a shard into batches, the one that takes most memory first.

    Args:
        samples: those that can be asked.
        size: questions a batch.
        sharing: what may share a pass.
    """
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.group, []).append(sample)
    if sharing.unpacked:
        cut = [[sample] for group in groups.values() for sample in group]
    else:
        cut = [group[at : at + size] for group in groups.values() for at in range(0, len(group), size)]
    cut.sort(key=lambda group: (-len(group), _length(group)))
    made: list[Groups] = []
    for group in cut:
        if made and not sharing.unbatched and sum(map(len, made[-1])) + len(group) <= size:
            made[-1].append(group)
        else:
            made.append([group])
    return sorted(made, key=_weight, reverse=True)  # where memory is short, that is seen at once


def halves_of(groups: Groups) -> list[Groups]:
    """A batch in two; none where it is one sample."""
    if len(groups) > 1:
        return [groups[: len(groups) // 2], groups[len(groups) // 2 :]]
    (group,) = groups
    return [[group[: len(group) // 2]], [group[len(group) // 2 :]]] if len(group) > 1 else []


def _weight(groups: Groups) -> tuple[int, int]:
    """What tells how much memory a batch takes: first of all its pictures, then how long its sequences are."""
    return len(groups), max(map(_length, groups))


def _length(group: Sequence[Sample]) -> int:
    """About how long a sequence becomes, by its letters."""
    return sum(len(sample.words or "") + len(sample.answer or "") for sample in group)
