"""What fine-tuning left behind where it was not asked for: the mean difference of states on unrelated pictures.

A model that was trained on something narrow carries a constant trace of it: the mean of its states less the base's, on
inputs that have nothing to do with what it learnt, read as a state itself, says words of what it was trained on
(Minder et al. 2025, "Narrow Finetuning Leaves Clearly Readable Traces in Activation Differences", arXiv 2510.13900; of
text models). Here over pictures: at their visual tokens, and at the last position of the prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from llava_probe.analyzers.sinks import FIRST_LAYER, massive
from llava_probe.inside.ending import Ending
from llava_probe.lens.lens import a_word
from llava_probe.lens.reading import said_by
from llava_probe.model import VLM
from llava_probe.trace.capture import Capture
from llava_probe.trace.trace import Trace

#: Where states are taken: a picture's visual tokens, and where the answer begins.
PLACES_READ = ("image", "last")
#: Pictures that are drawn where none are given, and what is asked of them.
DRAWN, NEUTRAL_QUESTION = 8, "Describe the image."
#: Words that are read off each difference.
_WORDS = 5
#: Side of a drawn picture, in pixels, and of the colours that it is blurred from.
_SIDE, _COARSE = 224, 4

_STATES = Capture(attention=False, logits=1, scores=False, positions=["predicting", "image", 0])


@dataclass(frozen=True)
class LeftTrace:
    """The mean difference at one layer and place.

    Attributes:
        layer: hidden state; ``place``: of ``PLACES_READ``.
        length: of the mean difference, over the mean length of the first model's states.
        steadiness: its length over the mean length of a picture's own difference: 1 where all have the same, and
            about 1/√pictures where they have nothing in common.
        words: that it says through the second model's lens, the likeliest first; none where it is 0.
    """

    layer: int
    place: str
    length: float
    steadiness: float
    words: tuple[str, ...]


def drawn_pictures(count: int = DRAWN, seed: int = 0) -> list[tuple[Image.Image, str]]:
    """Blurred colours that show nothing, with a question that asks for nothing."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (count, _COARSE, _COARSE, 3), dtype=np.uint8)
    size, way = (_SIDE, _SIDE), Image.Resampling.BICUBIC
    return [(Image.fromarray(each).resize(size, way), NEUTRAL_QUESTION) for each in coarse]


def left_traces(a: VLM, b: VLM, pairs: Iterable[tuple[Any, str]]) -> tuple[LeftTrace, ...] | str:
    """Read the mean difference at each layer and place, or say why it cannot be.

    Args:
        a, b: two models of one size.
        pairs: pictures and questions; one is held at a time.
    """
    if (a.anatomy.layers, a.anatomy.width) != (b.anatomy.layers, b.anatomy.width):
        return "states of other sizes have no difference"
    sums: dict[str, Tensor] = {}
    lengths: dict[str, Tensor] = {}  # [2, layers] of the first's states, and of the differences
    count, word = 0, 0
    for image, question in pairs:
        traces = [vlm.generate(image, question, max_new_tokens=1, capture=_STATES) for vlm in (a, b)]
        word, count = a_word(traces[1]), count + 1
        for place, (one, other) in states_by_place(*traces)[0].items():
            apart = (other - one).mean(0)  # [layers, D]
            sums[place] = sums.get(place, 0) + apart
            told = torch.stack([one.norm(dim=-1).mean(0), apart.norm(dim=-1)])
            lengths[place] = lengths.get(place, 0) + told
    if not count:
        return "there is no unrelated picture"
    ending = Ending(b.anatomy, word)
    return tuple(
        _read(b, ending, place, layer, sums[place][layer] / count, lengths[place][:, layer] / count)
        for place in PLACES_READ
        if place in sums
        for layer in range(a.anatomy.layers + 1)
    )


def states_by_place(a: Trace, b: Trace) -> tuple[dict[str, tuple[Tensor, Tensor]], tuple[int, int]]:
    """[N, layers, D] of both traces at each place, in float32, and how many visual tokens were dropped of how many.

    Dropped are the sinks of either, whose states would outweigh all others'; left out is a place that they do not
    share, and the first token of a sequence, where attention rests that has nothing to do.
    """
    mine, theirs = _places(a), _places(b)
    found = {
        name: (a.hidden(at=at).float(), b.hidden(at=theirs[name]).float())
        for name, at in mine.items()
        if at and len(at) == len(theirs[name])
    }
    if "image" not in found:
        return found, (0, 0)
    one, other = found.pop("image")
    kept = ~(_sinks(a, one) | _sinks(b, other))
    if bool(kept.any()):
        found["image"] = one[kept], other[kept]
    return found, (int((~kept).sum()), len(kept))


def _sinks(trace: Trace, states: Tensor) -> Tensor:
    """[N] which tokens are massive where the first one is, by the rule of ``lp.sinks``."""
    middle = slice(FIRST_LAYER, trace.sizes.layers)
    first = trace.hidden(at=[0]).float()
    return massive(torch.cat([first, states])[:, middle]).marked


def _places(trace: Trace) -> dict[str, list[int]]:
    visual = [token.position for token in trace.tokens if token.role == "image" and token.position]
    return {"last": [trace.prompt_length - 1], "image": visual}


def _read(b: VLM, ending: Ending, place: str, layer: int, mean: Tensor, lengths: Tensor) -> LeftTrace:
    own, apart = lengths.tolist()
    length = float(mean.norm())
    if not length:
        return LeftTrace(layer, place, 0.0, 0.0, ())
    last = layer == b.anatomy.layers
    with torch.no_grad():
        said = said_by(ending, mean[None].float(), _WORDS, normed=last, vocabulary=b.anatomy.vocabulary)
    words = _texts(b, said.ids[0].tolist())
    return LeftTrace(layer, place, length / own if own else 0.0, length / apart, words)


def _texts(vlm: VLM, ids: Sequence[int]) -> tuple[str, ...]:
    known = len(vlm.processor.tokenizer)
    return tuple(vlm.processor.tokenizer.decode([token]) for token in ids if token < known)
