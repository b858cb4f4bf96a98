"""What to keep of each sample: which hidden states, and at which of its tokens.

    FeatureChoice.of(anatomy, layers=[8, "vision_22", "projector"], positions=["last_prompt", "word:stop sign"])

A layer is transformers' index of a hidden state (0 the embedding, L after the final norm, negative from the end),
``vision_i`` hidden state i of the vision tower, or ``projector``: the visual tokens as the language model gets them
(hidden state 0 at the image positions). A position names one token of a sample (``last_prompt``, a number) or several
of them, which ``_mean`` at its end pools.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llava_probe.errors import BadInput, OutOfRange
from llava_probe.inside.anatomy import Anatomy

#: Positions of several tokens; ``at`` are those of the sample's own column, ``patches`` the vision tower's.
SEVERAL = ("prompt", "text", "answer", "predicting", "image", "image_in_mask", "word", "at", "patches")

#: What lies on a picture, so that the projector has it.
ON_PICTURE = ("image", "image_in_mask")

_MEAN = "_mean"


@dataclass(frozen=True)
class FeaturePosition:
    """One position that was asked for.

    Attributes:
        name: as written, the second half of its key in the store.
        kind: ``"last_prompt"``, ``"number"`` or one of ``SEVERAL``.
        word: what to look for; None for the sample's own column ``word``.
        number: of a prompt position, negative from its end.
        mean: whether its tokens are pooled into one row.
    """

    name: str
    kind: str
    word: str | None = None
    number: int = 0
    mean: bool = False

    @property
    def ragged(self) -> bool:
        """Whether a sample has any number of rows here."""
        return self.kind in SEVERAL and not self.mean


@dataclass(frozen=True)
class FeatureChoice:
    """Layers and positions, resolved against one model.

    Attributes:
        layers: hidden states of the language model.
        vision: hidden states of the vision tower.
        projector: whether the projector's output is kept.
        tokens: positions in the sequence; ``patches``: of the vision tower.
    """

    layers: tuple[int, ...]
    vision: tuple[int, ...]
    projector: bool
    tokens: tuple[FeaturePosition, ...]
    patches: tuple[FeaturePosition, ...]

    @classmethod
    def of(cls, anatomy: Anatomy, layers: Any = None, positions: Any = "last_prompt") -> FeatureChoice:
        """Resolve what somebody wrote.

        Args:
            anatomy: of the model.
            layers: a number, a name or a list of them; all hidden states of the language model when None.
            positions: a name, a number or a list of them.

        Raises:
            OutOfRange: a layer that the model does not have.
            BadInput: an unknown name, or a layer for which none of the positions has a meaning.
        """
        own, vision, projector = _layers(anatomy, layers)
        places = tuple(dict.fromkeys(_place(part) for part in listed(positions)))
        tokens = tuple(place for place in places if place.kind != "patches")
        patches = tuple(place for place in places if place.kind == "patches")
        if not places:
            raise BadInput('positions=[] keeps nothing; the least is positions="last_prompt"')
        if own and not tokens:
            raise BadInput("patches belong to the vision tower, the layers asked for do not: add a position of tokens")
        if vision and not patches:
            raise BadInput('layers of the vision tower are kept at positions "patches" or "patches_mean"; add one')
        if patches and not vision:
            raise BadInput('patches belong to the vision tower; ask for one of its layers too, such as "vision_-2"')
        if projector and not any(place.kind in ON_PICTURE for place in tokens):
            raise BadInput('the projector has visual tokens only; add a position "image" or "image_mean"')
        return cls(own, vision, projector, tokens, patches)

    @property
    def states(self) -> tuple[int, ...]:
        """The language model's hidden states that are read, the projector's included."""
        return tuple(sorted({*self.layers, *([0] if self.projector else [])}))

    @property
    def names(self) -> list[str]:
        """The layers by their names in the store."""
        return [
            *(f"vision_{layer}" for layer in self.vision),
            *(["projector"] if self.projector else []),
            *(f"layer_{layer}" for layer in self.layers),
        ]

    def needs(self, kind: str) -> bool:
        """Whether positions of this kind are among the wanted."""
        return any(place.kind == kind for place in self.tokens)

    def keys(self, place: FeaturePosition) -> list[tuple[str, int]]:
        """Where the language model's rows at a place go: names in the store, each with its hidden state."""
        keys = [(f"layer_{layer}/{place.name}", layer) for layer in self.layers]
        on_picture = self.projector and place.kind in ON_PICTURE
        return [*([(f"projector/{place.name}", 0)] if on_picture else []), *keys]


def _layers(anatomy: Anatomy, given: Any) -> tuple[tuple[int, ...], tuple[int, ...], bool]:
    if given is None:
        return tuple(range(anatomy.layers + 1)), (), False
    own: set[int] = set()
    vision: set[int] = set()
    projector = False
    for part in listed(given):
        text = str(part).strip()
        where, _, number = text.rpartition("_")
        if text == "projector":
            projector = True
        elif where == "vision":
            if anatomy.vision is None:
                raise BadInput(f"{text}: {type(anatomy.model).__name__} has no vision tower whose blocks are known")
            vision.add(_within(number, len(anatomy.vision.blocks) + 1, text))
        elif where in ("", "layer"):
            own.add(_within(number, anatomy.layers + 1, text))
        else:
            raise BadInput(f'{text!r} is no layer; layers are numbers, "vision_3" and "projector"')
    if not (own or vision or projector):
        raise BadInput("layers=[] keeps nothing; leave it out for all layers")
    return tuple(sorted(own)), tuple(sorted(vision)), projector


def _within(text: str, count: int, told: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise BadInput(f'{told!r} is no layer; layers are numbers, "vision_3" and "projector"') from None
    if not -count <= number < count:
        raise OutOfRange(f"layer {told} is not there: this model has 0 to {count - 1}")
    return number % count


def _place(part: Any) -> FeaturePosition:
    if not isinstance(part, str) or part.strip().lstrip("-").isdigit():
        try:
            number = operator.index(int(part) if isinstance(part, str) else part)
        except TypeError:
            raise BadInput(f"a position is a name or a whole number; got {part!r}") from None
        return FeaturePosition(str(number), "number", number=number)
    name = part.strip()
    kind, colon, word = name.partition(":")
    if kind.removesuffix(_MEAN) == "word" and colon:
        if not word.strip():
            raise BadInput('"word:" names no word; write word:stop sign, or "word" for the samples\' own column')
        return FeaturePosition(name, "word", word=word.strip(), mean=kind.endswith(_MEAN))
    if name == "last_prompt":
        return FeaturePosition(name, name)
    if name.removesuffix(_MEAN) in SEVERAL:
        return FeaturePosition(name, name.removesuffix(_MEAN), mean=name.endswith(_MEAN))
    raise BadInput(
        f"{name!r} is no position; positions are last_prompt, {', '.join(SEVERAL)} (each also with {_MEAN}), "
        "word:WORDS and numbers"
    )


def listed(given: Any) -> Sequence[Any]:
    """What somebody wrote with commas between it, as a list, or as one thing."""
    if isinstance(given, str):
        return [part.strip() for part in given.split(",")]
    return list(given) if hasattr(given, "__iter__") else [given]
