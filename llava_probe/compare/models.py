"""Two models beside each other over a data set: what changed, where inside, and on which questions and pictures.

    found = lp.compare_models(base, tuned, [(image, question), ...], out="compared/")    # goes on where it was cut off
    print(found)                          # flips, layers, heads, weights, and what was left on unrelated pictures
    lp.figures.models_compared(found)

Each sample is asked of both, greedily; what they say tells the flips. Then both run over the first one's answer, so
that every row was predicted after the same words, and its states, rows and layers are compared as ``lp.compare`` does.
A sample at a time: what stays is a row a picture for CKA, and sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from llava_probe.analyzers.confidence import confidence
from llava_probe.asking.decoding import GREEDILY
from llava_probe.border import Count, Seed, checked
from llava_probe.compare.alignment import Alignment, align
from llava_probe.compare.cka import Similarity, alikeness
from llava_probe.compare.drift import drift_of
from llava_probe.compare.finished import DRIFTS, FinishedSamples, MeasuredSample
from llava_probe.compare.looking import looking_of
from llava_probe.compare.model_comparison import ComparedSample, ModelComparison
from llava_probe.compare.over_pictures import PictureSums
from llava_probe.compare.own_heads import own_heads, watching
from llava_probe.compare.through_lens import through_lens
from llava_probe.compare.traces import parted
from llava_probe.compare.unrelated import PLACES_READ, drawn_pictures, left_traces, states_by_place
from llava_probe.compare.weights import MovedWeight, moved_weights
from llava_probe.errors import BadInput, first_line
from llava_probe.faults import of_the_machine
from llava_probe.features.samples import Sample, Samples, read_samples
from llava_probe.features.trial import OF_A_SAMPLE
from llava_probe.model import VLM
from llava_probe.trace.capture import Capture
from llava_probe.trace.explained import ANSWER
from llava_probe.trace.trace import Trace

#: What the answers themselves need; and what is compared inside.
_LITTLE = Capture(attention=False, hidden_states=False, logits=1, scores=False)
_INSIDE = Capture(positions="all", scores=False)


@checked
def compare_models(
    a: VLM,
    b: VLM,
    samples: Any,
    *,
    unrelated: Any = None,
    out: str | Path | None = None,
    max_new_tokens: Count = 64,
    progress: bool = True,
    seed: Seed = 0,
) -> ModelComparison:
    """What is another in the second model, over a data set.

    Args:
        a, b: two models; of one kind for all of it, else what has no meaning is left out and told.
        samples: pairs of a picture and a question, or whatever ``lp.extract`` reads; a row's ``answer``, where it has
            one, is what would be right.
        unrelated: pictures and questions that have nothing to do with what was trained, likewise; blurred colours when
            None.
        out: a folder in which each finished sample is kept, about 2 MB of a 7B model: the same call again goes on
            where it was cut off, to the same numbers. A sample that could not be asked is tried again.
        max_new_tokens: of each answer.
        progress: whether a bar is shown.
        seed: of the draws behind intervals and shuffles.

    Returns:
        ModelComparison: intervals draw pictures again; a sample that cannot be asked is in ``left_out``.

    Raises:
        BadInput: no sample could be asked, or the folder holds samples of other models, settings or rows.
        BadFile: the folder cannot be written, or what it holds is damaged.
    """
    run = _Run((a, b), max_new_tokens, None if out is None else FinishedSamples(out, (a, b), max_new_tokens))
    traces = left_traces(a, b, drawn_pictures() if unrelated is None else _pairs(unrelated))
    if isinstance(traces, str):
        run.reasons["unrelated pictures"] = traces
    weights: tuple[MovedWeight, ...] = ()
    try:
        weights = moved_weights(a, b)
    except BadInput as error:
        run.reasons["weights"] = str(error)
    if unread := sum(math.isnan(each.difference) for each in weights):
        run.reasons[f"{unread} of {len(weights)} weights"] = "they are offloaded, or quantised in another way"
    rows = _read(samples)
    for sample in tqdm(rows, desc="compare", total=rows.count, unit="sample", delay=2, disable=not progress or None):
        run.take(sample)
    if not run.samples:
        raise BadInput(f"none of these samples could be asked: {run.left_out[0] if run.left_out else 'there is none'}")
    means = {name: run.gathered.means(name, seed) for name in ("kl", "looked", "shares", "own", *DRIFTS.values())}
    return ModelComparison(
        samples=tuple(run.samples),
        left_out=tuple(run.left_out),
        logprob=run.gathered.means("logprob", seed),
        kl=means["kl"],
        drift={group: found for group, name in DRIFTS.items() if (found := means[name]) is not None},
        looked=means["looked"],
        shares=means["shares"],
        own=means["own"],
        attending=run.attending,
        similar={place: _similar(run.gathered, place, seed) for place in PLACES_READ if f"{place} a" in run.gathered},
        dropped=(run.dropped, run.visual),
        weights=weights,
        unrelated=() if isinstance(traces, str) else traces,
        reasons=run.reasons,
        seed=seed,
    )


class _Run:
    """The samples as they go through both models.

    Attributes:
        samples: those that did; ``left_out``: why the others did not.
        gathered: what was measured.
        attending: the layers and heads of attention.
        visual, dropped: visual tokens in all, and sinks among them.
        reasons: why something could not be measured, by its name.
    """

    def __init__(self, models: tuple[VLM, VLM], length: int, finished: FinishedSamples | None) -> None:
        self._models, self._length, self._finished = models, length, finished
        self.samples: list[ComparedSample] = []
        self.left_out: list[str] = []
        self.gathered = PictureSums()
        self.attending: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
        self.visual = self.dropped = 0
        self.reasons: dict[str, str] = {}

    def take(self, sample: Sample) -> None:
        """One sample, or why it cannot be taken."""
        found = None if self._finished is None or sample.fault is not None else self._finished.read(sample)
        if found is None:
            try:
                if sample.fault is not None:
                    raise BadInput(sample.fault)
                found = _Measuring(self._models, self._length).measured(sample)
            except OF_A_SAMPLE as error:
                if of_the_machine(error):
                    raise
                self.left_out.append(f"row {sample.row}: {first_line(error)}")
                return
            if self._finished is not None:
                self._finished.write(sample, found)
        self._add(sample, found)

    def _add(self, sample: Sample, found: MeasuredSample) -> None:
        picture = sample.group
        self.gathered.add(picture, found.values)
        self.reasons |= found.reasons
        self.attending = found.attending if found.attending[0] else self.attending
        self.dropped, self.visual = self.dropped + found.dropped[0], self.visual + found.dropped[1]
        self.samples.append(
            ComparedSample(
                id=sample.id,
                picture=self.gathered.pictures[picture],
                question=sample.words or "",
                a=found.a,
                b=found.b,
                right=sample.answer,
                logprob=float(found.values["logprob"]),
                parting=found.parting,
            )
        )


class _Measuring:
    """One sample on its way through both models."""

    def __init__(self, models: tuple[VLM, VLM], length: int) -> None:
        self._models, self._length = models, length
        self._attending: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
        self._dropped = (0, 0)
        self._reasons: dict[str, str] = {}

    def measured(self, sample: Sample) -> MeasuredSample:
        """Ask both, and compare them over the first one's answer."""
        pictures = sample.images if len(sample.images) != 1 else sample.images[0]
        settings: dict[str, Any] = {"max_new_tokens": self._length, "capture": _LITTLE, **GREEDILY}
        said = [vlm.generate(pictures or None, **sample.asking, **settings) for vlm in self._models]
        with watching(self._models[0], len(said[0].generated)) as writes:
            first = self._models[0].rerun(said[0], answer=said[0].generated_ids, capture=_INSIDE)
        second = self._after_the_first(said[0], said[1])
        own = self._kept("own heads", own_heads(self._models, first, writes))
        parting, values = self._inside(said[0], said[1], first, second)
        values["own"] = None if own is None else own.moved
        return MeasuredSample(
            a=said[0].answer.strip(),
            b=said[1].answer.strip(),
            parting=parting,
            attending=self._attending,
            dropped=self._dropped,
            reasons=self._reasons,
            values={name: value for name, value in values.items() if value is not None},
        )

    def _after_the_first(self, one: Trace, other: Trace) -> Trace:
        """The second model over the first one's answer: by its ids, where these mean the same to both."""
        prompts = [[token.text for token in trace.tokens[: trace.prompt_length]] for trace in (one, other)]
        same = prompts[0] == prompts[1] and one.sizes.vocabulary == other.sizes.vocabulary
        return self._models[1].rerun(other, answer=one.generated_ids if same else one.answer, capture=_INSIDE)

    def _inside(
        self, one: Trace, other: Trace, first: Trace, second: Trace
    ) -> tuple[int | None, dict[str, Tensor | None]]:
        """What is measured of one sample: the layer where the answers part, and the rest by name."""
        aligned = align(first, second)
        rows = [(mine - 1, theirs - 1) for mine, theirs in aligned.shared]
        parting = parted(one, other, align(one, other))
        if parting is not None and parting[0] >= len(rows):
            parting = None  # the second model spells the answer otherwise, from before that place on
        lens = self._kept("lens", through_lens(self._models, (first, second), rows, parting))
        looking = self._kept("attention", looking_of(first, second, aligned))
        drift = self._kept("drift", drift_of(first, second, aligned))
        values: dict[str, Tensor | None] = {
            "logprob": _change(first, second, aligned),
            "kl": None if lens is None else lens.kl.mean(1),
            "looked": None if looking is None else looking.moved,
            "shares": None if looking is None else looking.change,
        }
        if looking is not None:
            self._attending = (looking.layers, looking.heads)
        if drift is not None:
            values |= {DRIFTS[group]: drift.distance[row] for row, group in enumerate(drift.groups)}
        return None if lens is None else lens.parting, values | self._states(first, second)

    def _states(self, first: Trace, second: Trace) -> dict[str, Tensor | None]:
        """[layers, D] of either model at each place, the mean over its tokens without sinks."""
        states, self._dropped = states_by_place(first, second)
        return {
            f"{place} {name}": each.mean(0)
            for place, both in states.items()
            for name, each in zip("ab", both, strict=True)
        }

    def _kept(self, name: str, found: Any) -> Any:
        if isinstance(found, str):
            self._reasons[name] = found
            return None
        return found


def _change(first: Trace, second: Trace, aligned: Alignment) -> Tensor:
    """Of the log-probability of one answer, a token of the first trace; both give it all, in whatever tokens."""
    mine, theirs = (confidence(trace).logprob.double() for trace in (first, second))
    if not aligned.same:  # the second spells it otherwise, and may end it otherwise
        said = [[at - trace.prompt_length for at in trace.positions(ANSWER)] for trace in (first, second)]
        mine, theirs = (each[at] for each, at in zip((mine, theirs), said, strict=True))
    return (theirs.sum() - mine.sum()) / max(len(mine), 1)


def _similar(gathered: PictureSums, place: str, seed: int) -> tuple[Similarity, ...]:
    """Of each layer; nothing for models of other depths."""
    one, other = (gathered.rows(f"{place} {name}") for name in "ab")  # [pictures, layers, D]
    if one.shape[1] != other.shape[1]:
        return ()
    return tuple(alikeness(one[:, layer], other[:, layer], seed) for layer in range(one.shape[1]))


def _read(samples: Any) -> Samples:
    """Samples that are read as they are asked for; pairs are rows of their own."""
    if isinstance(samples, Samples):
        return samples
    if isinstance(samples, Sequence) and not isinstance(samples, str | bytes) and len(samples):
        if all(isinstance(each, tuple | list) and len(each) == 2 for each in samples):
            return read_samples([{"image": image, "question": question} for image, question in samples])
        if not all(isinstance(each, Mapping) for each in samples):
            raise BadInput("samples are pairs of a picture and a question, or rows by name; some of these are neither")
    return read_samples(samples)


def _pairs(samples: Any) -> Iterable[tuple[Any, str]]:
    for sample in _read(samples):
        if sample.fault is not None or sample.question is None:
            raise BadInput(f"unrelated=, row {sample.row}: {sample.fault or 'it asks no question'}")
        yield (sample.images if len(sample.images) != 1 else sample.images[0]), sample.question
