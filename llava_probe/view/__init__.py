"""Everything that turns results into something to look at; nothing here computes a result.

    lp.view(trace)              # in a notebook: the page component in a cell
    lp.view(trace, vlm)         # the live one: what is not there yet is computed when it is clicked

``lp.view`` is this room, called: a function of that name would hide the room's files from whoever imports them.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    def __call__(self, results: Any, vlm: Any = None) -> Any:
        """Traces and maps as something to explore in a notebook; see ``llava_probe.view.live.viewer``."""
        from llava_probe.view.live import viewer

        return viewer(results, vlm)


sys.modules[__name__].__class__ = _Room
