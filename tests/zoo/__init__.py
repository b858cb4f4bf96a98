"""Tiny random models of the families of transformers, with their real processors: built from configs, nothing fetched.

    vlm = zoo.vlm("qwen2_vl")           # an lp.VLM in float32, built once a session
    vlm = zoo.unplaced("qwen2_vl")      # the same without layouts
    model, processor = zoo.build("qwen2_vl")    # a fresh pair

Each builder is registered under its key in transformers' image-text-to-text mapping (``config.model_type``), or under
that key and a word for a variation (``"llava_next full"``). Random weights are wide enough that pictures matter.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import torch

from tests import torchvision_half

torchvision_half.present()  # before anything imports transformers

import pytest
import transformers

import llava_probe as lp
from tests.zoo import newer

newer.stand_in()

_FILES = (
    "llava",
    "qwen",
    "mistral",
    "tiles",
    "google",
    "measured",
    "slices",
    "native",
    "newest",
    "omni",
    "discrete",
    "placeless",
)

BUILDERS: dict[str, Callable[[], tuple[Any, Any]]] = {}

#: Every name that a builder is written for, whether this transformers has the family or not.
WRITTEN: set[str] = set()


def family(name: str) -> Callable[[Callable[[], tuple[Any, Any]]], Callable[[], tuple[Any, Any]]]:
    """Register a builder of (model, processor) under ``name``."""

    def register(builder: Callable[[], tuple[Any, Any]]) -> Callable[[], tuple[Any, Any]]:
        assert name not in WRITTEN, name
        WRITTEN.add(name)
        if newer.is_here(name):
            BUILDERS[name] = builder
        return builder

    return register


def build(name: str) -> tuple[Any, Any]:
    """A fresh model (float32, eval, seeded, no stop before the asked length) and its processor."""
    if not newer.is_here(name):
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    torch.manual_seed(0)
    model, processor = BUILDERS[name]()
    model = model.float().eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model, processor


@cache
def vlm(name: str) -> lp.VLM:
    """The one of a session; leave it as it was."""
    return lp.VLM(*build(name))


@cache
def unplaced(name: str) -> lp.VLM:
    """The same model, for claims in which the places of its visual tokens have no part: they are not searched for."""
    return lp.VLM(vlm(name).model, vlm(name).processor, layout="none")


for _file in _FILES:
    import_module(f"tests.zoo.{_file}")

NAMES = tuple(BUILDERS)
