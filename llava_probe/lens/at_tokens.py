"""What is read at some tokens of a trace, and where a picture's visual tokens stand among them."""

from __future__ import annotations

from llava_probe.analyzers.table import Tabular
from llava_probe.errors import BadInput
from llava_probe.trace.explained import placed
from llava_probe.trace.tokens import Token
from llava_probe.trace.trace import Trace


class AtTokens(Tabular):
    """A result that has ``positions`` of a ``trace``.

    Attributes:
        positions: of the tokens in the sequence; ``trace``: what was read.
    """

    positions: tuple[int, ...]
    trace: Trace

    @property
    def tokens(self) -> tuple[Token, ...]:
        """The tokens at ``positions``."""
        return tuple(self.trace.tokens[position] for position in self.positions)

    def columns(self, image: int = 0) -> list[int]:
        """Where the visual tokens of one picture stand among ``positions``.

        Raises:
            BadInput: some were not read, or their places are not known.
        """
        wanted = placed(self.trace, image).positions.tolist()
        index = {position: column for column, position in enumerate(self.positions)}
        if not wanted or not set(wanted) <= set(index):
            raise BadInput(f"not all visual tokens of picture {image} were read; read them with at=lp.IMAGE")
        return [index[position] for position in wanted]
