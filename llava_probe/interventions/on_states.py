"""What acts on vectors of a pass: hidden states, what a part of a block adds, what a head gives; at some positions."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llava_probe.errors import BadInput, BadModel
from llava_probe.inside import seam
from llava_probe.inside.anatomy import Stack
from llava_probe.inside.passes import Span
from llava_probe.inside.rows import Call
from llava_probe.interventions.intervention import Intervention, by_row
from llava_probe.interventions.places import Phase, Places
from llava_probe.model import VLM
from llava_probe.trace.explained import ALL, At

#: The parts whose vectors can be changed: the residual stream, and what attention, one of its heads and the MLP give.
STATE_PARTS = ("residual", "attention", "mlp", "head")

#: Which of them each kind of event tells of.
_HEARS = {"state": ("residual",), "part": ("attention", "mlp"), "attended": ("head",)}


@dataclass(frozen=True)
class Where:
    """Which vectors of a pass.

    Attributes:
        layer: of which hidden state or block; ``number``: which of its modules of this part, from 1.
        first: the column of the batch that the first of them is of.
    """

    layer: int
    number: int
    first: int

    @property
    def module(self) -> tuple[int, int]:
        """The same in every pass."""
        return self.layer, self.number


class OnStates(Intervention):
    """Changes vectors of one part of the decoder at some positions.

    Args:
        at: where; every position when None.
        part: one of ``STATE_PARTS``.
        layers: hidden states for the residual stream, blocks for the other parts.
    """

    counts = "positions"

    def __init__(
        self,
        vlm: VLM,
        at: At | None,
        part: str,
        layers: tuple[int, ...],
        phase: Phase = "both",
        allow_nothing: bool = False,
        argument: str = "at",
    ) -> None:
        super().__init__(vlm, phase, allow_nothing)
        self.part_name, self.layers = part, layers
        self._here = threading.local()
        self._at = Places(vlm, ALL if at is None else at, argument, phase)
        if part == "head":
            check_heads(vlm, layers)

    def hears(self, method: str) -> bool:
        """Of its own part only."""
        own = _HEARS.get(method)
        return super().hears(method) if own is None else self.part_name in own

    def state(self, stack: Stack, layer: int, hidden: Tensor) -> Tensor | None:
        """A hidden state."""
        return self._change(layer, hidden) if layer in self.layers else None

    def part(self, stack: Stack, kind: str, layer: int, output: Tensor) -> Tensor | None:
        """What attention or the MLP adds."""
        if kind != self.part_name or layer not in self.layers:
            return None
        self._here.parts[layer] += 1  # a block may have two: an MLP, and experts beside it
        return self._change(layer, output, number=self._here.parts[layer])

    def attended(self, call: Call, output: Tensor | None) -> Tensor | None:
        """What heads give: [B, Q, H, d]."""
        if output is None or call.span is None or call.layer not in self.layers:
            return None
        return self._change(call.layer, output, call.span)

    def begin(self, span: Span) -> None:
        """A pass begins."""
        super().begin(span)
        self._here.span, self._here.parts = span, Counter()

    def changed(self, where: Where, values: Tensor, marked: Tensor, span: Span) -> Tensor | None:
        """Values [B, n, ...] with those at the marked positions [B or 1, n] changed; None leaves them."""
        raise NotImplementedError

    def count(self, where: Where, values: Tensor, span: Span, marked: int) -> int:
        """How many positions were changed, of so many marked ones."""
        return marked

    def passed(self, where: Where, values: Tensor, span: Span) -> None:
        """Values of which none is to be changed: a later pass may need to know of them."""

    def why_idle(self) -> str:
        """Which place was not there."""
        if not self.layers:
            return "layers=[] names no layer"
        if not self._at.empty and not self._at.met and seam.is_compiled(self.vlm.anatomy.model):
            return (
                f"a graph of this model that was compiled before goes past its {self.part_name}; torch.compiler.reset()"
                " lets it be traced anew, inside the context"
            )
        return self.missed(self._at) or self.why_unchanged()

    def why_unchanged(self) -> str:
        """Why what was met was not changed."""
        return f"the blocks that ran have no {self.part_name} that can be reached"

    def _change(self, layer: int, values: Tensor, span: Span | None = None, number: int = 1) -> Tensor | None:
        span = self._here.span if span is None else span
        rows, back = by_position(values, span)
        first = span.start_of(rows.shape[1]) - span.before
        where = Where(layer, number, first)
        found = self.once(span, ("marked", rows.shape[:2], rows.device), lambda: self._marked(span, first, rows))
        if found is None:
            self.passed(where, rows, span)
            return None
        marked, count = found
        made = self.changed(where, rows, marked, span)
        if made is None:
            return None
        self.acted(layer, span, self.count(where, rows, span, count))
        return back(made)

    def _marked(self, span: Span, first: int, rows: Tensor) -> tuple[Tensor, int] | None:
        """[B or 1, n] which positions are meant, and how many; None where none is."""
        found = self._at.columns(span, first, first + rows.shape[1])
        if not bool(found.any()):
            return None
        marked = by_row(found, span, rows.shape[0], rows.device)
        return marked, int(found.sum()) * max(1, rows.shape[0] // len(span.prompts))


def by_position(values: Tensor, span: Span) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """What one part gives as [B, n, ...], and how that becomes again what it was.

    Experts give the tokens of all rows one behind the other; a model of several streams may have them ahead.
    """
    fed = (span.rows, span.length)
    if values.ndim == 2 and span.rows and values.shape[0] % span.rows == 0:
        return values.unflatten(0, (span.rows, -1)), lambda made: made.flatten(0, 1)
    if values.ndim == 4 and values.shape[:2] != fed and values.shape[1:3] == fed:
        return values.movedim(0, 2), lambda made: made.movedim(2, 0)
    return values, lambda made: made


def read_tensor(given: Any, told: str) -> Tensor:
    """Numbers as a tensor of their own.

    Raises:
        BadInput: they are none, or a tensor without values.
    """
    try:
        tensor = given if isinstance(given, Tensor) else torch.from_numpy(np.array(given, dtype=np.float64))
    except (TypeError, ValueError, OverflowError):
        raise BadInput(f"{told} is a tensor of numbers; got {type(given).__name__}") from None
    if tensor.is_meta or tensor.is_complex() or tensor.is_sparse or tensor.dtype == torch.bool:
        raise BadInput(f"{told} is a tensor of numbers; got {tensor.dtype} ({tensor.layout}, {tensor.device})")
    return tensor.detach().clone()


def digest_of(tensor: Tensor) -> str:
    """What tells one tensor from another, for the records of what ran under it."""
    return hashlib.sha256(tensor.detach().cpu().double().numpy().tobytes()).hexdigest()[:16]


def check_heads(vlm: VLM, layers: tuple[int, ...]) -> None:
    """Refuse attention whose heads cannot be reached.

    Raises:
        BadModel: a kernel of its own, past transformers' attention interface.
    """
    for module, layer in vlm.anatomy.decoder.attentions.items():
        if layer in layers and not seam.reads_interface(module):
            raise BadModel(
                f"{type(module).__name__} has an attention kernel of its own, past transformers' attention interface, "
                "so its heads cannot be reached"
            )


def modules_told(vlm: VLM, part: str, layers: tuple[int, ...]) -> str:
    """Where it acts, in words."""
    numbers = ", ".join(map(str, layers)) or "none"
    if part == "residual":
        return f"hidden states {numbers} (of 0 to {vlm.anatomy.layers}; the last behind the final norm)"
    stack = vlm.anatomy.decoder
    modules: Mapping[Any, int] = stack.feeds if part == "mlp" else stack.attentions
    kinds = sorted({type(module).__name__ for module, layer in modules.items() if layer in layers})
    return f"{', '.join(kinds) or 'nothing'} of blocks {numbers}: " + (
        "what its heads give" if part == "head" else f"what the {part} adds"
    )
