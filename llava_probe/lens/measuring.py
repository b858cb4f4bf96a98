"""How near a fitted lens comes to the model's last word on pictures that were held out, beside the logit lens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from llava_probe.features.samples import Sample
from llava_probe.lens.fitting import Translator, by_kind, divergence, translated
from llava_probe.lens.sampled import Passes
from llava_probe.lens.tuned import POSITION_KINDS, HeldOutKL
from llava_probe.resampling import interval, resamples, weighed

#: Draws of the pictures behind an interval.
_TIMES = 2000

#: The two lenses, along the last axis of the sums.
_LOGIT, _TUNED = 0, 1


def figures_of(
    passes: Passes, translators: Sequence[Translator], samples: Sequence[Sample], size: int, seed: int
) -> tuple[list[HeldOutKL], int]:
    """Held-out figures of each layer and kind of position, and how many pictures they are of; none without samples.

    Args:
        passes: over samples.
        translators: of each fitted layer, as they are kept.
        samples: that were held out.
        size: samples a pass.
        seed: of the draws behind the intervals.
    """
    pictures = {key: number for number, key in enumerate(dict.fromkeys(sample.group for sample in samples))}
    shape = (len(pictures), len(passes.layers), len(POSITION_KINDS), 2)
    sums, counts = np.zeros(shape), np.zeros((len(pictures), len(POSITION_KINDS)))
    for states in passes.over(samples, size):
        owners = np.array([pictures[sample.group] for sample in states.samples])[states.sample.cpu().numpy()]
        np.add.at(counts, (owners, states.kind.cpu().numpy()), 1)
        for part, own in passes.blocks(states):
            kind, owner = states.kind[part], owners[part]
            for place, layer in enumerate(passes.layers):
                rows = states.layers[layer][part]
                for which, given in ((_LOGIT, rows), (_TUNED, translated(rows, kind, *translators[place]))):
                    with torch.no_grad():
                        said = passes.ending.logits(given).log_softmax(1)
                    apart = divergence(own, said)
                    for picture in np.unique(owner):
                        mine = torch.from_numpy(owner == picture).to(kind.device)
                        sums[picture, place, :, which] += by_kind(apart[mine], kind[mine]).numpy()
    draws = resamples(len(pictures), _TIMES, seed) if pictures else np.zeros((0, 0), dtype=np.uint16)
    found = []
    for place, layer in enumerate(passes.layers):
        for number, name in enumerate(POSITION_KINDS):
            if counts[:, number].any():
                found.append(_figures(layer, name, sums[:, place, number], counts[:, number], draws))
    return found, int((counts.sum(1) > 0).sum())


def _figures(layer: int, kind: str, sums: np.ndarray, counts: np.ndarray, draws: np.ndarray) -> HeldOutKL:
    """Of [pictures, 2] sums and [pictures] positions."""
    logit, tuned = (sums.sum(0) / counts.sum()).tolist()
    with np.errstate(invalid="ignore", divide="ignore"):
        gains = weighed(draws, sums[:, _LOGIT] - sums[:, _TUNED]) / weighed(draws, counts)
    low, high = interval(gains)
    return HeldOutKL(layer, kind, int(counts.sum()), logit, tuned, logit - tuned, low, high)
