"""Runs ``generate`` (or one scoring pass) under a recorder and makes traces of what it left.

Batches, beams and returned alternatives are taken apart here, once: every per-step record of a returned sequence is
read from the batch row that predicted its token, and stops where the sequence stopped.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, StopStringCriteria

from llava_probe.asking.guarded import guarded
from llava_probe.asking.prompts import PosedQuestion
from llava_probe.asking.recorder import Recorder, recording
from llava_probe.faults import refusals
from llava_probe.inside import seam
from llava_probe.inside.anatomy import Anatomy
from llava_probe.inside.passes import Prompt
from llava_probe.layout import ImageLayout
from llava_probe.trace.capture import Plan
from llava_probe.trace.distributions import top_k
from llava_probe.trace.request import Request
from llava_probe.trace.sizes import Sizes
from llava_probe.trace.spellings import Spellings, spellings, stops_at
from llava_probe.trace.tokens import tokens_of
from llava_probe.trace.trace import Trace


def run_generate(
    runner: Any,
    anatomy: Anatomy,
    tokenizer: Any,
    inputs: Mapping[str, Tensor],
    plan: Plan,
    prompts: Sequence[Prompt],
    *,
    arguments: Mapping[str, Any],
    config: Any,
    seed: int | None,
) -> tuple[Recorder, Any, dict[int, int]]:
    """Generate under a recorder; ``runner`` is the model as the user holds it (a PEFT wrapper, say).

    Returns:
        The recorder, what ``generate`` returned, and after how many tokens a criterion of the user's ended a row.
    """
    arguments, ended = guarded(arguments, inputs["input_ids"].shape[1])
    if config.stop_strings:
        arguments.setdefault("tokenizer", tokenizer)
    capture = plan.capture
    doing = f"{type(anatomy.generator).__name__}.generate"
    with recording(anatomy, plan, prompts) as recorder, refusals(doing, lambda: recorder.started):
        if seed is not None:
            torch.manual_seed(seed)
        out = runner.generate(
            **inputs,
            **arguments,
            return_dict_in_generate=True,
            output_scores=bool(capture.scores),
            **_whole_prompt(recorder),
        )
    out["past_key_values"] = out["hidden_states"] = None  # as large as the trace, and done with
    return recorder, out, ended


def run_score(
    runner: Any,
    anatomy: Anatomy,
    inputs: Mapping[str, Tensor],
    plan: Plan,
    prompts: Sequence[Prompt],
    answer: Sequence[int],
) -> tuple[Recorder, Tensor]:
    """One teacher-forced pass over prompt and answer; returns logits [T, V] of the predicting positions."""
    extended = teacher_forced(anatomy.model, inputs, answer)
    prompts = [replace(prompt, ids=(*prompt.ids, *answer[:-1])) for prompt in prompts]
    doing = f"one pass of {type(anatomy.model).__name__} over a prompt and its answer"
    with (
        recording(anatomy, plan, prompts, decoding=False) as recorder,
        torch.no_grad(),
        refusals(doing, lambda: recorder.started),
    ):
        logits = runner(**extended, **_whole_prompt(recorder)).logits
    return recorder, logits[0, -len(answer) :].to(torch.float32).cpu()


def teacher_forced(model: Any, inputs: Mapping[str, Any], answer: Sequence[int]) -> dict[str, Any]:
    """Inputs of prompts and one answer in one pass, the last token left out; the last logits predict the answer.

    A model that can leave out the logits of other positions is told to.
    """
    ids = inputs["input_ids"]
    fed = torch.tensor([answer[:-1]], dtype=ids.dtype, device=ids.device)
    extended = lengthened(model, inputs, len(answer) - 1)
    extended["input_ids"] = torch.cat([ids, fed.expand(len(ids), -1)], dim=1)
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        extended["logits_to_keep"] = len(answer)
    return extended


def lengthened(model: Any, inputs: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Inputs of a prompt with room for ``count`` tokens of an answer, as the model's own ``generate`` would go on."""
    ids = inputs["input_ids"]
    extended: dict[str, Any] = {**inputs, "use_cache": False}
    for _ in range(count):
        extended = seam.next_inputs(model, extended)
    for name, value in extended.items():  # marks of the prompt's visual tokens: the answer has none
        if isinstance(value, Tensor) and value.shape == ids.shape:
            extended[name] = torch.nn.functional.pad(value, (0, count))
    return {name: value for name, value in extended.items() if value is not None}


def _whole_prompt(recorder: Recorder) -> dict[str, bool]:
    """What makes every layer read the whole prompt, where rows of it are wanted."""
    return recorder.anatomy.everywhere if recorder.wants_prompt else {}


@dataclass(frozen=True)
class PromptedSample:
    """One prompt of a run and all that a trace says of it besides what was recorded."""

    question: PosedQuestion
    request: Request
    layouts: tuple[ImageLayout, ...]
    sizes: Sizes
    ends: frozenset[int]
    interventions: tuple[Mapping[str, Any], ...]
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class Vocabulary:
    """What turns ids into tokens: the tokenizer, and the ids of visual tokens, -1 where there is none.

    Attributes:
        tokenizer: of the processor.
        image_token: of a picture; ``video_token``: of a video's frame, which may be the same.
    """

    tokenizer: Any
    image_token: int
    video_token: int = -1

    @property
    def visual(self) -> tuple[int, int]:
        """The ids of all visual tokens."""
        return self.image_token, self.video_token

    @cached_property
    def _whole(self) -> Spellings:
        return spellings(self.tokenizer)

    def spellings(self, recorded: Sequence[Mapping[str, Tensor]]) -> Spellings:
        """What the ids of these records spell: the whole vocabulary, once, where a whole distribution was kept."""
        if any(name in records for records in recorded for name in ("logits", "scores")):
            return self._whole
        tops = [records[name] for records in recorded for name in ("logits.ids", "scores.ids") if name in records]
        return spellings(self.tokenizer, (token for top in tops for token in top.flatten().tolist()))


def traces_of(
    recorder: Recorder,
    out: Any,
    config: Any,
    ended: Mapping[int, int],
    vocabulary: Vocabulary,
    samples: Sequence[PromptedSample],
) -> list[Trace]:
    """One trace per sample; further returned sequences are its alternatives."""
    sequences = out.sequences.cpu()
    prompt_end = recorder.prompts[0].length + recorder.prompts[0].padding
    returned = len(sequences) // len(samples)
    beams = getattr(out, "beam_indices", None)
    lengths = _lengths(sequences, prompt_end, beams, config, vocabulary.tokenizer, ended)
    vision = _vision(recorder, [len(sample.question.images) for sample in samples], config)
    steps: dict[str, list[Any]] = {}
    if recorder.logits:
        steps["logits"] = recorder.logits
    if out.get("scores") is not None:
        steps["scores"], out["scores"] = list(out["scores"]), None
    beam_scores = out.get("sequences_scores")
    traces = []
    for number, sample in enumerate(samples):
        family = []
        for row in range(number * returned, (number + 1) * returned):
            length = lengths[row]
            source = beams[row, :length].tolist() if beams is not None else [row] * length
            ids = sequences[row, recorder.prompts[number].padding : prompt_end + length]
            records: dict[str, Tensor] = {}
            last = row == len(sequences) - 1
            for name, made in steps.items():
                rows = torch.empty(length, made[0].shape[-1], dtype=torch.float32)
                for t in range(length):
                    rows[t] = made[t][source[t]]
                    if last:
                        made[t] = None
                records |= _distribution(name, rows, ids[-length:], getattr(recorder.plan.capture, name))
            if last:
                recorder.release()
            records |= vision[number]
            trace = _trace(recorder, number, source, ids.tolist(), records, vocabulary, sample)
            trace = replace(trace, request=replace(sample.request, sequence=row - number * returned))
            family.append(trace if beam_scores is None else replace(trace, sequence_score=float(beam_scores[row])))
        spelled = vocabulary.spellings([trace.records for trace in family])
        first, *others = (replace(trace, spellings=spelled) for trace in family)
        traces.append(replace(first, alternatives=tuple(others)))
    return traces


def scored_trace(
    recorder: Recorder, logits: Tensor, prompt_ids: Sequence[int], vocabulary: Vocabulary, sample: PromptedSample
) -> Trace:
    """The trace of a given answer."""
    recorder.release()
    answer = list(sample.request.answer or ())
    kept = sample.request.capture.logits
    records = _distribution("logits", logits, torch.tensor(answer), kept) if kept else {}
    records |= _vision(recorder, [len(sample.question.images)], GenerationConfig())[0]
    trace = _trace(recorder, 0, [0] * len(answer), [*prompt_ids, *answer], records, vocabulary, sample)
    return replace(trace, spellings=vocabulary.spellings([records]))


def _trace(
    recorder: Recorder,
    number: int,
    source: Sequence[int],
    ids: Sequence[int],
    records: dict[str, Tensor],
    vocabulary: Vocabulary,
    sample: PromptedSample,
) -> Trace:
    plan, prompt = recorder.plan, recorder.prompts[number]
    hidden_positions: list[int] = []
    attention_positions: list[int] = []
    if plan.hidden.layers:
        records["hidden"], hidden_positions = recorder.hidden_of(number, source)
    if plan.attention.layers:
        records["attention"], attention_positions = recorder.attention_of(number, source)
    return Trace(
        tokens=tokens_of(vocabulary.tokenizer, ids, prompt.length, vocabulary.visual, prompt.image_positions),
        prompt_length=prompt.length,
        answer=vocabulary.tokenizer.decode(ids[prompt.length :], skip_special_tokens=True).strip(),
        images=sample.question.images,
        layouts=sample.layouts,
        request=sample.request,
        sizes=sample.sizes,
        ends=sample.ends,
        interventions=sample.interventions,
        provenance=sample.provenance,
        records=records,
        hidden_layers=recorder.hidden_layers,
        hidden_positions=tuple(hidden_positions),
        attention_layers=plan.attention.layers,
        attention_heads=plan.heads if plan.attention.layers else (),
        attention_positions=tuple(attention_positions),
    )


def _distribution(name: str, rows: Tensor, chosen: Tensor, kept: bool | int) -> dict[str, Tensor]:
    if kept is True:
        return {name: rows}
    top = top_k(rows, chosen, int(kept))
    return {f"{name}.{part}": getattr(top, part) for part in top.__dataclass_fields__}


def _vision(recorder: Recorder, images: Sequence[int], config: Any) -> list[dict[str, Tensor]]:
    """Each sample's records of the vision tower.

    Where the model encodes pictures inside its forward pass (as in transformers 5.17), each stands there once for
    every beam or returned sequence.
    """
    if recorder.tower is None:
        return [{} for _ in images]
    inside = not seam.encodes_first(recorder.anatomy.model)
    copies = max(config.num_beams or 1, config.num_return_sequences or 1) if inside else 1
    return recorder.tower.records(images, copies)


def _lengths(
    sequences: Tensor, prompt_end: int, beams: Tensor | None, config: Any, tokenizer: Any, ended: Mapping[int, int]
) -> list[int]:
    """How many tokens each returned sequence has: up to its EOS or stop string, its padding left out."""
    if beams is not None:
        return (beams >= 0).sum(1).tolist()
    answers = sequences[:, prompt_end:]
    if len(answers) == 1:
        return [answers.shape[1]]
    ends = stops_at(config)
    stop = None
    if config.stop_strings:
        stop = StopStringCriteria(tokenizer, config.stop_strings)
    lengths = []
    for row, answer in enumerate(answers.tolist()):
        length = next((t + 1 for t, token in enumerate(answer) if token in ends), len(answer))
        if stop is not None:
            steps = range(1, length + 1)
            length = next((t for t in steps if bool(stop(sequences[row : row + 1, : prompt_end + t], None))), length)
        lengths.append(min(length, ended.get(row, length)))
    return lengths
