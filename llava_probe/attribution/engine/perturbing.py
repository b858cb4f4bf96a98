"""What the targets come to when parts of the picture are taken away: many changed inputs, a batch at a time.

    base = token_scores(task, torch.ones(1, N))         # [1, R] as it stands
    changed = token_scores(task, keep)                  # keep [n, N]: 1 as it is, 0 the baseline in its place

Visual tokens are changed where they enter the decoder (``replay.py``), photographs before the processor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import overload

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from llava_probe.asking.generation import teacher_forced
from llava_probe.asking.prompts import asked_again
from llava_probe.attribution.engine.replay import replaying, values_of
from llava_probe.attribution.engine.target import Task
from llava_probe.errors import BadInput, NotANumber
from llava_probe.faults import by_the_model, out_of_memory
from llava_probe.inside.tolerance import SCORES

#: Changed inputs that go through the model together.
AT_ONCE = 16
#: Seconds before a progress bar shows.
PATIENCE = 2.0

TOKEN_BASELINES = ("mean", "zero")


class Pictures(Sequence[Image.Image]):
    """Pictures that are drawn when they are read: many large ones would not fit in memory."""

    def __init__(self, count: int, drawn: Callable[[int], Image.Image]) -> None:
        self._numbers = range(count)
        self._drawn = drawn

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...
    @overload
    def __getitem__(self, index: slice) -> list[Image.Image]: ...
    def __getitem__(self, index: int | slice) -> Image.Image | list[Image.Image]:
        found = self._numbers[index]
        return self._drawn(found) if isinstance(found, int) else [self._drawn(number) for number in found]


def token_scores(
    task: Task,
    keep: Tensor,
    *,
    baseline: str | Tensor = "mean",
    batch: int = AT_ONCE,
    label: str = "perturbing",
) -> Tensor:
    """Each target's value under changed visual tokens.

    Args:
        task: what is explained.
        keep: [n, N] how much of each visual token stays, 0 to 1; the rest is the baseline's.
        baseline: ``"mean"`` of the picture's visual tokens, ``"zero"``, or a [D] or [N, D] tensor.
        batch: changed inputs a pass.
        label: of the progress bar.

    Returns:
        [n, R] float64.

    Raises:
        BadInput: an unknown baseline, or ``keep`` of another shape.
        NotANumber: a target became NaN.
    """
    if keep.ndim != 2 or keep.shape[1] != len(task.layout):
        raise BadInput(f"keep= takes [n, {len(task.layout)}], one for each visual token; got {list(keep.shape)}")
    if isinstance(baseline, str) and baseline not in TOKEN_BASELINES:
        raise BadInput(f"baseline= takes {' or '.join(map(repr, TOKEN_BASELINES))}, or a tensor; got {baseline!r}")
    if not len(keep):
        return torch.zeros(0, len(task.targets), dtype=torch.float64)
    changed = keep < 1
    order = torch.where(changed.any(1), changed.float().argmax(1), keep.shape[1]).argsort(stable=True)
    with torch.inference_mode(False):  # what is made inside it cannot be added to outside
        out = torch.zeros(len(keep), len(task.targets), dtype=torch.float64)
    total = len(keep) * len(task.answers)
    with tqdm(total=total, desc=label, unit="pass", delay=PATIENCE, leave=False, disable=None) as bar:
        for number in range(len(task.answers)):
            with replaying(task, number, baseline) as replay:
                for index in order.split(batch):
                    out[index] += replay.scores(keep[index])
                    bar.update(len(index))
    return _checked(out)


def picture_scores(
    task: Task, pictures: Sequence[Image.Image], *, batch: int = AT_ONCE, label: str = "perturbing"
) -> Tensor:
    """Each target's value with other photographs in the explained one's place, of its size.

    Returns:
        [n, R] float64.

    Raises:
        BadInput: ready-made inputs, which cannot be encoded again, or a picture that gives other tokens.
        NotANumber: a target became NaN.
    """
    if task.trace.request.inputs is not None:
        raise BadInput("this trace was asked with ready-made inputs, so changed pictures cannot be put through again")
    with torch.inference_mode(False):
        out = torch.zeros(len(pictures), len(task.targets), dtype=torch.float64)
    for number in range(len(task.answers)):
        beside = batch > 1 and _may_batch(task, number)
        with tqdm(total=len(pictures), desc=label, unit="pass", delay=PATIENCE, leave=False, disable=None) as bar:
            for start in range(0, len(pictures), batch if beside else 1):
                part = pictures[start : start + (batch if beside else 1)]
                out[start : start + len(part)] += _pictured(task, number, part)
                bar.update(len(part))
    return _checked(out)


def _checked(scores: Tensor) -> Tensor:
    if not bool(torch.isfinite(scores).all()):
        raise NotANumber("a target is NaN or infinite under a changed picture; load the model in bfloat16 or float32")
    return scores


def _pictured(task: Task, number: int, pictures: Sequence[Image.Image]) -> Tensor:
    asked = asked_again(task.trace.images, task.trace.request)
    questions = []
    for picture in pictures:
        images = list(asked.images)
        images[task.image] = picture
        questions.append(replace(asked, images=tuple(images)))
    tensors, prompts = task.vlm.prepare(questions, task.trace.request.processor)
    own = [token.id for token in task.trace.tokens[: task.trace.prompt_length]]
    if any(prompt.padding or row.tolist() != own for prompt, row in zip(prompts, tensors["input_ids"], strict=True)):
        raise BadInput("a changed picture gives other tokens than the original; keep its size")
    inputs = teacher_forced(task.vlm.anatomy.model, tensors, task.answers[number]) | task.vlm.anatomy.everywhere
    with torch.no_grad():
        return values_of(task, number, task.logits(number, **inputs)).double().cpu()


def _may_batch(task: Task, number: int) -> bool:
    """Whether pictures side by side give each what it gives alone."""
    own = task.trace.images[task.image]
    other = Image.new(own.mode, own.size)
    try:
        together = _pictured(task, number, [other, own])
    except Exception as error:  # families that cannot batch refuse in their own way
        if out_of_memory(error) or by_the_model(error):
            return False
        raise
    alone = torch.cat([_pictured(task, number, [picture]) for picture in (other, own)])
    off = (together - alone).abs() / alone.abs().clamp(min=1)
    return bool((off <= SCORES[task.vlm.anatomy.model.dtype]).all())
