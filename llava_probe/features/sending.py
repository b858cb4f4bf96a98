"""A loaded model as bytes for another process: without the closures that a run has hung on it, wherever it stands."""

from __future__ import annotations

import io
import pickle
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from llava_probe.errors import BadInput, first_line
from llava_probe.inside import seam
from llava_probe.model import VLM


def packed(vlm: VLM) -> bytes:
    """The model for another process, wherever it is here and whether or not it has run.

    Raises:
        BadInput: it holds something that cannot be sent.
    """
    from ray import cloudpickle

    class Packer(cloudpickle.Pickler):
        def reducer_override(self, thing: Any) -> Any:
            if isinstance(thing, nn.Module):
                return _unhooked(thing)
            if isinstance(thing, Tensor) and thing.device.type != "cpu":
                return _tensor, (type(thing) is nn.Parameter, thing.detach().cpu(), thing.requires_grad)
            return super().reducer_override(thing)

    file = io.BytesIO()
    try:
        Packer(file).dump(vlm)
    except (pickle.PicklingError, TypeError, AttributeError, RuntimeError) as error:
        raise BadInput(f"the model cannot be sent to Ray's workers ({first_line(error)}); give its name") from error
    return file.getvalue()


def unpacked(sent: bytes) -> VLM:
    """What ``packed`` was given, on the CPU."""
    vlm: VLM = pickle.loads(sent)
    with torch.device("meta"):  # transformers learns what a class records where one is made, not where one is unpickled
        seam.built(type(vlm.anatomy.model), deepcopy(vlm.anatomy.model.config))
    return vlm


def _unhooked(module: nn.Module) -> tuple[Any, ...]:
    """Without what transformers hangs on a model in its first pass, which cannot be sent."""
    reduced: Any = module.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
    made, given, state, *rest = reduced
    return made, given, seam.without_recorders(state) if isinstance(state, dict) else state, *rest


def _tensor(is_parameter: bool, data: Tensor, requires_grad: bool) -> Tensor:
    return nn.Parameter(data, requires_grad) if is_parameter else data
