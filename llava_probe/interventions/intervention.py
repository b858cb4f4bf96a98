"""What every intervention has: places named in words, found in each sample of each pass; acts that are counted.

Places are read by the one reader of tokens (``explained.py``) on the prompt of each sample. A pass of ``generate`` does
not know the answer yet, so a place that goes on (``"answer"``, ``"all"``) holds what will be said, and a word of the
answer is found only where the answer is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llava_probe.errors import BadInput, OutOfRange
from llava_probe.inside.passes import Prompt, Span, Visitor
from llava_probe.inside.spans import NO_MASK
from llava_probe.model import VLM
from llava_probe.trace.explained import ALL, ANSWER, GENERATED, IMAGE, PLACES, PREDICTING, TEXT, At, Place, positions
from llava_probe.trace.tokens import Token, tokens_of

#: Places that hold what is yet to be said.
_ONWARD = (ALL, ANSWER, GENERATED, PREDICTING)


@dataclass(frozen=True)
class Act:
    """One thing that an intervention did.

    Attributes:
        layer: in which block.
        step: in which pass over its sequences: 0 reads the prompt, each later one a token of the answer.
        pairs: how many (query, key) pairs it took away, over all sequences of the pass; heads are not counted apart.
    """

    layer: int
    step: int
    pairs: int


class Intervention(Visitor):
    """Changes a pass, and counts where it did. Made by the functions of ``llava_probe.interventions``.

    Attributes:
        vlm: whose passes are changed.
    """

    changes = True

    def __init__(self, vlm: VLM) -> None:
        self.vlm = vlm
        self._acts: list[tuple[int, int, Tensor]] = []
        self._passes = 0

    @property
    def acts(self) -> list[Act]:
        """What it did, by layer and step."""
        counted = ((layer, step, int(pairs)) for layer, step, pairs in self._acts)
        return [Act(*act) for act in counted if act[2]]

    def begin(self, span: Span) -> None:
        """A pass begins."""
        self._passes += 1

    def acted(self, layer: int, span: Span, pairs: Tensor) -> None:
        """Note an act; it is counted when somebody asks, so that a GPU is not waited for."""
        self._acts.append((layer, span.step, pairs))


@dataclass(frozen=True)
class WrittenPrompt:
    """What a pass holds of one sample, as the reader of tokens takes it."""

    tokens: Sequence[Token]
    prompt_length: int
    question: str | None
    ends: frozenset[int] = frozenset()


@dataclass
class Places:
    """One ``queries=`` or ``keys=``, found in each sample of each pass.

    Args:
        vlm: whose tokenizer reads the prompts.
        at: as given; ``argument``: by what name.

    Attributes:
        met: whether any pass held one of them.
    """

    vlm: VLM
    at: At
    argument: str
    met: bool = False
    _found: dict[Prompt, frozenset[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._parts = _parts(self.at)
        numbers = [part for part in self._parts if isinstance(part, int)]
        if wrong := [number for number in numbers if number < 0]:
            raise OutOfRange(
                f"{self.argument}={wrong[0]}: how long an answer becomes is not known before it is there, so positions "
                "count from 0; lp.LAST is the last of the prompt"
            )
        if not self._parts:
            raise BadInput(f"{self.argument}=[] names no token")
        self._numbers = frozenset(numbers)
        self._names = [part for part in self._parts if not isinstance(part, int)]
        self._onward = any(part in _ONWARD for part in map(_place, self._names))

    def columns(self, span: Span, start: int, stop: int) -> Tensor:
        """Truth values [samples, stop - start]: which columns of the batch are among them."""
        out = torch.zeros(len(span.prompts), stop - start, dtype=torch.bool)
        for row, prompt in zip(out, span.prompts, strict=True):
            found = self._numbers | (self._of(prompt) if self._names or prompt.unknown else frozenset())
            inside = [at for place in found if 0 <= (at := place + prompt.padding - start) < len(row)]
            row[inside] = True
            if self._onward:
                row[max(0, prompt.padding + max(prompt.length, len(prompt.ids)) - start) :] = True
        self.met = self.met or bool(out.any())
        return out

    def told(self) -> Any:
        """As plain data, for the records of what ran under it."""
        parts = [part.name if isinstance(part, Place) else part for part in self._parts]
        return parts[0] if len(parts) == 1 else parts

    def _of(self, prompt: Prompt) -> frozenset[int]:
        """The positions in one sample that names and words stand for."""
        if prompt not in self._found:
            self._refuse_unknown(prompt)
            self._found[prompt] = frozenset(place for name in self._names for place in self._named(prompt, name))
        return self._found[prompt]

    def _named(self, prompt: Prompt, name: str | Place) -> list[int]:
        """A word is looked for in the prompt, however much of an answer is given with it: a run finds the same."""
        asked = self._written(prompt, prompt.length)
        whole = self._written(prompt, len(prompt.ids))
        if (place := _place(name)) is not None:
            positions(asked, name)  # refuses what is a word of the prompt as well
            return positions(whole, place)
        try:
            return positions(asked, name)
        except OutOfRange:
            return positions(whole, name)

    def _refuse_unknown(self, prompt: Prompt) -> None:
        """Refuse what cannot be found in a pass that somebody else began."""
        names = {_place(name) for name in self._names}
        hidden = names & {IMAGE, TEXT} and prompt.read and max(self.vlm.visual_ids) < 0
        if hidden or (prompt.unknown is not None and (self._names or prompt.unknown == NO_MASK)):
            why = prompt.unknown or "this family marks its visual tokens beside the ids"
            raise BadInput(
                f"{self.argument}={self.told()!r}: what this pass holds is not known: {why}; ask through vlm.generate"
                f"{'' if prompt.unknown == NO_MASK else ', or give positions'}"
            )

    def _written(self, prompt: Prompt, fed: int) -> WrittenPrompt:
        """The first ``fed`` tokens, and one for what the last of them predicts, which is never fed."""
        tokenizer, visual = self.vlm.processor.tokenizer, self.vlm.visual_ids
        tokens = list(tokens_of(tokenizer, prompt.ids[:fed], prompt.length, visual))
        for place in prompt.image_positions:
            tokens[place] = Token(tokens[place].id, tokens[place].text, "image", place)
        tokens.append(Token(-1, "", "generated", len(tokens)))
        return WrittenPrompt(tokens, prompt.length, prompt.question)


def _parts(at: Any) -> list[int | str | Place]:
    """The numbers, words and places of an argument, lists inside lists laid out."""
    if isinstance(at, str | Place):
        return [at]
    if hasattr(at, "__iter__") and getattr(at, "ndim", 1) != 0:
        return [inner for part in at for inner in _parts(part)]
    if not _whole(at):
        raise BadInput(f"a place is a position, a word, lp.IMAGE and its like, or a list of these; got {at!r}")
    return [int(at)]


def _whole(number: Any) -> bool:
    """Whether it is a whole number; torch takes truth values and fractions for some."""
    kind = str(getattr(number, "dtype", "int"))
    return not isinstance(number, bool) and hasattr(number, "__index__") and "int" in kind


def _place(name: str | Place) -> Place | None:
    return name if isinstance(name, Place) else PLACES.get(name)


def chosen_layers(vlm: VLM, layers: Any) -> tuple[int, ...]:
    """The blocks that ``layers`` names; all that have attention when None.

    Raises:
        OutOfRange: a layer that is not there, or has no attention over the sequence.
    """
    inside = vlm.anatomy
    if layers is None:
        return tuple(sorted(inside.head_counts))
    chosen = []
    for layer in layers if hasattr(layers, "__iter__") else [layers]:
        if not _whole(layer):
            raise BadInput(f"layers= takes numbers of blocks; got {layer!r}")
        if not -inside.layers <= layer < inside.layers:
            raise OutOfRange(f"layer {layer} is not there: this model has blocks 0 to {inside.layers - 1}")
        chosen.append(int(layer) % inside.layers)
    if without := [layer for layer in chosen if layer in inside.other_layers]:
        kind = inside.other_layers[without[0]]
        raise OutOfRange(f"layer {without[0]} has no attention over the sequence to act on: it is {kind}")
    if not chosen:
        raise BadInput("layers=[] names no layer; leave it out for all")
    return tuple(sorted(set(chosen)))


def chosen_heads(vlm: VLM, heads: Any, layers: Sequence[int]) -> tuple[int, ...] | None:
    """The query heads that ``heads`` names; None for all.

    Raises:
        OutOfRange: a head that one of the layers does not have.
    """
    if heads is None:
        return None
    count = min(vlm.anatomy.head_counts[layer] for layer in layers)
    listed = [heads] if not hasattr(heads, "__iter__") else list(heads)
    for head in listed:
        if not _whole(head):
            raise BadInput(f"heads= takes numbers of query heads; got {head!r}")
        if not -count <= head < count:
            raise OutOfRange(f"head {head} is not there: these layers have heads 0 to {count - 1}")
    if not listed:
        raise BadInput("heads=[] names no head; leave it out for all")
    return tuple(sorted({int(head) % count for head in listed}))
