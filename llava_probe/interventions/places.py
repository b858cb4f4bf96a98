"""Where an intervention acts: places named in words, found in each sample of each pass.

Places are read by the one reader of tokens (``explained.py``) on the prompt of each sample, parts of a photograph on
its own picture. A pass of ``generate`` does not know the answer yet, so a place that goes on (``"answer"``, ``"all"``)
holds what will be said, and a word of the answer is found only where the answer is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from llava_probe.errors import BadInput, OutOfRange
from llava_probe.inside.passes import Prompt, Span
from llava_probe.inside.spans import NO_MASK
from llava_probe.layout import ImageLayout, PromptLayouts
from llava_probe.model import VLM
from llava_probe.trace.explained import ALL, ANSWER, GENERATED, IMAGE, PLACES, PREDICTING, TEXT, At, Place, positions
from llava_probe.trace.region import Region
from llava_probe.trace.tokens import Token, tokens_of

#: In which part of a sequence an intervention acts.
Phase = Literal["prompt", "answer", "both"]

#: Places that hold what is yet to be said.
_ONWARD = (ALL, ANSWER, GENERATED, PREDICTING)


@dataclass(frozen=True)
class WrittenPrompt:
    """What a pass holds of one sample, as the reader of tokens takes it.

    Attributes:
        tokens, prompt_length, question, ends: of the text.
        images, layouts, provenance: of its pictures, as far as regions of them are asked for.
    """

    tokens: Sequence[Token]
    prompt_length: int
    question: str | None
    ends: frozenset[int] = frozenset()
    layouts: tuple[ImageLayout, ...] = ()
    images: Sequence[Any] = ()
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass
class Places:
    """One ``queries=``, ``keys=`` or ``at=``, found in each sample of each pass.

    Args:
        vlm: whose tokenizer reads the prompts.
        at: as given; ``argument``: by what name.
        phase: the part of the sequence that counts.

    Attributes:
        met: whether any pass held one of them.
    """

    vlm: VLM
    at: At
    argument: str
    phase: Phase = "both"
    met: bool = False
    _found: WeakKeyDictionary[Prompt, tuple[int, ...]] = field(default_factory=WeakKeyDictionary)

    def __post_init__(self) -> None:
        self._parts = _parts(self.at)
        numbers = [part for part in self._parts if isinstance(part, int)]
        if wrong := [number for number in numbers if number < 0]:
            raise OutOfRange(
                f"{self.argument}={wrong[0]}: how long an answer becomes is not known before it is there, so positions "
                "count from 0; lp.LAST is the last of the prompt"
            )
        self._numbers = frozenset(numbers)
        self._names = [part for part in self._parts if not isinstance(part, int)]

    @property
    def empty(self) -> bool:
        """Whether it names nothing at all."""
        return not self._parts

    @property
    def onward(self) -> bool:
        """Whether it holds what is yet to be said."""
        return any(part in _ONWARD for part in map(_place, self._names))

    def columns(self, span: Span, start: int, stop: int) -> Tensor:
        """Truth values [samples, stop - start]: which columns of the batch are among them, in its phase."""
        out = torch.zeros(len(span.prompts), stop - start, dtype=torch.bool)
        for row, prompt in zip(out, span.prompts, strict=True):
            inside = [at for place in self.of(prompt) if 0 <= (at := place + prompt.padding - start) < len(row)]
            row[inside] = True
            if self.onward:
                row[max(0, prompt.padding + max(prompt.length, len(prompt.ids)) - start) :] = True
            answer = min(max(0, prompt.stop - start), len(row))
            if self.phase == "prompt":
                row[answer:] = False
            elif self.phase == "answer":
                row[:answer] = False
        self.met = self.met or bool(out.any())
        return out

    def of(self, prompt: Prompt) -> tuple[int, ...]:
        """The positions in one sample that are known, of prompt and given answer, in order."""
        if not self._names and not prompt.unknown:
            return tuple(sorted(self._numbers))
        if prompt not in self._found:
            self._refuse_unknown(prompt)
            named = {place for name in self._names for place in self._named(prompt, name)}
            self._found[prompt] = tuple(sorted(self._numbers | named))
        return self._found[prompt]

    def told(self) -> Any:
        """As plain data, for the records of what ran under it."""
        parts = [
            part.name if isinstance(part, Place) else dict(part.told()) if isinstance(part, Region) else part
            for part in self._parts
        ]
        return parts[0] if len(parts) == 1 else parts

    def shown(self, written: Any) -> str:
        """In words: as given, and spelt out in a trace or prompt where there is one."""
        told = ", ".join(part.name if isinstance(part, Place) else str(part) for part in self._parts) or "nothing"
        if written is None:
            return told
        found = sorted({place for part in self._parts for place in positions(written, part)})
        words = "".join(written.tokens[place].text for place in found[:12] if written.tokens[place].role != "image")
        visual = sum(written.tokens[place].role == "image" for place in found)
        parts = [*([f"{visual} visual tokens"] if visual else []), *([repr(words)] if words.strip() else [])]
        count = f"{len(found)} position{'s' if len(found) != 1 else ''}"
        return f"{told}: {count}{_ranges(found)}" + (f" ({', '.join(parts)})" if parts else "")

    def _named(self, prompt: Prompt, name: str | Place | Region) -> list[int]:
        """A word is looked for in the prompt, however much of an answer is given with it: a run finds the same."""
        asked = self._written(prompt, prompt.length)
        if isinstance(name, Region):
            return positions(asked, name)
        whole = asked if len(prompt.ids) == prompt.length else self._written(prompt, len(prompt.ids))
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
        regions = any(isinstance(name, Region) for name in self._names)
        if regions and prompt.lay_out is None and not prompt.unknown:
            raise BadInput(
                f"{self.argument}={self._parts}: which pictures this pass is of is not known; ask through "
                "vlm.generate, or give positions"
            )
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
        tokens = list(tokens_of(tokenizer, prompt.ids[:fed], prompt.length, visual, prompt.image_positions))
        tokens.append(Token(-1, "", "generated", len(tokens)))
        found = PromptLayouts()
        if prompt.lay_out is not None and any(isinstance(name, Region) for name in self._names):
            found = prompt.lay_out()
        unknown = {"places": f"not known: {found.unknown}"} if found.unknown else {}
        images = found.layouts or (range(1) if unknown else ())
        kind = type(self.vlm.anatomy.model).__name__
        return WrittenPrompt(
            tokens, prompt.length, prompt.question, frozenset(), found.layouts, images, {"class": kind, **unknown}
        )


def _parts(at: Any) -> list[int | str | Place | Region]:
    """The numbers, words and places of an argument, lists inside lists laid out."""
    if isinstance(at, str | Place | Region):
        return [at]
    if hasattr(at, "__iter__") and getattr(at, "ndim", 1) != 0:
        return [inner for part in at for inner in _parts(part)]
    if not whole_number(at):
        raise BadInput(f"a place is a position, a word, lp.IMAGE and its like, or a list of these; got {at!r}")
    return [int(at)]


def whole_number(number: Any) -> bool:
    """Whether it is a whole number; torch takes truth values and fractions for some."""
    kind = str(getattr(number, "dtype", "int"))
    return not isinstance(number, bool) and hasattr(number, "__index__") and "int" in kind


def _place(name: Any) -> Place | None:
    return name if isinstance(name, Place) else PLACES.get(name) if isinstance(name, str) else None


def _ranges(found: Sequence[int], most: int = 6) -> str:
    """Positions as ranges: `` 3-17, 30``."""
    runs: list[list[int]] = []
    for place in found:
        if runs and place == runs[-1][1] + 1:
            runs[-1][1] = place
        else:
            runs.append([place, place])
    told = [str(first) if first == last else f"{first}-{last}" for first, last in runs[:most]]
    return f" {', '.join(told)}{' ...' if len(runs) > most else ''}" if told else ""
