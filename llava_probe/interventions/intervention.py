"""What every intervention has: acts that are counted, a plan that can be read before, and a refusal to do nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from llava_probe.errors import BadInput, OutOfRange
from llava_probe.inside import seam
from llava_probe.inside.passes import Span, Visitor, visiting
from llava_probe.interventions.places import Phase, Places, whole_number
from llava_probe.model import VLM
from llava_probe.trace.request import spelled
from llava_probe.trace.trace import Trace

#: What was worked out for the layers of one pass is kept for so many of them at most.
_KEPT = 64

_PHASES = {
    "prompt": "on the prompt, in the pass that reads it",
    "answer": "on the answer, in every pass behind the prompt",
    "both": "on prompt and answer, in every pass",
}

Once = TypeVar("Once")


@dataclass(frozen=True)
class Act:
    """One thing that an intervention did.

    Attributes:
        layer: in which block, or at which hidden state.
        step: in which pass over its sequences: 0 reads the prompt, each later one a token of the answer.
        count: how many pairs of query and key, or how many positions, over all sequences of the pass; heads are not
            counted apart.
        of: what was counted: ``"pairs"`` or ``"positions"``.
    """

    layer: int
    step: int
    count: int
    of: str = "pairs"


class Intervention(Visitor):
    """Changes a pass, and counts where it did. Once by the functions of ``llava_probe.interventions``.

    Attributes:
        vlm: whose passes are changed.
        phase: in which part of a sequence.
        allow_nothing: whether it may end without having acted.
    """

    changes = True
    kind = "intervention"
    counts = "pairs"

    def __init__(self, vlm: VLM, phase: Phase = "both", allow_nothing: bool = False) -> None:
        self.vlm, self.phase, self.allow_nothing = vlm, phase, allow_nothing
        self._acts: list[tuple[int, int, int, Tensor]] = []  # layer, step, number of the pass, and how many
        self._passes = 0
        self._made: dict[Any, tuple[Span, Any]] = {}
        self._refused: list[tuple[Tensor, str]] = []

    # --- what it is, and what it did ---

    @property
    def acts(self) -> list[Act]:
        """What it did, by layer and step."""
        counted = ((layer, step, int(count)) for layer, step, _, count in self._acts)
        return [Act(*act, self.counts) for act in counted if act[2]]

    @property
    def ran(self) -> bool:
        """Whether any pass of the model ran inside it."""
        return self._passes > 0

    @property
    def passes(self) -> int:
        """In how many passes of the model it acted."""
        return len({number for _, _, number, count in self._acts if int(count)})

    def settings(self) -> Mapping[str, Any]:
        """What it does, as plain data, besides kind and phase."""
        raise NotImplementedError

    def told(self) -> Mapping[str, Any]:
        """What it is, as plain data, for the records of what ran under it."""
        return {"kind": self.kind, **self.settings(), "phase": self.phase}

    def __repr__(self) -> str:
        return spelled(self.told())

    def plan(self, trace: Trace | None = None) -> str:
        """What will happen, before anything has run: at which modules, layers and heads, at which tokens, and when.

        Args:
            trace: of the prompt that it is about, in which the tokens are spelt out.
        """
        return "\n".join([*self.planned(trace), _PHASES[self.phase]])

    def planned(self, trace: Trace | None) -> list[str]:
        """Its lines: what is its own."""
        raise NotImplementedError

    # --- while passes run ---

    def begin(self, span: Span) -> None:
        """A pass begins."""
        self._passes += 1

    def end(self, span: Span, logits: Tensor) -> None:
        """A pass is over: what it must not do is refused before anybody reads its logits.

        Raises:
            BadInput: something was asked that no pass of this kind can give.
        """
        self._refuse()

    def acted(self, layer: int, span: Span, count: Tensor | int) -> None:
        """Note an act; it is counted when somebody asks, so that a GPU is not waited for."""
        self._acts.append((layer, span.step, self._passes, torch.as_tensor(count)))

    def refuse_where(self, found: Tensor, sentence: str) -> None:
        """Refuse the pass when it is over if anything was ``found``: asked once a pass, for the same reason."""
        self._refused.append((found, sentence))

    def once(self, span: Span, key: Any, make: Callable[[], Once]) -> Once:
        """What ``make`` gives, worked out once for all layers of a pass that ask for the same."""
        place = (id(span), key)
        if place not in self._made or self._made[place][0] is not span:
            if len(self._made) >= _KEPT:
                self._made.clear()
            self._made[place] = span, make()
        return self._made[place][1]  # type: ignore[no-any-return]

    # --- and at last ---

    def idle(self) -> str | None:
        """Why it did nothing, if it did nothing and should have."""
        self._made.clear()
        self._refuse()
        if self.allow_nothing or self.acts:
            return None
        why = self.why_idle() if self._passes else "no pass of this model ran inside it, in this thread"
        return f"{self!r} did nothing: {why}"

    def why_idle(self) -> str:
        """Why, where passes ran."""
        raise NotImplementedError

    def _refuse(self) -> None:
        refused, self._refused = self._refused, []
        for found, sentence in refused:
            if bool(found.any()):
                raise BadInput(sentence)

    @staticmethod
    def missed(places: Places) -> str | None:
        """Why no place was met, if none was."""
        if places.empty:
            return f"{places.argument}=[] names no token"
        if places.met:
            return None
        later = {"prompt": " in a prompt", "answer": " in an answer", "both": ""}[places.phase]
        return (
            f"no pass computed a token{later} that {places.argument}={places.told()!r} names: it was never fed, or its "
            "keys and values came from a cache made before"
        )


@contextmanager
def acting(intervention: Intervention) -> Iterator[None]:
    """The intervention in force while the context lasts; the model is as it was behind it, whatever happened.

    Raises:
        NotActed: on leaving, where it did nothing.
    """
    with visiting(intervention.vlm.anatomy, intervention, alone=False):
        yield


def by_row(marked: Tensor, span: Span, rows: int, device: torch.device) -> Tensor:
    """[B or 1, n] what is told for each sample, for the rows of a batch that stand for it."""
    if len(marked) > 1 and rows != len(marked):
        marked = marked[[span.sample(row) for row in range(rows)]]
    return marked.to(device)


def chosen_layers(vlm: VLM, layers: Any, *, attending: bool = True) -> tuple[int, ...]:
    """The blocks that ``layers`` names; all (all that have attention) when None.

    Raises:
        OutOfRange: a layer that is not there, or has no attention over the sequence where it must have one.
    """
    inside = vlm.anatomy
    if layers is None:
        return tuple(sorted(inside.head_counts)) if attending else tuple(range(inside.layers))
    chosen = read_numbers(layers, "layers", "blocks", inside.layers, "this model has blocks")
    if attending and (without := [layer for layer in chosen if layer in inside.other_layers]):
        kind = inside.other_layers[without[0]]
        raise OutOfRange(f"layer {without[0]} has no attention over the sequence to act on: it is {kind}")
    return chosen


def chosen_heads(vlm: VLM, heads: Any, layers: Sequence[int]) -> tuple[int, ...] | None:
    """The query heads that ``heads`` names; None for all.

    Raises:
        OutOfRange: a head that one of the layers does not have.
    """
    if heads is None:
        return None
    count = min((vlm.anatomy.head_counts[layer] for layer in layers), default=vlm.anatomy.heads)
    return read_numbers(heads, "heads", "query heads", count, "these layers have heads")


def read_numbers(given: Any, argument: str, what: str, count: int, there: str) -> tuple[int, ...]:
    """Numbers of blocks or heads in order, each once, none below 0.

    Raises:
        BadInput: something that is no number of one, or a range that runs the wrong way.
        OutOfRange: one that is not there.
    """
    if isinstance(given, range) and not len(given) and given.start != given.stop:
        raise BadInput(f"{argument}={given} names nothing: it runs the other way; range(8, 17) is 8 to 16")
    found = []
    for number in given if hasattr(given, "__iter__") else [given]:
        if not whole_number(number):
            raise BadInput(f"{argument}= takes numbers of {what}; got {number!r}")
        if not -count <= number < count:
            raise OutOfRange(f"{argument.removesuffix('s')} {number} is not there: {there} 0 to {count - 1}")
        found.append(int(number) % count)
    return tuple(sorted(set(found)))


def attention_told(vlm: VLM, layers: Sequence[int], heads: Sequence[int] | None) -> str:
    """Where attention is acted on, in words: modules, kernel, blocks, heads."""
    stack = vlm.anatomy.decoder
    kinds = sorted({type(module).__name__ for module, layer in stack.attentions.items() if layer in layers})
    kernel = seam.implementation(stack.owner.config)
    which = "all heads" if heads is None else f"heads {', '.join(map(str, heads))}"
    return f"{', '.join(kinds)} ({kernel}) of blocks {', '.join(map(str, layers)) or 'none'}, {which}"
