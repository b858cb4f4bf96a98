"""The one way in which a model is run: what looks at a pass and what changes it, in order.

    with visiting(vlm.anatomy, recorder, prompts=prompts, decoding=True):
        model.generate(**inputs)

While a context lasts its visitors (``visitor.py``) come with every pass that runs *in this context*: a call of the same
model in another thread sees nothing of them. Contexts nest: outer visitors come first, and what looks comes behind what
changes. When the context ends, hooks, kernels and flags are as they were, also after an error or an interrupt.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from llava_probe.errors import BadModel, NotActed
from llava_probe.inside.anatomy import Anatomy
from llava_probe.inside.forks import at_forks
from llava_probe.inside.hooks import ENTRY, put_hooks
from llava_probe.inside.kernels import twins
from llava_probe.inside.scene import Enough, Visit, scene_of, visits
from llava_probe.inside.spans import Prompt, Span
from llava_probe.inside.undo import undoing
from llava_probe.inside.visitor import Others, Visitor

__all__ = [
    "ENTRY",
    "DecoderInput",
    "Others",
    "Prompt",
    "Span",
    "Visitor",
    "alone_with",
    "entered",
    "in_force",
    "instead",
    "visiting",
    "visitors_of",
]

_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()


def _locks_anew() -> None:
    """In a forked child, where the runs that held the locks do not go on."""
    global _locks
    _locks = WeakKeyDictionary()


at_forks(_locks_anew)


@contextmanager
def visiting(
    anatomy: Anatomy,
    *visitors: Visitor,
    prompts: Sequence[Prompt] = (),
    decoding: bool = False,
    until: int | None = None,
    alone: bool = True,
    apart: bool = False,
) -> Iterator[None]:
    """Let visitors come with every pass of a model that runs in this context.

    Args:
        anatomy: of the model.
        *visitors: in order; those of outer contexts come before them.
        prompts: what the passes hold, where we know; else it is read from what the model is given.
        decoding: whether the passes are one loop of ``generate``.
        until: end a pass, and with it the context, when this hidden state of the decoder has been seen; ``ENTRY``:
            before its first block.
        alone: keep other runs of the model waiting. What stays in force between runs (an intervention) does not: each
            run inside it waits for itself.
        apart: leave out the visitors of outer contexts: what is asked here is of the model as it is.

    Raises:
        NotActed: a visitor that should have changed something never did.
        BadModel: flex attention, whose mask cannot be read, where attention is visited.
    """
    visit = Visit(anatomy, visitors, tuple(prompts), decoding, until, apart)

    def leave() -> None:  # contexts need not nest: each takes away itself
        visit.ended = True
        visits.set(tuple(each for each in visits.get() if each is not visit))

    with alone_with(anatomy.model) if alone else nullcontext(), undoing() as undo:
        undo(leave)
        visits.set((*visits.get(), visit))
        if visitors_of(anatomy) or until is not None:
            put_hooks(anatomy, visitors, until, undo)
        try:
            with twins(anatomy, visitors, undo):
                yield
        except Enough as enough:
            if enough.visit is not visit:
                raise
    for visitor in visitors:
        if (reason := visitor.idle()) is not None:
            raise NotActed(reason)


def alone_with(model: nn.Module) -> threading.RLock:
    """The lock that keeps runs of one model apart: while one lasts, flags and kernels of the model may be its own."""
    return _locks.setdefault(model, threading.RLock())


def visitors_of(anatomy: Anatomy) -> tuple[Visitor, ...]:
    """What visits a model in this context: what changes before what looks."""
    scene = scene_of(anatomy.model)
    return () if scene is None else scene.visitors


def in_force(anatomy: Anatomy) -> tuple[Mapping[str, Any], ...]:
    """The interventions that a pass would run under in this context, as plain data, outermost first."""
    told = (visitor.told() for visitor in visitors_of(anatomy))
    return tuple(each for each in told if each is not None)


class DecoderInput(Visitor):
    """Keeps what enters the decoder.

    Attributes:
        embeddings: [B, P, D], None where it embeds ids itself or no pass came.
    """

    embeddings: Tensor | None = None

    def entry(self, embeddings: Tensor | None, others: Others) -> None:
        """The embeddings, with whatever graph they are in."""
        self.embeddings = embeddings


def entered(anatomy: Anatomy, embeddings: Tensor | None, length: int | None = None) -> Tensor:
    """[B, P, D] what enters the decoder.

    Raises:
        BadModel: the pictures do not enter it as embeddings, or not ``length`` of them.
    """
    if embeddings is None or (length is not None and embeddings.shape[1] != length):
        name = type(anatomy.model).__name__
        raise BadModel(f"the pictures of {name} do not enter its decoder as embeddings of the sequence's tokens")
    return embeddings


@contextmanager
def instead(module: nn.Module, around: Callable[..., Any]) -> Iterator[None]:
    """Let ``around(inside, *args, **kwargs)`` answer for a module's ``forward``, in this context alone."""
    ours = object()
    inside, held = module.forward, module.__dict__.get("forward")

    def forward(*args: Any, **kwargs: Any) -> Any:
        return around(inside, *args, **kwargs) if ours in _answering.get() else inside(*args, **kwargs)

    def put_back() -> None:
        if held is None:
            module.__dict__.pop("forward", None)
        else:  # accelerate has put its own there
            module.forward = held  # type: ignore[method-assign]

    with undoing() as undo:
        undo(lambda: _answering.set(_answering.get() - {ours}))
        _answering.set(_answering.get() | {ours})
        undo(put_back)
        module.forward = forward  # type: ignore[method-assign]
        yield


#: The contexts of ``instead`` that a caller is in. One variable for all: a context never forgets one that it has set.
_answering: ContextVar[frozenset[object]] = ContextVar("llava_probe_answering", default=frozenset())
