"""The record of one answer, and everything that is read from it without the model."""

from llava_probe.trace.trace import Trace

__all__ = ["Trace"]
