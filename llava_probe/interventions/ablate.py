"""Ablation: tokens, heads, MLPs or whole blocks taken away, with nothing, a mean or something else in their place.

    sign = lp.Region(scene.objects[0].mask)
    with lp.ablate(vlm, tokens=sign, ring=1):                       # an object's visual tokens, and those around it
        trace = vlm.generate(image, question)
    with lp.ablate(vlm, heads={12: [3, 7]}, with_="zero"): ...      # as if the output projection's columns were zero
    with lp.ablate(vlm, mlp=range(8, 12)) as cut: ...
    with lp.ablate(vlm, layers=20, with_="zero"): ...               # a block that passes its input on

Tokens are replaced where the sequence enters the first block; features of the picture that a family adds again later
(Qwen3-VL's deepstack) are replaced with them. What a head gives is replaced before the output projection, what an MLP
or a block adds where it is added. ``with_="mean"`` keeps what every token shares; zeros lie far from anything that the
model has seen, and do more harm than taking away (Wang et al. 2023, "Interpretability in the Wild", arXiv 2211.00593,
section 2). A resample is a draw from other tokens of the same sample.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from llava_probe.border import CountFromZero, Seed, checked
from llava_probe.errors import BadInput, BadModel
from llava_probe.features.reading import Features
from llava_probe.inside import seam
from llava_probe.inside.anatomy import Anatomy, Stack
from llava_probe.inside.passes import Others, Prompt, Span
from llava_probe.interventions.intervention import acting, chosen_layers, read_numbers
from llava_probe.interventions.on_states import OnStates, Where, by_position, modules_told
from llava_probe.interventions.places import Phase, Places
from llava_probe.interventions.replacements import Named, Replacement, groups_of
from llava_probe.layout import ImageLayout, PromptLayouts
from llava_probe.model import VLM
from llava_probe.trace.explained import At
from llava_probe.trace.trace import Trace


@checked
@contextmanager
def ablate(
    vlm: VLM,
    *,
    tokens: At | None = None,
    heads: Mapping[int, int | Sequence[int]] | Sequence[tuple[int, int]] | None = None,
    mlp: int | Sequence[int] | None = None,
    layers: int | Sequence[int] | None = None,
    with_: Named | Tensor | Features = "mean",
    ring: CountFromZero = 0,
    at: At | None = None,
    phase: Phase = "both",
    seed: Seed = 0,
    allow_nothing: bool = False,
) -> Iterator[Ablation]:
    """Take a part away while the context lasts, in whatever runs in it.

    Args:
        vlm: whose passes.
        tokens: (one of four) positions (from 0), words of the prompt, places, parts of the photograph (``lp.Region``).
        heads: by block, ``{12: [3, 7]}``, or as pairs of block and head.
        mlp: blocks whose MLP is taken away.
        layers: whole blocks.
        with_: what stands there instead: ``"mean"`` of the picture's tokens (for words: of the prompt's; for parts of
            blocks: of what they give at every token of the prompt), ``"zero"``, ``"resample"`` (others of these),
            a tensor, or a store of features: the mean of its visual tokens at hidden state 0.
        ring: with ``tokens``: so many visual tokens around them as well.
        at: with heads, MLPs and blocks: where; everywhere when None.
        phase: of which positions: the prompt's, the answer's, or both.
        seed: of the draws.
        allow_nothing: do not raise where nothing was taken away.

    Yields:
        What tells before what will happen (``plan()``), and afterwards where it acted (``acts``).

    Raises:
        NotActed: on leaving, where nothing was taken away; the message says why.
        OutOfRange: a block or head that this model does not have.
        BadInput: none or several of the four, a tensor of another width, a mean or draw whose prompt is not read in one
            pass.
    """
    given = {"tokens": tokens, "heads": heads, "mlp": mlp, "layers": layers}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        told = "none" if not named else " and ".join(f"{name}=" for name in named)
        raise BadInput(f"ablate takes one of tokens=, heads=, mlp= and layers=; got {told}")
    if ring and tokens is None:
        raise BadInput("ring= is of tokens=: heads and blocks have no neighbours on the photograph")
    if at is not None and tokens is not None:
        raise BadInput("at= is where heads, MLPs and blocks are taken away; tokens= says it itself")
    more: dict[str, Any] = {"phase": phase, "allow_nothing": allow_nothing}
    made = Replacement.read(with_, seed, 0 if tokens is not None else None)
    cut: Ablation
    if tokens is not None:
        cut = TokenAblation(vlm, tokens, made, ring, **more)
    elif heads is not None:
        cut = HeadAblation(vlm, heads, made, at, **more)
    elif mlp is not None:
        cut = MLPAblation(vlm, mlp, made, at, **more)
    else:
        cut = BlockAblation(vlm, layers, made, at, **more)
    with acting(cut):
        yield cut


class Ablation(OnStates):
    """One ablation in force. Made by ``ablate``.

    Attributes:
        what: ``"tokens"``, ``"heads"``, ``"mlp"`` or ``"layers"``.
        replacement: what stands there instead.
    """

    kind = "ablate"
    what = "tokens"
    replacement: Replacement

    @property
    def whole(self) -> bool:  # type: ignore[override]  # a visitor's own is fixed
        """Whether it needs the prompt in one pass."""
        return self.replacement.whole

    def settings(self) -> Mapping[str, Any]:
        """As plain data."""
        return {self.what: self.named(), "with": self.replacement.told(), "at": self._at.told()}

    def named(self) -> Any:
        """Which of them."""
        return list(self.layers)

    def why_idle(self) -> str:
        """Which of them was not there."""
        return super().why_idle() if self.layers else f"{self.what}={self.named()} names none"

    def planned(self, trace: Trace | None) -> list[str]:
        """Modules, positions, and what stands there instead."""
        where = modules_told(self.vlm, self.part_name, self.layers)
        instead = f"replaced with {self.replacement.told()}"
        return [where, f"at {self._at.shown(trace)}", instead]

    def changed(self, where: Where, values: Tensor, marked: Tensor, span: Span) -> Tensor | None:
        """With the replacement in their place."""
        return self.replacement.of(values, marked, self.groups(span, where.first, values.shape[1]), span, where)

    def passed(self, where: Where, values: Tensor, span: Span) -> None:
        """What the prompt held is what stands in the answer."""
        self.replacement.hold(values, self.groups(span, where.first, values.shape[1]), span, where)

    def groups(self, span: Span, first: int, count: int) -> list[list[Tensor]]:
        """Which columns stand for one another."""
        if not self.replacement.whole:
            return []
        if not span.step and count < span.length:
            raise BadInput(
                f"this layer of {type(self.vlm.anatomy.decoder.owner).__name__} runs for the end of a prompt only, so "
                f"with_={self.replacement.named!r} has no prompt to be of; give with_='zero' or a tensor"
            )
        apart = self.what == "tokens"
        return self.once(
            span, ("groups", first, count), lambda: groups_of(self.vlm, span, first, first + count, apart=apart)
        )


@dataclass
class _Ringed(Places):
    """Places with visual tokens around them."""

    ring: int = 0
    _widened: WeakKeyDictionary[Prompt, tuple[int, ...]] = field(default_factory=WeakKeyDictionary)

    def of(self, prompt: Prompt) -> tuple[int, ...]:
        """With those around."""
        found = super().of(prompt)
        if self.ring and prompt not in self._widened:
            places = set(found)
            for layout in self._layouts(prompt):
                own = [index for index, place in enumerate(layout.positions.tolist()) if place in places]
                places.update(layout.positions[layout.around(own, self.ring)].tolist() if own else ())
            self._widened[prompt] = tuple(sorted(places))
        return self._widened[prompt] if self.ring else found

    def _layouts(self, prompt: Prompt) -> tuple[ImageLayout, ...]:
        found = PromptLayouts(unknown="it is asked by hand") if prompt.lay_out is None else prompt.lay_out()
        if not found.layouts:
            raise BadInput(
                f"ring={self.ring} needs to know where the visual tokens of {type(self.vlm.anatomy.model).__name__} lie"
                f", which is not known{': ' + found.unknown if found.unknown else ''}"
            )
        return found.layouts


class TokenAblation(Ablation):
    """Tokens taken away where the sequence enters."""

    what = "tokens"

    def __init__(self, vlm: VLM, tokens: At, replacement: Replacement, ring: int, **more: Any) -> None:
        super().__init__(vlm, tokens, "residual", (0,), argument="tokens", **more)
        self.replacement, self.ring = replacement, ring
        self._at = _Ringed(vlm, tokens, "tokens", self.phase, ring=ring)
        self._later = seam.adds_features_later(vlm.anatomy.decoder.owner)
        self._numbers = {block: number for number, block in enumerate(vlm.anatomy.decoder.blocks)}
        if past := [kind for kind in vlm.anatomy.beside_attention if "Cross" in kind]:
            warnings.warn(
                f"{type(vlm.anatomy.model).__name__} looks at its picture past the visual tokens as well "
                f"({'; '.join(past)}), which taking tokens away does not reach",
                stacklevel=6,
            )

    def settings(self) -> Mapping[str, Any]:
        """As plain data."""
        return {
            "tokens": self._at.told(),
            "with": self.replacement.told(),
            **({"ring": self.ring} if self.ring else {}),
        }

    def hears(self, method: str) -> bool:
        """Of blocks as modules where features of the picture are added between them."""
        return self._later if method in ("before", "after") else super().hears(method)

    def begin(self, span: Span) -> None:
        """A pass begins."""
        super().begin(span)
        self._here.done = False

    def embedded(self, span: Span, embeddings: Tensor) -> Tensor | None:
        """Where they enter the decoder, so that whatever it makes of them besides is of what stands there instead."""
        if self._later:  # features may be added ahead of the first block too: replaced with them, and once
            return None
        self._here.done = True
        return self._change(0, embeddings)

    def state(self, stack: Stack, layer: int, hidden: Tensor) -> Tensor | None:
        """Where a decoder embeds ids itself, or adds features ahead of it: where they enter its first block."""
        return None if layer or self._here.done else self._change(0, hidden)

    def modules(self, anatomy: Anatomy) -> tuple[nn.Module, ...]:
        """The blocks, where it is between them."""
        return anatomy.decoder.blocks if self._later else ()

    def before(self, module: nn.Module, args: Any, kwargs: Others) -> tuple[Any, Others] | None:
        """What was added since the last block is replaced too; a given tensor stands for the token, so nothing is."""
        number, given = self._numbers[module], args[0] if args else kwargs["hidden_states"]
        if not number:
            return None
        span, left = self._here.span, self._here.left
        rows, back = by_position(given - left, span)
        first = span.start_of(rows.shape[1]) - span.before
        found = self.once(span, ("marked", rows.shape[:2], rows.device), lambda: self._marked(span, first, rows))
        if found is None:
            return None
        marks = found[0].expand(rows.shape[:2]).reshape(*rows.shape[:2], *[1] * (rows.ndim - 2))
        kept = Replacement("zero") if self.replacement.given is not None else self.replacement
        added = kept.of(rows, found[0], self.groups(span, first, rows.shape[1]), span, Where(number, 0, first))
        whole, _ = by_position(given, span)
        made = back(torch.where(marks, by_position(left, span)[0] + added, whole))
        return ((made, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": made})

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        """What a block gave."""
        self._here.left = output if isinstance(output, Tensor) else output[0]


class HeadAblation(Ablation):
    """Heads taken away before the output projection."""

    what = "heads"

    def __init__(self, vlm: VLM, heads: Any, replacement: Replacement, at: At | None, **more: Any) -> None:
        by_block = _by_block(vlm, heads)
        super().__init__(vlm, at, "head", tuple(sorted(by_block)), **more)
        self.replacement, self.heads = replacement, by_block

    def named(self) -> Any:
        """By block."""
        return {str(layer): list(heads) for layer, heads in sorted(self.heads.items())}

    def planned(self, trace: Trace | None) -> list[str]:
        """With the heads."""
        first, *others = super().planned(trace)
        told = "; ".join(f"block {layer}: heads {', '.join(map(str, heads))}" for layer, heads in self.heads.items())
        return [first, told or "no head", *others]

    def changed(self, where: Where, values: Tensor, marked: Tensor, span: Span) -> Tensor | None:
        """In the chosen heads alone."""
        chosen = list(self.heads[where.layer])
        if not chosen:
            return None
        out = values.clone()
        part = super().changed(where, values[:, :, chosen], marked, span)
        assert part is not None
        out[:, :, chosen] = part
        return out

    def passed(self, where: Where, values: Tensor, span: Span) -> None:
        """Of the chosen heads."""
        super().passed(where, values[:, :, list(self.heads[where.layer])], span)


class MLPAblation(Ablation):
    """MLPs taken away where they are added."""

    what = "mlp"

    def __init__(self, vlm: VLM, mlp: Any, replacement: Replacement, at: At | None, **more: Any) -> None:
        layers = read_numbers(mlp, "mlp", "blocks", vlm.anatomy.layers, "this model has blocks")
        if without := sorted(set(layers) - set(vlm.anatomy.decoder.feeds.values())):
            name = type(vlm.anatomy.decoder.blocks[without[0]]).__name__
            raise BadModel(
                f"block {without[0]} ({name}) has no MLP that is a module of its own; ablate layers= instead"
            )
        super().__init__(vlm, at, "mlp", layers, **more)
        self.replacement = replacement


class BlockAblation(Ablation):
    """Whole blocks taken away: their input goes on, with what stands for what they add."""

    what = "layers"

    def __init__(self, vlm: VLM, layers: Any, replacement: Replacement, at: At | None, **more: Any) -> None:
        super().__init__(vlm, at, "block", chosen_layers(vlm, layers, attending=False), **more)
        self.replacement = replacement
        self._blocks = {vlm.anatomy.decoder.blocks[layer]: layer for layer in self.layers}

    def hears(self, method: str) -> bool:
        """Of blocks as modules."""
        return method in ("before", "after", "begin", "end")

    def modules(self, anatomy: Anatomy) -> tuple[nn.Module, ...]:
        """The blocks."""
        return tuple(self._blocks)

    def planned(self, trace: Trace | None) -> list[str]:
        """Which blocks."""
        kinds = sorted({type(block).__name__ for block in self._blocks})
        where = f"{', '.join(kinds)}: blocks {', '.join(map(str, self.layers)) or 'none'}, what they add"
        return [where, *super().planned(trace)[1:]]

    def before(self, module: nn.Module, args: Any, kwargs: Others) -> None:
        """What goes into it."""
        self._here.entered = args[0] if args else kwargs["hidden_states"]

    def after(self, module: nn.Module, args: Any, output: Any) -> Any:
        """What went in, with what stands for what was added."""
        left = output if isinstance(output, Tensor) else output[0]
        made = self._change(self._blocks[module], left)
        return made if made is None or isinstance(output, Tensor) else (made, *output[1:])

    def changed(self, where: Where, values: Tensor, marked: Tensor, span: Span) -> Tensor | None:
        """The input and the replacement where it is taken away; elsewhere to the bit what it was."""
        entered, _ = by_position(self._here.entered, span)
        added = super().changed(where, values - entered, marked, span)
        assert added is not None
        marks = marked.expand(values.shape[:2]).reshape(*values.shape[:2], *[1] * (values.ndim - 2))
        return torch.where(marks, entered + added, values)

    def passed(self, where: Where, values: Tensor, span: Span) -> None:
        """What they added."""
        super().passed(where, values - by_position(self._here.entered, span)[0], span)


def _by_block(vlm: VLM, heads: Any) -> dict[int, tuple[int, ...]]:
    """The heads of each block."""
    if isinstance(heads, Mapping):
        pairs = [(layer, own) for layer, own in heads.items()]
    else:
        pairs = [(pair[0], pair[1]) for pair in heads]
    found: dict[int, set[int]] = {}
    for layer, own in pairs:
        (block,) = chosen_layers(vlm, layer)
        count = vlm.anatomy.head_counts[block]
        found.setdefault(block, set()).update(
            read_numbers(own, "heads", "query heads", count, f"block {block} has heads")
        )
    return {layer: tuple(sorted(own)) for layer, own in sorted(found.items())}
