"""From samples to the tensors and rows of a shard: batches made ready in a thread, one pass each, failures set apart.

A batch that fails is halved until what is left passes or is one sample, which becomes an error with its reason. That
one way serves bad pictures, prompts that are too long, and memory that runs out.

What a shard becomes depends on its samples, on what the store decided before its first shard, and on how many questions
went through the model at once, which the shard tells: no run remembers anything that another one would not know.
"""

from __future__ import annotations

import gc
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from llava_probe.asking.decoding import GREEDILY
from llava_probe.errors import BadInput, ProbeError, first_line
from llava_probe.faults import of_the_machine, out_of_memory
from llava_probe.features.batching import Groups, batches_of, halves_of
from llava_probe.features.gathering import Gathered, choose, gather, joined, predicted, reading_of
from llava_probe.features.packing import refusal
from llava_probe.features.packs import AskingSettings, Batch, batch_of, posed
from llava_probe.features.passes import Activations, read
from llava_probe.features.places import FeatureChoice
from llava_probe.features.samples import Sample
from llava_probe.features.trial import OF_A_SAMPLE, Sharing, sharing_of
from llava_probe.inside.passes import in_force
from llava_probe.model import VLM
from llava_probe.trace.capture import Capture
from llava_probe.trace.distributions import top_k

#: Batches made ready ahead of the model.
AHEAD = 3

#: How many samples are looked at for two that can be asked together.
LOOKED_AT = 20

#: So many samples of a batch are named.
_TOLD = 8


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
        batch_size: how many questions shared a pass at most: the recipe's, or what memory held.
    """

    number: int
    tensors: Mapping[str, Tensor]
    rows: Sequence[Mapping[str, Any]]
    errors: Sequence[Mapping[str, Any]]
    samples: Sequence[Sample]
    batch_size: int


class Extractor:
    """One model and a recipe; makes shards of samples.

    Args:
        vlm: the model.
        recipe: what to take.
        strict: the first sample that fails ends the run.
        tick: called with the number of samples that are done; a negative one where a shard is begun anew.
        sharing: what was decided of the store; by default tried on the first samples that come.
        sizes: questions a pass of the shards that were made with other than the recipe's.
    """

    def __init__(
        self,
        vlm: VLM,
        recipe: Recipe,
        *,
        strict: bool = False,
        tick: Callable[[int], None] | None = None,
        sharing: Sharing | None = None,
        sizes: Mapping[int, int] | None = None,
    ) -> None:
        self.vlm, self.recipe, self._strict = vlm, recipe, strict
        self.wanted = FeatureChoice.of(vlm.anatomy, recipe.layers, recipe.positions)
        self.sharing = sharing
        self._tick = tick or (lambda count: None)
        self.sizes = sizes or {}
        self._short = False

    def decide(self, samples: Sequence[Sample]) -> Sharing:
        """Find out what may share a pass, unless that is known, and say what may not.

        Args:
            samples: the first ones of the source.
        """
        if self.sharing is None:
            unpacked = refusal(self.vlm.anatomy) if self.recipe.pack else "pack=False"
            if self.recipe.pack and in_force(self.vlm.anatomy):
                unpacked = "under an intervention, whose places are each question's own"
            size = self.recipe.batch_size
            first = samples[:LOOKED_AT]
            self.sharing = sharing_of(self.vlm, first, self.recipe.asking, unpacked=unpacked, batch_size=size)
            pictures = [sample.picture for sample in samples if sample.picture]
            if self.recipe.pack and self.sharing.unpacked and len({*pictures}) < len(pictures):
                _tell("each question is read with its picture anew", self.sharing.unpacked)
            if min(size, len(samples)) > 1 and self.sharing.unbatched:
                _tell("each picture is read alone", self.sharing.unbatched)
        return self.sharing

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
        size = self.sizes.get(number) or self.recipe.batch_size
        while True:
            counted = _Counted(self._tick)
            try:
                return self._shard_of(pool, number, samples, size, counted)
            except _TooMany as error:
                counted.take_back()
                if not self._short:
                    told = f"memory does not hold {size} questions at once"
                    _tell(
                        told, f"the manifest says how many each shard was made with; batch_size={error.held} is quicker"
                    )
                self._short, size = True, error.held

    def _shard_of(
        self, pool: ThreadPoolExecutor, number: int, samples: Sequence[Sample], size: int, counted: _Counted
    ) -> Shard:
        """The shard with ``size`` questions a pass.

        Raises:
            _TooMany: memory held fewer; nothing of what was made so far is kept.
        """
        parts: list[Gathered] = []
        errors = [self._error(sample, sample.fault) for sample in samples if sample.fault is not None]
        counted(len(errors))
        waiting: deque[tuple[Groups, Future[Batch]]] = deque()

        def take_next() -> None:
            groups, ready = waiting.popleft()
            self._take(groups, ready.result, parts, errors)
            counted(sum(map(len, groups)))

        try:
            for groups in self.batches([sample for sample in samples if sample.fault is None], size):
                ready = pool.submit(copy_context().run, self._ready, groups)  # what is in force here is in force there
                waiting.append((groups, ready))
                if len(waiting) > AHEAD:
                    take_next()
            while waiting:
                take_next()
        finally:
            for _, ready in waiting:
                ready.cancel()
        kept, tensors, columns = joined(parts)
        rows = [{**_carried(sample), **column} for sample, column in zip(kept, columns, strict=True)]
        return Shard(number, tensors, rows, sorted(errors, key=lambda error: error["row"]), samples, size)

    def batches(self, samples: Sequence[Sample], size: int | None = None) -> list[Groups]:
        """Samples of one shard as they go through the model, ``size`` questions at once; the recipe's by default."""
        return batches_of(samples, size or self.recipe.batch_size, self.decide(samples))

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
            **GREEDILY,
            processor_kwargs=self.recipe.asking.processor_kwargs,
            capture=Capture(hidden_states=False, attention=False, logits=False, scores=False),
        )
        return {sample.row: trace.generated_ids.tolist() for sample, trace in zip(samples, traces, strict=True)}

    def _take(
        self, groups: Groups, ready: Callable[[], Batch], parts: list[Gathered], errors: list[dict[str, Any]]
    ) -> bool:
        """Run a batch, or its halves where it fails; returns whether every sample has its rows.

        What is no fault of a sample's goes through, with a note of the batch it came from.

        Raises:
            _TooMany: memory holds each half and not both.
        """
        try:
            part, failures = self._run(ready())
        except OF_A_SAMPLE as error:
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
            self._free()
        halves = halves_of(groups)
        if not halves:
            errors.append(self._error(groups[0][0], reason))
            return False
        passed = [self._take(half, lambda half=half: self._ready(half), parts, errors) for half in halves]  # type: ignore[misc]
        if failed and all(passed):
            raise _TooMany(max(sum(map(len, half)) for half in halves))
        return all(passed)

    def _free(self) -> None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

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


def _tell(what: str, why: str) -> None:
    warnings.warn(f"{what}: {why}", stacklevel=4)


class _TooMany(Exception):
    """Memory holds ``held`` questions a pass, and not twice as many."""

    def __init__(self, held: int) -> None:
        super().__init__(held)
        self.held = held


class _Counted:
    """Samples that are done, told one batch at a time, and taken back where their shard is begun anew."""

    def __init__(self, tick: Callable[[int], None]) -> None:
        self._tick, self._count = tick, 0

    def __call__(self, count: int) -> None:
        self._tick(count)
        self._count += count

    def take_back(self) -> None:
        """None of them is done."""
        self._tick(-self._count)


def _taking(groups: Groups) -> str:
    """What was being done when an error came that is no sample's."""
    ids = [sample.id for group in groups for sample in group]
    told = ", ".join(map(str, ids[:_TOLD])) + (f" and {len(ids) - _TOLD} more" if len(ids) > _TOLD else "")
    return f"while llava_probe took the features of sample{'s' * (len(ids) > 1)} {told}"


def _reason(error: BaseException) -> str:
    if out_of_memory(error):
        return f"out of memory, alone in its batch: {first_line(error)}"
    return str(error) if isinstance(error, ProbeError) else f"{type(error).__name__}: {first_line(error)}"


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
