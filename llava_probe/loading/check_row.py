"""One row kept beside what was trained: its inputs, and the logits that it had when training ended.

    write_check_row(model, inputs, "runs/street-signs")       # by whoever trained
    verify_row(model, "runs/street-signs")                    # by lp.load: the same logits again, and not the base's

That every tensor has its place (``adapters.py``) does not say that a pass uses it, nor that the weights beneath are
those that it was trained on. The logits of a row say both: they must be those of the end of training, and differ from
the base's as they did then.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from llava_probe.described import Stored
from llava_probe.errors import BadFile, BadInput, BadModel, first_line, shortened
from llava_probe.faults import of_the_machine
from llava_probe.inside import seam
from llava_probe.inside.anatomy import anatomy
from llava_probe.inside.tolerance import SCORES
from llava_probe.loading.last_logits import (
    LAST_POSITIONS,
    SAME_LOGITS,
    last_logits,
    logits_apart,
    nearer_than_none,
    without_adapter,
)
from llava_probe.smol import shipped_name
from llava_probe.stored import decoded
from llava_probe.whole_file import Axes, check_tensors, checksum, read_tensors, write_tensors

#: The file's name beside an adapter or a model.
CHECK_ROW = "check_row.safetensors"
CHECK_ROW_FORMAT = 1

#: Bytes of a file that is read: pixels of a page in tiles are 100 MB, logits of a large vocabulary 10.
_LARGEST = 500_000_000

_INPUTS, _TUNED, _BASE = "inputs.", "logits.tuned", "logits.base"


class StoredRow(Stored, frozen=True):
    """What a check row says of itself: inputs that are no tensors, and what wrote it."""

    inputs: dict[str, Any]
    model: str
    dtype: str
    transformers: str
    torch: str


@dataclass(frozen=True, eq=False)
class _Row:
    """A check row as read.

    Attributes:
        inputs: of one row; ``tuned`` and ``base``: [n, V] logits of its last positions, float32.
        told: what wrote it.
    """

    inputs: Mapping[str, Any]
    tuned: Tensor
    base: Tensor
    told: StoredRow

    @property
    def change(self) -> Tensor:
        """[n, V] what training changed."""
        return self.tuned - self.base


def write_check_row(model: Any, inputs: Mapping[str, Any], folder: str | Path, *, base: Tensor | None = None) -> Path:
    """Keep a row beside what was trained.

    Args:
        model: as training left it, its adapter on and not merged, no wrapper of accelerate's around its forward pass.
        inputs: of one row, as for ``last_logits``; what is no tensor must be plain data.
        folder: that of the adapter or model.
        base: ``last_logits`` before training, where the model itself was trained; else the adapter is switched off.

    Returns:
        The file.

    Raises:
        BadInput: inputs that no file can hold, or a model that does not run as it will when it is loaded.
        BadModel: training changed nothing, or left logits that are no numbers.
        BadFile: the file cannot be written.
    """
    if (forward := seam.forward_in_place(model)) is not None:
        raise BadInput(
            f"{getattr(forward, '__qualname__', 'something')} stands in place of the model's forward pass and may run "
            "it in another dtype; give accelerator.unwrap_model(model, keep_fp32_wrapper=False)"
        )
    kept = {name: value for name, value in inputs.items() if name != "labels" and value is not None}
    tensors = {name: value for name, value in kept.items() if isinstance(value, Tensor)}
    plain = {name: value for name, value in kept.items() if name not in tensors}
    tuned = last_logits(model, kept)
    base = _logits_without(model, kept) if base is None else base.to("cpu", torch.float32)
    if not tuned.isfinite().all():
        raise BadModel("the trained model's logits are not all finite numbers: training diverged")
    if logits_apart(tuned, base) <= SAME_LOGITS:
        raise BadModel("the trained model has the base's logits on its check row: training changed nothing")
    header = _header(anatomy(model).model, plain)
    stored = {f"{_INPUTS}{name}": value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
    stored |= {_TUNED: tuned, _BASE: base.contiguous()}
    metadata = {"llava_probe.check_row": str(CHECK_ROW_FORMAT), "row": header, "digest": checksum(header, stored)}
    return write_tensors("check row", Path(folder) / CHECK_ROW, stored, metadata)


def verify_row(model: Any, folder: str | Path) -> None:
    """See that a loaded model is the one that was trained.

    Args:
        model: with its adapter on, or the whole model that was trained.
        folder: where ``write_check_row`` wrote.

    Raises:
        BadModel: the logits are not those of the end of training (weights that were quantised since need not give
            them), they are those without the adapter, or the file is damaged; with what is probably wrong.
    """
    path = Path(folder) / CHECK_ROW
    try:
        row = _read(path)
        tuned = last_logits(model, row.inputs, len(row.tuned))
        base = _logits_without(model, row.inputs, len(row.tuned)) if hasattr(model, "disable_adapter") else row.base
        fault = _fault(row, anatomy(model).model, tuned, base)
    except Exception as error:  # the file's inputs may be anything
        if of_the_machine(error):
            raise
        fault = str(error) if isinstance(error, BadFile) else f"its row cannot be run: {shortened(first_line(error))}"
    if fault is not None:
        raise BadModel(f"{folder} was not loaded as it was trained: {fault}; to load it all the same, remove {path}")


# --- comparing ---


def _logits_without(model: Any, inputs: Mapping[str, Any], count: int = LAST_POSITIONS) -> Tensor:
    if not hasattr(model, "disable_adapter"):
        raise BadInput(f"{type(model).__name__} has no adapter to switch off; give base=, its logits before training")
    with without_adapter(model):
        return last_logits(model, inputs, count)


def _fault(row: _Row, inside: Any, tuned: Tensor, base: Tensor) -> str | None:
    """What is wrong with the logits of a loaded model, with its adapter and without; None where nothing is."""
    adapted, quantised = base is not row.base, getattr(inside.config, "quantization_config", None) is not None
    if tuned.shape != row.tuned.shape:
        there, here = (f"{one.shape[0]} x {one.shape[1]:,}" for one in (row.tuned, tuned))
        return f"its check row has {there} logits, this model {here}: it was trained on {_named(row.told.model)}"
    if adapted and logits_apart(tuned, base) <= SAME_LOGITS:
        return (
            "on its check row the logits are those without the adapter, which changed them by "
            f"{logits_apart(row.tuned, row.base):.1e} of the largest: its scaling is 0 (lora_alpha), it is off, or no "
            "pass runs the modules that it is on"
        )
    limit = _limit(inside.dtype, row.told.dtype)
    if not quantised and not (off := logits_apart(tuned, row.tuned)) <= limit:
        return (
            f"on its check row the logits are off by {off:.1e} of the largest, where {inside.dtype} beside "
            f"{row.told.dtype} rounds by {limit:.0e} at most: {_cause(row, inside)}"
        )
    # what 16 bits may hide from the bound above; refused were changes of less than a third of what the dtype rounds
    if not (adapted and quantised) and not nearer_than_none(tuned - base, row.change):
        return (
            "on its check row the logits are not changed as training changed them: "
            f"{_cause(row, inside)}, or {inside.dtype} rounds the change away (it was trained with {row.told.dtype})"
        )
    return None


def _limit(dtype: torch.dtype, trained: str) -> float:
    """By the coarser of two dtypes.

    ``SCORES`` fits: bfloat16 beside float32 lay 0.003 to 0.07 apart and float16 4e-4 to 0.012 (14 families and a
    language model of 135M), another kernel in float32 3e-6; convolutions in TF32 are what else its 1e-3 is for.
    """
    coarsest = max(SCORES.values())
    return max(SCORES.get(dtype, coarsest), SCORES.get(getattr(torch, trained), coarsest))


def _cause(row: _Row, inside: Any) -> str:
    """What is probably wrong with a model that does not give a row's logits."""
    here, there = _checkpoint(inside), row.told.model
    if here and there and Path(there).name != Path(here).name:
        return f"it was trained on {there}, and this is {here}"
    before, now = row.told.transformers, transformers.__version__
    told = f", or transformers {before} computed otherwise than {now}" if before != now else ""
    return f"its weights, or those of {_named(here)} beneath, are others than at the end of training{told}"


def _checkpoint(inside: Any) -> str:
    where = seam.checkpoint(inside.config)
    return shipped_name(where) or where


def _named(model: str) -> str:
    return model or "a model without a name"


# --- the file ---


def _header(inside: Any, plain: Mapping[str, Any]) -> str:
    told = {"inputs": dict(plain), "model": _checkpoint(inside)}
    told |= {"dtype": str(inside.dtype).removeprefix("torch.")}
    told |= {"transformers": transformers.__version__, "torch": torch.__version__}
    try:
        return json.dumps(told, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise BadInput(f"a check row holds tensors and plain data; among {sorted(plain)} is something else") from error


def _read(path: Path) -> _Row:
    """A check row, all of it as it must be.

    Raises:
        BadFile: it is not.
    """
    key, newest = "llava_probe.check_row", CHECK_ROW_FORMAT
    held = read_tensors("check row", path, key=key, header="row", newest=newest, limit=_LARGEST)
    told = decoded(f"the header of {path} is damaged", held.header, StoredRow)
    table = Axes("f", tuple(held.tensors[_TUNED].shape) if _TUNED in held.tensors else (None, None))
    inputs = {name: None for name in held.tensors if name.startswith(_INPUTS)}
    known = {f"{_INPUTS}input_ids": Axes("iu", (1, None)), _TUNED: table, _BASE: table}
    check_tensors(path, held.tensors, {**inputs, **known})
    tuned, base = (held.tensors[name].to(torch.float32) for name in (_TUNED, _BASE))
    finite = bool(tuned.isfinite().all() and base.isfinite().all())
    if tuned.ndim != 2 or not 0 < len(tuned) <= LAST_POSITIONS or not finite:
        raise BadFile(f"{path} is damaged: its logits are no finite numbers of 1 to {LAST_POSITIONS} positions")
    if not isinstance(getattr(torch, told.dtype, None), torch.dtype):
        raise BadFile(f"{path} is damaged: torch has no dtype {shortened(repr(told.dtype))}")
    given = {name.removeprefix(_INPUTS): held.tensors[name] for name in inputs}
    return _Row({**told.inputs, **given}, tuned, base, told)
