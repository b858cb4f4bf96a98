"""Fine-tuning that cannot silently do nothing: what is trained, and what was learnt, is shown.

``lp.finetune`` is this room, called, where one of its files was imported first.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Train a model on pictures, questions and answers; see ``llava_probe.finetune.finetune.finetune``."""
        from llava_probe.finetune.finetune import finetune

        return finetune(*args, **kwargs)


sys.modules[__name__].__class__ = _Room
