"""The steps of a fit: what each layer says beside the model's last word, and which way its translators are moved.

No state outlives its batch and no vocabulary of logits its block. The divergence of a block needs no graph but the one
through the model's norm and unembedding: its slope at the lens's logits is q - p, the lens's distribution less the
model's own, exactly nothing where they agree; so a layer that changes nothing is left alone, and not moved by rounding.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam

from llava_probe.described import Stored
from llava_probe.errors import BadInput, BadModel
from llava_probe.features.samples import Sample
from llava_probe.lens.sampled import Passes, States
from llava_probe.lens.tuned import POSITION_KINDS, moved
from llava_probe.stored import decoded
from llava_probe.whole_file import checksum, read_tensors, write_tensors

CHECKPOINT = "checkpoint.safetensors"

#: Seconds between checkpoints: what a broken run does again.
EVERY = 120.0

#: Steps whose divergence is kept, at most: enough for a curve.
_TOLD = 200

_CHECKPOINT_FORMAT = 1

#: What Adam keeps of each value, by torch's names.
_STATE = ("step", "exp_avg", "exp_avg_sq")

#: The matrices [kinds, D, D] and biases [kinds, D] of one layer.
Translator = tuple[Tensor, Tensor]


class Fitting:
    """Translators on their way, and the steps that move them.

    Args:
        passes: over the samples.
        folder: of the lens, for checkpoints.
        lr, steps: of Adam; the rate falls to nothing in a straight line.
    """

    def __init__(self, passes: Passes, folder: Path, lr: float, steps: int) -> None:
        self._passes, self._path, self._lr, self._steps = passes, folder / CHECKPOINT, lr, steps
        self._values: list[Tensor] = []
        self._resumed: list[dict[str, Tensor]] = []
        self._adam: Adam | None = None
        self._step = 0
        self._losses: list[dict[str, float | None]] = []

    def run(self, samples: Sequence[Sample], steps: Sequence[Sequence[int]], bar: Any) -> list[dict[str, float | None]]:
        """Take the steps that are left; the mean divergence of some of them by kind.

        Raises:
            BadInput: no sample could be read.
            BadFile: the checkpoint is damaged.
        """
        self._resume()
        bar.update(self._step)
        written, told = time.monotonic(), max(1, self._steps // _TOLD)
        while self._step < len(steps):
            loss = self._one([samples[number] for number in steps[self._step]])
            if self._step % told == 0 or self._step == len(steps) - 1:
                self._losses.append({"step": self._step, **loss})
            self._step += 1
            bar.update(1)
            bar.set_postfix_str(", ".join(f"{kind} {kl:.3f}" for kind, kl in loss.items() if kl is not None))
            if time.monotonic() - written >= EVERY:
                self._checkpoint()
                written = time.monotonic()
        if not self._values:
            raise BadInput(f"no sample could be read: {(self._passes.left_out or ['none was given'])[0]}")
        return self._losses

    def translators(self, dtype: torch.dtype) -> list[Translator]:
        """[kinds, D, D] and [kinds, D] of each fitted layer, as they are to be kept."""
        held = [value.to(dtype) for value in self._values]
        return list(zip(held[::2], held[1::2], strict=True))

    def clean(self) -> None:
        """The run is over: no checkpoint is needed."""
        self._path.unlink(missing_ok=True)

    # --- a step ---

    def _one(self, samples: Sequence[Sample]) -> dict[str, float | None]:
        sums, counts = torch.zeros(len(POSITION_KINDS), dtype=torch.float64), torch.zeros(len(POSITION_KINDS))
        slopes: list[Tensor] = []
        for states in self._passes.over(samples, len(samples)):
            self._begin(states)
            slopes = slopes or [torch.zeros_like(value) for value in self._values]
            counts += torch.bincount(states.kind.cpu(), minlength=len(POSITION_KINDS))
            for part, own in self._passes.blocks(states):
                sums += self._block(states, part, own, slopes)
        if self._adam is not None and slopes:
            for value, slope in zip(self._values, slopes, strict=True):
                for kind, count in enumerate(counts.clamp(min=1).tolist()):
                    slope[kind] /= count
                value.grad = slope
            self._adam.param_groups[0]["lr"] = self._lr * (1 - self._step / self._steps)
            self._adam.step()
        each = zip(POSITION_KINDS, sums.tolist(), (counts * len(self._passes.layers)).tolist(), strict=True)
        return {kind: total / count if count else None for kind, total, count in each}

    def _begin(self, states: States) -> None:
        """The translators and what moves them, where the states are; from a checkpoint, or changing nothing."""
        if self._adam is None:
            self._values = [value.to(states.last.device) for value in self._values or untouched(states)]
            self._adam = Adam(self._values, lr=self._lr)
            for value, moments in zip(self._values, self._resumed, strict=False):
                self._adam.state[value] = {name: one.to(value.device) for name, one in moments.items()}

    def _block(self, states: States, part: slice, own: Tensor, slopes: Sequence[Tensor]) -> Tensor:
        """Add the slopes of a block of rows; its divergence by kind, summed over rows and layers."""
        kind = states.kind[part]
        total = torch.zeros(len(POSITION_KINDS), dtype=torch.float64)
        for place, layer in enumerate(self._passes.layers):
            rows = states.layers[layer][part]
            given = translated(rows, kind, *self._values[2 * place : 2 * place + 2]).requires_grad_()
            with torch.enable_grad():
                logits = self._passes.ending.logits(given)
            said = logits.detach().log_softmax(1)
            total += by_kind(divergence(own, said), kind)
            (slope,) = torch.autograd.grad(logits, given, said.exp() - own.exp())
            wide, slope = rows.float(), slope.float()
            for number in range(len(POSITION_KINDS)):
                chosen = kind == number
                slopes[2 * place][number] += slope[chosen].T @ wide[chosen]
                slopes[2 * place + 1][number] += slope[chosen].sum(0)
        return total

    # --- checkpoints ---

    def _checkpoint(self) -> None:
        if self._adam is None:
            return
        tensors = {f"value.{number}": value.cpu() for number, value in enumerate(self._values)}
        for number, value in enumerate(self._values):
            tensors |= {f"{name}.{number}": one.cpu() for name, one in self._adam.state[value].items()}
        told = {"step": self._step, "losses": self._losses, "left_out": self._passes.left_out}
        header = json.dumps(told)
        named = {"llava_probe.fit": str(_CHECKPOINT_FORMAT), "fit": header, "digest": checksum(header, tensors)}
        write_tensors("checkpoint", self._path, tensors, named)

    def _resume(self) -> None:
        if not self._path.exists():
            return
        held = read_tensors("checkpoint", self._path, key="llava_probe.fit", header="fit", newest=_CHECKPOINT_FORMAT)
        told = decoded(f"the header of {held.source} is damaged", held.header, _Told)
        count = sum(name.startswith("value.") for name in held.tensors)
        self._values = [held.tensors[f"value.{number}"] for number in range(count)]
        self._resumed = [{name: held.tensors[f"{name}.{number}"] for name in _STATE} for number in range(count)]
        self._step, self._losses = told.step, [*told.losses]
        self._passes.left_out[:] = told.left_out


class _Told(Stored, frozen=True):
    """What a checkpoint says besides its tensors."""

    step: int
    losses: list[dict[str, int | float | None]]  # a step stays a whole number, so that a file's bytes stay
    left_out: list[str]


def untouched(states: States) -> list[Tensor]:
    """The matrix and bias of each layer, [kinds, D, D] and [kinds, D], that change no state.

    Raises:
        BadModel: states of different widths.
    """
    widths = {rows.shape[1] for rows in states.layers.values()}
    if len(widths) > 1:
        raise BadModel(f"these layers have states of different widths ({sorted(widths)}); fit layers of one width")
    (width,) = widths
    shapes = [(len(POSITION_KINDS), width, width), (len(POSITION_KINDS), width)] * len(states.layers)
    return [torch.zeros(shape) for shape in shapes]


def divergence(own: Tensor, said: Tensor) -> Tensor:
    """[n] KL(own ‖ said) in nats, of log-probabilities [n, V]."""
    return torch.nan_to_num(own.exp() * (own - said), nan=0.0).sum(1)  # nothing for a word that both rule out


def by_kind(values: Tensor, kind: Tensor) -> Tensor:
    """[kinds] sums of [n] values, on the CPU."""
    return torch.zeros(len(POSITION_KINDS), dtype=torch.float64).index_add_(0, kind.cpu(), values.double().cpu())


def translated(rows: Tensor, kind: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
    """[n, D] rows, each moved by the translator of its kind."""
    given = torch.empty_like(rows)
    for number in range(len(POSITION_KINDS)):
        given[kind == number] = moved(rows[kind == number], matrix[number], bias[number])
    return given
