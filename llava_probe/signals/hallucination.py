"""Signals of the literature, of each object that an answer names, that it may not be there; and what knows nothing.

    found = lp.hallucination(vlm, trace)                       # COCO's objects, as CHAIR finds them
    found = lp.hallucination(vlm, trace, ["star", "heart"])    # or words of your own
    found = lp.hallucination(vlm, trace, synonyms="words.txt") # or other objects with other words for them
    print(found)                                               # a line for each time that one is named

A signal is a number, no verdict: ``lp.signal_table`` tells over a data set how often each puts a word that is made up
behind one that is not, beside signals that know nothing of the picture. Every one is listed with its formula in
``lp.SIGNALS``.

Published layers are those of a model of 32 blocks and are scaled to others. A word of several tokens counts as a whole:
probabilities multiply, states are means over its tokens, what belongs to a prediction is its first token's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llava_probe.analyzers.confidence import confidence
from llava_probe.analyzers.table import Table, Tabular
from llava_probe.arrays import FloatArray
from llava_probe.border import checked
from llava_probe.errors import BadInput, BadModel, NotCaptured, OutOfRange, shortened
from llava_probe.inside.ending import Ending
from llava_probe.lens.lens import a_word
from llava_probe.lens.reading import said_by
from llava_probe.lens.states import states_at
from llava_probe.model import VLM
from llava_probe.signals.mentions import named
from llava_probe.signals.synonyms import Synonyms
from llava_probe.trace.trace import Trace


@dataclass(frozen=True)
class SignalKind:
    """What a signal is.

    Attributes:
        formula: of object word o, predicted at row t.
        source: who proposed it.
        made_up_when: ``"low"`` or ``"high"``: at which end a word is said to be made up.
        looks: whether it knows anything of the picture or of how sure the model was; what does not is a baseline.
    """

    formula: str
    source: str
    made_up_when: str
    looks: bool = True


#: Every signal by its name.
SIGNALS: Mapping[str, SignalKind] = {
    "probability": SignalKind("p(o), over its tokens", "", "low"),
    "entropy": SignalKind("H(p) at row t, in nats", "", "high"),
    "margin": SignalKind("p(o) less the best other token's, at row t", "", "low"),
    "svar": SignalKind(
        "sum over blocks 5 to 18 of 32 of the attention of row t on visual tokens, mean over heads",
        "Jiang et al. 2025, CVPR (SVAR)", "low",
    ),
    "internal_confidence": SignalKind(
        "the largest logit-lens probability of o's first token, at any visual token and layer",
        "Jiang et al. 2025, arXiv 2410.02762", "low",
    ),
    "contextual": SignalKind(
        "largest cosine of a visual token's state, half way up, with o's own, three quarters up",
        "Phukan et al. 2025, arXiv 2411.19187", "low",
    ),
    "glsim": SignalKind(
        "0.6 cos(last prompt state, o's) + 0.4 mean cos(visual states, o's), of the 32 of 576 visual tokens where the "
        "lens gives o's first token most",
        "Park and Li 2025 (GLSim)", "low",
    ),
    "pas": SignalKind("attention of row t on the answer so far, block 0, mean over heads", "arXiv 2511.11502", "high"),
    "lens_depth": SignalKind(
        "the first layer from which on the lens at row t says o, over the number of layers", "", "high",
    ),
    "position": SignalKind("which token of the answer it is", "", "high", looks=False),
    "frequency": SignalKind("how often other answers name it, a hundred words", "", "low", looks=False),
    "length": SignalKind("letters", "", "high", looks=False),
    "tokens": SignalKind("how many tokens spell it", "", "high", looks=False),
}  # fmt: skip

#: The depth of the models that published layers belong to, and how many visual tokens these see.
_DEPTH, _PATCHES = 32, 576
_SVAR, _GLSIM_WORD = range(5, 19), 31
_GLSIM_TOP, _GLSIM_GLOBAL = 32, 0.6


@checked
@dataclass(frozen=True, eq=False)
class Hallucination(Tabular):
    """What each signal says of each time that an answer names an object.

    Attributes:
        words: as written; ``objects``: which object each names.
        positions: of its tokens in the sequence.
        values: [words] by the signal's name; NaN where it has none, such as states of a word that ends the answer and
            was never fed to the model. ``frequency`` needs other answers: ``signal_table`` fills it in.
        answer: that they stand in.
    """

    words: tuple[str, ...]
    objects: tuple[str, ...]
    positions: tuple[tuple[int, ...], ...]
    values: Mapping[str, FloatArray]
    answer: str = field(repr=False)

    def __len__(self) -> int:
        return len(self.words)

    def __repr__(self) -> str:
        return f"Hallucination({len(self)} words: {', '.join(self.words[:8])}{', ...' if len(self) > 8 else ''})"

    def __str__(self) -> str:
        return self.table()

    def to_dict(self) -> dict[str, list[Any]]:
        """Plain lists by name, an entry for each word, ready for JSON."""
        return self._columns().data

    def table(self) -> str:
        """A line for each word, to print."""
        return self._columns().without("positions").text()

    def _repr_html_(self) -> str:
        return self._columns().without("positions").html()

    def _columns(self) -> Table:
        told: dict[str, list[Any]] = {"word": list(self.words), "object": list(self.objects)}
        told["positions"] = list(map(list, self.positions))
        return Table(told | {name: each.tolist() for name, each in self.values.items() if not np.isnan(each).all()})


@checked
def hallucination(
    vlm: VLM, trace: Trace, objects: str | Sequence[str] | None = None, *, synonyms: str | Path | None = None
) -> Hallucination:
    """Every signal of ``lp.SIGNALS``, of every object word of an answer.

    The model runs once over prompt and answer for states that the trace has not kept.

    Args:
        vlm: the model of the trace.
        trace: with its logits, and attention of all layers and heads, as by default.
        objects: the words to look for; None: COCO's 80 categories with their synonyms, as ``lp.chair`` finds them.
        synonyms: a file with a line an object, ``couch, sofa, settee``, in place of COCO's, as ``lp.chair`` takes it.

    Raises:
        BadInput: a trace of another model, or without a picture; both ``objects`` and ``synonyms``.
        OutOfRange: the answer names none of the objects.
        NotCaptured: logits or attention were not kept.
        BadModel: the model's layers carry several streams, or it has no output embedding.
    """
    if not any(token.role == "image" for token in trace.tokens):
        raise BadInput("this trace has no visual tokens, so nothing that its answer names is on a picture")
    if objects is not None and synonyms is not None:
        raise BadInput("objects= are words and synonyms= a file of words; give one of them")
    found = _named_in(trace, objects, Synonyms.own() if synonyms is None else Synonyms.read(synonyms))
    sure = confidence(trace)
    starts = [positions[0] - trace.prompt_length for _, _, positions in found]
    runs = [[position - trace.prompt_length for position in positions] for _, _, positions in found]
    values = {
        "probability": [float(sure.logprob[run].sum().exp()) for run in runs],
        "entropy": sure.entropy[starts].tolist(),
        "margin": sure.margin[starts].tolist(),
        **_of_attention(trace, starts),
        **_of_states(vlm, trace, [positions for _, _, positions in found]),
        "position": starts,
        "frequency": [math.nan] * len(found),
        "length": [len(word.replace(" ", "")) for word, _, _ in found],
        "tokens": list(map(len, runs)),
    }
    words, things, positions = (tuple(part) for part in zip(*found, strict=True))
    return Hallucination(
        words, things, positions, {name: np.asarray(values[name], dtype=np.float64) for name in SIGNALS}, trace.answer
    )


def at_depth(layer: int, layers: int) -> int:
    """A layer of a model of 32 blocks in one of another depth: hidden states, and blocks by the state they end in."""
    return round(layer * layers / _DEPTH)


def _named_in(
    trace: Trace, objects: str | Sequence[str] | None, synonyms: Synonyms
) -> list[tuple[str, str, tuple[int, ...]]]:
    """Each time that the answer names an object, in order: the words, the object, the positions of its tokens."""
    if objects is None:
        pairs = _of_coco(trace, synonyms)
    else:
        listed = dict.fromkeys([objects] if isinstance(objects, str) else objects)
        pairs = [(word, word, positions) for word in listed for positions in _each(trace, word)]
    pairs = sorted((each for each in pairs if each[2]), key=lambda each: each[2])
    if not pairs:
        none = (
            f"none of {list(listed)}"
            if objects is not None
            else f"no object of {synonyms.name}; name yours, objects=['star']"
        )
        raise OutOfRange(f"the answer {shortened(trace.answer.strip())!r} names {none}")
    return pairs


def _of_coco(trace: Trace, synonyms: Synonyms) -> list[tuple[str, str, tuple[int, ...]]]:
    """Objects by their letters: the same word may stand before, in another that CHAIR does not count as it."""
    pieces = [("\0" if token.id in trace.ends else token.text, token.position) for token in trace.generated]
    text = "".join(piece for piece, _ in pieces)
    owners = [position for piece, position in pieces for _ in piece]
    return [
        (text[each.start : each.end], each.object, tuple(sorted({*owners[each.start : each.end]})))
        for each in named(text, synonyms)
    ]


def _each(trace: Trace, word: str) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    while positions := trace.find(word, "generated", len(found)):
        found.append(positions)
    return found


def _of_attention(trace: Trace, rows: Sequence[int]) -> dict[str, list[float]]:
    """SVAR and PAS.

    Raises:
        NotCaptured: some layer or head was not kept.
    """
    layers = trace.sizes.layers
    wanted = sorted({at_depth(layer, layers) for layer in _SVAR} & set(range(layers)))
    kept = set(range(layers)) - set(trace.sizes.other_layers) <= set(trace.attention_layers)
    if not kept or len(trace.attention_heads) < trace.sizes.heads:
        raise NotCaptured(
            "SVAR and PAS need the attention of all layers and heads; pass Capture(attention=True), the default"
        )
    held = {layer: number for number, layer in enumerate(trace.attention_layers)}
    attention = trace.attention[list(rows)].float().mean(2)  # [words, layers, K]
    visual = torch.tensor([token.position for token in trace.tokens if token.role == "image"])
    on_picture = attention[:, [held[layer] for layer in wanted if layer in held]][..., visual].sum((1, 2))
    answer = attention[:, held[min(held)], trace.prompt_length :].sum(1)
    return {"svar": on_picture.tolist(), "pas": answer.tolist()}


def _of_states(vlm: VLM, trace: Trace, words: Sequence[tuple[int, ...]]) -> dict[str, list[float]]:
    """What is read from hidden states: one pass over prompt and answer, a layer at a time."""
    inside, fed = vlm.anatomy, len(trace.tokens) - 1
    layers, last = range(inside.layers + 1), inside.layers
    visual = [token.position for token in trace.tokens if token.role == "image"]
    rows = [positions[0] - 1 for positions in words]
    own = sorted({place for positions in words for place in positions if place < fed})
    order = list(dict.fromkeys([*visual, trace.prompt_length - 1, *rows, *own]))
    index = {position: number for number, position in enumerate(order)}
    states = states_at(vlm, trace, layers, order)
    if any(rows.ndim > 2 for rows in states.values()):
        name = type(inside.decoder.owner).__name__
        raise BadModel(f"the layers of {name} carry several streams, and no single state that cosines could be of")
    first = [[trace.tokens[positions[0]].id] for positions in words]
    ending = Ending(inside, a_word(trace))
    read = _Read(ending, states, inside.vocabulary, last)
    at_picture = [index[position] for position in visual]
    lens = torch.stack([read.probability(layer, at_picture, first) for layer in layers])  # [layers, words, N]
    depth = torch.stack([read.rank(layer, [index[row] for row in rows], first).diagonal() for layer in layers])
    half, upper, late = inside.layers // 2, 3 * inside.layers // 4, at_depth(_GLSIM_WORD, inside.layers)
    few = max(1, round(_GLSIM_TOP * len(visual) / _PATCHES))
    contextual, glsim = [], []
    for number, positions in enumerate(words):
        places = [index[place] for place in positions if place < fed]
        if len(places) < len(positions):  # its last token was never fed
            contextual.append(math.nan)
            glsim.append(math.nan)
            continue
        word = states[upper][places].float().mean(0)
        contextual.append(float(_cosine(states[half][at_picture], word).max()))
        word = states[late][places].float().mean(0)
        picked = lens[last, number].topk(few).indices
        near = float(_cosine(states[last][at_picture][picked], word).mean())
        whole = float(_cosine(states[late][[index[trace.prompt_length - 1]]], word))
        glsim.append(_GLSIM_GLOBAL * whole + (1 - _GLSIM_GLOBAL) * near)
    return {
        "internal_confidence": lens.amax((0, 2)).tolist(),
        "contextual": contextual,
        "glsim": glsim,
        "lens_depth": [_settled(ranks == 0) / last for ranks in depth.T],
    }


@dataclass(frozen=True, eq=False)
class _Read:
    """The logit lens of some states, a layer at a time.

    Attributes:
        states: by layer, [tokens, D]; ``last``: the layer behind the final norm.
    """

    ending: Ending
    states: Mapping[int, Tensor]
    vocabulary: int
    last: int

    def probability(self, layer: int, at: Sequence[int], ids: Sequence[Sequence[int]]) -> Tensor:
        """[ids, tokens] how likely each is at each of some tokens."""
        return self._said(layer, at, ids).word_probability

    def rank(self, layer: int, at: Sequence[int], ids: Sequence[Sequence[int]]) -> Tensor:
        """[ids, tokens] how many tokens are likelier."""
        return self._said(layer, at, ids).word_rank

    def _said(self, layer: int, at: Sequence[int], ids: Sequence[Sequence[int]]) -> Any:
        rows = self.states[layer][list(at)]
        with torch.no_grad():
            return said_by(self.ending, rows, 1, ids, normed=layer == self.last, vocabulary=self.vocabulary)


def _cosine(states: Tensor, word: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(states.float(), word, dim=-1)


def _settled(on_top: Tensor) -> int:
    """The first layer from which on it is on top to the end; one beyond the last where it is not there."""
    said = on_top.tolist()
    return len(said) - next((number for number, there in enumerate(reversed(said)) if not there), len(said))
