"""Every error that llava_probe raises on purpose, one small tree.

``except lp.ProbeError`` catches all of them. Each also derives from the built-in exception that a caller who
has never heard of this package would expect (``ValueError``, ``OSError``, ``KeyError``).

A message says what was given, what was expected and what to type instead.
"""

from __future__ import annotations


class ProbeError(Exception):
    """Anything that llava_probe refuses to do."""


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


class NotANumber(ProbeError, ValueError):
    """The model produced NaN where a number was needed."""
