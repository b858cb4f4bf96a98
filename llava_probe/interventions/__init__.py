"""Contexts in which a part of a model is taken away or changed: they tell where they acted, or raise."""

from llava_probe.interventions.knock_out import KnockOut, knock_out

__all__ = ["KnockOut", "knock_out"]
