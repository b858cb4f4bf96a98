"""A model and its processor by name: from the hub, from a folder, or the tiny one that ships inside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from transformers.utils import logging

from llava_probe import tiny
from llava_probe.border import Seed, checked
from llava_probe.errors import BadModel
from llava_probe.faults import of_the_machine
from llava_probe.inside import seam
from llava_probe.inside.undo import draws_as_now, undoing
from llava_probe.model import VLM

#: The name of the model that ships inside.
TINY = "tiny"

#: Original LLaVA checkpoints, which transformers cannot load, and their converted twins.
TWINS = {
    "liuhaotian/llava-v1.5-7b": "llava-hf/llava-1.5-7b-hf",
    "liuhaotian/llava-v1.5-13b": "llava-hf/llava-1.5-13b-hf",
    "liuhaotian/llava-v1.6-vicuna-7b": "llava-hf/llava-v1.6-vicuna-7b-hf",
    "liuhaotian/llava-v1.6-vicuna-13b": "llava-hf/llava-v1.6-vicuna-13b-hf",
    "liuhaotian/llava-v1.6-mistral-7b": "llava-hf/llava-v1.6-mistral-7b-hf",
    "liuhaotian/llava-v1.6-34b": "llava-hf/llava-v1.6-34b-hf",
}


@checked
def load(name: str | Path | None = None, *, random_weights: Seed | None = None, **kwargs: Any) -> VLM:
    """Load a model and its processor; with no name the tiny one that ships inside (in float32).

    Args:
        name: a repository on the Hugging Face hub, a folder, or ``"tiny"``.
        random_weights: a seed: the model's shape with the weights that its training began with, none of what it learnt;
            a control for probes.
        **kwargs: passed to ``AutoModelForImageTextToText.from_pretrained``: ``dtype``, ``device_map``,
            ``quantization_config``, ``revision``, ``attn_implementation`` ...

    Raises:
        BadModel: an original LLaVA checkpoint (the message names its converted twin), or nothing loadable.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    where = str(name) if name is not None else TINY
    if where == TINY:
        where, kwargs = str(tiny.path()), {"dtype": "float32", **kwargs}
    if where.startswith("liuhaotian/"):
        twin = TWINS.get(where)
        told = f"load its twin {twin!r}" if twin else "look for a converted checkpoint whose name ends in -hf"
        raise BadModel(f"{where} is an original LLaVA checkpoint, which transformers cannot read; {told}")
    shared: dict[str, Any] = {
        key: kwargs[key] for key in ("revision", "token", "cache_dir", "trust_remote_code") if key in kwargs
    }
    try:
        with _quietly(name is None or name == TINY):
            processor = AutoProcessor.from_pretrained(where, **shared)
            model = AutoModelForImageTextToText.from_pretrained(where, **kwargs)
    except Exception as error:  # each backend, format and quantiser has errors of its own
        if of_the_machine(error):
            error.add_note(f"while llava_probe loaded {where}")
            raise
        reason = " ".join(str(error).split())
        raise BadModel(f"{where} cannot be loaded as a vision-language model: {reason}") from error
    if seam.revision(model.config) is None and (commit := _commit(where, shared)) is not None:
        seam.note_revision(model.config, commit)
    if random_weights is not None:
        model = _untrained(model, random_weights)
    return VLM(model.eval(), processor)


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
