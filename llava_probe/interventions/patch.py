"""Activation patching: states of one run put into another.

    other = vlm.generate(other_picture, question)
    with lp.patch(vlm, source=other, at="image", layers=4) as put:            # hidden state 4 at all visual tokens
        trace = vlm.generate(image, question)
    with lp.patch(vlm, source=other, at="last", layers=range(8), part="mlp"): ...

Vig et al. 2020 (arXiv 2004.12265), Meng et al. 2022 (arXiv 2202.05262), Zhang and Nanda 2023, "Towards Best Practices
of Activation Patching" (arXiv 2309.16042). Places are found by name in both runs (the picture, a word, the last token)
and matched in order; runs whose pictures lie otherwise, or that say the word in another number of tokens, are refused
unless ``align="position"`` matches equal places of the sequence. States that the source kept are taken from it; what it
did not keep is captured by running it again, as it was asked.

``part="residual"`` counts hidden states as a trace does: 0 enters the first block, the last is behind the final norm.
The other parts count blocks. Replacing every position of a hidden state makes all that follows the source's own: a test
of the machinery, never a finding.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from llava_probe.asking.identity import model_of, other_model
from llava_probe.border import checked
from llava_probe.errors import BadInput, NotCaptured, OutOfRange
from llava_probe.inside import seam
from llava_probe.inside.anatomy import Stack
from llava_probe.inside.passes import Prompt, Span, Visitor, alone_with, visiting
from llava_probe.inside.rows import Call
from llava_probe.interventions.intervention import acting, chosen_heads, chosen_layers, read_numbers
from llava_probe.interventions.on_states import OnStates, Where, by_position, modules_told
from llava_probe.interventions.places import Phase
from llava_probe.layout import ImageLayout
from llava_probe.model import VLM
from llava_probe.trace.capture import Capture
from llava_probe.trace.explained import At, positions
from llava_probe.trace.trace import Trace

PartName = Literal["residual", "attention", "mlp", "head"]
Align = Literal["name", "position"]

#: How far boxes of two layouts may lie apart, in shares of their photographs.
_SAME_PLACE = 1e-3


@checked
@contextmanager
def patch(
    vlm: VLM,
    *,
    source: Trace,
    at: At,
    layers: int | Sequence[int],
    part: PartName = "residual",
    heads: int | Sequence[int] | None = None,
    align: Align = "name",
    phase: Phase = "both",
    allow_nothing: bool = False,
) -> Iterator[Patch]:
    """Put states of another run where this one's would be while the context lasts, in whatever runs in it.

    Args:
        vlm: whose passes.
        source: the other run, of the same model.
        at: which tokens: positions (from 0), words of the prompt, places, parts of the photograph.
        layers: hidden states for the residual stream, blocks for the other parts.
        part: ``"residual"``, what ``"attention"`` or the ``"mlp"`` adds, or what heads give (``"head"``).
        heads: with ``part="head"``: which query heads; all when None.
        align: ``"name"`` or ``"position"``; see above.
        phase: of which positions: the prompt's, the answer's, or both.
        allow_nothing: do not raise where nothing was put in.

    Yields:
        What tells before what will happen (``plan()``), and afterwards where it acted (``acts``).

    Raises:
        NotActed: on leaving, where nothing was put in; the message says why.
        BadInput: a source of another model, or whose places do not match.
        OutOfRange: a layer or head that this model does not have, a place that the source does not have.
    """
    put = Patch(vlm, source, at, layers, part, heads, align, phase, allow_nothing)
    with acting(put):
        yield put


@checked
class Patch(OnStates):
    """One patch in force. Made by ``patch``.

    Attributes:
        source: the other run; ``positions``: which of its tokens.
        states: by layer and module, [positions, ...].
    """

    kind = "patch"

    def __init__(
        self,
        vlm: VLM,
        source: Trace,
        at: At,
        layers: int | Sequence[int],
        part: PartName,
        heads: int | Sequence[int] | None,
        align: Align,
        phase: Phase,
        allow: bool,
    ) -> None:
        chosen = layers_of(vlm, part, layers)
        if heads is not None and part != "head":
            raise BadInput("heads= is of part='head'")
        super().__init__(vlm, at, part, chosen, phase, allow)
        self.heads = chosen_heads(vlm, heads, chosen)
        self.source, self.align = source, align
        check_source(vlm, source)
        if part == "residual" and _carries_more(vlm):
            warnings.warn(
                f"{type(vlm.anatomy.model).__name__} carries more from block to block than its tokens' hidden states "
                "(features of the picture, keys or states of earlier blocks), which a patch of them does not replace",
                stacklevel=5,
            )
        fed = max(source.prompt_length, len(source.tokens) - 1)
        self.positions = tuple(sorted({place for place in positions(source, at) if place < fed}))
        self.states = states_of(vlm, source, self.positions, part, chosen) if self.positions and chosen else {}

    def settings(self) -> Mapping[str, Any]:
        """As plain data."""
        return {
            "part": self.part_name,
            "layers": list(self.layers),
            **({} if self.heads is None else {"heads": list(self.heads)}),
            "at": self._at.told(),
            "align": self.align,
            "source": {
                "answer": self.source.answer,
                "prompt": self.source.request.prompt,
                "images": list(self.source.provenance.get("images", ())),
            },
        }

    def planned(self, trace: Trace | None) -> list[str]:
        """Where, and from which run."""
        heads = [] if self.heads is None else [f"heads {', '.join(map(str, self.heads))}"]
        from_ = f"from the run that answered {self.source.answer!r}, {len(self.positions)} of its positions"
        return [modules_told(self.vlm, self.part_name, self.layers), *heads, f"at {self._at.shown(trace)}", from_]

    def changed(self, where: Where, values: Tensor, marked: Tensor, span: Span) -> Tensor | None:
        """With the source's in their place."""
        found = self._pairs(where, values, span)
        if found is None or where.module not in self.states:
            return None
        (rows, columns, index), states = found, self.states[where.module].to(values)
        if states.shape[1:] != values.shape[2:]:
            raise BadInput(
                f"the source's states are {list(states.shape[1:])} here, this run's {list(values.shape[2:])}"
            )
        out = values.clone()
        if self.heads is None:
            out[rows, columns] = states[index]
        else:
            for head in self.heads:
                out[rows, columns, head] = states[index, head]
        return out

    def count(self, where: Where, values: Tensor, span: Span, marked: int) -> int:
        """Those that the source has."""
        found = self._pairs(where, values, span)
        return 0 if found is None else len(found[0])

    def _pairs(self, where: Where, values: Tensor, span: Span) -> tuple[Tensor, Tensor, Tensor] | None:
        first = where.first
        return self.once(span, ("matched", first, values.shape[:2]), lambda: self._matched(span, first, values))

    def why_unchanged(self) -> str:
        """The source has no token for what was met."""
        return "the source has none of these positions" if not self.positions else super().why_unchanged()

    def _matched(self, span: Span, first: int, values: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """Rows and columns of this pass, and for each the number of the source's position."""
        rows, columns, index = [], [], []
        for row in range(values.shape[0]):
            prompt = span.prompts[span.sample(row)]
            matched = self._numbers(prompt)
            known, end = self._at.of(prompt), max(prompt.length, len(prompt.ids))
            for column in self._at.columns(span, first, first + values.shape[1])[span.sample(row)].nonzero().flatten():
                place = int(column) + first - prompt.padding
                number = matched.get(place)
                if number is None and self.align == "name" and place >= end:
                    number = len(known) + place - end
                if number is not None and number < len(self.positions):
                    rows.append(row)
                    columns.append(int(column))
                    index.append(number)
        if not rows:
            return None
        return tuple(torch.tensor(each, device=values.device) for each in (rows, columns, index))  # type: ignore[return-value]

    def _numbers(self, prompt: Prompt) -> dict[int, int]:
        """For the known positions of a prompt the number of the source's that stands for it.

        Raises:
            BadInput: the two cannot be matched by name.
        """
        if self.align == "position":
            return {place: number for number, place in enumerate(self.positions)}
        known = self._at.of(prompt)
        own = [place for place in known if place < prompt.length]
        theirs = [place for place in self.positions if place < self.source.prompt_length]
        if len(own) != len(theirs):
            raise BadInput(
                f"at={self._at.told()!r} is {len(theirs)} tokens of the source's prompt and {len(own)} of this one's, "
                "so they cannot be matched; align='position' matches equal places of the sequence"
            )
        if set(own) & set(prompt.image_positions) and prompt.lay_out is not None:
            layouts = prompt.lay_out().layouts
            if not _lie_alike(layouts, self.source.layouts):
                raise BadInput(
                    "the visual tokens of the source lie elsewhere on its picture than this one's do, so they do not "
                    "stand for one another; give pictures of the same shape, or align='position'"
                )
        return {place: number for number, place in enumerate(known)}


def _carries_more(vlm: VLM) -> bool:
    """Whether all hidden states of the tokens at one layer are not all that the later layers know."""
    stack = vlm.anatomy.decoder
    return (
        any("Cross" in kind for kind in vlm.anatomy.beside_attention)
        or not all(map(seam.reads_interface, stack.attentions))  # BLIP, GIT: their picture is none of the tokens
        or seam.adds_features_later(stack.owner)
        or seam.shares_keys(stack.owner.config)
        or any(map(seam.reads_earlier_states, stack.blocks))
    )


def layers_of(vlm: VLM, part: str, layers: Any) -> tuple[int, ...]:
    """The hidden states or blocks that ``layers`` names, as a part counts them."""
    if part == "residual":
        return read_numbers(layers, "layers", "hidden states", vlm.anatomy.layers + 1, "this model has hidden states")
    chosen = chosen_layers(vlm, layers, attending=part != "mlp")
    if part == "mlp" and (without := sorted(set(chosen) - set(vlm.anatomy.decoder.feeds.values()))):
        raise OutOfRange(f"block {without[0]} has no MLP that is a module of its own")
    return chosen


def check_source(vlm: VLM, source: Trace) -> None:
    """Refuse a run of another model.

    Raises:
        BadInput: it is of other sizes or weights.
    """
    inside, sizes = vlm.anatomy, source.sizes
    if (sizes.layers, sizes.width) != (inside.layers, inside.width):
        raise BadInput(
            f"the source is of a model of {sizes.layers} layers of width {sizes.width}, this one has {inside.layers} "
            f"of {inside.width}"
        )
    with alone_with(inside.model):
        here = model_of(inside, vlm.model)
    if other := other_model(source.provenance, here):
        raise BadInput(f"the source is of another model ({'; '.join(other)}); run it on this one first")


def states_of(
    vlm: VLM, source: Trace, places: Sequence[int], part: str, layers: Sequence[int]
) -> dict[tuple[int, int], Tensor]:
    """[positions, ...] of each layer and module: as the trace kept them, else of the same run again.

    Raises:
        BadInput: it was made under an intervention and kept them not.
    """
    if part == "residual":
        try:
            kept = source.hidden(layer=list(layers), at=list(places))
            return {(layer, 1): kept[:, number] for number, layer in enumerate(layers)}
        except NotCaptured:
            pass
    if source.interventions:
        raise BadInput(
            "the source was made under an intervention and did not keep these states, and run again it would be "
            "without; Capture(positions=...) keeps hidden states"
        )
    keeper = Keeper(part, layers, places)
    last = [vlm.anatomy.layers]  # states are asked for, or some families compute the end of a prompt only
    nothing = Capture(attention=False, layers=last, positions=list(places[:1]), logits=1, scores=False)
    drawn = {"do_sample", "num_beams", "num_return_sequences"} & set(source.request.generate)
    plain = source.request.answer is None and not drawn
    with visiting(vlm.anatomy, keeper, alone=False, apart=True):
        if plain:
            vlm.rerun(source, capture=nothing)
        else:
            vlm.rerun(source, answer=source.generated_ids, capture=nothing)
    return keeper.states()


class Keeper(Visitor):
    """Keeps what one part gives at some positions of one sequence."""

    def __init__(self, part: str, layers: Sequence[int], places: Sequence[int]) -> None:
        self._part, self._layers, self._places = part, frozenset(layers), tuple(places)
        self._held: dict[tuple[int, int], dict[int, Tensor]] = {}

    def hears(self, method: str) -> bool:
        """Of its own part only."""
        wanted = {"residual": "state", "head": "attended"}.get(self._part, "part")
        return super().hears(method) and (method not in ("state", "part", "attended") or method == wanted)

    def begin(self, span: Span) -> None:
        """A pass begins."""
        self._span, self._parts = span, Counter[int]()

    def state(self, stack: Stack, layer: int, hidden: Tensor) -> None:
        """A hidden state."""
        self._keep(layer, hidden)

    def part(self, stack: Stack, kind: str, layer: int, output: Tensor) -> None:
        """What attention or the MLP adds."""
        if kind == self._part:
            self._parts[layer] += 1
            self._keep(layer, output, self._parts[layer])

    def attended(self, call: Call, output: Tensor | None) -> None:
        """What heads give."""
        if output is not None and call.span is not None:
            self._keep(call.layer, output)

    def states(self) -> dict[tuple[int, int], Tensor]:
        """[positions, ...] of each layer and module.

        Raises:
            OutOfRange: a layer that did not run at one of them.
        """
        for (layer, _), held in self._held.items():
            if missing := [place for place in self._places if place not in held]:
                raise OutOfRange(f"the source has no {self._part} of layer {layer} at position {missing[0]}")
        return {module: torch.stack([held[place] for place in self._places]) for module, held in self._held.items()}

    def _keep(self, layer: int, values: Tensor, number: int = 1) -> None:
        if layer not in self._layers:
            return
        rows, _ = by_position(values, self._span)
        held, prompt = self._held.setdefault((layer, number), {}), self._span.prompts[0]
        first = self._span.start_of(rows.shape[1]) - self._span.before - prompt.padding
        for place in self._places:
            if 0 <= place - first < rows.shape[1]:
                held[place] = rows[0, place - first].detach().clone()


def _lie_alike(one: Sequence[ImageLayout], other: Sequence[ImageLayout]) -> bool:
    """Whether the visual tokens of two prompts lie at the same places of their photographs."""
    if [len(each) for each in one] != [len(each) for each in other]:
        return False
    pairs = zip(one, other, strict=True)
    return all(np.allclose(a.boxes / (a.size * 2), b.boxes / (b.size * 2), atol=_SAME_PLACE) for a, b in pairs)
