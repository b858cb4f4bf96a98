"""What to keep of a generation, stated before it runs.

    lp.Capture()                                      # the default: what predicted each generated token
    lp.Capture(layers=[16, 24], attention=False)      # hidden states of two layers, no attention
    lp.Capture(positions=["predicting", "image"])     # and the states of the visual tokens
    lp.Capture(attention_positions="all")             # whole attention matrices, as rollout needs them

A ``Capture`` only declares. ``Plan`` is the same resolved against one model (its layers and heads), so that a
layer that is not there is an error before the model runs, and so that the size of what will be kept is known.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llava_probe.border import checked
from llava_probe.errors import BadInput, OutOfRange

Positions = str | int | Sequence[str | int]

NAMED_POSITIONS = ("predicting", "all", "prompt", "image", "text", "last_prompt")


@checked
@dataclass(frozen=True)
class Capture:
    """What a ``Trace`` keeps.

    Args:
        hidden_states: keep hidden states at all.
        layers: which, by transformers' index: 0 the embedding, L after the final norm; negative counts from
            the end; all by default.
        positions: at which sequence positions: ``"predicting"`` (the last prompt position and every generated
            token that was fed back; the default), ``"all"``, ``"prompt"`` (all of it), ``"image"`` (visual tokens),
            ``"text"`` (the prompt's other tokens), ``"last_prompt"``, numbers, or a list of these.
        attention: keep attention rows at all.
        attention_layers: of which blocks, from 0; by default all that have attention (where blocks differ in their
            number of heads, those with the usual one).
        heads: which query heads; all by default.
        attention_positions: rows of which query positions, as for ``positions``.
        logits: the model's own logits: all (True), the top k of each step (an int), or none (False).
        scores: what was sampled from, after temperature, top-p and the other processors; likewise.
        vision: keep the vision tower's hidden states and, where each call of its kernel is one crop or one window (as
            under sdpa and eager), whole attention matrices.
    """

    hidden_states: bool = True
    layers: Sequence[int] | None = None
    positions: Positions = "predicting"
    attention: bool = True
    attention_layers: Sequence[int] | None = None
    heads: Sequence[int] | None = None
    attention_positions: Positions = "predicting"
    logits: bool | int = True
    scores: bool | int = True
    vision: bool = False

    def __post_init__(self) -> None:
        for name in ("layers", "attention_layers", "heads"):
            object.__setattr__(self, name, _numbers(name, getattr(self, name)))
        for name in ("positions", "attention_positions"):
            object.__setattr__(self, name, _places(name, getattr(self, name)))
        for name in ("logits", "scores"):
            kept = getattr(self, name)
            if not isinstance(kept, bool) and (not isinstance(kept, int) or kept < 1):
                raise BadInput(f"Capture({name}=...) takes True, False or how many of the top to keep; got {kept!r}")


@dataclass(frozen=True)
class Selection:
    """Layers and positions of one kind of record, resolved: ``layers`` is empty where nothing is kept."""

    layers: tuple[int, ...] = ()
    places: tuple[str | int, ...] = ()

    @property
    def predicting(self) -> bool:
        """Whether the rows that predict generated tokens are among the places."""
        return bool(self.layers) and any(place in ("predicting", "all") for place in self.places)

    def in_prompt(self, prompt_length: int, image_positions: Iterable[int]) -> list[int]:
        """The prompt positions wanted, sorted; the last one only where the predicting rows do not bring it."""
        if not self.layers:
            return []
        image = set(image_positions)
        wanted: set[int] = set()
        for place in self.places:
            if place in ("all", "prompt"):
                wanted.update(range(prompt_length))
            elif place == "image":
                wanted.update(image)
            elif place == "text":
                wanted.update(set(range(prompt_length)) - image)
            elif place == "last_prompt":
                wanted.add(prompt_length - 1)
            elif isinstance(place, int):
                if not -prompt_length <= place < prompt_length:
                    raise OutOfRange(
                        f"position {place} is not in the prompt of {prompt_length} tokens; positions of the answer "
                        'come with "predicting"'
                    )
                wanted.add(place % prompt_length)
        if self.predicting:
            wanted.discard(prompt_length - 1)
        return sorted(wanted)


@dataclass(frozen=True)
class Plan:
    """A ``Capture`` resolved against one model."""

    hidden: Selection
    attention: Selection
    heads: tuple[int, ...]
    vision: bool
    capture: Capture = field(repr=False)


def resolve(
    capture: Capture, layers: int, heads: Mapping[int, int], vocabulary: int, others: Mapping[int, str] | None = None
) -> Plan:
    """The plan of ``capture`` for one model.

    Args:
        capture: what to keep.
        layers: how many blocks the model has.
        heads: how many query heads each of its blocks with attention has, by the block's index.
        vocabulary: how many logits a step has.
        others: the blocks without attention, and what they are.

    Raises:
        OutOfRange: a layer or head that the model does not have, or more of the top than its vocabulary.
    """
    for name in ("logits", "scores"):
        if (kept := getattr(capture, name)) is not True and kept > vocabulary:
            raise OutOfRange(f"Capture({name}={kept}) asks for the top {kept} of a vocabulary of {vocabulary}")
    hidden = attention = Selection()
    if capture.hidden_states:
        kept = _within(capture.layers, layers + 1, f"hidden states 0 to {layers}", "layer")
        hidden = Selection(kept, capture.positions)  # type: ignore[arg-type]
    if capture.attention:
        attention = Selection(
            _attending(capture.attention_layers, layers, heads, others or {}),
            capture.attention_positions,  # type: ignore[arg-type]
        )
    count = heads[attention.layers[0]] if attention.layers else max(heads.values(), default=0)
    return Plan(
        hidden=hidden,
        attention=attention,
        heads=_within(capture.heads, count, f"heads 0 to {count - 1}", "head"),
        vision=capture.vision,
        capture=capture,
    )


def _attending(
    given: Sequence[int] | None, layers: int, heads: Mapping[int, int], others: Mapping[int, str]
) -> tuple[int, ...]:
    """Blocks whose rows fit one tensor: those asked for, or all with the number of heads that most of them have."""
    if given is None:
        usual = Counter(heads.values()).most_common(1)
        return tuple(layer for layer in sorted(heads) if heads[layer] == usual[0][0])
    chosen = _within(given, layers, f"attention layers 0 to {layers - 1}", "attention layer")
    for layer in chosen:
        if layer in others:
            raise OutOfRange(
                f"layer {layer} has no attention rows: it is of another kind ({others[layer]}); "
                f"this model has attention in {_listed(heads)}"
            )
    if len({heads[layer] for layer in chosen}) > 1:
        kinds = [
            f"{_listed(layer for layer in chosen if heads[layer] == n)} with {n}" for n in sorted(set(heads.values()))
        ]
        raise OutOfRange(f"layers of different numbers of heads do not fit one trace: {', '.join(kinds)} heads")
    return chosen


def _listed(layers: Iterable[int]) -> str:
    return "layers " + ", ".join(str(layer) for layer in sorted(layers))


@dataclass(frozen=True)
class Extent:
    """The sizes that decide how large a trace becomes; ``itemsize`` in bytes of the model's dtype."""

    prompt: int
    image: int
    generated: int
    width: int
    vocabulary: int
    itemsize: int
    vision_bytes: int = 0


def nbytes(plan: Plan, extent: Extent) -> int:
    """How many bytes one trace keeps at most, for one sequence of ``extent``."""
    keys = extent.prompt + extent.generated - 1
    image = range(extent.image)

    def rows(selection: Selection) -> int:
        answer = extent.generated if selection.predicting else 0
        return answer + len(selection.in_prompt(extent.prompt, image))

    total = rows(plan.hidden) * len(plan.hidden.layers) * extent.width * extent.itemsize
    total += rows(plan.attention) * len(plan.attention.layers) * len(plan.heads) * keys * extent.itemsize
    for kept in (plan.capture.logits, plan.capture.scores):
        if kept is True:
            total += extent.generated * extent.vocabulary * 4
        elif kept:
            total += extent.generated * (kept * 12 + 24)
    return total + (extent.vision_bytes if plan.vision else 0)


def _numbers(name: str, given: Sequence[int] | None) -> tuple[int, ...] | None:
    if given is None:
        return None
    listed: Any = given if hasattr(given, "__iter__") else [given]
    try:
        numbers = tuple(operator.index(number) for number in listed)
    except TypeError:
        numbers = ()
    if not numbers or any(isinstance(number, bool) for number in listed):
        raise BadInput(f"Capture({name}=...) takes a list of whole numbers, or None for all; got {given!r}")
    return numbers


def _places(name: str, given: Positions) -> tuple[str | int, ...]:
    listed = [given] if isinstance(given, str) or not hasattr(given, "__iter__") else list(given)
    places: tuple[str | int, ...] = ()
    for place in listed:
        try:
            places += (place if isinstance(place, str) else operator.index(place),)
        except TypeError:
            places += (repr(place),)
        if isinstance(place, bool) or (isinstance(places[-1], str) and places[-1] not in NAMED_POSITIONS):
            raise BadInput(
                f"Capture({name}=...) takes numbers and the names {', '.join(NAMED_POSITIONS)}; got {place!r}"
            )
    if not places:
        raise BadInput(f"Capture({name}=[]) keeps nothing; to keep none say hidden_states=False or attention=False")
    return places


def _within(given: Sequence[int] | None, count: int, have: str, noun: str) -> tuple[int, ...]:
    if given is None:
        return tuple(range(count))
    for number in given:
        if not -count <= number < count:
            raise OutOfRange(f"{noun} {number} is not there: this model has {have}")
    return tuple(sorted({number % count for number in given}))


def in_units(count: float) -> str:
    """Bytes as one reads them."""
    unit, name = next((pair for pair in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if count >= pair[0]), (1.0, "bytes"))
    return f"{count / unit:,.{0 if unit == 1 else 1}f} {name}"
