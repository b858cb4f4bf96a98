"""A small LLaVA that was really trained, and pictures whose truth is known to the pixel.

Every claim of this package can be tried on it in seconds, without a network: plain transformers loads it, and a scene
says what is where, so that an explanation can be right or wrong rather than plausible.

    model = LlavaForConditionalGeneration.from_pretrained(tiny.path())
    scene = tiny.scene(7)
    scene.image; scene.objects; scene.questions
    pair = tiny.counterfactual(7, change="colour")      # the same scene, one object otherwise
    tiny.cheats.planted("frame", 9)                     # a shortcut, for the four models that go by one
"""

from pathlib import Path

from llava_probe.tiny import cheats as cheats
from llava_probe.tiny.counterfactuals import Counterfactual, counterfactual
from llava_probe.tiny.questions import Question
from llava_probe.tiny.scenes import FIRST_TRAINING_SEED, Scene, SceneObject, is_scene, scene

__all__ = [
    "FIRST_TRAINING_SEED",
    "Counterfactual",
    "Question",
    "Scene",
    "SceneObject",
    "counterfactual",
    "is_scene",
    "path",
    "scene",
]


def path() -> Path:
    """The checkpoint's folder, for ``from_pretrained``."""
    return Path(__file__).parent / "weights"
