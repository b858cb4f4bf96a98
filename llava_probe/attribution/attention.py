"""Raw and relative attention as attributions: the trace's own rows, or recorded now.

``attention`` is ``lp.attention_map`` with a row for each word (the mean of its tokens' rows). ``relative_attention``
divides it by what a neutral question looks at anyway (Zhang et al. 2025, arXiv 2502.17422).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from llava_probe.analyzers.attention import FLOOR, Numbers, axis_list, check_same_picture, reduced
from llava_probe.asking.prompts import in_plain_words
from llava_probe.attribution.engine.found import Found
from llava_probe.attribution.engine.target import Task
from llava_probe.border import checked
from llava_probe.errors import BadInput, NotCaptured
from llava_probe.inside.passes import in_force
from llava_probe.trace.capture import Capture
from llava_probe.trace.explained import placed
from llava_probe.trace.trace import Trace

NEUTRAL = "Describe the image."


@checked
def attention(task: Task, *, layers: Numbers = None, heads: Numbers = None) -> Found:
    """Share of attention on every position, layers and heads averaged; no pass at all where the trace kept its rows.

    Args:
        task: what is explained.
        layers, heads: the model's own numbers; all by default.
    """
    trace, forwards = kept(task, layers, heads)
    everywhere = torch.arange(task.fed)
    rows = [
        reduced(trace, [task.position(step) for step in target.steps(0)], everywhere, layers, heads, "mean").mean(0)
        for target in task.targets
    ]
    about = {"layers": axis_list("layers", layers), "heads": axis_list("heads", heads)}
    return Found(torch.stack(rows), unit="share of attention", forwards=forwards, about=about)


@checked
def relative_attention(
    task: Task, *, layers: Numbers = None, heads: Numbers = None, neutral: str | Trace = NEUTRAL
) -> Found:
    """Attention on each visual token over that of a neutral question about the same picture.

    Args:
        task: what is explained.
        layers, heads: as for ``attention``.
        neutral: the question, a whole prompt with its picture's place, or a trace of one with attention rows. A model
            without a chat template is asked a question with nothing around it.

    Raises:
        BadInput: a neutral trace of another picture.
    """
    if not isinstance(neutral, str | Trace):
        raise BadInput(f"neutral= takes a question or a trace of one; got {neutral!r}")
    found = attention(task, layers=layers, heads=heads)
    assert found.positions is not None
    forwards = found.forwards
    if isinstance(neutral, str):
        if len(task.trace.request.videos):
            raise BadInput("relative attention asks its neutral question about still pictures; pass neutral=trace")
        images = list(task.trace.images)
        words = in_plain_words(task.vlm.processor, neutral, len(images))
        told = {"system": task.trace.request.system, "template_kwargs": task.trace.request.template}
        asking: dict[str, Any] = words | (told if "question" in words else {})
        asking["processor_kwargs"] = dict(task.trace.request.processor)
        neutral = task.vlm.generate(images, **asking, max_new_tokens=1, capture=rows_only(layers))
        forwards += 1
    check_same_picture(task.trace, neutral, task.image)
    layout = placed(neutral, task.image)
    plain = reduced(neutral, [neutral.prompt_length - 1], torch.from_numpy(layout.positions), layers, heads, "mean")
    values = found.positions[:, task.places] / (plain + FLOOR * plain.mean())
    return replace(found, positions=None, values=values, unit="attention over neutral attention", forwards=forwards)


def kept(task: Task, layers: Numbers, heads: Numbers) -> tuple[Trace, int]:
    """The trace, or one recorded now where it did not keep these rows."""
    steps = sorted({step for target in task.targets for step in target.steps(0)})
    try:
        at = [task.position(step) for step in steps]
        task.trace.each_row(at, layer=axis_list("layers", layers), head=axis_list("heads", heads))  # refuses at once
        same = not task.trace.interventions and not in_force(task.vlm.anatomy)
        whole = layers is not None or len(task.trace.attention_layers) == len(task.vlm.anatomy.head_counts)
        if same and whole and task.trace.attention_heads and (heads is not None or _all_heads(task)):
            return task.trace, 0
    except NotCaptured:
        pass
    again = task.vlm.rerun(task.trace, answer=[token.id for token in task.trace.generated], capture=rows_only(layers))
    return again, 1


def _all_heads(task: Task) -> bool:
    return len(task.trace.attention_heads) == task.trace.sizes.heads


def rows_only(layers: Numbers) -> Capture:
    """Attention rows of the predicting positions and nothing else."""
    chosen = axis_list("layers", layers)
    only = {} if chosen is None else {"attention_layers": chosen}
    return Capture(hidden_states=False, logits=False, scores=False, **only)  # type: ignore[arg-type]
