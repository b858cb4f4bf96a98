"""Private parts of transformers' processors: which of their parts can be done without."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from inspect import signature, unwrap
from pathlib import Path
from typing import Any, get_type_hints

from transformers import BaseImageProcessor, processing_utils
from transformers.utils import cached_file

from llava_probe.errors import BadInput
from llava_probe.inside.undo import undoing

#: By its full name: asked of its package, it may be a stand-in that wants torchvision, by what was imported before.
video_processing_auto = import_module("transformers.models.auto.video_processing_auto")

#: Where a checkpoint keeps the settings of its part for videos, and under which name in that file.
_SETTINGS = {"processor_config.json": "video_processor", "video_preprocessor_config.json": None}

#: Which part of a processor takes which of its settings.
_PARTS = {
    "text_kwargs": "tokenizer",
    "images_kwargs": "image_processor",
    "videos_kwargs": "video_processor",
    "audio_kwargs": "feature_extractor",
}
#: Of the text's settings, those that are taken by themselves too.
_MIRRORED = ("return_mm_token_type_ids", "return_text_replacement_offsets")

_QUIET = ("gated_repo", "missing_entries", "connection_errors")


class NoVideoProcessor(BaseImageProcessor):
    """Stands where a processor has one for videos, in an environment without torchvision. Pictures need none."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.settings = settings
        for name, value in settings.items():
            setattr(self, name, value)

    @classmethod
    def from_pretrained(cls, where: Any, **how: Any) -> NoVideoProcessor:  # type: ignore[override]
        """One that knows the settings of a checkpoint, so that they are saved again, and does nothing by them."""
        kept = {name: how[name] for name in ("cache_dir", "token", "revision", "local_files_only") if name in how}
        quietly = {f"_raise_exceptions_for_{what}": False for what in _QUIET}
        for file, name in _SETTINGS.items():
            path = cached_file(where, file, **kept, **quietly)
            read = {} if path is None else json.loads(Path(path).read_bytes())
            if found := read.get(name) if name is not None else read:
                return cls(**found)
        return cls()

    def to_dict(self) -> dict[str, Any]:
        """The settings as they were read."""
        return dict(self.settings)

    def __call__(self, *_videos: Any, **_settings: Any) -> Any:
        """Refuse a video.

        Raises:
            BadInput: always.
        """
        raise BadInput("this model's videos need torchvision; pip install 'llava_probe[vision]'")


def settings_of(processor: Any) -> frozenset[str] | None:
    """What a processor's call takes by name; it passes over all else. None where it has a way of its own."""
    call = unwrap(type(processor).__call__)
    merged = getattr(type(processor), "_merge_kwargs", None) is processing_utils.ProcessorMixin._merge_kwargs
    if not merged or "_merge_kwargs" not in call.__code__.co_names:
        return None
    kinds = get_type_hints(processor.valid_processor_kwargs)
    known = {*kinds, *signature(call).parameters, "common_kwargs", *_MIRRORED}
    for kind in _PARTS:
        known |= {*getattr(kinds.get(kind), "__annotations__", ())}
        part = getattr(processor, _PARTS[kind], None)
        known |= {*getattr(getattr(part, "valid_kwargs", None), "__annotations__", ())}
    return frozenset(known)


@contextmanager
def videos_optional() -> Iterator[None]:
    """Processors are loaded without their part for videos where torchvision, which all of these want, is missing."""
    with undoing() as undo:
        if find_spec("torchvision") is None:
            kinds, own = processing_utils.MODALITY_TO_BASE_CLASS_MAPPING, video_processing_auto.AutoVideoProcessor
            kind = kinds["video_processor"]
            undo(lambda: kinds.update(video_processor=kind))
            undo(lambda: setattr(video_processing_auto, "AutoVideoProcessor", own))
            kinds["video_processor"] = "ImageProcessingMixin"
            setattr(video_processing_auto, "AutoVideoProcessor", NoVideoProcessor)  # noqa: B010 - a class, to mypy
        yield
