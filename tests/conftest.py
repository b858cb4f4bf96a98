"""What stands before any test is imported, and the two models that most tests ask."""

from __future__ import annotations

import gc
import os
import sys

import pytest

import llava_probe as lp

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start: notebooks, commands


def pytest_collection() -> None:
    """Where tests are imported: under ``-n``, the process that only hands them out is spared torch and its seconds."""
    import torch

    from tests import torchvision_half

    torchvision_half.present()  # before transformers is imported
    torch.set_num_threads(1)  # two workers on two cores: more threads would wait for each other


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The notebooks first: each takes long, and the last of them would run while another worker has nothing to do.

    Then family after family what is tried in each: workers take what stands together, so that most families are built,
    asked and measured in one of them alone.
    """
    families = list(getattr(sys.modules.get("tests.zoo"), "NAMES", ()))

    def turn(item: pytest.Item) -> int:
        if item.path.suffix == ".ipynb":
            return -1
        name = item.callspec.params.get("name") if hasattr(item, "callspec") else None
        return families.index(name) if name in families else len(families)

    items.sort(key=turn)


def pytest_collection_finish() -> None:
    """What was imported stays, over a million objects: collections of garbage need not walk through them each time."""
    gc.freeze()


@pytest.fixture
def random_vlm() -> lp.VLM:
    """A fresh random LLaVA in float32."""
    from tests.models import llava_processor, random_llava

    return lp.VLM(random_llava(), llava_processor())


@pytest.fixture(scope="session")
def tiny_vlm() -> lp.VLM:
    """The trained tiny model, loaded once."""
    return lp.load()
