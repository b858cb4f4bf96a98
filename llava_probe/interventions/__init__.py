"""Contexts in which a part of a model is taken away or changed: they tell where they acted, or raise."""

from llava_probe.interventions.ablate import Ablation, ablate
from llava_probe.interventions.directions import Direction
from llava_probe.interventions.knock_out import KnockOut, knock_out
from llava_probe.interventions.patch import Patch, patch
from llava_probe.interventions.reweight import Reweighting, reweight
from llava_probe.interventions.steer import Steering, steer

__all__ = [
    "Ablation",
    "Direction",
    "KnockOut",
    "Patch",
    "Reweighting",
    "Steering",
    "ablate",
    "knock_out",
    "patch",
    "reweight",
    "steer",
]
