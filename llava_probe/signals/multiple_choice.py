"""A few answers weighed for many questions at once, with their letters rotated.

    found = lp.multiple_choice(vlm, [(image, "What colour is the star?")], ["red", "blue", "green"])
    print(found)                     # of each question the best, its share, and how much lay on no choice
    found.position_bias              # what each letter gets whatever stands behind it: a third each without a bias

A model likes some letters better than others. So each question is asked as often as there are choices, each choice
standing once at each letter, and a choice's probability is its mean over these: a liking for a letter falls out.
Without letters the answers themselves are weighed, in every spelling that is a single token. What lies on none of them
is told: where that is most of the distribution, the rest are crumbs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from string import ascii_uppercase
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from llava_probe.analyzers.choices import weigh
from llava_probe.analyzers.table import Table, Tabular
from llava_probe.arrays import FloatArray
from llava_probe.border import Count, checked
from llava_probe.errors import BadInput, NotANumber
from llava_probe.model import VLM
from llava_probe.signals.binding import Binding
from llava_probe.signals.rows import is_looped
from llava_probe.trace.capture import Capture
from llava_probe.trace.trace import Trace

_LITTLE = Capture(attention=False, hidden_states=False, scores=False)
#: How a question is asked with letters before its choices.
LETTERED = "{question}\n{options}\nAnswer with the letter of one choice and nothing else."


@checked
@dataclass(frozen=True, eq=False)
class MultipleChoice(Tabular):
    """What each of some answers gets, for each question.

    Attributes:
        choices: of each question.
        probability: of each question [choices], the share of the whole distribution, a mean over rotations.
        rotations: of each question [rotations, choices], the same in each of them; one rotation without letters.
        lettered: whether letters stood for the choices.
        binding: with what they were made, for ``lp.fit_calibrator``.
    """

    choices: tuple[tuple[str, ...], ...]
    probability: tuple[FloatArray, ...]
    rotations: tuple[FloatArray, ...] = field(repr=False)
    lettered: bool
    binding: Binding = field(repr=False)

    def __len__(self) -> int:
        return len(self.choices)

    @property
    def normalised(self) -> tuple[FloatArray, ...]:
        """Of each question [choices], shares that sum to one; equal ones where nothing lay on any choice."""
        return tuple(map(_shares, self.probability))

    @property
    def best(self) -> tuple[str, ...]:
        """The likeliest choice of each question."""
        return tuple(names[int(each.argmax())] for names, each in zip(self.choices, self.probability, strict=True))

    @property
    def confidence(self) -> FloatArray:
        """[questions] the normalised share of the best: ``lp.calibration(found.confidence, right)``."""
        return np.array([each.max() for each in self.normalised])

    @property
    def off_choice(self) -> FloatArray:
        """[questions] how much lay on none of the choices, a mean over rotations."""
        return np.clip([1 - each.sum() for each in self.probability], 0, 1)

    @cached_property
    def position_bias(self) -> FloatArray:
        """[letters] what each letter gets of all letters, over questions and rotations.

        Raises:
            BadInput: without letters, or with other numbers of choices.
        """
        counts = {len(names) for names in self.choices}
        if not self.lettered or len(counts) > 1:
            raise BadInput("position_bias is of questions with letters and as many choices each")
        shares = [np.roll(_shares(row), -turn) for rotations in self.rotations for turn, row in enumerate(rotations)]
        return np.mean(shares, axis=0)

    def table(self) -> str:
        """A line for each question, to print."""
        return self._columns().text()

    def __str__(self) -> str:
        return "\n".join([self.table(), *self._notes()])

    def _repr_html_(self) -> str:
        return self._columns().html("; ".join(self._notes()))

    def _notes(self) -> list[str]:
        if not self.lettered or len({len(names) for names in self.choices}) > 1:
            return []
        shares = zip(ascii_uppercase, self.position_bias, strict=False)
        told = ", ".join(f"{letter} {share:.3f}" for letter, share in shares)
        return [f"each letter's share, whatever stands behind it: {told}"]

    def _columns(self) -> Table:
        columns: dict[str, list[Any]] = {
            "best": list(self.best),
            "share": self.confidence.tolist(),
            "off_choice": self.off_choice.tolist(),
        }
        if len(set(self.choices)) == 1:
            for place, name in enumerate(self.choices[0]):
                columns[f"p({name})"] = [float(each[place]) for each in self.probability]
        return Table(columns)


@checked
def multiple_choice(
    vlm: VLM | None,
    samples: Any,
    choices: Sequence[str] | Sequence[Sequence[str]],
    *,
    letters: bool = True,
    form: str = LETTERED,
    batch_size: Count = 8,
    progress: bool = True,
) -> MultipleChoice:
    """The probability of each of some answers, for many questions.

    Args:
        vlm: the model; None where traces are read as they are, without letters.
        samples: pairs of a picture and a question, or traces, whose picture and question are taken.
        choices: the answers, two or more; or a list of them for each sample.
        letters: whether each is asked for by a letter, once at each; else the answers are weighed themselves, each of
            them a single token, as ``lp.confidence(trace).choices`` does.
        form: how a question is asked with letters: with ``{question}`` and ``{options}``, a line each.
        batch_size: questions that are asked together.
        progress: whether a bar is shown.

    Raises:
        BadInput: no sample, fewer than two choices or more than 26, the same twice, a letter or answer that is no
            single token, or a form without its two places.
        NotCaptured: a trace without logits.
    """
    listed = [samples] if isinstance(samples, Trace) else list(_listed(samples))
    if not listed:
        raise BadInput("there is no question to weigh answers for")
    each = _each(choices, len(listed))
    if letters and not ("{question}" in form and "{options}" in form):
        raise BadInput("form= has places for {question} and {options}")
    turns = [range(len(names)) if letters else range(1) for names in each]
    jobs = [(number, turn) for number, own in enumerate(turns) for turn in own]
    rows: list[list[FloatArray]] = [[] for _ in listed]
    binding: Binding | None = None
    traces = _answered(vlm, listed, each, jobs, letters, form, batch_size, progress)
    for (number, turn), trace in zip(jobs, traces, strict=True):
        own = Binding.of(trace)
        binding = own if binding is None else binding.joined(own, f"sample {number}")
        if letters:
            rows[number].append(np.roll(_of_letters(trace, len(each[number])), turn))
        else:
            rows[number].append(np.array(weigh(trace, each[number]).probability))
    rotations = tuple(np.array(row) for row in rows)
    assert binding is not None
    return MultipleChoice(each, tuple(row.mean(0) for row in rotations), rotations, letters, binding)


def _listed(samples: Any) -> Iterable[Any]:
    if not is_looped(samples):
        raise BadInput(f"samples are traces, or pairs of a picture and a question; got {type(samples).__name__}")
    return samples


def _each(choices: Any, count: int) -> tuple[tuple[str, ...], ...]:
    """The choices of each sample."""
    given = list(choices)
    each = [tuple(given)] * count if all(isinstance(name, str) for name in given) else [tuple(names) for names in given]
    if len(each) != count:
        raise BadInput(f"choices= are the same for all, or a list for each of {count} samples; got {len(each)} lists")
    for names in each:
        different = {name.strip().casefold() for name in names} - {""}
        if not 2 <= len(names) <= len(ascii_uppercase) or len(different) < len(names):
            raise BadInput(f"choices are 2 to 26 different answers; got {list(names)}")
    return tuple(each)


def _answered(
    vlm: VLM | None,
    samples: Sequence[Any],
    choices: Sequence[Sequence[str]],
    jobs: Sequence[tuple[int, int]],
    letters: bool,
    form: str,
    batch: int,
    progress: bool,
) -> Iterator[Trace]:
    """A trace for each sample in each rotation, one token long where it is asked."""
    if not letters and all(isinstance(sample, Trace) for sample in samples):
        yield from samples
        return
    if vlm is None:
        raise BadInput("vlm=None reads traces as they are, letters=False; a model is needed to ask")
    asked = iter(jobs)
    with tqdm(total=len(jobs), desc="choices", unit="run", disable=not progress or None, delay=2) as bar:
        while some := list(islice(asked, batch)):
            pairs = [_posed(samples[number], choices[number], turn, letters, form) for number, turn in some]
            yield from vlm.generate_batch(pairs, max_new_tokens=1, capture=_LITTLE)
            bar.update(len(some))


def _posed(sample: Any, names: Sequence[str], turn: int, letters: bool, form: str) -> tuple[Any, str]:
    if isinstance(sample, Trace):
        image, question = list(sample.images), sample.question
    else:
        if not isinstance(sample, list | tuple) or len(sample) != 2:
            raise BadInput(f"a sample is a trace, or a picture and a question; got {type(sample).__name__}")
        image, question = sample
    if not isinstance(question, str):
        raise BadInput("a sample has a question in plain words to put choices behind")
    if not letters:
        return image, question
    turned = [names[(place + turn) % len(names)] for place in range(len(names))]
    options = "\n".join(f"{letter}. {name}" for letter, name in zip(ascii_uppercase, turned, strict=False))
    return image, form.replace("{options}", options).replace("{question}", question)


def _of_letters(trace: Trace, count: int) -> FloatArray:
    """[letters] the probability of each, as it stands and in no other case: an "a" begins a sentence."""
    probability = torch.softmax(trace.logits[0].double(), 0)
    if bool(torch.isnan(probability).any()):
        raise NotANumber("the logits of the first token are not numbers (NaN or infinite)")
    found = []
    for letter in ascii_uppercase[:count]:
        ids = [token for token in trace.spellings.of(letter) if trace.spellings.text(token).strip() == letter]
        if not ids:
            raise BadInput(f"no single token spells the letter {letter} in this vocabulary; weigh with letters=False")
        found.append(float(probability[ids].sum()))
    return np.array(found)


def _shares(probability: FloatArray) -> FloatArray:
    total = probability.sum()
    return probability / total if total else np.full_like(probability, 1 / len(probability))
