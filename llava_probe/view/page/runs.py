"""What is put on one page, in order: each trace opens a run, and maps behind it that lie on its pictures are its own.

    gathered([trace, lp.attribute(vlm, trace), other])      # two runs, the first with a map beside its attention

A map without a trace is a run by itself: a photograph and its words. A comparison opens the runs of its two traces,
where these are not there yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from llava_probe.compare.comparison import TraceComparison
from llava_probe.errors import BadInput, shortened
from llava_probe.layout import ImageLayout
from llava_probe.maps.maps import ImageMap
from llava_probe.trace.tokens import Token
from llava_probe.trace.trace import Trace

#: What a page is made of.
Result = Trace | ImageMap | TraceComparison

#: Pictures of different sizes are compared at this one; a smaller copy differs by less than so many levels.
_LOOKED_AT, _ALIKE = (64, 64), 4.0

#: More runs than this make no readable page.
MOST_RUNS = 24

_MADE_OF = "a page is made of traces and maps, and comparisons of traces"


@dataclass(frozen=True, eq=False)
class Run:
    """One answer, or some maps of one picture, and everything that is shown of it.

    Attributes:
        trace: None where only maps were given.
        maps: each with the number of the picture that it lies on.
    """

    trace: Trace | None
    maps: list[tuple[int, ImageMap]] = field(default_factory=list)

    @property
    def images(self) -> Sequence[Image.Image]:
        """The originals."""
        return self.trace.images if self.trace is not None else [self.maps[0][1].image]

    @property
    def layouts(self) -> Sequence[ImageLayout]:
        """Where their visual tokens lie; empty where it is not known."""
        return self.trace.layouts if self.trace is not None else [self.maps[0][1].layout]

    @property
    def tokens(self) -> Sequence[Token]:
        """Of prompt and answer, without the visual ones; of maps alone, what they explain."""
        if self.trace is not None:
            return [token for token in self.trace.tokens if token.role != "image"]
        known = {token.position: token for _, m in self.maps for token in (*m.text_tokens, *m.tokens)}
        return [known[position] for position in sorted(known)]

    def place_of(self, m: ImageMap) -> int | None:
        """The number of the picture that a map lies on, None where it is none of these."""
        placed = enumerate(zip(self.images, self.layouts, strict=False))
        return next((n for n, (image, layout) in placed if layout == m.layout and _same(image, m.image)), None)

    def says(self, m: ImageMap) -> bool:
        """Whether the tokens that a map explains are the run's."""
        tokens = self.trace.tokens if self.trace is not None else ()
        return all(each.position < len(tokens) and tokens[each.position].id == each.id for each in m.tokens)


def _same(image: Image.Image, copy: Image.Image) -> bool:
    """Whether two pictures are one; a map that was saved may hold a smaller copy."""
    if image.size == copy.size:
        return image.convert("RGB").tobytes() == copy.convert("RGB").tobytes()
    sides = [np.asarray(each.convert("RGB").resize(_LOOKED_AT), dtype=np.float32) for each in (image, copy)]
    return float(np.abs(sides[0] - sides[1]).mean()) < _ALIKE


def gathered(results: Result | Iterable[Result]) -> list[Run]:
    """The runs of a page.

    Raises:
        BadInput: something that is none of these, nothing at all, or more than a page can hold.
    """
    runs: list[Run] = []
    for result in with_traces(results):
        if isinstance(result, Trace):
            runs.append(Run(result))
        elif isinstance(result, ImageMap):
            places = [(run, place) for run in reversed(runs) if (place := run.place_of(result)) is not None]
            if places:  # of the last run that says what it explains, else of the last that shows its picture
                run, place = next(((run, place) for run, place in places if run.says(result)), places[0])
                run.maps.append((place, result))
            else:
                runs.append(Run(None, [(0, result)]))
        elif not isinstance(result, TraceComparison):
            raise BadInput(f"{_MADE_OF}; got {shortened(repr(result))}")
    if not runs:
        raise BadInput(f"{_MADE_OF}; got none")
    if len(runs) > MOST_RUNS:
        raise BadInput(f"a page holds at most {MOST_RUNS} runs; got {len(runs):,}: write several pages")
    return runs


def with_traces(results: Result | Iterable[Result]) -> list[Result]:
    """The results, and before each comparison those of its traces that do not stand there yet."""
    found: list[Result] = []
    for result in [results] if isinstance(results, Result) else results:
        if isinstance(result, TraceComparison):
            there = [id(each) for each in found]
            for trace in (result.a, result.b):  # a trace beside itself is two runs
                if id(trace) in there:
                    there.remove(id(trace))
                else:
                    found.append(trace)
        found.append(result)
    return found


def compared(results: Result | Iterable[Result], runs: Sequence[Run]) -> list[tuple[int, int, TraceComparison]]:
    """Each comparison among the results, with the numbers of its two runs."""
    found = []
    for result in with_traces(results):
        if isinstance(result, TraceComparison):
            first = next(at for at, run in enumerate(runs) if run.trace is result.a)
            second = next(at for at, run in enumerate(runs) if run.trace is result.b and at != first)
            found.append((first, second, result))
    return found
