"""From samples to the tensors and rows of a shard: batches made ready in a thread, one pass each, failures set apart.

A batch that fails is halved until what is left passes or is one sample, which becomes an error with its reason. That
one way serves bad pictures, prompts that are too long, and memory that runs out.
"""

from __future__ import annotations

import gc
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from llava_probe.errors import BadInput, ProbeError, first_line
from llava_probe.faults import of_the_machine, out_of_memory
from llava_probe.features.gathering import Gathered, choose, gather, joined, predicted, reading_of
from llava_probe.features.packing import Unpackable, refusal
from llava_probe.features.packs import AskingSettings, Batch, batch_of, posed
from llava_probe.features.passes import Activations, read
from llava_probe.features.places import FeatureChoice
from llava_probe.features.samples import Sample
from llava_probe.features.trial import differs_beside, differs_packed
from llava_probe.inside.passes import in_force
from llava_probe.model import VLM
from llava_probe.trace.capture import Capture
from llava_probe.trace.distributions import top_k

#: Batches made ready ahead of the model.
AHEAD = 3

#: Pairs of samples that are tried for two that can be asked.
_TRIALS = 5

#: What a sample may be to blame for: what the processor, the model or the memory refuses of it.
OF_A_SAMPLE = (ProbeError, OSError, RuntimeError, ValueError, MemoryError)

#: So many samples of a batch are named.
_TOLD = 8

Groups = list[list[Sample]]


@dataclass(frozen=True)
class Recipe:
    """How features are taken: what ``lp.extract`` was asked for, as plain data.

    Attributes:
        layers, positions: as ``FeatureChoice.of`` takes them.
        dtype: to store in; the model's own when None.
        confidence: whether the index holds how sure the model was of each answer.
        image_attention: whether each head's attention on the picture is kept.
        max_new_tokens: let the model answer first, greedily, where a sample has no answer; None: it does not answer.
        batch_size: questions a pass.
        pack: whether questions about one picture may share a prefix.
        asking: what is the same for all samples.
    """

    layers: tuple[int | str, ...] | None
    positions: tuple[int | str, ...]
    dtype: str | None = None
    confidence: bool = False
    image_attention: bool = False
    max_new_tokens: int | None = None
    batch_size: int = 8
    pack: bool = True
    asking: AskingSettings = field(default_factory=AskingSettings)


@dataclass(frozen=True)
class Shard:
    """What a run of samples became.

    Attributes:
        number: its place among the shards.
        tensors, rows, errors: as ``store.write_shard`` takes them.
        samples: what it was made of.
    """

    number: int
    tensors: Mapping[str, Tensor]
    rows: Sequence[Mapping[str, Any]]
    errors: Sequence[Mapping[str, Any]]
    samples: Sequence[Sample]


class Extractor:
    """One model and a recipe; makes shards of samples.

    Args:
        vlm: the model.
        recipe: what to take.
        strict: the first sample that fails ends the run.
        tick: called with the number of samples that are done.

    Attributes:
        unpacked: why questions about one picture are read apart, ``unbatched``: pictures; empty where they share a
            pass, None where that is not known yet.
    """

    def __init__(
        self, vlm: VLM, recipe: Recipe, *, strict: bool = False, tick: Callable[[int], None] | None = None
    ) -> None:
        self.vlm, self.recipe, self._strict = vlm, recipe, strict
        self.wanted = FeatureChoice.of(vlm.anatomy, recipe.layers, recipe.positions)
        self._tick = tick or (lambda count: None)
        self._limit = recipe.batch_size
        self.unpacked = refusal(vlm.anatomy) if recipe.pack else "pack=False"
        if recipe.pack and in_force(vlm.anatomy):
            self.unpacked = "under an intervention, whose places are each question's own"
        self.unbatched: str | None = None
        if recipe.pack and self.unpacked:
            _tell(_UNPACKED, self.unpacked)

    @cached_property
    def dtype(self) -> torch.dtype:
        """What features are stored in."""
        named = self.recipe.dtype
        found = self.vlm.model.dtype if named is None else getattr(torch, named, None)
        if not isinstance(found, torch.dtype) or not found.is_floating_point:
            raise BadInput(f"dtype={named!r} is none; features are float32, bfloat16 or float16")
        return found

    def shards(self, runs: Iterable[tuple[int, Sequence[Sample]]]) -> Iterator[Shard]:
        """Make a shard of each run of samples, the next batches being read while the model works.

        Args:
            runs: numbers and their samples, in order.

        Raises:
            ProbeError: under ``strict``, why a sample failed.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="samples") as pool:
            for number, samples in runs:
                yield self._shard(pool, number, samples)

    def _shard(self, pool: ThreadPoolExecutor, number: int, samples: Sequence[Sample]) -> Shard:
        parts: list[Gathered] = []
        errors = [self._error(sample, sample.fault) for sample in samples if sample.fault is not None]
        self._tick(len(errors))
        waiting: deque[tuple[Groups, Future[Batch]]] = deque()
        for groups in self.batches([sample for sample in samples if sample.fault is None]):
            ready = pool.submit(copy_context().run, self._ready, groups)  # what is in force here is in force there
            waiting.append((groups, ready))
            if len(waiting) > AHEAD:
                self._take_next(waiting, parts, errors)
        while waiting:
            self._take_next(waiting, parts, errors)
        kept, tensors, columns = joined(parts)
        rows = [{**_carried(sample), **column} for sample, column in zip(kept, columns, strict=True)]
        return Shard(number, tensors, rows, sorted(errors, key=lambda error: error["row"]), samples)

    def _take_next(
        self, waiting: deque[tuple[Groups, Future[Batch]]], parts: list[Gathered], errors: list[dict[str, Any]]
    ) -> None:
        groups, future = waiting.popleft()
        self._take(groups, future.result, parts, errors)
        self._tick(sum(map(len, groups)))

    def batches(self, samples: Sequence[Sample]) -> Iterator[Groups]:
        """Cut samples into batches of similar length; the questions about a picture stay together."""
        groups: dict[str, list[Sample]] = {}
        for sample in samples:
            groups.setdefault(sample.picture or f"row {sample.row}", []).append(sample)
        packing, batching = self._tried(list(groups.values()))
        size = self._limit
        if packing:
            cut = [group[at : at + size] for group in groups.values() for at in range(0, len(group), size)]
        else:
            cut = [[sample] for group in groups.values() for sample in group]
        cut.sort(key=lambda group: (-len(group), _length(group)))
        batch: Groups = []
        for group in cut:
            if batch and (not batching or sum(map(len, batch)) + len(group) > size):
                yield batch
                batch = []
            batch.append(group)
        if batch:
            yield batch

    # --- one batch ---

    def _ready(self, groups: Groups) -> Batch:
        answers: dict[int, Sequence[int]] = {}
        if self.recipe.max_new_tokens is not None:
            asked = [sample for group in groups for sample in group if sample.answer is None]
            answers = self._answers(asked)
        places = self.wanted.needs("image_in_mask")
        return batch_of(self.vlm, groups, answers, places=places, asking=self.recipe.asking)

    def _answers(self, samples: Sequence[Sample]) -> dict[int, Sequence[int]]:
        """What the model itself says, greedily."""
        questions = [posed(self.vlm, sample, self.recipe.asking) for sample in samples]
        traces = self.vlm.generate_batch(
            [{"image": list(question.images), "prompt": question.prompt} for question in questions],
            max_new_tokens=self.recipe.max_new_tokens,
            do_sample=False,
            processor_kwargs=self.recipe.asking.processor_kwargs,
            capture=Capture(hidden_states=False, attention=False, logits=False, scores=False),
        )
        return {sample.row: trace.generated_ids.tolist() for sample, trace in zip(samples, traces, strict=True)}

    def _take(
        self, groups: Groups, ready: Callable[[], Batch], parts: list[Gathered], errors: list[dict[str, Any]]
    ) -> bool:
        """Run a batch, or its halves where it fails; returns whether every sample has its rows.

        What is no fault of a sample's goes through, with a note of the batch it came from.
        """
        rows = sum(map(len, groups))
        try:
            if rows > self._limit:
                raise _TooMany
            part, failures = self._run(ready())
        except (*OF_A_SAMPLE, _TooMany) as error:
            if of_the_machine(error) and not out_of_memory(error):
                error.add_note(_taking(groups))
                raise  # a device that failed once fails for every sample to come
            failed, reason = out_of_memory(error), _reason(error)
        except Exception as error:
            error.add_note(_taking(groups))
            raise
        else:
            parts += [part] if part.samples else []
            errors += [self._error(sample, why) for sample, why in failures]
            return not failures
        if failed:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        halves = _halves(groups)
        if not halves:
            errors.append(self._error(groups[0][0], reason))
            return False
        passed = [self._take(half, lambda half=half: self._ready(half), parts, errors) for half in halves]  # type: ignore[misc]
        if failed and all(passed):
            self._limit = min(self._limit, max(sum(map(len, half)) for half in halves))
        return all(passed)

    def _run(self, batch: Batch) -> tuple[Gathered, list[tuple[Sample, str]]]:
        chosen = choose(self.vlm, self.wanted, batch)
        reading = reading_of(
            self.wanted, batch, chosen, confidence=self.recipe.confidence, looking=self.recipe.image_attention
        )
        if all(positions is None for positions in chosen.positions):
            return Gathered((), {}, {}, {}, ()), chosen.failures
        out = read(self.vlm.anatomy, self.vlm.model, batch, reading)
        return gather(self.wanted, batch, chosen, out, self.dtype, self._columns(batch, out)), chosen.failures

    def _columns(self, batch: Batch, out: Activations) -> list[dict[str, Any]]:
        """What the index says of each sample."""
        told = []
        decode = self.vlm.processor.tokenizer.decode
        for number, pack in enumerate(batch.packs):
            for branch in pack.branches:
                sample = branch.sample
                answer = sample.answer
                if answer is None and branch.answer:
                    answer = decode(branch.answer, skip_special_tokens=True).strip()
                column = {
                    "id": sample.id,
                    "row": sample.row,
                    "picture": sample.picture,
                    "question": sample.words,
                    "answer": answer,
                    "prompt_tokens": len(branch.prompt),
                    "image_tokens": len(pack.visual),
                    "answer_tokens": len(branch.answer),
                }
                if out.logits is not None:
                    column |= _confidence(out, number, predicted(branch), branch.answer, decode)
                told.append(column)
        return told

    def _error(self, sample: Sample, reason: str) -> dict[str, Any]:
        if self._strict:
            raise BadInput(f"sample {sample.id}: {reason}")
        told = {"id": sample.id, "row": sample.row, "picture": sample.picture, "question": sample.words}
        return {**told, "reason": reason}

    # --- what may share a pass ---

    def _tried(self, groups: Sequence[Sequence[Sample]]) -> tuple[bool, bool]:
        """Whether questions about one picture, and pictures, may share a pass.

        Each is tried once a run, on the first two samples that can be asked; where there are none, nothing is shared.
        """
        if self.unpacked is None:
            self.unpacked = self._trial(differs_packed, [group[:2] for group in groups if len(group) > 1])
            if self.unpacked:
                _tell(_UNPACKED, self.unpacked)
        if self.unbatched is None and self.recipe.batch_size > 1:
            self.unbatched = self._trial(differs_beside, [(a[0], b[0]) for a, b in pairwise(groups)])
            if self.unbatched:
                _tell("each picture is read alone", self.unbatched)
        return self.unpacked == "", self.unbatched == ""

    def _trial(
        self, differs: Callable[[VLM, Sequence[Sample], AskingSettings], str | None], pairs: Sequence[Sequence[Sample]]
    ) -> str | None:
        """Why two samples may not share a pass, empty where they may; None where each pair fails by itself."""
        for two in pairs[:_TRIALS]:
            try:
                return differs(self.vlm, [replace(sample, answer=None) for sample in two], self.recipe.asking) or ""
            except Unpackable as error:
                return str(error)
            except OF_A_SAMPLE:
                continue  # a picture that is not there, say
        return None


_UNPACKED = "each question is read with its picture anew"


def _tell(what: str, why: str) -> None:
    warnings.warn(f"{what}: {why}", stacklevel=4)


class _TooMany(Exception):
    """A batch made ready before memory ran out at its size."""


def _taking(groups: Groups) -> str:
    """What was being done when an error came that is no sample's."""
    ids = [sample.id for group in groups for sample in group]
    told = ", ".join(map(str, ids[:_TOLD])) + (f" and {len(ids) - _TOLD} more" if len(ids) > _TOLD else "")
    return f"while llava_probe took the features of sample{'s' * (len(ids) > 1)} {told}"


def _reason(error: BaseException) -> str:
    if out_of_memory(error):
        return f"out of memory, alone in its batch: {first_line(error)}"
    return str(error) if isinstance(error, ProbeError) else f"{type(error).__name__}: {first_line(error)}"


def _halves(groups: Groups) -> list[Groups]:
    if len(groups) > 1:
        return [groups[: len(groups) // 2], groups[len(groups) // 2 :]]
    (group,) = groups
    return [[group[: len(group) // 2]], [group[len(group) // 2 :]]] if len(group) > 1 else []


def _length(group: Sequence[Sample]) -> int:
    """About how long a sequence becomes, by its letters."""
    return sum(len(sample.words or "") + len(sample.answer or "") for sample in group)


def _carried(sample: Sample) -> dict[str, Any]:
    """The sample's other columns; one that goes by a name of ours gets a line behind it."""
    return {f"{name}_" if name in _OURS else name: value for name, value in sample.columns.items()}


_OURS = {"id", "row", "picture", "question", "answer", "prompt_tokens", "image_tokens", "answer_tokens"}
_OURS |= {"shard", "shard_row", "token_logprobs", "answer_logprob", "top_token", "top_probability", "entropy"}


def _confidence(
    out: Activations, row: int, columns: Sequence[int], answer: Sequence[int], decode: Callable[..., str]
) -> dict[str, Any]:
    """How sure the model was: of what it would say first, and of each token of its answer."""
    assert out.logits is not None
    logits = out.logits[row, [out.predicting.index(column) for column in columns]].float()
    taken = torch.tensor(answer or [0], device=logits.device)
    kept = top_k(logits, taken, 1)
    own = (kept.chosen - kept.logsumexp).tolist() if answer else None
    return {
        "top_token": decode([int(kept.ids[0, 0])]),
        "top_probability": float((kept.values[0, 0] - kept.logsumexp[0]).exp()),
        "entropy": float(kept.entropy[0]),
        "token_logprobs": own,
        "answer_logprob": sum(own) if own else None,
    }
