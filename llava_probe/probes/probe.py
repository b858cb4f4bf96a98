"""A fitted probe: one linear read-out that goes wherever there are hidden states of its layer.

    probe = lp.Probe.load("colour.probe")            # needs no scikit-learn
    probe.predict(hidden)                            # [..., D] -> labels
    probe.strip(trace)                               # what it reads at each text token
    probe.map(trace, "red").overlay()                # and at each visual token, over the photograph
    probe.direction("red")                           # [D] unit vector, for steering

It was fitted at one position; at others (each visual token, each word) its scores are a look, not a measurement.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llava_probe.border import checked
from llava_probe.errors import BadInput, OutOfRange
from llava_probe.maps.maps import ImageMap
from llava_probe.probes import saved
from llava_probe.trace.explained import ALL, PREDICTING, At, placed
from llava_probe.trace.tokens import Token
from llava_probe.trace.trace import Trace

if TYPE_CHECKING:
    from llava_probe.probes.readouts import Linear

#: A class, or the name of a number.
Label = str | bool | int | float | None
#: What stands for a class where a map wants the token that it explains: a class is none of the vocabulary.
_NO_TOKEN = -1


@checked
@dataclass(frozen=True)
class Reading:
    """What a probe reads at some tokens of a trace.

    Attributes:
        tokens: where; ``classes``: of the columns.
        scores: [tokens, classes] float32.
        predicted: the label at each token, or the numbers.
    """

    tokens: tuple[Token, ...]
    classes: tuple[Any, ...]
    scores: Tensor
    predicted: tuple[Any, ...]

    def table(self) -> str:
        """A line for each token, to print."""
        lines = [["token", "reads", *map(str, self.classes)]]
        for token, label, scores in zip(self.tokens, self.predicted, self.scores.tolist(), strict=True):
            told = "-" if isinstance(label, tuple) else str(label)
            lines.append([repr(token.text)[1:-1], told, *(f"{score:.3f}" for score in scores)])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        form = "  ".join([f"{{:<{width}}}" for width in widths[:2]] + [f"{{:>{width}}}" for width in widths[2:]])
        return "\n".join(form.format(*line) for line in lines)

    def __str__(self) -> str:
        return self.table()


@checked
@dataclass(frozen=True, eq=False)
class Probe:
    """A linear read-out of the raw hidden states of one layer.

    Attributes:
        weights: [D, classes] float64; ``bias``: [classes].
        label: what is read; ``task``: ``"classification"`` or ``"regression"``; ``kind``: of read-out.
        classes: the labels, or the names of the numbers.
        layer, position: what it was fitted on, in the store's names.
        about: plain data: its score out of fold with interval and controls, folds, seed, strength.
    """

    weights: Tensor
    bias: Tensor
    label: str
    task: str
    kind: str
    classes: tuple[Any, ...]
    layer: str
    position: str
    about: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, linear: Linear, **told: Any) -> Probe:
        """A probe of freshly fitted weights."""
        return cls(torch.from_numpy(linear.weights.copy()), torch.from_numpy(linear.bias.copy()), **told)

    @property
    def width(self) -> int:
        """D, the size of the hidden states it reads."""
        return int(self.weights.shape[0])

    def __repr__(self) -> str:
        score = self.about.get("score")
        told = f", score {score:.3f}" if isinstance(score, float) else ""
        return (
            f"Probe({self.label!r} from {self.layer}, {self.position}: {self.kind}, {len(self.classes)} outputs{told})"
        )

    # --- on hidden states ---

    def scores(self, hidden: Tensor) -> Tensor:
        """[..., classes] float32 of hidden states [..., D]: logits (up to a constant) of a logistic probe; numbers.

        Raises:
            BadInput: hidden states of another width.
        """
        hidden = torch.as_tensor(hidden)
        if hidden.ndim == 0 or hidden.shape[-1] != self.width:
            raise BadInput(
                f"this probe reads hidden states [..., {self.width}] of {self.layer}; got {list(hidden.shape)}"
            )
        found = hidden.detach().to("cpu", torch.float64) @ self.weights + self.bias
        return found.float()

    def probabilities(self, hidden: Tensor) -> Tensor:
        """[..., classes] float32, summing to one.

        Raises:
            BadInput: the probe is not logistic, so that its scores are no log-odds.
        """
        if self.kind != "logistic":
            raise BadInput(f"a {self.kind} probe has no probabilities; read scores(hidden), or fit kind='logistic'")
        return torch.softmax(self.scores(hidden), dim=-1)

    def predict(self, hidden: Tensor) -> Any:
        """The label of each hidden state, as lists nested like the leading axes; numbers as a tensor [..., outputs]."""
        scores = self.scores(hidden)
        if self.task == "regression":
            return scores
        return _named(scores.argmax(-1).tolist(), self.classes)

    def direction(self, label: Label = None) -> Tensor:
        """[D] float32 unit vector along which the score of ``label`` grows fastest, in the raw hidden-state space.

        With two classes the directions are opposite; with more each is against the mean of all (logistic, means).

        Raises:
            OutOfRange: no such label; BadInput: all its weights are zero.
        """
        column = self.weights[:, self._number(label)]
        if not column.any():
            raise BadInput(f"the probe's weights for {label!r} are all zero: there is no direction")
        return torch.nn.functional.normalize(column, dim=0).float()

    # --- on traces ---

    def apply(self, trace: Trace, at: At = PREDICTING) -> Reading:
        """What it reads at some tokens of a trace, by position, place or word (``trace.positions``).

        Raises:
            NotCaptured: the hidden states of its layer were not kept there.
            BadInput: the trace is of another model, or the probe of no layer of the language model.
        """
        places = trace.positions(at)
        hidden = trace.hidden(self._layer(), at=places)
        scores = self.scores(hidden)
        told = self.predict(hidden)
        predicted = tuple(map(tuple, told.tolist())) if self.task == "regression" else tuple(told)
        return Reading(tuple(trace.tokens[place] for place in places), self.classes, scores, predicted)

    def strip(self, trace: Trace) -> Reading:
        """What it reads at each text token that the model was fed, of prompt and answer.

        Raises:
            NotCaptured: the hidden states of its layer were not kept there; ``Capture(positions=["all"])`` keeps them.
        """
        return self.apply(trace, [place for place in trace.positions(ALL) if trace.tokens[place].role != "image"])

    def map(self, trace: Trace, label: Label = None, image: int = 0) -> ImageMap:
        """What it reads at each visual token of one picture.

        Args:
            trace: with the hidden states of its layer at ``"image"``.
            label: one class or output; a row for each when None.
            image: which picture.

        Returns:
            ImageMap with a row a label: of a logistic probe the probability less that of chance, 1 / classes, so that
            what tells nothing has no colour; else the score.

        Raises:
            NotCaptured: the hidden states were not kept; ``Capture(positions=["image", ...])`` keeps them.
        """
        layout = placed(trace, image)
        numbers = range(len(self.classes)) if label is None else [self._number(label)]
        hidden = trace.hidden(self._layer(), at=layout.positions.tolist())
        logistic = self.kind == "logistic"
        values = self.probabilities(hidden) - 1 / len(self.classes) if logistic else self.scores(hidden)
        named = f"{self.label} " if self.task == "classification" else ""
        return ImageMap(
            values=values[:, list(numbers)].T,
            layout=layout,
            image=trace.images[image],
            tokens=tuple(Token(_NO_TOKEN, f"{named}{self.classes[i]}", "special", _NO_TOKEN) for i in numbers),
            method="probe",
            about={
                "unit": f"probability above chance at {self.layer}" if logistic else f"score at {self.layer}",
                "label": self.label,
                "layer": self.layer,
                "fitted_at": self.position,
            },
        )

    # --- as a file ---

    def save(self, path: str | Path) -> Path:
        """Write everything to one file, whole or not at all; see ``llava_probe.probes.saved``."""
        return saved.save_probe(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Probe:
        """Read a saved probe.

        Raises:
            BadFile: it is not there, damaged, or no probe.
        """
        return cls(**saved.load_probe(path))

    # --- details ---

    def _number(self, label: Any) -> int:
        if label is None and len(self.classes) == 1:
            return 0
        if label not in self.classes:
            raise OutOfRange(f"{label!r} is not what this probe reads, which is {', '.join(map(repr, self.classes))}")
        return self.classes.index(label)

    def _layer(self) -> int:
        found = re.fullmatch(r"layer_(\d+)", self.layer)
        if found is None:
            raise BadInput(
                f"this probe reads {self.layer!r}, which is no layer of the language model that trace.hidden holds; "
                "pass its hidden states to probe.scores(hidden)"
            )
        return int(found[1])


def _named(numbers: Any, classes: tuple[Any, ...]) -> Any:
    return [_named(each, classes) for each in numbers] if isinstance(numbers, list) else classes[numbers]
