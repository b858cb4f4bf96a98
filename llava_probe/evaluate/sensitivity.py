"""Sensitivity: how much a map changes when the photograph hardly does.

Max-sensitivity of Yeh et al. 2019 (arXiv 1901.09392), relative to the map as in captum: the largest
‖Φ(x + δ) − Φ(x)‖ / ‖Φ(x)‖ over some uniform noises δ within ± radius. Low is steady, and not yet right: a map that
never looks at the picture has 0.

    sensitivity(vlm, trace, "relevance", tokens="red").largest
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
import torch
from PIL import Image

from llava_probe.arrays import FloatArray
from llava_probe.attribution import attribute
from llava_probe.attribution.engine.target import Contrast, targets
from llava_probe.border import Count, Limits, Seed, checked
from llava_probe.errors import BadInput
from llava_probe.model import VLM
from llava_probe.trace.capture import Capture
from llava_probe.trace.explained import Tokens, placed
from llava_probe.trace.trace import Trace

#: Of the full scale from black to white: about five of 255.
RADIUS, SENSITIVITY_SAMPLES = 0.02, 10
_NOTHING = Capture(hidden_states=False, attention=False, logits=False)


@checked
@dataclass(frozen=True, eq=False)
class Sensitivity:
    """Relative changes of a map.

    Attributes:
        each: [samples, rows] one for each noise.
        forwards, backwards: passes of the method, over all its maps.
    """

    each: FloatArray
    forwards: int
    backwards: int

    @property
    def largest(self) -> FloatArray:
        """[rows] over the noises: sensitivity-max."""
        largest: FloatArray = self.each.max(0)
        return largest


@checked
def sensitivity(
    vlm: VLM,
    trace: Trace,
    method: str = "relevance",
    image: int = 0,
    tokens: Tokens = None,
    *,
    contrast: Contrast = None,
    of: str | None = None,
    radius: Annotated[float, Limits(above=0, most=1)] = RADIUS,
    samples: Count = SENSITIVITY_SAMPLES,
    seed: Seed = 0,
    options: Mapping[str, Any] | None = None,
) -> Sensitivity:
    """How much a method's maps of the same answer change under small noise on the photograph.

    Args:
        vlm, trace, method, image, tokens, contrast, of: as for ``lp.attribute``.
        radius: of the noise, as a share of the scale from black to white; values are rounded and stay on the scale.
        samples: how many noises.
        seed: of the noises.
        options: of the method.

    Raises:
        BadInput: ready-made inputs, which cannot be encoded again, or what ``lp.attribute`` refuses.
        OutOfRange: a word, position or picture that is not there.
    """
    if trace.request.inputs is not None:
        raise BadInput("this trace was asked with ready-made inputs, so a noisy picture cannot be put through again")
    placed(trace, image)  # refuses a picture that is not there
    found, _ = targets(vlm, trace, tokens, contrast)
    places = [list(target.positions) for target in found]

    def mapped(given: Trace) -> Any:
        return attribute(vlm, given, method, image, places, contrast=contrast, of=of, **(options or {}))

    steady = mapped(trace)
    norms = steady.values.double().norm(dim=1)
    norms = torch.where(norms == 0, 1.0, norms)
    generator = np.random.default_rng(seed)
    maps = [steady]
    for _ in range(samples):
        images = list(trace.images)
        images[image] = noisy(images[image], radius, generator)
        maps.append(mapped(_said_again(vlm, trace, images)))
    each = np.stack([((m.values - steady.values).double().norm(dim=1) / norms).numpy() for m in maps[1:]])
    return Sensitivity(each, *(sum(int(m.about[name]) for m in maps) for name in ("forwards", "backwards")))


def noisy(photograph: Image.Image, radius: float, generator: np.random.Generator) -> Image.Image:
    """The photograph with uniform noise on each channel of each pixel."""
    pixels = np.asarray(photograph.convert("RGB"), dtype=np.float64)
    noise = generator.uniform(-255 * radius, 255 * radius, pixels.shape)
    return Image.fromarray((pixels + noise).round().clip(0, 255).astype(np.uint8))


def _said_again(vlm: VLM, trace: Trace, images: Sequence[Image.Image]) -> Trace:
    """The trace's answer, word for word, given to other pictures."""
    ids = [token.id for token in trace.generated]
    return vlm.rerun(replace(trace, images=tuple(images)), answer=ids, capture=_NOTHING)
