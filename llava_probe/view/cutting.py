"""Asking without a part of the photograph, or with nothing but it: the two interventions that a marked region offers.

Both replace visual tokens with the mean of the picture's where they enter the decoder (``lp.ablate``): those of the
region and of its rings, or all the others. The vision tower has read the whole photograph before, so that what remains
may still know of what is gone; a wider ring takes more of that away.
"""

from __future__ import annotations

from llava_probe.errors import BadInput
from llava_probe.layout import ImageLayout
from llava_probe.trace.region import Region

#: How a question is asked again.
HOW_CUT = ("without", "only")


def cut_tokens(region: Region, how: str, layout: ImageLayout) -> Region | list[int]:
    """What ``lp.ablate`` takes away: the region, or the positions of the picture's visual tokens outside of it.

    Raises:
        BadInput: the region holds all of them, or ``how`` is none of ``HOW_CUT``; OutOfRange: it holds none.
    """
    if how not in HOW_CUT:
        raise BadInput(f"a question is asked again {' or '.join(HOW_CUT)} a part of the picture; got {how!r}")
    kept = set(region.tokens(layout).tolist())
    if how == "without":
        return region
    left = [place for index, place in enumerate(layout.positions.tolist()) if index not in kept]
    if not left:
        raise BadInput("the marked part is the whole picture, so there is nothing else to take away; mark less")
    return left
