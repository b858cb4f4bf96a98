"""Loads what was found: the processor, the model, its adapter; and says beforehand when memory will not do."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from llava_probe.errors import BadInput, BadModel
from llava_probe.faults import of_the_machine
from llava_probe.inside import seam
from llava_probe.inside.undo import draws_as_now, undoing
from llava_probe.loading.adapters import put_on
from llava_probe.loading.check_row import CHECK_ROW, verify_row
from llava_probe.loading.folder import FoundModel
from llava_probe.loading.memory import free_memory, memory_needed
from llava_probe.loading.merging import merged
from llava_probe.loading.quantized import quantization_config
from llava_probe.model import VLM
from llava_probe.smol import TINY, shipped_name
from llava_probe.trace.capture import in_units

#: What the processor's files are read with too.
_SHARED = ("revision", "token", "cache_dir", "trust_remote_code", "local_files_only")


def loaded(
    found: FoundModel,
    name: Any,
    *,
    merge: bool,
    quantize: str | None,
    random_weights: int | None,
    settings: Mapping[str, Any],
) -> VLM:
    """The model that was found, with its processor.

    Args:
        found: by ``look``.
        name: how the user calls it.
        merge, quantize, random_weights, settings: as ``lp.load`` takes them.

    Raises:
        BadModel: it cannot be loaded after all.
    """
    ships_inside = shipped_name(found.where) is not None  # by its name, or as what an adapter was made for
    told = TINY if name is None else str(name)
    kwargs = {**({"dtype": "float32"} if ships_inside else {}), **settings}
    shared = {key: kwargs[key] for key in _SHARED if key in kwargs}
    _warn_of_memory(found, told, kwargs, quantize)
    if quantize is not None:
        kwargs["quantization_config"] = quantization_config(quantize, kwargs.get("dtype"))
    try:
        with _quietly(ships_inside):
            with seam.videos_optional():
                processor = AutoProcessor.from_pretrained(found.where, **shared)
            model = AutoModelForImageTextToText.from_pretrained(found.where, **kwargs)
    except Exception as error:  # each backend, format and quantiser has errors of its own
        if of_the_machine(error):
            error.add_note(f"while llava_probe loaded {told}")
            raise
        raise BadModel(f"{told} cannot be loaded as a vision-language model: {_reason(error)}") from error
    if seam.revision(model.config) is None and (commit := _commit(found.where, shared)) is not None:
        seam.note_revision(model.config, commit)
    if random_weights is not None:
        model = _untrained(model, random_weights)
    elif found.weights is not None:  # a folder, all of it as it lies there
        _verified(model.eval(), Path(found.where))
    if found.adapter is not None and random_weights is None:
        model, folder = put_on(model, found.adapter, shared), _folder_of(found.adapter, shared)
        _verified(model.eval(), folder)
        if merge:
            model = merged(model)
            _verified(model, _with_row(folder, found.adapter))
    return VLM(model.eval(), processor)


def _verified(model: Any, folder: Path | None) -> None:
    """Held to the row that was kept beside it when it was trained, where one was."""
    if folder is not None and os.path.lexists(folder / CHECK_ROW):
        verify_row(model, folder)


def _with_row(folder: Path | None, adapter: str) -> Path:
    """The folder, if a check row is in it."""
    if folder is None or not os.path.lexists(folder / CHECK_ROW):
        raise BadInput(
            f"merged, an adapter may be another one, and beside {adapter} lies no {CHECK_ROW} to try it on, as "
            "lp.finetune leaves one; load it without merge=True"
        )
    return folder


def _folder_of(adapter: str, shared: Mapping[str, Any]) -> Path | None:
    """Where an adapter's files are, those of a repository fetched; None where no check row is among them."""
    folder = Path(adapter).expanduser()
    if folder.is_dir():
        return folder
    how = {key: shared[key] for key in ("token", "cache_dir", "local_files_only") if key in shared}
    try:
        return Path(hf_hub_download(adapter, CHECK_ROW, **how)).parent
    except EntryNotFoundError:  # nor in the cache, where there is no network
        return None


def _reason(error: Exception) -> str:
    if "orchvision" in str(error):
        return "its processor needs torchvision; pip install 'llava_probe[vision]'"
    return " ".join(str(error).split())


def _warn_of_memory(found: FoundModel, told: str, kwargs: Mapping[str, Any], quantize: str | None) -> None:
    """Say before it is loaded that a model will not fit where it is to lie."""
    size, place = memory_needed(found, kwargs.get("dtype"), quantize), kwargs.get("device_map")
    free = free_memory()
    if torch.cuda.is_available() and (place is not None and place != "cpu"):
        cards = sum(torch.cuda.mem_get_info(card)[0] for card in range(torch.cuda.device_count()))
        free = cards + (free or 0) if place == "auto" else cards
    if size is None or free is None or size <= free:
        return
    ways = [f"dtype={'bfloat16'!r}"] * (str(kwargs.get("dtype")).endswith("float32"))
    ways += ["quantize='4bit'"] * (quantize != "4bit") + ["device_map='auto'"] * (place is None)
    way = " or ".join(ways) or "a smaller model"
    warnings.warn(f"{told} needs about {in_units(size)}, and {in_units(free)} are free; try {way}", stacklevel=4)


def _commit(where: str, shared: Mapping[str, Any]) -> str | None:
    """The commit of a repository that was just read into the hub's cache, whose folders bear these names."""
    if Path(where).exists():
        return None
    file = try_to_load_from_cache(where, "config.json", shared.get("cache_dir"), shared.get("revision"))
    return Path(file).parent.name if isinstance(file, str) else None


def _untrained(model: Any, seed: int) -> Any:
    """A model of the same class, shape, dtype and place, initialised anew; torch's own draws go on as before."""
    with undoing() as undo:
        undo(draws_as_now())
        torch.manual_seed(seed)
        with torch.device(model.device):
            untrained = seam.built(type(model), model.config, dtype=model.dtype)
    untrained.generation_config = model.generation_config
    seam.rename(untrained.config, f"{seam.checkpoint(model.config)} with random weights, seed {seed}")
    return untrained


@contextmanager
def _quietly(quiet: bool) -> Iterator[None]:
    """Without the progress bar of weights that load in a blink."""
    with undoing() as undo:
        if quiet and logging.is_progress_bar_enabled():
            undo(logging.enable_progress_bar)
            logging.disable_progress_bar()
        yield
