"""What a way of tiling may read: the sizes of a prompt's pictures, and what their processor made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llava_probe.inside import seam


@dataclass(frozen=True)
class Prepared:
    """The pictures of one prompt, or its videos, processed.

    Attributes:
        model: the unmodified model, for its config and its own packing of features.
        processor: its image (video) processor; ``settings``: those of this call that are not the processor's own.
        sizes: (width, height) of each original picture, or of each video, in order.
        inputs: the model inputs, of the prompt alone or of its batch.
        first: how many pictures (videos) of the batch came before these.
        frames: how many frames each video has; empty for pictures.
    """

    model: Any
    processor: Any
    settings: Mapping[str, Any]
    sizes: Sequence[tuple[int, int]]
    inputs: Mapping[str, Tensor]
    first: int = 0
    frames: Sequence[int] = ()

    @classmethod
    def by(
        cls,
        model: Any,
        processor: Any,
        call: Mapping[str, Any],
        sizes: Sequence[tuple[int, int]],
        inputs: Mapping[str, Tensor],
        first: int,
        frames: Sequence[int] = (),
    ) -> Prepared:
        """As the whole ``processor`` prepared them: it has defaults for its parts, and ``call`` overrides them."""
        of_kind = "videos_kwargs" if frames else "images_kwargs"
        settings = seam.call_settings(processor, call, of_kind)
        part = processor.video_processor if frames else processor.image_processor
        return cls(model, part, settings, sizes, inputs, first, frames)

    @property
    def config(self) -> Any:
        """The model's config."""
        return self.model.config

    def setting(self, name: str) -> Any:
        """A setting of the image (video) processor, as it was for this call."""
        return self.settings.get(name, getattr(self.processor, name, None))

    def coordinates(self, size: tuple[int, int]) -> tuple[Any, Any]:
        """Pictures [1, height, width] whose values are x and y, as the image processor takes them; no memory used."""
        width, height = size
        x, y = torch.arange(width, dtype=torch.float32), torch.arange(height, dtype=torch.float32)[:, None]
        both: tuple[Any, Any] = (x.expand(1, height, width), y.expand(1, height, width))
        if getattr(self.processor, "backend", "pil") != "torchvision":
            both = (both[0].numpy(), both[1].numpy())
        return both

    def told(self, name: str, picture: int) -> list[int]:
        """A row of numbers that the processor passed to the model about one picture or video."""
        return [int(number) for number in self.inputs[name][self.first + picture].flatten()]
