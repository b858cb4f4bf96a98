"""A picture taken away part by part in the order of a map, and what is left of the explained words' probability.

    removal = removal_of(vlm, trace, m, on="tokens")        # everything checked, the orders drawn
    removal.probabilities([Step(0, 10, True)])              # of row 0 without its ten highest parts

Parts are the picture's visual tokens, changed where they enter the decoder, or the photograph's pixels, through the
tower again. Each row's parts are ordered by its values, highest first. Equal values are in a random order that the seed
and the row fix, so that a map that says nothing takes its parts from everywhere alike; pixels of one cell of the map
stay together in it. What the map does not see comes last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypedDict

import numpy as np
import torch
from PIL import Image

from llava_probe.arrays import BoolArray, FloatArray, IntArray
from llava_probe.attribution.engine.perturbing import (
    AT_ONCE,
    TOKEN_BASELINES,
    Pictures,
    picture_scores,
    token_scores,
)
from llava_probe.attribution.engine.target import Contrast, Target, Task, targets
from llava_probe.attribution.occlusion import PICTURE_BASELINES, blank
from llava_probe.border import Count, Seed, checked
from llava_probe.errors import BadInput
from llava_probe.evaluate.cells import owners
from llava_probe.maps.maps import ImageMap
from llava_probe.model import VLM
from llava_probe.trace.explained import Tokens, placed
from llava_probe.trace.trace import Trace


class Options(TypedDict, total=False):
    """How a map is judged: arguments that the measures of faithfulness share.

    Attributes:
        row: of the map; every one when None.
        image: which picture of the trace.
        tokens, contrast: as they were given to ``lp.attribute``; without them, the map's own are read.
        on: what the parts are: ``"tokens"``, or ``"pixels"`` of the photograph.
        baseline: what stands in their place: ``"mean"`` of the picture, ``"zero"``, and for pixels ``"blur"``.
        batch: changed inputs a pass.
        seed: of the order of parts with equal values.
    """

    row: int | None
    image: int
    tokens: Tokens
    contrast: Contrast
    on: str
    baseline: str
    batch: Count
    seed: Seed


@dataclass(frozen=True)
class Judged:
    """Which rows of a map are judged and what they explain, as in ``Options``; ``of``: by which quantity."""

    row: int | None = None
    image: int = 0
    tokens: Tokens = None
    contrast: Contrast = None
    of: str = "logprob"


@dataclass(frozen=True)
class Step:
    """The picture with some of its parts in the baseline's place.

    Attributes:
        row: whose order, counted among the rows judged.
        count: how many of its first parts are changed.
        removed: whether these are taken away; else they alone are left.
    """

    row: int
    count: int
    removed: bool


@dataclass
class Removal:
    """The rows of a map as orders of parts to take away. Made by ``removal_of``.

    Attributes:
        task: what is explained, a target for each row judged.
        m, rows: the map, and its rows judged.
        parts: how many parts the picture has.
        forwards: passes through the model so far.
    """

    task: Task
    m: ImageMap
    rows: tuple[int, ...]
    on: str
    baseline: str
    batch: int
    seed: int
    forwards: int = 0
    _ranks: dict[int, IntArray] = field(default_factory=dict)  # of the row asked for last: those of pixels are large

    @property
    def parts(self) -> int:
        """Visual tokens, or pixels."""
        width, height = self.task.layout.size
        return len(self.task.layout) if self.on == "tokens" else width * height

    def ranks(self, row: int) -> IntArray:
        """[parts] each part's place in the order of one of the rows judged, from 0; pixels in reading order."""
        if row not in self._ranks:
            number = self.rows[row]
            generator = np.random.default_rng([self.seed, number])
            if self.on == "tokens":
                order = _order(token_values(self.m, number, self.task), generator)
            else:
                order = _pixel_order(self.m, number, generator)
            ranks = np.empty(len(order), dtype=np.int32)
            ranks[order] = np.arange(len(order), dtype=np.int32)
            self._ranks = {row: ranks}
        return self._ranks[row]

    def shown(self, step: Step) -> BoolArray:
        """[parts] which are as they are."""
        first: BoolArray = self.ranks(step.row) < step.count
        return ~first if step.removed else first

    def probabilities(self, steps: Sequence[Step]) -> FloatArray:
        """[steps] the probability of each step's row; the whole and the empty picture are run once for all rows."""
        wanted = [self._shared(step) for step in steps]
        distinct = list(dict.fromkeys(wanted))
        if self.on == "tokens":
            keep = torch.from_numpy(np.stack([self.shown(step) for step in distinct])).float()
            scores = token_scores(self.task, keep, baseline=self.baseline, batch=self.batch, label="removing")
        else:
            photograph = self.task.trace.images[self.task.image].convert("RGB")
            behind = blank(photograph, self.baseline)

            def drawn(number: int) -> Image.Image:
                shown = self.shown(distinct[number]).reshape(photograph.height, photograph.width)
                return Image.composite(photograph, behind, Image.fromarray(shown))

            scores = picture_scores(self.task, Pictures(len(distinct), drawn), batch=self.batch, label="removing")
        self.forwards += len(distinct) * len(self.task.answers)
        chances = np.stack(
            [_chance(target, column) for target, column in zip(self.task.targets, scores.numpy().T, strict=True)]
        )
        place = {step: number for number, step in enumerate(distinct)}
        return np.array([chances[step.row, place[same]] for step, same in zip(steps, wanted, strict=True)])

    def _shared(self, step: Step) -> Step:
        """The same picture, under one name for all rows where it has all parts or none."""
        if step.count in (0, self.parts):
            whole = (step.count == 0) == step.removed
            return Step(0, 0 if whole else self.parts, True)
        return step


@checked
def removal_of(
    vlm: VLM,
    trace: Trace,
    m: ImageMap,
    *,
    row: int | None = None,
    image: int = 0,
    tokens: Tokens = None,
    contrast: Contrast = None,
    on: str = "tokens",
    baseline: str = "mean",
    batch: Count = AT_ONCE,
    seed: Seed = 0,
) -> Removal:
    """Check a map against the model's answer, and make its rows orders; the arguments are ``Options``.

    Raises:
        BadInput: a map of another picture or of other tokens, or an unknown option.
        OutOfRange: a row or picture that is not there.
    """
    if on not in ("tokens", "pixels"):
        raise BadInput(f'on= takes "tokens" or "pixels"; got {on!r}')
    known = TOKEN_BASELINES if on == "tokens" else PICTURE_BASELINES
    if not isinstance(baseline, str) or baseline not in known:
        raise BadInput(f"on {on}, baseline= takes {' or '.join(map(repr, known))}; got {baseline!r}")
    task, rows = task_of(vlm, trace, m, Judged(row, image, tokens, contrast))
    return Removal(task, m, rows, on, baseline, batch, seed)


def task_of(vlm: VLM, trace: Trace, m: ImageMap, judged: Judged) -> tuple[Task, tuple[int, ...]]:
    """What the rows of a map explain, as a task, and the rows judged.

    Raises:
        BadInput: a map of another picture, or of other tokens.
        OutOfRange: a row or picture that is not there.
    """
    row, image, tokens = judged.row, judged.image, judged.tokens
    layout = placed(trace, image)
    made = m.about.get("image")
    if made is not None and made != image % len(trace.images):
        raise BadInput(f"this map is of picture {made}; pass image={made}")
    photograph = trace.images[image]
    if m.image.size != photograph.size or m.image.convert("RGB").tobytes() != photograph.convert("RGB").tobytes():
        raise BadInput(
            f"this map is of another picture than picture {image} of the trace "
            f"({m.image.size} against {photograph.size} pixels); pass the trace that it was made from"
        )
    m.row(row)  # refuses a row that is not there
    contrast = m.about.get("contrast") if judged.contrast is None else judged.contrast
    found, answers = targets(vlm, trace, _explained(m, trace) if tokens is None else tokens, contrast)
    told, own = [target.token.position for target in found], [token.position for token in m.tokens]
    if told != own:
        raise BadInput(
            f"the map explains the tokens at {own}, tokens={tokens!r} names those at {told}; "
            "pass what lp.attribute was given"
        )
    rows = tuple(range(len(m))) if row is None else (row % len(m),)
    explained = tuple(found[number] for number in rows)
    return Task(vlm, trace, layout, image % len(trace.images), explained, answers, judged.of), rows


def token_values(m: ImageMap, row: int, task: Task) -> FloatArray:
    """[N] a row of ``m`` at each visual token: its own values, or the mean over the token's box; -inf where unseen."""
    values = m.row(row).double().numpy()
    if m.layout == task.layout:
        return values
    pixels = m.pixels(row)
    seen = task.layout.to_tokens(~np.isnan(pixels)) > 0
    return np.where(seen, task.layout.to_tokens(pixels), -np.inf)


def _explained(m: ImageMap, trace: Trace) -> list[list[int]]:
    """The positions that each row of a map stands for: those that it tells, else of its one token."""
    told = m.about.get("positions") or [[token.position] for token in m.tokens]
    for token, places in zip(m.tokens, told, strict=True):
        said = "".join(trace.tokens[place].text for place in places if place < len(trace.tokens))
        if said != token.text:
            raise BadInput(
                f"the map explains {token.text!r} at position {token.position}, where this trace says {said!r}; pass "
                "the trace that the map was made from, and tokens= where the map no longer tells a row's tokens"
            )
    return told


def _order(values: FloatArray, generator: np.random.Generator) -> IntArray:
    return np.lexsort((generator.permutation(len(values)), -values))


def _pixel_order(m: ImageMap, row: int, generator: np.random.Generator) -> IntArray:
    """Pixels in reading order, sorted by value, then cell by cell, then at random."""
    owner = owners(m.layout).ravel()
    cells = np.append(generator.permutation(len(m.layout)), len(m.layout))  # the last is where nothing was seen
    values = np.append(m.row(row).double().numpy(), -np.inf)
    return np.lexsort((generator.permutation(len(owner)), cells[owner], -values[owner]))


def _chance(target: Target, scores: FloatArray) -> FloatArray:
    """A word's probability from its log-probability; from a difference of two, its share of both."""
    if any(term.sign < 0 for term in target.terms):
        return 1 / (1 + np.exp(-scores))
    return np.exp(scores)
