"""What visits a model in the calling context, for hooks and kernels to look up."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from llava_probe.inside.anatomy import Anatomy, Stack
from llava_probe.inside.rows import Call
from llava_probe.inside.spans import Course
from llava_probe.inside.visitor import Visitor

#: What a visitor hears of one stack at a time.
_OF_A_STACK = ("attention", "attended", "state", "part")


@dataclass(frozen=True, eq=False)
class PassScene:
    """The visitors of one model in one context.

    Attributes:
        anatomy: of the model.
        visitors: what changes before what looks, each outermost first.
        course: of the passes.
        until: the hidden state after which a pass ends; ``key``: of the context that says so.
        routed: attention modules that called a twin since they began.
    """

    anatomy: Anatomy
    visitors: tuple[Visitor, ...]
    course: Course
    until: int | None = None
    key: object = None
    routed: set[nn.Module] = field(default_factory=set)
    _hearing: dict[tuple[str, int], tuple[Visitor, ...]] = field(default_factory=dict)
    _modules: dict[int, frozenset[nn.Module]] = field(default_factory=dict)

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

    def start_of(self, stack: Stack | None, queries: int) -> int:
        """How many places stand ahead of the first of ``queries`` in a stack's call."""
        span = self.course.span
        return 0 if span is None or stack is not self.anatomy.decoder else span.start_of(queries)

    def unrouted(self, module: nn.Module, stack: Stack, weights: Tensor | None) -> Call:
        """The call of a module that went past the tables: its weights, where it gave them, and nothing more."""
        nothing = torch.empty(0)
        start = 0 if weights is None else self.start_of(stack, weights.shape[2])
        layer = stack.attentions[module]
        return Call(module, stack, layer, nothing, nothing, nothing, None, {}, start, "its own", weights)

    def _modules_of(self, visitor: Visitor) -> frozenset[nn.Module]:
        if id(visitor) not in self._modules:
            self._modules[id(visitor)] = frozenset(visitor.modules(self.anatomy))
        return self._modules[id(visitor)]


class Enough(Exception):
    """Ends a pass whose last wanted state is there."""

    def __init__(self, key: object) -> None:
        super().__init__()
        self.key = key


#: One scene a model.
scenes: ContextVar[tuple[PassScene, ...]] = ContextVar("llava_probe_scenes", default=())


def scene_of(model: nn.Module) -> PassScene | None:
    """What visits a model in this context."""
    return next((scene for scene in scenes.get() if scene.anatomy.model is model), None)
