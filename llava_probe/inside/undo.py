"""Changes to what others own, put back whatever happens in between.

    with undoing() as undo:
        undo(lambda: put_back(config))      # said before the change is made, and harmless when said twice
        change(config)

A step is noted first and the change made then, so an interrupt between the two finds a step that changes nothing; and
an interrupt while things are put back does not keep the others from being put back. What even that leaves (an
interrupt in the first instruction of the way out) is put back when the record is let go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

#: A step that fails by itself is tried so often: an interrupt that falls into one is not its fault.
_TRIES = 3


class Undo:
    """Steps that put things back, the last one first; each may run twice. Made by ``undoing``."""

    _steps: list[Callable[[], object]] = []  # noqa: RUF012 - none, where an interrupt came before its own

    def __init__(self) -> None:
        self._steps = []

    def __call__(self, step: Callable[[], object]) -> None:
        """Note how to put back what is about to be changed."""
        self._steps.append(step)

    def settle(self) -> None:
        """Put everything back.

        Raises:
            BaseException: the first error that came meanwhile, when all steps have been tried.
        """
        raised: BaseException | None = None
        tries = 0
        while self._steps:
            try:
                self._steps[-1]()
                self._steps.pop()
                tries = 0
            except BaseException as error:
                raised = raised or error
                tries += 1
                if tries >= _TRIES:
                    self._steps.pop()
                    tries = 0
        if raised is not None:
            try:
                raise raised
            finally:
                raised = None  # else it holds this frame by its traceback, and whoever called waits for the collector

    def __del__(self) -> None:
        self.settle()


@contextmanager
def undoing() -> Iterator[Undo]:
    """What was noted is put back when the context ends, however it ends."""
    undo = Undo()
    try:
        yield undo
    finally:
        try:
            undo.settle()
        finally:  # an interrupt between two of its steps goes past it
            undo.settle()


def draws_as_now() -> Callable[[], None]:
    """How to make torch's generators what they are now, on the CPU and on each GPU that is in use."""
    own = torch.get_rng_state()
    others = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def restore() -> None:
        torch.set_rng_state(own)
        if others:
            torch.cuda.set_rng_state_all(others)

    return restore
