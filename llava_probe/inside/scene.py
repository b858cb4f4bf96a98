"""What visits a model in the calling context, for hooks and kernels to look up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from llava_probe.inside.anatomy import Anatomy, Stack
from llava_probe.inside.rows import Call
from llava_probe.inside.spans import Course, Prompt
from llava_probe.inside.visitor import Visitor

#: What a visitor hears of one stack at a time.
_OF_A_STACK = ("attention", "attended", "state", "part")


@dataclass(eq=False)
class Visit:
    """One context of ``visiting``.

    Attributes:
        anatomy: of the model; ``visitors``: who comes with its passes.
        prompts, decoding: what the passes hold, where the context is a run of ours; no prompts: it stays in force
            between runs.
        until: the hidden state after which a pass ends.
        apart: whether outer contexts are left out.
        ended: whether it is over; a task that was begun inside may outlive it, and sees nothing of it then.
    """

    anatomy: Anatomy
    visitors: tuple[Visitor, ...]
    prompts: tuple[Prompt, ...] = ()
    decoding: bool = False
    until: int | None = None
    apart: bool = False
    ended: bool = False
    scene: tuple[tuple[Visit, ...], PassScene] | None = None
    _courses: dict[int, Course] = field(default_factory=dict)

    @property
    def course(self) -> Course:
        """Of its passes: of one run, or of what a thread runs by hand."""
        place = 0 if self.prompts else threading.get_ident()
        if place not in self._courses:
            shortened = self.anatomy.generator is not self.anatomy.model
            self._courses[place] = Course(self.prompts, decoding=self.decoding, shortened=shortened)
        return self._courses[place]


@dataclass(frozen=True, eq=False)
class PassScene:
    """The visitors of one model in one context.

    Attributes:
        anatomy: of the model.
        visitors: what changes before what looks, each outermost first.
        run: whose course the passes are of.
        visit: the innermost context, which may say where a pass ends.
    """

    anatomy: Anatomy
    visitors: tuple[Visitor, ...]
    run: Visit
    visit: Visit
    _hearing: dict[tuple[str, int], tuple[Visitor, ...]] = field(default_factory=dict)
    _modules: dict[int, frozenset[nn.Module]] = field(default_factory=dict)

    @property
    def course(self) -> Course:
        """Of the passes."""
        return self.run.course

    def hearing(self, method: str, stack: Stack | None = None, of: nn.Module | None = None) -> tuple[Visitor, ...]:
        """The visitors that want to hear of one kind of thing, in a stack or of a module."""
        place = method, id(stack if of is None else of)
        if place not in self._hearing:
            self._hearing[place] = tuple(
                visitor
                for visitor in self.visitors
                if visitor.hears(method)
                and (method not in _OF_A_STACK or any(stack is one for one in visitor.stacks(self.anatomy)))
                and (of is None or of in self._modules_of(visitor))
            )
        return self._hearing[place]

    def running(self, stack: Stack | None) -> bool:
        """Whether what happens in a stack belongs to the run: the decoder has passes that do not."""
        return stack is not self.anatomy.decoder or self.course.span is not None

    def holder(self, module: nn.Module) -> tuple[Stack | None, int]:
        """The stack and block of an attention module; None and -1 where it is in none."""
        for stack in (self.anatomy.decoder, self.anatomy.vision):
            if stack is not None and module in stack.attentions:
                return stack, stack.attentions[module]
        return None, -1

    def where(self, stack: Stack | None, queries: int) -> dict[str, Any]:
        """Which pass a call of ``queries`` is of, and how many places stand ahead of the first of them."""
        span = self.course.span
        if span is None or stack is not self.anatomy.decoder:
            return {}
        return {"span": span, "start": span.start_of(queries)}

    def unrouted(self, module: nn.Module, stack: Stack, weights: Tensor | None) -> Call:
        """The call of a module that went past the tables: its weights, where it gave them, and nothing more."""
        nothing = torch.empty(0)
        where = {} if weights is None else self.where(stack, weights.shape[2])
        layer = stack.attentions[module]
        return Call(module, stack, layer, nothing, nothing, nothing, None, {}, "its own", weights=weights, **where)

    def _modules_of(self, visitor: Visitor) -> frozenset[nn.Module]:
        if id(visitor) not in self._modules:
            self._modules[id(visitor)] = frozenset(visitor.modules(self.anatomy))
        return self._modules[id(visitor)]


class Enough(Exception):
    """Ends a pass whose last wanted state is there."""

    def __init__(self, visit: Visit) -> None:
        super().__init__()
        self.visit = visit


#: Contexts that have begun, outermost first, of any model.
visits: ContextVar[tuple[Visit, ...]] = ContextVar("llava_probe_visits", default=())


def scene_of(model: nn.Module) -> PassScene | None:
    """What visits a model in this context: what stays in force, and the innermost run alone, whoever began it."""
    live = [visit for visit in visits.get() if visit.anatomy.model is model and not visit.ended]
    if not live:
        return None
    while apart := next((visit for visit in live[1:] if visit.apart), None):
        live = live[live.index(apart) :]
    runs = [visit for visit in live if visit.prompts]
    here = tuple(visit for visit in live if not visit.prompts or visit is runs[-1])
    last = here[-1]
    if last.scene is None or last.scene[0] != here:
        everyone = (visitor for visit in here for visitor in visit.visitors)
        ordered = tuple(sorted(everyone, key=lambda visitor: not visitor.changes))  # stable: outermost first
        last.scene = here, PassScene(last.anatomy, ordered, runs[-1] if runs else here[0], last)
    return last.scene[1]


def scenes_here() -> Iterator[PassScene]:
    """What visits any model in this context."""
    for model in {id(visit.anatomy.model): visit.anatomy.model for visit in visits.get()}.values():
        if (scene := scene_of(model)) is not None:
            yield scene
