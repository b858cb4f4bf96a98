"""Whether the words that a lens finds at patches are those of what is there, on scenes whose truth is known.

    def says(trace):                                     # any lens: of each layer the top word of each visual token
        return {layer: [each[0] for each in bank.words(trace, layer).texts] for layer in layers}

    print(right_words(vlm, range(40), says))

A patch that an object covers by half or more is right where its word is the object's kind or colour. Some words are
right by luck: a lens that says "red" everywhere is, wherever a thing is red. So beside the share stands what the same
words would score if they were dealt to the patches of all objects at random.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llava_probe import tiny
from llava_probe.analyzers.table import Table, Tabular
from llava_probe.border import Count, Seed, checked
from llava_probe.errors import BadInput
from llava_probe.model import VLM
from llava_probe.resampling import by_group, interval, resamples, weighed
from llava_probe.trace.capture import Capture
from llava_probe.trace.trace import Trace

#: What is asked of each scene: the patches stand before the question, so that it changes nothing at them.
SCENE_QUESTION = "Describe the image."

#: Of each layer the word at each visual token of a trace's picture, in the layout's order.
Says = Callable[[Trace], Mapping[int, Sequence[str]]]


@dataclass(frozen=True)
class RightWords:
    """What one layer says at the patches of objects.

    Attributes:
        layer: hidden state; ``patches``, ``scenes``: how many were looked at.
        share: of the patches whose word names the object; ``low``, ``high``: its 95 % interval over scenes.
        chance: the share if the same words were dealt to the same patches at random.
    """

    layer: int
    patches: int
    scenes: int
    share: float
    low: float
    high: float
    chance: float


@checked
@dataclass(frozen=True)
class RightWordsTable(Tabular):
    """The same of some layers."""

    rows: tuple[RightWords, ...]

    def table(self) -> str:
        """A line for each layer, to print."""
        return self._columns().text()

    def __str__(self) -> str:
        return self.table()

    def _columns(self) -> Table:
        names = list(RightWords.__dataclass_fields__)
        return Table({name: [getattr(row, name) for row in self.rows] for name in names})


@checked
def right_words(vlm: VLM, seeds: Iterable[Seed], says: Says, times: Count = 1000) -> RightWordsTable:
    """How often a lens names what lies under a patch.

    Args:
        vlm: one of the models that know scenes.
        seeds: of ``tiny.scene``.
        says: of a trace with the states of all layers at its visual tokens, each layer's word at each of them.
        times: resamples of the interval.

    Raises:
        BadInput: no scene.
    """
    patches = [patch for number, seed in enumerate(seeds) for patch in _of_scene(vlm, number, tiny.scene(seed), says)]
    if not patches:
        raise BadInput("seeds= names no scene")
    scenes = np.unique([patch.scene for patch in patches], return_inverse=True)[1]
    counts = resamples(int(scenes.max()) + 1, times, seed=0)
    return RightWordsTable(tuple(_scored(patches, scenes, counts, layer) for layer in patches[0].words))


@dataclass(frozen=True)
class _Patch:
    scene: int
    names: frozenset[str]
    words: Mapping[int, str]


def names_of(shown: tiny.SceneObject) -> frozenset[str]:
    """The words that name an object: its kind and its colour."""
    return frozenset(f"{shown.kind} {shown.colour}".casefold().split())


def _of_scene(vlm: VLM, number: int, scene: tiny.Scene, says: Says) -> Iterable[_Patch]:
    capture = Capture(positions="image", attention=False, logits=1, scores=False)
    trace = vlm.generate(scene.image, SCENE_QUESTION, max_new_tokens=1, capture=capture)
    said, layout = says(trace), trace.layouts[0]
    column = {position: token for token, position in enumerate(layout.positions.tolist())}
    for shown in scene.objects:
        for position in layout.tokens_in(shown.mask).tolist():
            words = {layer: _letters(texts[column[position]]) for layer, texts in said.items()}
            yield _Patch(number, names_of(shown), words)


def _scored(patches: Sequence[_Patch], scenes: np.ndarray, counts: np.ndarray, layer: int) -> RightWords:
    right = np.array([patch.words[layer] in patch.names for patch in patches], float)
    groups = int(scenes.max()) + 1
    sums, sizes = by_group(right, scenes, groups), by_group(np.ones(len(right)), scenes, groups)
    low, high = interval(weighed(counts, sums) / weighed(counts, sizes))
    said, named = Counter(patch.words[layer] for patch in patches), Counter(n for patch in patches for n in patch.names)
    chance = sum(count * named[word] for word, count in said.items()) / len(patches) ** 2
    return RightWords(layer, len(patches), groups, float(right.mean()), low, high, chance)


def _letters(text: str) -> str:
    return "".join(letter for letter in text if letter.isalnum()).casefold()
