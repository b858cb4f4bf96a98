"""What each layer knows, and which part of it wrote a word.

    lp.lens(vlm, trace, words=["dog"])            # what every layer would say at every visual token
    tuned = lp.fit_lens(vlm, samples, "tuned/")   # an affine translator a layer, for a lens that reads more
    lp.lens(vlm, trace, tuned=tuned)

``lp.lens`` is this room, called: a function of that name would hide the room's files from whoever imports them.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What each layer would say at some tokens; see ``llava_probe.lens.lens.lens``."""
        from llava_probe.lens.lens import lens

        return lens(*args, **kwargs)


sys.modules[__name__].__class__ = _Room
