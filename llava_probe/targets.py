"""Which tokens a map is asked to explain, and on which picture: read the same way by every method.

    explained(trace, None)          # every generated token
    explained(trace, "stop sign")   # the tokens that spell it, in the answer if they are there, else in the prompt
    placed(trace, 0)                # the layout of the first picture

A map's rows follow the order of what was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

from llava_probe.errors import BadInput, OutOfRange
from llava_probe.layout import ImageLayout
from llava_probe.tokens import Token
from llava_probe.trace import At, Trace


def explained(trace: Trace, tokens: At | None = None) -> tuple[Token, ...]:
    """The tokens that ``tokens`` names: all generated ones, or positions, a word or a role (``trace.positions``).

    Raises:
        BadInput: none at all.
        OutOfRange: a position or word that is not there.
    """
    if tokens is None:
        return trace.generated
    found = tuple(trace.tokens[position] for position in trace.positions(tokens))
    if not found:
        raise BadInput(f"tokens={tokens!r} names no token; leave it out for every generated token")
    return found


def queries(trace: Trace, tokens: Sequence[Token]) -> list[int]:
    """The position whose row explains each token: for a generated one the position that predicted it, else its own."""
    return [token.position - (token.position >= trace.prompt_length) for token in tokens]


def placed(trace: Trace, image: int = 0) -> ImageLayout:
    """The layout of one picture of the prompt.

    Raises:
        OutOfRange: there is no such picture.
        BadInput: the places of this family's visual tokens are not known.
    """
    pictures = len(trace.images)
    if isinstance(image, bool) or not hasattr(image, "__index__"):
        raise BadInput(f"image= takes the number of a picture, from 0; got {image!r}")
    if not -pictures <= image < pictures:
        there = f"pictures 0 to {pictures - 1}" if pictures else "no picture"
        raise OutOfRange(f"picture {image} is not there: this trace has {there}")
    if len(trace.layouts) != pictures:
        reason = str(trace.provenance.get("places", "not known")).removeprefix("not known")
        raise BadInput(
            f"where the visual tokens of {trace.provenance.get('class', 'this model')} lie on a picture is not known"
            f"{reason}; no map can be drawn, but trace.rows and trace.hidden still read them"
        )
    return trace.layouts[image]
