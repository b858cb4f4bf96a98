"""One pass over some rows: the logits that predict what is trained, and the loss over them.

    L = − Σ log p(token | everything before it) / number of trained tokens

over the tokens of the answers and their ends, and nothing else. It is the mean of what ``vlm.score`` tells of the same
answers.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llava_probe.features.packing import apart
from llava_probe.features.packs import Batch, Branch, Unshared, batch_of
from llava_probe.finetune.rows import TrainingRow
from llava_probe.finetune.schedule import PassRows
from llava_probe.inside.passes import visiting
from llava_probe.model import VLM


@dataclass(frozen=True, eq=False)
class TrainingPass:
    """Rows as the model reads them, and what is trained of them.

    Attributes:
        batch: the model's inputs.
        places: [n, 2] row and column of the logits that predict each trained token.
        ids: [n] the tokens.
        answers: [n] which answer each belongs to, counted through the pass.
    """

    batch: Batch
    places: Tensor
    ids: Tensor
    answers: Tensor


def passed(vlm: VLM, groups: PassRows) -> TrainingPass:
    """Some rows as the model reads them.

    Args:
        vlm: whose processor opens and encodes the pictures.
        groups: rows that share their picture; where the words ahead of it differ, they share nothing after all.
    """
    try:
        batch = batch_of(vlm, [[row.sample for row in group] for group in groups])
    except Unshared:
        groups = [[row] for group in groups for row in group]
        batch = batch_of(vlm, [[row.sample for row in group] for group in groups])
    places: list[tuple[int, int]] = []
    ids: list[int] = []
    answers: list[int] = []
    answer = 0
    for number, (pack, group) in enumerate(zip(batch.packs, groups, strict=True)):
        for branch, row in zip(pack.branches, group, strict=True):
            for start, stop in _spans(branch, row):
                whole = (*branch.prompt, *branch.answer)
                places += [(number, branch.place(position - 1)) for position in range(start, stop)]
                ids += whole[start:stop]
                answers += [answer] * (stop - start)
                answer += 1
    return TrainingPass(batch, torch.tensor(places), torch.tensor(ids), torch.tensor(answers))


def _spans(branch: Branch, row: TrainingRow) -> list[tuple[int, int]]:
    """Where the answers stand in the row's own sequence."""
    end = len(branch.prompt)
    return [*((end + start, end + stop) for start, stop in row.earlier), (end, end + len(branch.answer))]


def trained_logits(vlm: VLM, runner: Any, one: TrainingPass) -> Tensor:
    """[n, V] float32: the logits that predict the trained tokens of a pass.

    Args:
        vlm: whose parts are visited.
        runner: the model as it is trained: with an adapter, say, or spread over cards.
        one: the pass.
    """
    inputs = dict(one.batch.inputs)
    width = inputs["input_ids"].shape[1]
    model: Any = vlm.anatomy.model
    extra: dict[str, Any] = {"use_cache": False, **vlm.anatomy.everywhere}
    rows, columns = one.places.unbind(1)
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        kept, columns = (columns - width).unique(return_inverse=True)  # from the end: a picture may stand ahead
        extra["logits_to_keep"] = kept.to(inputs["input_ids"].device)
    packs = apart(vlm.anatomy, one.batch.packs, width) if one.batch.packed else nullcontext(())
    with packs as keeping, visiting(vlm.anatomy, *keeping, prompts=one.batch.prompts):
        logits: Tensor = runner(**inputs, **extra).logits
    if "logits_to_keep" not in extra:
        columns = columns + logits.shape[1] - width
    return logits[rows.to(logits.device), columns.to(logits.device)].float()


def summed_loss(logits: Tensor, one: TrainingPass) -> Tensor:
    """− Σ log p over the trained tokens of a pass."""
    return nn.functional.cross_entropy(logits, one.ids.to(logits.device), reduction="sum")


@dataclass(frozen=True)
class Predicted:
    """How well some rows are predicted.

    Attributes:
        loss: mean −log p of a trained token.
        exact: share of answers of which every token is the likeliest: what greedy ``generate`` would say.
        answers, tokens: how many there were.
    """

    loss: float
    exact: float
    answers: int
    tokens: int


def prediction(vlm: VLM, runner: Any, passes: Sequence[PassRows]) -> Predicted:
    """Loss and exact answers over some rows, nothing trained."""
    total = right = answers = tokens = 0.0
    with torch.no_grad():
        for groups in passes:
            one = passed(vlm, groups)
            logits = trained_logits(vlm, runner, one)
            total += summed_loss(logits, one).item()
            wrong = one.answers[(logits.argmax(-1).cpu() != one.ids)].unique().numel()
            count = int(one.answers.max()) + 1
            right, answers, tokens = right + count - wrong, answers + count, tokens + len(one.ids)
    return Predicted(total / tokens, right / answers, int(answers), int(tokens))


def rows_in(groups: PassRows) -> list[TrainingRow]:
    """The rows of a pass."""
    return [row for group in groups for row in group]
