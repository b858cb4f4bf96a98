"""One teacher-forced pass with a graph that starts where the picture enters the language model.

    for number in task.passes:
        with forward(task, number) as run:
            for row, target, last in run:
                gradient, = run.gradients(target, [run.entry], last=last)    # [B, P, D]
                run.merged(gradient)                                         # [fed, D]

The vision tower runs without a graph unless a method asks for it (``pixels=True``). Weights need no gradients, so no
activations are kept for them. Many targets share the pass; each has a backward pass of its own, and nothing of one is
left when the next begins.

A word that is weighed against one of several tokens needs two sequences: the answer, and the answer with the contrast
in its place. Both go through together from the decoder's entry on, and what they begin with in common counts as one,
as it would if its keys and values came from a cache: the target has one gradient there, the sum of both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from llava_probe.attribution.engine.graph_memory import checkpointed, measured
from llava_probe.attribution.engine.side_by_side import widened
from llava_probe.attribution.engine.target import Continuation, Target, Task
from llava_probe.attribution.engine.watching import Watch
from llava_probe.errors import BadModel, NotANumber
from llava_probe.inside import seam
from llava_probe.inside.anatomy import Anatomy, Stack
from llava_probe.inside.passes import DecoderInput, Others, Visitor, alone_with, entered, visiting
from llava_probe.inside.tolerance import SCORES
from llava_probe.inside.undo import undoing

_GRADIENTLESS = "a method without gradients: attention, rollout, tam, occlusion, rise"


@dataclass(eq=False)
class Forward:
    """A pass that has run, and its graph.

    Attributes:
        task, number: the continuation that its targets are weighed against, 0 for none.
        logits: [B, steps, V] that predict each token of each sequence; the shorter one's go on with what means nothing.
        entry: [B, P, D] what entered the decoder: text embeddings and visual tokens.
        pixels: the pictures' tensors as the tower read them, where the graph starts there.
        states: hidden states in the graph, by number, where they were asked for.
    """

    task: Task
    number: int
    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    entry: Tensor = field(default_factory=lambda: torch.empty(0))
    pixels: dict[str, Tensor] = field(default_factory=dict)
    states: dict[int, Tensor] = field(default_factory=dict)

    @property
    def sequences(self) -> tuple[int, ...]:
        """The continuations that go through side by side: the answer, and what it is weighed against."""
        return (0, self.number) if self.number else (0,)

    @property
    def longest(self) -> Continuation:
        """The one whose inputs are given to the model."""
        return max((self.task.continuations[number] for number in self.sequences), key=lambda each: len(each.answer))

    @property
    def shared(self) -> int:
        """How many positions the sequences begin with in common."""
        return self.task.continuations[self.number].shared

    def mine(self) -> list[tuple[int, Target]]:
        """The targets of this pass, with their rows."""
        return [(row, target) for row, target in enumerate(self.task.targets) if target.against == self.number]

    def starting(self, target: Target) -> Tensor:
        """[B, P] the target's share at each position that predicts it, those in common in the first sequence."""
        exact = torch.promote_types(self.entry.dtype, torch.float32)
        share = torch.zeros(self.entry.shape[:2], dtype=exact, device=self.entry.device)
        for sequence, number in enumerate(self.sequences):
            for step in target.steps(number):
                place = self.task.position(step)
                share[sequence if place >= self.shared else 0, place] = 1
        return share / share.sum()

    def merged(self, found: Tensor) -> Tensor:
        """[fed, ...] of the trace's own positions from [B, P, ...] values that add up where sequences are the same."""
        out = found.detach()[0, : self.task.fed].clone()
        for other in found.detach()[1:]:
            out[: self.shared] += other[: self.shared]
        return out

    def gradients(self, target: Target, wrt: Sequence[Tensor], *, last: bool = False) -> list[Tensor]:
        """Gradients of one target; zero where it does not depend on a tensor.

        Args:
            target: one of ``mine()``.
            wrt: tensors of the graph.
            last: whether the graph may be let go.

        Raises:
            BadModel: no gradient comes back from the logits.
        """
        parts = zip(self.sequences, self.logits, strict=True)
        value = torch.stack([target.value(number, logits, self.task.quantity) for number, logits in parts]).sum()
        if not value.requires_grad:
            raise BadModel(_no_gradient(self.task))
        found = torch.autograd.grad(value, list(wrt), retain_graph=not last, allow_unused=True)
        return [torch.zeros_like(tensor) if one is None else one for one, tensor in zip(found, wrt, strict=True)]

    def __iter__(self) -> Iterator[tuple[int, Target, bool]]:
        """Rows and targets of this pass, and whether each is the last."""
        mine = self.mine()
        for place, (row, target) in enumerate(mine):
            yield row, target, place == len(mine) - 1


@contextmanager
def forward(
    task: Task,
    number: int,
    *visitors: Visitor,
    pixels: bool = False,
    states: Sequence[int] = (),
    checkpoint: bool = False,
) -> Iterator[Forward]:
    """Run the answer, and what it is weighed against, and keep their graph while the context lasts.

    Args:
        task: what is explained; ``number``: one of its ``passes``.
        *visitors: of the pass: attention to watch in the backward passes, rules of propagation.
        pixels: let the graph start at the tower's pixels.
        states: hidden states of the decoder to keep in the graph, 1 to L - 1.
        checkpoint: compute each block of the decoder again in the backward pass instead of keeping what is inside.

    Raises:
        BadModel: pictures that do not enter the decoder as embeddings, weights that let no gradient through, or a
            family in which two sequences side by side are not what each is alone.
    """
    anatomy = task.vlm.anatomy
    run = Forward(task, number)
    inputs = dict(run.longest.inputs)
    with alone_with(anatomy.model), torch.inference_mode(False), frozen(anatomy.model), ExitStack() as stack:
        alone = _Alone(run) if number else None
        for watch in visitors:
            if isinstance(watch, Watch):
                watch.shared = run.shared if number and watch.stack is anatomy.decoder else 0
        if pixels:
            run.pixels = {
                name: value.detach().clone().requires_grad_()
                for name, value in inputs.items()
                if isinstance(value, Tensor) and value.is_floating_point() and name.startswith("pixel_values")
            }
            inputs |= run.pixels
        ours = (_Start(run, pixels, alone), _Kept(run, states), UncutProjections())
        memory = stack.enter_context(checkpointed(anatomy.decoder) if checkpoint else measured(anatomy.decoder))
        prompts = [task.prompt(run.task.continuations.index(run.longest))]
        stack.enter_context(visiting(anatomy, *visitors, *ours, *memory, prompts=prompts))
        with torch.set_grad_enabled(pixels):
            logits = task.vlm.model(**inputs).logits
        run.logits = logits[:, -len(run.longest.answer) :]
        if not bool(torch.isfinite(run.logits).all()):
            raise NotANumber(_forward_broke(task, number))
        if alone is not None:
            alone.check(run.logits)
        yield run


class _Alone:
    """The shorter of two sequences in a pass of its own: its embeddings, and the logits that it must have again."""

    def __init__(self, run: Forward) -> None:
        longest, task = run.longest, run.task
        self._row, number = next(
            (row, number) for row, number in enumerate(run.sequences) if task.continuations[number] is not longest
        )
        self._name = type(task.vlm.anatomy.model).__name__
        self._prompt = task.trace.prompt_length
        continuation, entry = task.continuations[number], DecoderInput()
        with torch.no_grad():
            self._logits = task.logits(number, entry)[0, -len(continuation.answer) :]
        self._own = entered(task.vlm.anatomy, entry.embeddings, continuation.length)[:, self._prompt :]

    def beside(self, entry: Tensor) -> Tensor:
        """[2, P, D] both sequences, the shorter one filled up with the other's end, which nothing of it sees."""
        end = self._prompt + self._own.shape[1]
        own = torch.cat([entry[:, : self._prompt], self._own.to(entry), entry[:, end:]], dim=1)
        return torch.cat([own, entry] if self._row == 0 else [entry, own])

    def check(self, logits: Tensor) -> None:
        """Refuse a family in which it is not beside the other what it is alone."""
        found = logits.detach()[self._row, : len(self._logits)].float()
        off = (found - self._logits.float()).abs().max() / self._logits.abs().max().clamp(min=1)
        if not off <= SCORES[logits.dtype]:
            raise BadModel(
                f"{self._name} does not give two sequences side by side what it gives each alone, so "
                "a contrast of several tokens cannot be followed; give one of one token, or use occlusion"
            )


class _Start(Visitor):
    """Starts the graph at the decoder's entry, or notes where it passes by."""

    changes = True

    def __init__(self, run: Forward, pixels: bool, alone: _Alone | None) -> None:
        self._run, self._pixels, self._alone = run, pixels, alone

    def entry(self, embeddings: Tensor | None, others: Others) -> tuple[Tensor, Others]:
        """The embeddings as the leaf of a graph, two sequences side by side where a word is weighed against another."""
        run = self._run
        entry = entered(run.task.vlm.anatomy, embeddings, run.longest.length)
        if self._alone is not None:
            entry, others = self._alone.beside(entry), widened(others, 2, run.task, entry.shape[1])
        torch.set_grad_enabled(True)
        run.entry = entry if self._pixels and entry.requires_grad else entry.detach().clone().requires_grad_()
        return run.entry, others


class _Kept(Visitor):
    """Keeps hidden states of the decoder that the graph passes through."""

    def __init__(self, run: Forward, states: Sequence[int]) -> None:
        self._run, self._states = run, set(states)

    def hears(self, method: str) -> bool:
        """Of states where some are kept."""
        return bool(self._states) and super().hears(method)

    def state(self, stack: Stack, layer: int, hidden: Tensor) -> None:
        """Keep it as it is in the graph."""
        if layer in self._states:
            self._run.states[layer] = hidden


class UncutProjections(Visitor):
    """Refuses projections that let no gradient through: the rest of the graph would go on and be wrong in silence."""

    def modules(self, anatomy: Anatomy) -> list[nn.Module]:
        """Every projection of the decoder, quantised ones too."""
        return [module for module in anatomy.decoder.owner.modules() if "Linear" in type(module).__name__]

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        """Look whether the graph goes on behind it."""
        given = args[0] if args else None
        if not torch.is_grad_enabled():  # an indexer that only chooses keys
            return
        if not isinstance(given, Tensor) or not given.requires_grad or not isinstance(output, Tensor):
            return
        if seam.is_cut(output):
            raise BadModel(
                f"{type(module).__module__.split('.')[0]}'s {type(module).__name__} lets no gradient through; "
                f"load the model unquantised, or use {_GRADIENTLESS}"
            )


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No weight needs a gradient meanwhile; torch's modes may be changed and are then as before."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def learn() -> None:
        for parameter in learning:
            parameter.requires_grad_(True)

    with undoing() as undo:
        undo(seam.modes_as_now())
        undo(learn)
        for parameter in learning:
            parameter.requires_grad_(False)
        yield


def _no_gradient(task: Task) -> str:
    kind = task.trace.provenance.get("quantization") or task.trace.provenance.get("dtype")
    return (
        f"no gradient comes back from the logits of {type(task.vlm.anatomy.model).__name__} ({kind}); "
        f"use {_GRADIENTLESS}"
    )


class _Broken(Visitor):
    """Finds the first block whose output is no number."""

    first: int | None = None

    def __init__(self, stack: Stack) -> None:
        self._blocks = list(stack.blocks)

    def modules(self, anatomy: Anatomy) -> list[nn.Module]:
        """Every block."""
        return self._blocks

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        """Look at what it gives."""
        state = output if isinstance(output, Tensor) else output[0]
        if self.first is None and not bool(torch.isfinite(state).all()):
            self.first = self._blocks.index(module)


def _forward_broke(task: Task, number: int) -> str:
    """Which block first gave what is no number."""
    broken = _Broken(task.vlm.anatomy.decoder)
    with torch.no_grad():
        task.logits(number, broken)
    where = (
        "the pictures' embeddings or the final norm"
        if broken.first is None
        else f"block {broken.first} of the language model"
    )
    return f"NaN or infinity comes from {where}; load the model in bfloat16 or float32"
