"""Asking without a part of the photograph, or with nothing but it: the two interventions that the app offers.

Both replace visual tokens with the mean of the picture's where they enter the decoder (``lp.ablate``): those of the box
and of so many rings around it, or all the others. The vision tower has read the whole photograph before, so that what
remains may still know of what is gone; a wider ring takes more of that away.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from llava_probe.errors import BadInput
from llava_probe.view.app.messages import MarkedPart

if TYPE_CHECKING:
    from llava_probe.model import VLM
    from llava_probe.trace.region import Region


@contextmanager
def cutting(vlm: VLM, picture: Any, question: str, cut: MarkedPart) -> Iterator[None]:
    """What runs inside does not see the box, or sees nothing else.

    Raises:
        BadInput: the box is not on the photograph, or is all of it.
    """
    from llava_probe.interventions.ablate import ablate
    from llava_probe.trace.region import Region

    region = Region(cut.box, image=cut.image, ring=cut.ring)
    tokens: Any = region if cut.how == "without" else others(vlm, picture, question, region)
    with ablate(vlm, tokens=tokens):
        yield


def others(vlm: VLM, picture: Any, question: str, region: Region) -> list[int]:
    """Positions of the picture's visual tokens that do not belong to a region.

    Raises:
        BadInput: all belong to it.
    """
    layout = vlm.lay_out(picture, question)[region.image]
    kept = set(region.tokens(layout).tolist())
    left = [place for index, place in enumerate(layout.positions.tolist()) if index not in kept]
    if not left:
        raise BadInput("the marked part is the whole picture, so there is nothing else to take away; mark less")
    return left
