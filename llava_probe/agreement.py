"""Does it hold on your own weights? Every promise about numbers, tried on the model in your hands.

    print(lp.check(vlm))

Tests can only try the models that they can build; this runs the same comparisons on a real checkpoint in its own
dtype and quantisation, in about a minute: capture against plain ``generate``, rows against transformers' eager
attention, a scored answer against a generated one, places as written against places as measured. The outcome goes
into the provenance of later traces.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from llava_probe.asking.prompts import in_plain_words
from llava_probe.border import Count, checked
from llava_probe.errors import BadInput
from llava_probe.inside import seam
from llava_probe.inside.passes import alone_with
from llava_probe.inside.tolerance import QUANTISED_ROWS, ROWS
from llava_probe.inside.undo import draws_as_now, undoing
from llava_probe.layout import ImageLayout
from llava_probe.model import VLM
from llava_probe.trace.trace import Trace

#: Of the larger of two boxes: of a token that blends two by two patches, one of them is a quarter.
_SHARED = 0.2

_QUESTION = "Describe the image."
_WIDER = 3  # logits pass through the whole depth: this much wider, relative to their spread


@dataclass(frozen=True)
class Finding:
    """One comparison: what was compared, how far apart it came out, and how far it may."""

    claim: str
    apart: float
    limit: float

    @property
    def holds(self) -> bool:
        """Whether the claim held."""
        return self.apart <= self.limit


@dataclass(frozen=True)
class Check:
    """All comparisons on one model; prints as a small table."""

    model: str
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether every claim held."""
        return all(finding.holds for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as kept in later provenance."""
        return {finding.claim: {"apart": finding.apart, "limit": finding.limit} for finding in self.findings}

    def __str__(self) -> str:
        lines = [self.model]
        for finding in self.findings:
            mark = "holds" if finding.holds else "FAILS"
            lines.append(f"  {mark}  {finding.claim:<58} {finding.apart:8.1e}  (at most {finding.limit:.0e})")
        return "\n".join(lines)


@checked
def check(
    vlm: VLM,
    image: Any = None,
    question: str = _QUESTION,
    max_new_tokens: Count = 16,
    *,
    prompt: str | None = None,
    system: str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> Check:
    """Compare what ``vlm`` records with transformers' own numbers, on these weights.

    Args:
        vlm: the model to check; left as it was.
        image: any picture; a drawn one when None.
        question: what to ask about it; a model without a chat template is asked it with nothing around it.
        max_new_tokens: how long the compared answers are.
        prompt: the whole text in its place, image places included.
        system, template_kwargs: as for ``VLM.generate``.

    Returns:
        The findings, also kept in ``vlm.checks`` and so in the provenance of later traces.
    """
    image = _picture() if image is None else image
    asking: dict[str, Any] = {"prompt": prompt}
    if prompt is None:
        asking = dict(in_plain_words(vlm.processor, question, len(image) if isinstance(image, list | tuple) else 1))
    asking |= {"system": system, "template_kwargs": template_kwargs}
    with alone_with(vlm.anatomy.model), undoing() as undo:
        undo(draws_as_now())
        return _compared(vlm, image, asking, max_new_tokens)


def _compared(vlm: VLM, image: Any, asking: Mapping[str, Any], max_new_tokens: int) -> Check:
    trace = vlm.generate(image, **asking, max_new_tokens=max_new_tokens, do_sample=False)
    scored = vlm.score(list(trace.images), prompt=trace.request.prompt, answer=trace.generated_ids)
    limit = ROWS.get(getattr(torch, trace.sizes.dtype), max(ROWS.values()))
    limit = max(limit, QUANTISED_ROWS) if trace.provenance["quantization"] else limit
    findings = (
        *_unchanged(vlm, trace, image, asking, max_new_tokens),
        *_rows_equal_eager(vlm, scored, limit),
        *_score_equals_generate(trace, scored, limit),
        *_places_are_right(vlm, trace),
    )
    result = Check(f"{trace.provenance['model']} ({trace.provenance['dtype']})", findings)
    vlm.checks = result.to_dict()
    return result


def _unchanged(vlm: VLM, trace: Trace, image: Any, asking: Mapping[str, Any], max_new_tokens: int) -> Iterator[Finding]:
    inputs, _ = vlm.model_inputs(image, **asking)
    plain = {"max_new_tokens": max_new_tokens, "return_dict_in_generate": True, "output_logits": True}
    out = vlm.model.generate(**inputs, **plain, do_sample=False)
    tokens = out.sequences[0, trace.prompt_length :].cpu()
    yield Finding("greedy tokens, capture on and off: tokens that differ", _differing(tokens, trace.generated_ids), 0)
    shared = min(len(out.logits), len(trace.logits))
    logits = torch.cat([step.float().cpu() for step in out.logits[:shared]])
    yield Finding("logits of a plain generate", _apart(trace.logits[:shared], logits), 0)
    sampled = vlm.generate(image, **asking, max_new_tokens=max_new_tokens, do_sample=True, seed=0)
    torch.manual_seed(0)
    out = vlm.model.generate(**inputs, **plain, do_sample=True)
    tokens = out.sequences[0, trace.prompt_length :].cpu()
    yield Finding("sampled tokens, same seed: tokens that differ", _differing(tokens, sampled.generated_ids), 0)


def _rows_equal_eager(vlm: VLM, scored: Trace, limit: float) -> Iterator[Finding]:
    with _eager(vlm):
        eager = vlm.rerun(scored)
    yield Finding("attention rows of transformers' eager attention", _apart(scored.attention, eager.attention), limit)
    sums = scored.attention.float().sum(-1)  # less than one beside a sink, in ours as in theirs
    yield Finding("a row's sum is that of eager's", _apart(sums, eager.attention.float().sum(-1)), limit)


def _score_equals_generate(trace: Trace, scored: Trace, limit: float) -> Iterator[Finding]:
    yield Finding("score and generate: attention rows", _apart(trace.attention, scored.attention), limit)
    spread = float(trace.logits.std())
    yield Finding(
        "score and generate: logits, over their spread", _apart(trace.logits, scored.logits) / spread, _WIDER * limit
    )


def _places_are_right(vlm: VLM, trace: Trace) -> Iterator[Finding]:
    """Written places against those measured on this model; all are wrong where it has none to measure."""
    if not trace.layouts or vlm.layouts.way is None:
        return
    measured = VLM(vlm.model, vlm.processor, layout="measured")
    wrong = sum(map(len, trace.layouts))
    try:
        found = measured.lay_out(list(trace.images), prompt=trace.request.prompt)
    except BadInput:  # a measurement that failed confirms nothing
        found = ()
    if found:
        wrong = sum(_misplaced(one, other) for one, other in zip(trace.layouts, found, strict=True))
    yield Finding("places of visual tokens: boxes that are not as measured", wrong, 0)


def _misplaced(written: ImageLayout, measured: ImageLayout) -> int:
    """How many measured tokens are not written, or share less than ``_SHARED`` of the larger box with the written."""
    row = {position: row for row, position in enumerate(written.positions.tolist())}
    wrong = 0
    for position, box in zip(measured.positions.tolist(), measured.boxes, strict=True):
        if position not in row:
            wrong += 1
            continue
        other = written.boxes[row[position]]
        shared = np.prod(np.maximum(0, np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])))
        wrong += shared < _SHARED * max(np.prod(box[2:] - box[:2]), np.prod(other[2:] - other[:2]))
    return int(wrong)


@contextmanager
def _eager(vlm: VLM) -> Iterator[None]:
    config = vlm.anatomy.decoder.owner.config
    before = seam.implementation(config)
    with undoing() as undo:
        undo(lambda: seam.set_implementation(config, before))
        seam.set_implementation(config, "eager")
        yield


def _differing(one: Tensor, other: Tensor) -> float:
    shared = min(len(one), len(other))
    return float((one[:shared] != other[:shared]).sum()) + abs(len(one) - len(other))


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).abs().max())


def _picture() -> Image.Image:
    """A smooth picture of no particular shape: colours that drift, and a disc."""
    y, x = np.mgrid[0:320, 0:420] / 320
    disc = ((x - 0.8) ** 2 + (y - 0.5) ** 2 < 0.06)[..., None]
    colours = np.stack([0.5 + 0.4 * np.sin(3 * x), 0.6 * y + 0.2, 0.9 - 0.6 * y], axis=-1)
    return Image.fromarray((np.where(disc, [0.85, 0.15, 0.1], colours) * 255).astype(np.uint8))
