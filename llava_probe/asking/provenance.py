"""With what a trace was made, for people to read: model, dtype, kernels, versions, and a hash of each picture."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers

from llava_probe import __version__
from llava_probe.asking.identity import decoding_of, model_of, processor_of
from llava_probe.inside.anatomy import Anatomy
from llava_probe.pictures.images import fingerprint
from llava_probe.trace.sizes import Sizes


def provenance_of(
    anatomy: Anatomy, held: Any, processor: Any, images: Sequence[Any], checks: Mapping[str, Any]
) -> dict[str, Any]:
    """With what a trace was made; plain data, no clock, so that equal runs leave equal files.

    Args:
        anatomy, held: the model's parts, and the model as the user holds it.
        processor, images, checks: of the question, and what ``lp.check`` found before.
    """
    model = anatomy.model
    return {
        **model_of(anatomy, held),
        "processor": f"{type(processor).__name__} ({processor_of(processor)})",
        "decoding": decoding_of(anatomy.generator),
        "devices": sorted(map(str, {parameter.device for parameter in model.parameters()})),
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


def _dtype(model: Any) -> str:
    return str(model.dtype).removeprefix("torch.")
