"""Sums of each picture's samples, as they come, and means of all with intervals that draw pictures again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from llava_probe.arrays import FloatArray
from llava_probe.resampling import LEVEL, resamples, weighed
from llava_probe.signals.measured import RESAMPLED, Estimate


@dataclass(frozen=True, eq=False)
class Means:
    """Means over samples, of any shape, with the ends of their 95 % intervals over pictures; NaN for one picture."""

    value: FloatArray
    low: FloatArray
    high: FloatArray

    def __getitem__(self, place: Any) -> Means:
        return Means(self.value[place], self.low[place], self.high[place])

    @property
    def estimate(self) -> Estimate:
        """Of a single number."""
        return Estimate(float(self.value), float(self.low), float(self.high))


@dataclass(eq=False)
class PictureSums:
    """What was measured, summed by picture: memory grows with pictures, not with samples.

    Attributes:
        pictures: the number of each, by its key.
    """

    pictures: dict[str, int] = field(default_factory=dict)
    _sums: dict[str, dict[int, FloatArray]] = field(default_factory=dict)
    _counts: dict[str, dict[int, int]] = field(default_factory=dict)

    def add(self, picture: str, values: Mapping[str, Tensor | None]) -> None:
        """One sample's values by name; None where it has none."""
        number = self.pictures.setdefault(picture, len(self.pictures))
        for name, value in values.items():
            if value is None:
                continue
            sums, counts = self._sums.setdefault(name, {}), self._counts.setdefault(name, {})
            given = value.detach().cpu().numpy()
            sums[number] = sums[number] + given if number in sums else given.copy()
            counts[number] = counts.get(number, 0) + 1

    def __contains__(self, name: str) -> bool:
        return name in self._sums

    def rows(self, name: str) -> FloatArray:
        """[pictures, ...] each picture's mean."""
        return np.stack([self._sums[name][each] / self._counts[name][each] for each in self._sums[name]])

    def means(self, name: str, seed: int) -> Means | None:
        """Of all samples; None where none had it."""
        if name not in self._sums:
            return None
        sums = np.stack(list(self._sums[name].values())).astype(np.float64)
        counts = np.array(list(self._counts[name].values()), dtype=np.float64)
        value = sums.sum(0) / counts.sum()
        if len(sums) < 2:
            return Means(value, np.full_like(value, np.nan), np.full_like(value, np.nan))
        drawn = resamples(len(sums), RESAMPLED, seed)
        flat = weighed(drawn, sums.reshape(len(sums), -1)) / weighed(drawn, counts)[:, None]
        low, high = np.quantile(flat, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        return Means(value, low.reshape(value.shape), high.reshape(value.shape))
