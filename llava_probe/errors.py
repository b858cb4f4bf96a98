"""Every error that llava_probe raises on purpose, one small tree.

``except lp.ProbeError`` catches all of them. Each also derives from the built-in exception that a caller who
has never heard of this package would expect (``ValueError``, ``OSError``, ``KeyError``).

A message says what was given, what was expected and what to type instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

#: Letters of a message that somebody reads.
_LONGEST = 900


class ProbeError(Exception):
    """Anything that llava_probe refuses to do. What it repeats of a long argument is its two ends."""

    def __init__(self, told: str = "") -> None:
        super().__init__(told if len(told) <= _LONGEST else f"{told[: _LONGEST - 300]} ... {told[-300:]}")


class BadInput(ProbeError, ValueError):
    """A prompt, an argument or a set of inputs that the model cannot be asked with."""


class BadImage(BadInput, OSError):
    """Something given as a picture that is not one, or not one that we are willing to open."""


class BadModel(ProbeError, ValueError):
    """A model or checkpoint that this toolkit cannot look into."""


class BadFile(ProbeError, OSError):
    """A file of ours that is damaged, foreign or could not be written."""


class NotCaptured(ProbeError, KeyError):
    """The trace does not hold what was asked for; the message names the ``Capture`` field that keeps it."""

    __str__ = Exception.__str__  # KeyError would show the sentence between quotes


class OutOfRange(ProbeError, IndexError, ValueError):
    """A layer, head, position, image or row that is not there."""


class NotActed(ProbeError, RuntimeError):
    """An intervention changed nothing; the message says why, as far as that can be told."""


class NotANumber(ProbeError, ValueError):
    """The model produced NaN where a number was needed."""


@contextmanager
def refusing(sentence: str) -> Iterator[None]:
    """Parsers, sockets and other people's classes raise about anything; the user gets one ``BadImage`` sentence."""
    try:
        yield
    except ProbeError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadImage(f"{sentence}: {shortened(reason)}") from None


def shortened(text: str) -> str:
    """``text`` in at most 120 characters, its end kept."""
    return text if len(text) <= 120 else f"{text[:80]}...{text[-30:]}"


def first_line(error: BaseException) -> str:
    """What somebody else's error says first, what a colon announces with it, or its name where it says nothing."""
    first, *others = (str(error).strip() or type(error).__name__).splitlines()
    return f"{first} {others[0].strip()}" if first.endswith(":") and others else first
