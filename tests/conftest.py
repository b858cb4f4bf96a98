"""Tiny random models of each family, built from configs: no downloads, seconds to make, real processors."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start: notebooks, commands

from tests import torchvision_half

torchvision_half.present()

import pytest
import torch

import llava_probe as lp
from tests.models import llava_processor, random_llava

torch.set_num_threads(1)  # two workers on two cores: more threads would wait for each other


@pytest.fixture
def random_vlm() -> lp.VLM:
    """A fresh random LLaVA in float32."""
    return lp.VLM(random_llava(), llava_processor())


@pytest.fixture(scope="session")
def tiny_vlm() -> lp.VLM:
    """The trained tiny model, loaded once."""
    return lp.load()
