"""Whether the words that a lens finds at patches are those of what is there, on scenes whose truth is known.

    def says(trace):                                     # any lens: of each layer the top word of each visual token
        return {("bank", layer): [each[0] for each in bank.words(trace, layer).texts] for layer in layers}

    print(right_words(vlm, range(40), says))

A patch that an object covers by half or more is right where its word is the object's kind or colour. Some words are
right by luck: a lens that says "red" everywhere is, wherever a thing is red. So beside the share stands what the same
words would score if they were dealt to the patches of all objects at random; and how many name another object of the
scene instead, which a lens that tells of the picture and not of the place does as often.
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

#: Of each lens and layer the word at each visual token of a trace's picture, in the layout's order.
Says = Callable[[Trace], Mapping[tuple[str, int], Sequence[str]]]


@dataclass(frozen=True)
class RightWords:
    """What a lens says of one layer at the patches of objects.

    Attributes:
        lens: its name; ``layer``: hidden state; ``patches``, ``scenes``: how many were looked at.
        share: of the patches whose word names the object; ``low``, ``high``: its 95 % interval over scenes.
        chance: the share if the same words were dealt to the same patches at random.
        another: of the patches whose word names another object of the scene, and not this one.
    """

    lens: str
    layer: int
    patches: int
    scenes: int
    share: float
    low: float
    high: float
    chance: float
    another: float


@checked
@dataclass(frozen=True)
class RightWordsTable(Tabular):
    """The same of some lenses and layers."""

    rows: tuple[RightWords, ...]

    def table(self) -> str:
        """A line for each lens and layer, to print."""
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
        says: of a trace with the states of all layers at its visual tokens, each lens's word at each of them.
        times: resamples of the interval.

    Raises:
        BadInput: no scene.
    """
    patches = [patch for number, seed in enumerate(seeds) for patch in _of_scene(vlm, number, tiny.scene(seed), says)]
    if not patches:
        raise BadInput("seeds= names no scene")
    scenes = np.unique([patch.scene for patch in patches], return_inverse=True)[1]
    counts = resamples(int(scenes.max()) + 1, times, seed=0)
    return RightWordsTable(tuple(_scored(patches, scenes, counts, *key) for key in patches[0].words))


@dataclass(frozen=True)
class _Patch:
    scene: int
    names: frozenset[str]
    others: frozenset[str]
    words: Mapping[tuple[str, int], str]


def names_of(shown: tiny.SceneObject) -> frozenset[str]:
    """The words that name an object: its kind, of one or of many, and its colour."""
    kinds = shown.kind.casefold().split()
    return frozenset([*kinds, f"{kinds[-1]}s", shown.colour.casefold()])


def _of_scene(vlm: VLM, number: int, scene: tiny.Scene, says: Says) -> Iterable[_Patch]:
    capture = Capture(positions="image", attention=False, logits=1, scores=False)
    trace = vlm.generate(scene.image, SCENE_QUESTION, max_new_tokens=1, capture=capture)
    said, layout = says(trace), trace.layouts[0]
    column = {position: token for token, position in enumerate(layout.positions.tolist())}
    for shown in scene.objects:
        own = names_of(shown)
        others = frozenset(name for other in scene.objects if other is not shown for name in names_of(other)) - own
        for position in layout.tokens_in(shown.mask).tolist():
            words = {key: _letters(texts[column[position]]) for key, texts in said.items()}
            yield _Patch(number, own, others, words)


def _scored(patches: Sequence[_Patch], scenes: np.ndarray, counts: np.ndarray, lens: str, layer: int) -> RightWords:
    words = [patch.words[lens, layer] for patch in patches]
    right = np.array([word in patch.names for word, patch in zip(words, patches, strict=True)], float)
    another = np.mean([word in patch.others for word, patch in zip(words, patches, strict=True)])
    groups = int(scenes.max()) + 1
    sums, sizes = by_group(right, scenes, groups), by_group(np.ones(len(right)), scenes, groups)
    low, high = interval(weighed(counts, sums) / weighed(counts, sizes))
    said, named = Counter(words), Counter(name for patch in patches for name in patch.names)
    chance = sum(count * named[word] for word, count in said.items()) / len(patches) ** 2
    return RightWords(lens, layer, len(patches), groups, float(right.mean()), low, high, chance, float(another))


def _letters(text: str) -> str:
    return "".join(letter for letter in text if letter.isalnum()).casefold()
