"""A process's own settings change nothing that is made, and are as they were afterwards."""

from __future__ import annotations

import contextlib
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import llava_probe as lp
from llava_probe.border import checked
from llava_probe.tiny import scene


@contextlib.contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def small_pictures_only():
    Image.MAX_IMAGE_PIXELS, before = 10, Image.MAX_IMAGE_PIXELS
    try:
        yield
        assert Image.MAX_IMAGE_PIXELS == 10
    finally:
        Image.MAX_IMAGE_PIXELS = before


@contextlib.contextmanager
def warnings_as_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


SETTINGS = {
    "double precision": lambda: default_dtype(torch.float64),
    "half precision": lambda: default_dtype(torch.bfloat16),
    "a default device": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "NumPy raising": lambda: np.errstate(all="raise"),
    "warnings as errors": warnings_as_errors,
    "small pictures only": small_pictures_only,
}


@checked
def everything(vlm: lp.VLM) -> tuple[lp.Trace, torch.Tensor, torch.Tensor, torch.Tensor]:
    trace = vlm.generate(
        scene(34).image, "What is the text on the stop sign?", max_new_tokens=2, seed=0, do_sample=True
    )
    gradient = lp.attribute(vlm, trace, "gradient")
    return trace, lp.attention_map(trace).values, lp.confidence(trace).probability, gradient.values


@pytest.fixture(scope="module")
def expected():
    return everything(lp.load())


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_what_is_made_under_a_setting_is_what_is_made_without(setting, expected):
    vlm = lp.load()
    with setting():
        trace, *values = everything(vlm)
    assert trace == expected[0]
    for value, right in zip(values, expected[1:], strict=True):
        assert value.dtype == right.dtype and torch.equal(value, right)


def test_settings_are_given_back():
    with default_dtype(torch.float64), torch.autocast("cpu", dtype=torch.bfloat16), np.errstate(all="raise"):
        with pytest.raises(lp.BadInput):
            checked(lambda: lp.load().generate(question=""))()
        assert torch.get_default_dtype() is torch.float64 and torch.is_autocast_enabled("cpu")
        assert set(np.geterr().values()) == {"raise"}
