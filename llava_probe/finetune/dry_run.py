"""What a run would do, tried: the first row token by token, and the memory and time of a real step.

print(lp.finetune("data.jsonl", "llava-hf/llava-1.5-7b-hf", dry_run=True))
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llava_probe.escaping import visible
from llava_probe.finetune.passes import TrainingPass, passed, summed_loss, trained_logits
from llava_probe.finetune.plan import TrainingPlan
from llava_probe.finetune.rows import TrainingRow
from llava_probe.finetune.schedule import PassRows, padded_length
from llava_probe.finetune.training import MEASURED_TIMES, in_bf16
from llava_probe.finetune.tuned import frozen_counters
from llava_probe.model import VLM
from llava_probe.trace.capture import in_units

#: AdamW keeps two float32 numbers for each weight that is trained, and its gradient is a third.
_BESIDE_WEIGHTS = 3 * 4

_MARKED = "\N{BLACK RIGHT-POINTING SMALL TRIANGLE}"


@dataclass(frozen=True)
class RowToken:
    """One token of a row: its text, and whether it is trained; a picture's run of tokens stands as one."""

    text: str
    trained: bool


@dataclass(frozen=True)
class DryRun:
    """What a run would do; printed, it is told in lines.

    Attributes:
        tokens: of the first row.
        visual: how many of its tokens are a picture's.
        rows, trained: how many are trained on, and tokens of them that are, in an epoch.
        steps: of the optimizer; ``passes`` of the model.
        weights: numbers that are trained, of so many in ``all_weights``.
        memory: bytes that the run takes at most, measured in a step over its longest pass.
        seconds: that the run takes, by the time of its middle pass, those of several cards side by side.
        loss: of the first row, before anything is trained.
        left_out: bad rows, with their lines and reasons.
    """

    tokens: tuple[RowToken, ...]
    visual: int
    rows: int
    trained: int
    steps: int
    passes: int
    weights: int
    all_weights: int
    memory: int
    seconds: float
    loss: float
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        marked = "\n".join(f"  {_MARKED if each.trained else ' '} {visible(each.text)}" for each in self.tokens)
        share = self.weights / self.all_weights
        bad = "".join(f"\n  {visible(each)}" for each in self.left_out)
        return (
            f"The first row, {self.visual:,} of its tokens visual; {_MARKED} is trained:\n{marked}\n\n"
            f"{self.rows:,} rows, {self.trained:,} trained tokens an epoch; {self.steps:,} steps of the optimizer\n"
            f"{self.weights:,} of {self.all_weights:,} weights are trained ({share:.2%}); loss now {self.loss:.3f}\n"
            f"about {in_units(self.memory)} of memory and {_told(self.seconds)}"
            + (f"\n{len(self.left_out):,} rows are left out:{bad}" if bad else "")
        )


def rehearsed(
    vlm: VLM, runner: Any, rows: Sequence[TrainingRow], plan: TrainingPlan, left_out: tuple[str, ...]
) -> DryRun:
    """Try the longest pass and the middle one, forwards and backwards, and train nothing.

    Args:
        vlm: the model; ``runner``: as it is trained.
        rows: those that are trained on; ``plan``: their passes.
        left_out: bad rows.
    """
    by_length = sorted(plan.passes, key=padded_length)
    first = passed(vlm, [[rows[0]]])
    trained = [parameter for parameter in runner.parameters() if parameter.requires_grad]
    runner.train()
    for module in frozen_counters(runner):
        module.eval()
    loss, _, _ = _step(vlm, runner, [[rows[0]]])
    _, _, memory = _step(vlm, runner, by_length[-1])
    _, seconds, _ = _step(vlm, runner, by_length[len(by_length) // 2])
    for parameter in trained:
        parameter.grad = None
    weights = sum(parameter.numel() for parameter in trained)
    measuring = MEASURED_TIMES * len(plan.held_out) * seconds / 3  # there, and not back
    return DryRun(
        tokens=tuple(_tokens(vlm, first)),
        visual=rows[0].visual,
        rows=len(rows),
        trained=sum(row.trained for row in rows),
        steps=plan.steps,
        passes=len(plan.passes),
        weights=weights,
        all_weights=sum(parameter.numel() for parameter in runner.parameters()),
        memory=memory + _BESIDE_WEIGHTS * weights,
        seconds=seconds * len(plan.passes) / plan.cards + measuring,
        loss=loss,
        left_out=left_out,
    )


def _step(vlm: VLM, runner: Any, groups: PassRows) -> tuple[float, float, int]:
    """Loss, seconds and bytes of one pass there and back."""
    on_card = vlm.model.device.type == "cuda"
    if on_card:
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    one = passed(vlm, groups)
    with in_bf16(vlm):
        loss = summed_loss(trained_logits(vlm, runner, one), one) / len(one.ids)
    loss.backward()
    told = loss.item()
    peak = torch.cuda.max_memory_allocated() if on_card else _resident()
    return told, time.perf_counter() - began, peak


def _resident() -> int:
    """The most memory that this process has had so far."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _tokens(vlm: VLM, one: TrainingPass) -> list[RowToken]:
    """The tokens of a pass of one row, a run of visual ones as one."""
    (pack,) = one.batch.packs
    (branch,) = pack.branches
    ids = [*branch.prompt, *branch.answer]
    trained = {int(column) + 1 for column in one.places[:, 1]}
    visual = set(pack.visual)
    made: list[RowToken] = []
    for position, token in enumerate(ids):
        if position in visual:
            if position - 1 not in visual:
                run = next(end for end in range(position, len(ids) + 1) if end not in visual) - position
                made.append(RowToken(f"{vlm.processor.tokenizer.decode([token])} × {run:,}", False))
            continue
        made.append(RowToken(vlm.processor.tokenizer.decode([token]), position in trained))
    return made


def _told(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
