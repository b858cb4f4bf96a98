"""A tuned lens as a folder: an affine translator a layer and kind of position, bound to its model.

    tuned = lp.TunedLens.load("tuned/")
    tuned.report                        # held-out KL by layer and kind, beside the logit lens's
    lp.lens(vlm, trace, tuned=tuned)

Before the norm and the unembedding a state h becomes h + A h + b (Belrose et al. 2023, arXiv 2303.08112). Visual tokens
and words have translators of their own: nothing of a sequence's end is ever asked of a patch, so what the two are
taught differs. The folder holds a safetensors file for each layer, read when it is needed, and ``tuned_lens.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from llava_probe.analyzers.table import Table, Tabular
from llava_probe.asking.identity import model_of, other_numbers
from llava_probe.border import checked
from llava_probe.described import Stored
from llava_probe.errors import BadFile, BadInput, OutOfRange
from llava_probe.inside.passes import alone_with
from llava_probe.interventions.on_states import read_tensor
from llava_probe.model import VLM
from llava_probe.stored import place, read_json
from llava_probe.whole_file import Axes, check_tensors, checksum, read_tensors, write_tensors

#: Whose positions a translator is of; the order of their axis.
POSITION_KINDS = ("text", "visual")

TUNED_LENS = "tuned_lens.json"
RECORD_FORMAT = "llava_probe.tuned_lens"
_TENSORS_FORMAT = 1


class HeldOutKL(Stored, frozen=True):
    """What one layer says at one kind of position of pictures that were not fitted, KL in nats a position.

    Attributes:
        layer: hidden state; ``kind``: of ``POSITION_KINDS``; ``positions``: how many were measured.
        logit, tuned: mean KL of the model's own last distribution from the logit lens's and the tuned lens's.
        gain: their difference; ``low``, ``high``: its 95 % interval over pictures.
    """

    layer: int
    kind: str
    positions: int
    logit: float
    tuned: float
    gain: float
    low: float
    high: float


class TunedRecord(Stored, frozen=True, kw_only=True):
    """What ``tuned_lens.json`` holds.

    Attributes:
        settings: all that decides what the translators become; ``model`` among them says whose they are.
        layers: that were fitted; ``width``: of their states.
        finished: whether the run came to its end.
        report: held-out figures; ``pictures``: how many were held out; ``losses``: mean KL of some steps by kind.
        left_out: why samples were left out.
    """

    format: str
    settings: dict[str, Any]
    layers: list[int]
    width: int
    finished: bool = False
    pictures: int = 0
    report: list[HeldOutKL] = msgspec.field(default_factory=list)
    losses: list[dict[str, float | None]] = msgspec.field(default_factory=list)
    left_out: list[str] = msgspec.field(default_factory=list)


@checked
@dataclass(frozen=True, eq=False)
class LensReport(Tabular):
    """How near each lens comes to what the model says at last, on pictures that were held out.

    Attributes:
        rows: of each layer and kind of position.
        pictures: how many were held out; none, and there are no rows.
    """

    rows: tuple[HeldOutKL, ...]
    pictures: int

    def curve(self, kind: str, of: str = "tuned") -> list[tuple[int, float]]:
        """A figure by layer, of ``"text"`` or ``"visual"`` positions: any of the columns that are numbers.

        Raises:
            BadInput: no such kind or column.
        """
        if kind not in POSITION_KINDS:
            raise BadInput(f"kind= takes {' or '.join(map(repr, POSITION_KINDS))}; got {kind!r}")
        if of not in ("tuned", "logit", "gain", "low", "high"):
            raise BadInput(f"of= takes 'tuned', 'logit', 'gain', 'low' or 'high'; got {of!r}")
        return [(row.layer, getattr(row, of)) for row in self.rows if row.kind == kind]

    def table(self) -> str:
        """A line for each layer and kind, to print."""
        return self._columns().text()

    def to_dict(self) -> dict[str, list[Any]]:
        """Plain lists by name, ready for JSON."""
        return self._columns().data

    def __str__(self) -> str:
        return f"{self.table()}\nKL in nats a position, {self.pictures} held-out pictures"

    def _repr_html_(self) -> str:
        return self._columns().html(f"KL in nats a position, {self.pictures} held-out pictures")

    def _columns(self) -> Table:
        names = HeldOutKL.__struct_fields__
        return Table({name: [getattr(row, name) for row in self.rows] for name in names})


@checked
@dataclass(frozen=True, eq=False)
class TunedLens:
    """Translators of hidden states, for ``lp.lens(..., tuned=...)``.

    Attributes:
        folder: where they lie.
        layers: that have one; the last state needs none.
        width: of a state.
        report: held-out figures beside the logit lens's.
        losses: mean KL in nats by kind, at some of the steps.
        settings: what it was fitted with, as plain data; ``settings["model"]`` says to which model.
        left_out: why samples were left out of it.
    """

    folder: Path
    layers: tuple[int, ...]
    width: int
    report: LensReport = field(repr=False)
    losses: tuple[Mapping[str, float | None], ...] = field(repr=False)
    settings: Mapping[str, Any] = field(repr=False)
    left_out: tuple[str, ...] = ()

    @classmethod
    def load(cls, folder: str | Path) -> TunedLens:
        """Read what ``lp.fit_lens`` left.

        Raises:
            BadFile: there is none, it is damaged, or its run did not end.
        """
        source = place("tuned lens", folder)
        held = read_record(source)
        if not held.finished:
            raise BadFile(f"the run in {source} did not end; the same fit_lens call goes on with it")
        if missing := [layer for layer in held.layers if not layer_file(source, layer).is_file()]:
            raise BadFile(f"{source} is damaged: the translators of layer {missing[0]} are gone")
        return cls(
            folder=source,
            layers=tuple(held.layers),
            width=held.width,
            report=LensReport(tuple(held.report), held.pictures),
            losses=tuple(held.losses),
            settings=held.settings,
            left_out=tuple(held.left_out),
        )

    def check(self, vlm: VLM) -> None:
        """That this is the model which it was fitted to: its weights, revision and dtype.

        Raises:
            BadInput: it is another one.
        """
        with alone_with(vlm.anatomy.model):
            here = model_of(vlm.anatomy, vlm.model)
        if other := other_numbers(self.settings["model"], here):
            raise BadInput(f"this tuned lens was fitted to another model ({'; '.join(other)}); fit one to this model")

    def translator(self, layer: int) -> dict[str, tuple[Tensor, Tensor]]:
        """By kind of position, the matrix A [D, D] and b [D] of h + A h + b.

        Raises:
            OutOfRange: no such layer was fitted.
            BadFile: the file is damaged.
        """
        if layer not in self.layers:
            told = ", ".join(map(str, self.layers))
            raise OutOfRange(f"layer {layer} has no translator in this tuned lens, only {told}")
        return read_layer(layer_file(self.folder, layer), self.width)

    def translate(self, states: Tensor, layer: int, visual: Tensor) -> Tensor:
        """[n, D] states as the last layer would have them, in their own dtype.

        Args:
            states: [n, D] of hidden state ``layer``.
            layer: by the model's own number.
            visual: [n] bool, whose positions are visual tokens.

        Raises:
            OutOfRange: no such layer was fitted.
            BadInput: states of another width, or not as many marks as states.
        """
        states, visual = read_tensor(states, "states="), torch.as_tensor(visual)
        if states.ndim != 2 or states.shape[1] != self.width or visual.shape != states.shape[:1]:
            raise BadInput(
                f"this lens translates states [n, {self.width}] with n marks of visual tokens; got "
                f"{list(states.shape)} and {list(visual.shape)}"
            )
        visual, out = visual.bool(), states.clone()
        for kind, (matrix, bias) in self.translator(layer).items():
            chosen = (visual if kind == "visual" else ~visual).to(states.device)
            out[chosen] = moved(states[chosen], matrix.to(states.device), bias.to(states.device))
        return out


def moved(states: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
    """States [n, D] as h + A h + b, summed in float32, in their own dtype."""
    wide = states.float()
    return (wide + wide @ matrix.float().T + bias.float()).to(states.dtype)


# --- the files ---


def read_record(folder: Path) -> TunedRecord:
    """``tuned_lens.json`` of a folder.

    Raises:
        BadFile: there is none, or it is none.
    """
    held = read_json("tuned lens", folder / TUNED_LENS, TunedRecord)
    if held.format != RECORD_FORMAT or "model" not in held.settings:
        raise BadFile(f"{folder / TUNED_LENS} is no tuned lens")
    return held


def layer_file(folder: Path, layer: int) -> Path:
    """Where the translators of a layer lie."""
    return folder / f"layer_{layer}.safetensors"


def write_layer(path: Path, matrices: Tensor, biases: Tensor) -> None:
    """Write the matrix and bias of each kind, [kinds, D, D] and [kinds, D], whole or not at all."""
    tensors: dict[str, Tensor] = {}
    for kind, matrix, bias in zip(POSITION_KINDS, matrices.cpu(), biases.cpu(), strict=True):
        tensors |= {f"{kind}/matrix": matrix.contiguous(), f"{kind}/bias": bias.contiguous()}
    header = path.stem
    metadata = {"llava_probe.translators": str(_TENSORS_FORMAT), "layer": header, "digest": checksum(header, tensors)}
    write_tensors("translator", path, tensors, metadata)


def read_layer(path: Path, width: int) -> dict[str, tuple[Tensor, Tensor]]:
    """What ``write_layer`` wrote, by kind.

    Raises:
        BadFile: it is damaged.
    """
    held = read_tensors("translator", path, key="llava_probe.translators", header="layer", newest=_TENSORS_FORMAT)
    shapes = {"matrix": Axes("f", (width, width)), "bias": Axes("f", (width,))}
    expected = {f"{kind}/{part}": axes for kind in POSITION_KINDS for part, axes in shapes.items()}
    check_tensors(held.source, held.tensors, expected)
    if not all(bool(torch.isfinite(tensor).all()) for tensor in held.tensors.values()):
        raise BadFile(f"{held.source} is damaged: its numbers are not all finite")
    return {kind: (held.tensors[f"{kind}/matrix"], held.tensors[f"{kind}/bias"]) for kind in POSITION_KINDS}
