"""Whose fault an error is: what a model or processor refuses is the input's, memory and devices are the machine's.

All else is a bug, in this package, in the model's code or in what the user plugged into it, and goes through unchanged
with a note of what was being done. Who raised an error is read off its traceback: the innermost frame outside torch,
and whether anybody else's code stands between.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

import torch

from llava_probe.errors import BadInput, ProbeError, first_line

#: torch tells of a device that failed by a ``RuntimeError`` with one of these in its message.
_DEVICE = re.compile(r"CUDA error|HIP error|MPS backend|CUBLAS_|CUDNN_|cuDNN error|NCCL|device-side assert", re.I)

#: What torch says of tensors that do not fit each other.
_SHAPES = re.compile(r"\b(shapes?|sizes?|dimensions?|dims?|broadcast\w*|elements)\b", re.I)

#: Whose frames are the model's: code of checkpoints is loaded as ``transformers_modules``.
_MODELS = {"transformers", "transformers_modules", "accelerate", "peft", "huggingface_hub"}
_BELOW = {"torch", "numpy", *sys.stdlib_module_names}
_OURS = __name__.partition(".")[0]


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the device or the CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def of_the_machine(error: BaseException) -> bool:
    """Whether an error tells of memory or of the device: no input and no setting is to blame for it."""
    return out_of_memory(error) or isinstance(error, torch.AcceleratorError) or bool(_DEVICE.search(str(error)))


@contextmanager
def refusals(doing: str, started: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Raise as ``BadInput`` what the model refuses; whatever else happens goes on, with a note.

    Args:
        doing: what is being done, for the note.
        started: whether the decoder has read the prompt: before, whatever transformers refuses is the input's fault;
            after, only shapes that do not fit are.

    Raises:
        BadInput: one sentence of the model's own.
    """
    try:
        yield
    except ProbeError:
        raise
    except Exception as error:
        if _refused(error, started()):
            raise BadInput(_sentence(error)) from error
        error.add_note(f"while llava_probe ran {doing}")
        raise


def _sentence(error: Exception) -> str:
    """What is written for a user, as it is; torch's own words behind ours."""
    if isinstance(error, RuntimeError):
        return f"the model refused these inputs: {first_line(error)}"
    return " ".join(str(error).split())


def by_the_model(error: Exception) -> bool:
    """Whether the model's own code raised it, or one of our refusals did: no bug of ours, no failing device."""
    return isinstance(error, ProbeError) or (not of_the_machine(error) and _in_the_model(error.__traceback__))


def _refused(error: Exception, started: bool) -> bool:
    if not by_the_model(error):
        return False
    if started:
        return isinstance(error, ValueError | RuntimeError) and bool(_SHAPES.search(str(error)))
    return isinstance(error, ValueError | TypeError | RuntimeError)


def _in_the_model(traceback: TracebackType | None) -> bool:
    """Whether the innermost frame is the model's, nobody else's hook, processor or criterion having been called."""
    packages = []
    while traceback is not None:
        packages.append(traceback.tb_frame.f_globals.get("__name__", "").partition(".")[0])
        traceback = traceback.tb_next
    while packages and packages[0] == _OURS:  # how the model was called
        packages.pop(0)
    if not {*packages} <= {_OURS, *_MODELS, *_BELOW}:
        return False
    return next((package for package in reversed(packages) if package not in _BELOW), _OURS) != _OURS
