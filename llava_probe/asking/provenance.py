"""With what a trace was made, for people to read: model, dtype, kernels, versions, and a hash of each picture."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers

from llava_probe import __version__, tiny
from llava_probe.inside import seam
from llava_probe.inside.anatomy import Anatomy
from llava_probe.pictures.images import fingerprint
from llava_probe.trace.sizes import Sizes


def provenance_of(anatomy: Anatomy, processor: Any, images: Sequence[Any], checks: Mapping[str, Any]) -> dict[str, Any]:
    """With what a trace was made; plain data, no clock, so that equal runs leave equal files."""
    model = anatomy.model
    return {
        **model_of(anatomy),
        "processor": type(processor).__name__,
        "devices": sorted({str(parameter.device) for parameter in model.parameters()}),
        "images": [fingerprint(image) for image in images],
        "versions": {
            "llava_probe": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "checks": dict(checks),
    }


def sizes_of(anatomy: Anatomy) -> Sizes:
    """How large the model is."""
    return Sizes(
        layers=anatomy.layers,
        heads=anatomy.heads,
        vocabulary=anatomy.vocabulary,
        width=anatomy.width,
        dtype=_dtype(anatomy.model),
        other_layers=dict(anatomy.other_layers),
    )


def model_of(anatomy: Anatomy) -> dict[str, Any]:
    """Which model it is: its name and revision, its class, and what its arithmetic depends on."""
    model = anatomy.model
    quantization = getattr(model.config, "quantization_config", None)
    return {
        "model": _name(model),
        "revision": seam.revision(model.config),
        "class": type(model).__name__,
        "dtype": _dtype(model),
        "attention": seam.implementation(anatomy.decoder.owner.config),
        "quantization": None if quantization is None else str(getattr(quantization, "quant_method", quantization)),
    }


def weights_of(anatomy: Anatomy) -> str:
    """A hash of a few numbers of every parameter: another checkpoint of the same name has another."""
    told = hashlib.sha256()
    for name, parameter in sorted(anatomy.model.named_parameters()):
        told.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        if parameter.device.type != "meta":
            flat = parameter.detach().reshape(-1)
            few = flat[:: max(1, flat.numel() // 16)][:16]
            told.update(few.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return told.hexdigest()[:32]


def _dtype(model: Any) -> str:
    return str(model.dtype).removeprefix("torch.")


def _name(model: Any) -> str:
    where = seam.checkpoint(model.config)
    return "tiny" if where == str(tiny.path()) else where or type(model).__name__
