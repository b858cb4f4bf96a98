"""From a prompt's visual tokens to their places on the photographs: one file a way of tiling.

``Layouts`` looks up which way the model's family has and hands it what the processor made of the pictures; a family
without one is measured (``measured.py``). A new way is one file with a ``place_...`` function and a line in ``WAYS``.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from llava_probe.arrays import IntArray
from llava_probe.errors import BadInput, BadModel, ProbeError, first_line
from llava_probe.faults import of_the_machine
from llava_probe.inside.anatomy import Anatomy
from llava_probe.layout import anyres, crop, frames, stretched, tiled
from llava_probe.layout.asking import Asking
from llava_probe.layout.geometry import ImageLayout, Placement, Share, in_a_row
from llava_probe.layout.measured import NOWHERE, measure
from llava_probe.layout.prepared import Prepared

__all__ = ["HOW", "OF_FRAMES", "WAYS", "Asking", "Clips", "ImageLayout", "Layouts", "PromptLayouts"]

Way = Callable[[Prepared], list[Share]]

#: How each family (``config.model_type``) brings a photograph to its vision tower.
WAYS: dict[str, Way] = {
    "llava": crop.place_center_crop,
    "vipllava": crop.place_center_crop,
    "llava_next": anyres.place_anyres,
    "llava_next_video": anyres.place_anyres,
    "llava_onevision": anyres.place_anyres,
    "pixtral": stretched.place_by_size,
    "mistral3": stretched.place_by_size,
    "qwen2_vl": stretched.place_by_grid,
    "qwen2_5_vl": stretched.place_by_grid,
    "qwen3_vl": stretched.place_by_grid,
    "qwen3_vl_moe": stretched.place_by_grid,
    "qwen3_5": stretched.place_by_grid,
    "qwen3_5_moe": stretched.place_by_grid,
    "glm4v": stretched.place_by_grid,
    "glm4v_moe": stretched.place_by_grid,
    "glm46v": stretched.place_by_grid,
    "paligemma": stretched.place_squashed,
    "gemma3": stretched.place_squashed,
    "idefics3": tiled.place_by_split,
    "smolvlm": tiled.place_by_split,
    "granite_docling": tiled.place_by_split,
    "internvl": tiled.place_by_ratio,
    "video_llava": crop.place_center_crop,
}

#: How it brings the frames of a video there.
OF_FRAMES: dict[str, Way] = {
    "llava_next_video": frames.place_pooled,
    "llava_onevision": frames.place_blended,
    "video_llava": frames.place_cropped,
    "qwen2_vl": frames.place_frames_by_grid,
    "qwen2_5_vl": frames.place_frames_by_grid,
    "qwen3_vl": frames.place_frames_by_grid,
    "glm4v": frames.place_frames_by_grid,
    "video_llama_3": frames.place_frames_by_grid,
}

#: A way, what it is told, and which of the visual tokens are its own.
_Kind = tuple[Way | None, Prepared, IntArray]

#: Where layouts come from: written where there is a way, else measured; always measured; nowhere.
HOW = ("auto", "measured", "none")

#: Layouts of so many sets of picture sizes are remembered.
_REMEMBERED = 256


@dataclass(frozen=True)
class Clips:
    """The videos of one prompt; their frames follow its pictures.

    Attributes:
        counts: how many frames each has.
        positions: of their own visual tokens, where these have an id of their own.
        first: how many videos of the batch came before these.
    """

    counts: tuple[int, ...] = ()
    positions: Sequence[int] = ()
    first: int = 0


@dataclass(frozen=True)
class PromptLayouts:
    """Where the visual tokens of one prompt lie.

    Attributes:
        layouts: one for each picture; empty where the tokens have no place, or where it is not known.
        unknown: why it is not known; empty where it is.
    """

    layouts: tuple[ImageLayout, ...] = ()
    unknown: str = ""


@dataclass(frozen=True)
class _Found:
    """What is remembered of a set of picture sizes: placements, or why this model can have none."""

    placements: Sequence[Placement]
    unknown: str = ""


class _Unmeasured(Exception):
    """A measurement that failed this time; the message says why."""


class Layouts:
    """The layouts of one model and processor, each worked out once for a set of picture sizes.

    Args:
        anatomy: of the unmodified model.
        processor: its processor, whole.
        how: one of ``HOW``.
    """

    def __init__(self, anatomy: Anatomy, processor: Any, how: str = "auto") -> None:
        if how not in HOW:
            raise BadInput(f"layout= takes one of {', '.join(HOW)}; got {how!r}")
        self._anatomy, self._processor, self.how = anatomy, processor, how
        self._known: OrderedDict[Any, _Found] = OrderedDict()

    @property
    def way(self) -> Way | None:
        """The written way of the model's family with a picture, if there is one."""
        return self._way(WAYS)

    def _way(self, ways: dict[str, Way]) -> Way | None:
        config = self._anatomy.model.config
        vision = getattr(config, "vision_config", None)
        kinds = (getattr(vision, "model_type", None), config.model_type)
        return None if self.how != "auto" else next((ways[kind] for kind in kinds if kind in ways), None)

    def _as_set(self) -> str:
        """What the processor is set to for pictures and videos, which may become otherwise between two questions."""
        parts = (getattr(self._processor, f"{kind}_processor", None) for kind in ("image", "video"))
        return "".join(repr(vars(part)) for part in parts if part is not None)

    def __call__(
        self,
        sizes: Sequence[tuple[int, int]],
        positions: Sequence[int],
        inputs: Mapping[str, Tensor],
        asking: Asking,
        settings: Mapping[str, Any] | None = None,
        first: int = 0,
        clips: Clips = Clips(),
    ) -> PromptLayouts:
        """The layout of each picture of one prompt, or why it is not known; a failure is not remembered.

        Args:
            sizes: (width, height) of each original, in order; frames of videos last.
            positions: sequence positions of all visual tokens of the prompt, in order.
            inputs: the model inputs, of the prompt alone or of its batch.
            asking: how to ask the model with other pictures in the same prompt, for a measurement.
            settings: what the call overrode of the image processor.
            first: how many still pictures of the batch came before these.
            clips: the videos among them.

        Raises:
            BadInput: the prompt has another number of visual tokens than these pictures give.
        """
        if not sizes or self.how == "none":
            return PromptLayouts()
        filmed = np.isin(positions, clips.positions)
        stills = len(sizes) - sum(clips.counts)
        if not stills:
            filmed[:] = True
        order = tuple(positions) if stills and clips.counts else len(positions)
        key = (tuple(sizes), clips.counts, order, repr(settings), self._as_set(), frames.pruned(inputs))
        if key not in self._known:
            kinds: list[_Kind] = []
            by = partial(Prepared.by, self._anatomy.model, self._processor, settings or {})
            if stills:
                kinds.append((self.way, by(sizes[:stills], inputs, first), np.flatnonzero(~filmed)))
            if clips.counts:
                ends = stills + np.cumsum(clips.counts)
                prepared = by([sizes[end - 1] for end in ends], inputs, clips.first, clips.counts)
                kinds.append((self._way(OF_FRAMES), prepared, np.flatnonzero(filmed)))
            try:
                self._known[key] = self._worked_out(kinds, asking, sizes, clips.counts, len(positions))
            except _Unmeasured as failure:
                return PromptLayouts(unknown=str(failure))
        self._known.move_to_end(key)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        found = self._known[key]
        return PromptLayouts(tuple(_placed(found.placements, sizes, positions)), found.unknown)

    def _worked_out(
        self,
        kinds: Sequence[_Kind],
        asking: Asking,
        sizes: Sequence[tuple[int, int]],
        videos: Sequence[int],
        tokens: int,
    ) -> _Found:
        """As written where that gives the right number of tokens: a processor may have settings nobody foresaw.

        Raises:
            BadInput: the pictures give another number of tokens, and the model knows no better.
            _Unmeasured: the model or its processor refused the measurement.
        """
        placements, given = [], 0
        for way, prepared, index in kinds:
            shares = self._written(way, prepared) if way is not None else []
            count = sum(share.count for share in shares)
            given += count
            if count == len(index):
                own = [replace(placement, index=index[placement.index]) for placement in in_a_row(shares)]
                placements += [placement for placement in own for _ in placement.frames or (None,)]
        if len(placements) == len(sizes):
            return _Found(placements)
        measured, failure = [NOWHERE for _ in sizes], None
        try:
            measured = measure(self._anatomy, asking, sizes, videos, tokens)
        except (ProbeError, ValueError, RuntimeError) as error:  # what is no refusal of theirs is a bug of ours
            if of_the_machine(error):
                raise
            failure = error
        if given not in (0, tokens) and not any(len(placement.index) for placement in measured):
            raise BadInput(
                f"the prompt has {tokens} visual tokens where its {len(sizes)} picture(s) give {given}; "
                "does this processor belong to this model?"
            ) from failure
        if failure is not None and not isinstance(failure, BadModel):
            raise _Unmeasured(f"measuring failed ({type(failure).__name__}: {first_line(failure)})") from failure
        return _Found(measured, "" if failure is None else str(failure))

    def _written(self, way: Way, prepared: Prepared) -> list[Share]:
        """What a written way says; nothing where it fails, for it may lean on what a later transformers changed."""
        try:
            return way(prepared)
        except Exception as error:
            if of_the_machine(error):
                raise
            warnings.warn(
                f"{way.__module__}.{way.__name__}, the written layout of {type(self._anatomy.model).__name__}, failed "
                f"({type(error).__name__}: {first_line(error)}); the places of its visual tokens are measured instead",
                stacklevel=2,
            )
            return []


def _placed(
    placements: Sequence[Placement], sizes: Sequence[tuple[int, int]], positions: Sequence[int]
) -> list[ImageLayout]:
    """In one prompt; nothing where no token has a place."""
    if not any(len(placement.index) for placement in placements):
        return []
    places = np.asarray(positions, dtype=np.int64)
    return [
        ImageLayout(size, places[placement.index], placement.boxes, placement.tiles, placement.grid, placement.frames)
        for size, placement in zip(sizes, placements, strict=True)
    ]
