"""The cheats of either model that ships, and the held-out scenes on which the figures hold instruments to them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llava_probe as lp
from llava_probe.smol import TINY
from llava_probe.tiny import cheats

#: The first scene; none of those that the cards were measured on follows.
FIRST = 20_000


@dataclass(frozen=True)
class Trained:
    """Cheats and twins of one of the models that ship, each in a folder of its own; of the tiny one they ship too."""

    model: str = TINY
    folder: Path = cheats.path("frame").parent

    def load(self, cheat: cheats.Cheat, honest: bool = False) -> lp.VLM:
        """The model with the adapter of a cheat or its twin, in its weights."""
        return lp.load(self.model, adapter=self._of(cheat, honest), merge=True, **self._settings)

    def base(self) -> lp.VLM:
        """The model before it learnt to cheat."""
        return lp.load(self.model, merge=self.model != TINY, **self._settings)

    @property
    def which(self) -> list[cheats.Cheat]:
        """The cheats that are there."""
        return [cheat for cheat in cheats.CHEATS if self._of(cheat, False).is_dir() and self._of(cheat, True).is_dir()]

    def _of(self, cheat: cheats.Cheat, honest: bool) -> Path:
        return self.folder / cheats.path(cheat, honest).name

    @property
    def _settings(self) -> dict[str, Any]:
        return {} if self.model == TINY else {"dtype": "bfloat16"}
