"""What a run will do, laid out before its first step: which rows, in which passes and how many steps."""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_probe.features.trial import Sharing
from llava_probe.features.values import content_key, is_address, plain_value
from llava_probe.finetune.rows import TrainingRow
from llava_probe.finetune.schedule import PassRows, passes_of

#: Held-out rows that are measured, drawn at random where there are more: a few minutes of a run of hours.
MEASURED_ROWS = 400


@dataclass(frozen=True)
class StepSettings:
    """How rows are taken; everything of it decides what the weights become.

    Attributes:
        pass_rows: rows of a pass; ``step_rows``: of a step, on all cards together.
        epochs: how often each row is seen; ``steps`` of the optimizer instead.
        lr: the highest learning rate.
        seed: of everything drawn.
    """

    pass_rows: int
    step_rows: int
    epochs: int
    steps: int | None
    lr: float
    seed: int

    @classmethod
    def on(cls, cards: int, step_rows: int, micro_batch: int | None, **others: Any) -> StepSettings:
        """A step that all cards share: none takes more of it than its part in one pass."""
        part = max(1, step_rows // cards)
        return cls(min(micro_batch or part, part), step_rows, **others)


@dataclass(frozen=True)
class TrainingPlan:
    """A run, laid out.

    Attributes:
        passes: those of all epochs in order.
        held_out: the passes that are only measured.
        accumulated: passes a step on each card.
        steps: of the optimizer.
        cards: on how many passes run side by side.
    """

    passes: Sequence[PassRows]
    held_out: Sequence[PassRows]
    accumulated: int
    steps: int
    cards: int


def planned(
    kept: Sequence[TrainingRow], apart: Sequence[TrainingRow], sharing: Sharing, way: StepSettings, cards: int = 1
) -> TrainingPlan:
    """The passes of all epochs, and how many make a step.

    Args:
        kept: rows to be trained; ``apart``: to be measured.
        sharing: what may share a pass in this family.
        way: how rows are taken.
        cards: on how many passes run side by side.
    """
    passes: list[PassRows] = []
    epoch = 0
    while True:
        passes += passes_of(kept, way.pass_rows, sharing, way.seed, epoch)
        epoch += 1
        rows = len(kept) * epoch / len(passes)  # of a pass, on average
        accumulated = max(1, round(way.step_rows / rows / cards))
        enough = epoch >= way.epochs if way.steps is None else len(passes) >= way.steps * accumulated * cards
        if enough:
            break
    steps = way.steps or math.ceil(len(passes) / (accumulated * cards))
    drawn = random.Random(f"measured {way.seed}").sample(list(apart), min(len(apart), MEASURED_ROWS))
    measured = passes_of(drawn, way.pass_rows, sharing, way.seed, 0) if apart else []
    return TrainingPlan(passes[: steps * accumulated * cards], measured, accumulated, steps, cards)


def split(rows: Sequence[TrainingRow], share: float, seed: int) -> tuple[list[TrainingRow], list[TrainingRow]]:
    """Rows to train on and rows to measure, no picture and no conversation on both sides.

    A share above 0 is one picture at least; rows that share a picture with others, in whatever file, go with them.
    """
    group_of = _together(rows)
    groups = list(dict.fromkeys(group_of))
    random.Random(f"held out {seed}").shuffle(groups)
    count = max(round(share * len(groups)), 1) if share else 0
    apart = set(groups[: min(count, len(groups) - 1)])
    sides: tuple[list[TrainingRow], list[TrainingRow]] = ([], [])
    for row, group in zip(rows, group_of, strict=True):
        sides[group in apart].append(row)
    return sides


def picture_bytes(rows: Sequence[TrainingRow]) -> int:
    """Bytes of all files of pictures: where one was changed under its path, the data are others."""
    files = {image for row in rows for image in row.sample.images if isinstance(image, str) and not is_address(image)}
    return sum(Path(file).stat().st_size for file in files)


def _together(rows: Sequence[TrainingRow]) -> list[int]:
    """For each row a number that is equal for rows joined by pictures, of others too, by their line or their words."""
    first: dict[str, int] = {}
    joined = list(range(len(rows)))

    def root(number: int) -> int:
        while joined[number] != number:
            joined[number] = joined[joined[number]]
            number = joined[number]
        return number

    known: dict[str, str] = {}
    for number, row in enumerate(rows):
        pictures = [_content(image, known) for image in row.sample.images]
        for key in (f"at {row.line}", *(pictures or [_words(row)])):
            joined[root(number)] = root(first.setdefault(key, number))
    return [root(number) for number in range(len(rows))]


def _content(image: object, known: dict[str, str]) -> str:
    """A picture's key, one for all files that hold the same; each file is looked at once."""
    if not isinstance(image, str | os.PathLike):
        return content_key(image)
    if (path := os.fspath(image)) not in known:
        known[path] = content_key(path)
    return known[path]


def _words(row: TrainingRow) -> str:
    """What a row without a picture asks and says."""
    sample = row.sample
    return json.dumps([sample.question, sample.prompt, sample.system, plain_value(sample.messages), sample.answer])
